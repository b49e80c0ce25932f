// SPDX-License-Identifier: Apache-2.0

package mcp_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"

	"remit"
)

// ended gets a value when a call that would last for ever was given up.
var ended = make(chan struct{}, 64)

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
	sdk.AddTool(s, &sdk.Tool{Name: "slow", Description: "takes its time"}, func(ctx context.Context, r *sdk.CallToolRequest, in greet) (*sdk.CallToolResult, any, error) {
		if t := r.Params.GetProgressToken(); t != nil {
			_ = r.Session.NotifyProgress(ctx, &sdk.ProgressNotificationParams{ProgressToken: t, Progress: 1, Message: in.Name})
		}
		if in.Name == "for ever" {
			<-ctx.Done()
			ended <- struct{}{}
		}
		return &sdk.CallToolResult{Content: []sdk.Content{&sdk.TextContent{Text: "done"}}}, nil, nil
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

// What a server says of its progress reaches the client that asked, under the client's own token; a call that the client gives up
// is given up at the server.
func TestProgressAndCancellation(t *testing.T) {
	matrix(t, func(t *testing.T, w *world, stateless bool) {
		w.view.Call["desk/slow"] = true
		progress := make(chan *sdk.ProgressNotificationParams, 4)
		s := w.client("/mcp/desk", stateless, &sdk.ClientOptions{ProgressNotificationHandler: func(_ context.Context, r *sdk.ProgressNotificationClientRequest) {
			progress <- r.Params
		}})
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		call := &sdk.CallToolParams{Name: "slow", Arguments: map[string]any{"name": "soon"}}
		call.SetProgressToken("mine")
		if r, err := s.CallTool(ctx, call); err != nil || text(r) != "done" {
			t.Fatalf("%v %+v", err, r)
		}
		if p := <-progress; p.ProgressToken != "mine" || p.Message != "soon" {
			t.Errorf("%+v", p)
		}
		given, giveUp := context.WithCancel(ctx)
		call = &sdk.CallToolParams{Name: "slow", Arguments: map[string]any{"name": "for ever"}}
		call.SetProgressToken("other")
		go func() { <-progress; giveUp() }()
		if _, err := s.CallTool(given, call); err == nil {
			t.Error("a call that was given up has a result")
		}
		select {
		case <-ended:
		case <-ctx.Done():
			t.Error("the server still works on a call that was given up")
		}
		if r, err := s.CallTool(ctx, &sdk.CallToolParams{Name: "greet", Arguments: map[string]any{"name": "Ann"}}); err != nil || text(r) != "hello Ann" {
			t.Errorf("after that: %v %+v", err, r)
		}
	})
}

// Resources and prompts are decided, too, on what is asked for.
func TestOtherMethodsAreDecided(t *testing.T) {
	w := newWorld(t)
	w.serveHTTP("desk", desk(true), true)
	w.view.Call["desk/greet"] = true
	s := w.client("/mcp/desk", true, nil)
	ctx := context.Background()
	if _, err := s.ReadResource(ctx, &sdk.ReadResourceParams{URI: "file:///etc/passwd"}); err == nil || !strings.Contains(err.Error(), "not_permitted") {
		t.Errorf("%v", err)
	}
	if req := w.last(); req.Action != "mcp.read" || req.Target != "desk" || req.Args["uri"].Text() != "file:///etc/passwd" {
		t.Errorf("%+v", req)
	}
	if _, err := s.GetPrompt(ctx, &sdk.GetPromptParams{Name: "p", Arguments: map[string]string{"a": "b"}}); err == nil || !strings.Contains(err.Error(), "not_permitted") {
		t.Errorf("%v", err)
	}
	if req := w.last(); req.Action != "mcp.prompt" || req.Args["name"].Text() != "p" || req.Args["arguments"].Field("a").Text() != "b" {
		t.Errorf("%+v", req)
	}
	if _, err := s.Complete(ctx, &sdk.CompleteParams{Ref: &sdk.CompleteReference{Type: "ref/prompt", Name: "p"}, Argument: sdk.CompleteParamsArgument{Name: "a", Value: "x"}}); err == nil {
		t.Error("completed without a permission")
	}
	if req := w.last(); req.Action != "mcp.prompt" || req.Args["arguments"].Field("a").Text() != "x" {
		t.Errorf("%+v", req)
	}
}
