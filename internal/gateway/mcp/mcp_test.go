// SPDX-License-Identifier: Apache-2.0

package mcp_test

import (
	"context"
	"errors"
	"testing"
	"time"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"

	"remit"
)

type greet struct {
	Name string `json:"name"`
}

// desk is a server with a few tools.
func desk(stateless bool) *sdk.Server {
	s := sdk.NewServer(&sdk.Implementation{Name: "desk", Version: "1"}, nil)
	sdk.AddTool(s, &sdk.Tool{Name: "greet", Description: "says hello"}, func(_ context.Context, _ *sdk.CallToolRequest, in greet) (*sdk.CallToolResult, any, error) {
		return &sdk.CallToolResult{Content: []sdk.Content{&sdk.TextContent{Text: "hello " + in.Name}}}, nil, nil
	})
	sdk.AddTool(s, &sdk.Tool{Name: "ask", Description: "asks the user"}, func(ctx context.Context, r *sdk.CallToolRequest, in greet) (*sdk.CallToolResult, any, error) {
		question := &sdk.ElicitParams{Message: "which " + in.Name + "?", RequestedSchema: map[string]any{"type": "object",
			"properties": map[string]any{"it": map[string]any{"type": "string"}}}}
		var a *sdk.ElicitResult
		var err error
		if !stateless {
			a, err = r.Session.Elicit(ctx, question)
		} else if a, _ = r.Params.InputResponses["q"].(*sdk.ElicitResult); a == nil {
			return &sdk.CallToolResult{InputRequests: sdk.InputRequestMap{"q": question}, RequestState: "kept " + in.Name}, nil, nil
		} else if r.Params.RequestState != "kept "+in.Name {
			err = errors.New("state lost")
		}
		if err != nil {
			return nil, nil, err
		}
		it, _ := a.Content["it"].(string)
		return &sdk.CallToolResult{Content: []sdk.Content{&sdk.TextContent{Text: a.Action + " " + it}}}, nil, nil
	})
	sdk.AddTool(s, &sdk.Tool{Name: "secret", Description: "is not for everybody"}, func(context.Context, *sdk.CallToolRequest, greet) (*sdk.CallToolResult, any, error) {
		return &sdk.CallToolResult{}, nil, nil
	})
	return s
}

// matrix runs f with each era of clients in front of each kind of server.
func matrix(t *testing.T, f func(t *testing.T, w *world, stateless bool)) {
	for _, upstream := range []string{"stateless", "session", "pipe"} {
		for _, client := range []string{"stateless", "session"} {
			t.Run(client+" client, "+upstream+" server", func(t *testing.T) {
				w := newWorld(t)
				if upstream == "pipe" {
					w.servePipe("desk", desk(false))
				} else {
					w.serveHTTP("desk", desk(upstream == "stateless"), upstream == "stateless")
				}
				w.view.Call["desk/greet"], w.view.Call["desk/ask"] = true, true
				f(t, w, client == "stateless")
			})
		}
	}
}

func TestCalls(t *testing.T) {
	matrix(t, func(t *testing.T, w *world, stateless bool) {
		ctx := context.Background()
		for path, prefix := range map[string]string{"/mcp/desk": "", "/mcp": "desk__"} {
			s := w.client(path, stateless, nil)
			tools, err := s.ListTools(ctx, nil)
			if err != nil || len(tools.Tools) != 2 || tools.Tools[1].Name != prefix+"greet" {
				t.Fatalf("%v %+v", err, tools)
			}
			r, err := s.CallTool(ctx, &sdk.CallToolParams{Name: prefix + "greet", Arguments: map[string]any{"name": "Ann"}})
			if err != nil || r.IsError || text(r) != "hello Ann" {
				t.Fatalf("%v %+v", err, r)
			}
			req := w.last()
			if req.Action != "mcp.call" || req.Target != "desk/greet" || req.Args["name"].Text() != "Ann" || req.Run != w.run || req.Agent != "agent/support" {
				t.Errorf("%+v", req)
			}
			r, err = s.CallTool(ctx, &sdk.CallToolParams{Name: prefix + "secret", Arguments: map[string]any{"name": "Ann"}})
			if err != nil || !r.IsError {
				t.Errorf("%v %+v", err, r)
			}
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		if len(w.acts) == 0 || w.acts[0].Decision == "" || !w.acts[0].Effective || w.acts[0].Detail["result"] == "" {
			t.Errorf("%+v", w.acts)
		}
	})
}

var _ = remit.Allow

// The server asks the user in the middle of a call: in whichever era either side is.
func TestElicitation(t *testing.T) {
	matrix(t, func(t *testing.T, w *world, stateless bool) {
		o := &sdk.ClientOptions{ElicitationHandler: func(_ context.Context, r *sdk.ElicitRequest) (*sdk.ElicitResult, error) {
			return &sdk.ElicitResult{Action: "accept", Content: map[string]any{"it": r.Params.Message + "42"}}, nil
		}}
		s := w.client("/mcp/desk", stateless, o)
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		r, err := s.CallTool(ctx, &sdk.CallToolParams{Name: "ask", Arguments: map[string]any{"name": "door"}})
		if err != nil || text(r) != "accept which door?42" {
			t.Fatalf("%v %+v %s", err, r, text(r))
		}
	})
}
