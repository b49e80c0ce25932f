// SPDX-License-Identifier: Apache-2.0

package mcp_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"

	"remit"
)

// hear opens the stream of a session and returns its lines, until it ends.
func (w *world) hear(ctx context.Context, path, session string) (status int, lines chan string) {
	w.t.Helper()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, w.url+path, http.NoBody)
	if err != nil {
		w.t.Fatal(err)
	}
	req.Header.Set("Accept", "text/event-stream")
	req.Header.Set("Mcp-Session-Id", session)
	return w.lines(req)
}

func (w *world) lines(req *http.Request) (status int, lines chan string) {
	w.t.Helper()
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	lines = make(chan string, 1024)
	go func() {
		defer close(lines)
		defer res.Body.Close()
		for s := bufio.NewScanner(res.Body); s.Scan(); {
			if strings.HasPrefix(s.Text(), "data:") {
				lines <- s.Text()
			}
		}
	}()
	return res.StatusCode, lines
}

// ends waits for the end of a stream.
func ends(t *testing.T, what string, lines chan string) {
	t.Helper()
	for after := time.After(10 * time.Second); ; {
		select {
		case _, ok := <-lines:
			if !ok {
				return
			}
		case <-after:
			t.Fatalf("%s: the stream goes on", what)
		}
	}
}

// TestStreamsEnd: who is suspended, or whose run is in another stage, hears nothing more on a stream that was allowed once, and opens no
// other by an old session.
func TestStreamsEnd(t *testing.T) {
	w := newWorld(t)
	s := sdk.NewServer(&sdk.Implementation{Name: "kb"}, &sdk.ServerOptions{
		SubscribeHandler:   func(context.Context, *sdk.SubscribeRequest) error { return nil },
		UnsubscribeHandler: func(context.Context, *sdk.UnsubscribeRequest) error { return nil }})
	s.AddResource(&sdk.Resource{URI: "kb://one", Name: "one"}, func(context.Context, *sdk.ReadResourceRequest) (*sdk.ReadResourceResult, error) {
		return &sdk.ReadResourceResult{}, nil
	})
	w.servePipe("kb", s)
	w.view.List["kb"] = true
	ctx, cancel := context.WithTimeout(context.Background(), 40*time.Second)
	defer cancel()
	_, body, head := w.send("/mcp/kb", `{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"x","version":"1"}}}`)
	session := head.Get("Mcp-Session-Id")
	if session == "" {
		t.Fatal(body)
	}
	if _, body, _ = w.send("/mcp/kb", `{"jsonrpc":"2.0","id":2,"method":"resources/subscribe","params":{"uri":"kb://one"}}`, "Mcp-Session-Id", session); !strings.Contains(body, `"result"`) {
		t.Fatal(body)
	}
	heard := func(lines chan string, for_ time.Duration) bool {
		for end := time.Now().Add(for_); time.Now().Before(end); {
			_ = s.ResourceUpdated(ctx, &sdk.ResourceUpdatedNotificationParams{URI: "kb://one"})
			select {
			case l, ok := <-lines:
				if ok && strings.Contains(l, "kb://one") {
					return true
				}
			case <-time.After(20 * time.Millisecond):
			}
		}
		return false
	}
	status, lines := w.hear(ctx, "/mcp/kb", session)
	if status != http.StatusOK || !heard(lines, 20*time.Second) {
		t.Fatalf("%d: a subscription is not heard", status)
	}
	w.set(func() { w.why = []remit.Reason{{Code: remit.ReasonSuspended}} })
	ends(t, "suspended", lines)
	if status, _ = w.hear(ctx, "/mcp/kb", session); status != http.StatusForbidden {
		t.Errorf("suspended: a stream is opened: %d", status)
	}
	w.set(func() { w.why = nil })
	if status, lines = w.hear(ctx, "/mcp/kb", session); status != http.StatusOK || !heard(lines, 20*time.Second) {
		t.Fatalf("%d: reinstated, nothing is heard", status)
	}
	w.set(func() { w.view.Stage = "later" })
	ends(t, "another stage", lines)
	if status, lines = w.hear(ctx, "/mcp/kb", session); status != http.StatusOK || heard(lines, 300*time.Millisecond) {
		t.Errorf("%d: in another stage what was subscribed to before is heard", status)
	}
}

// TestStreamsEndAtOnce: a recheck ends a stream that may not go on, without waiting for the next look, and no other.
func TestStreamsEndAtOnce(t *testing.T) {
	w := newWorld(t)
	w.servePipe("kb", sdk.NewServer(&sdk.Implementation{Name: "kb"}, nil))
	w.view.List["kb"] = true
	_, _, head := w.send("/mcp/kb", `{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"x","version":"1"}}}`)
	var took []time.Duration
	for range 7 {
		status, lines := w.hear(context.Background(), "/mcp/kb", head.Get("Mcp-Session-Id"))
		if status != http.StatusOK {
			t.Fatal(status)
		}
		w.handler.Recheck()
		select {
		case <-lines:
			t.Fatal("a stream that may go on has ended")
		case <-time.After(20 * time.Millisecond):
		}
		w.set(func() { w.why = []remit.Reason{{Code: remit.ReasonSuspended}} })
		began := time.Now()
		w.handler.Recheck()
		ends(t, "suspended", lines)
		took = append(took, time.Since(began))
		w.set(func() { w.why = nil })
	}
	slices.Sort(took)
	if took[3] > 250*time.Millisecond { // the next look alone would take half a second in the median
		t.Errorf("streams ended after %v", took)
	}
}

// TestListeningEnds is the same for subscriptions/listen of the stateless era.
func TestListeningEnds(t *testing.T) {
	w := newWorld(t)
	srv := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		var m struct {
			ID     json.RawMessage `json:"id"`
			Method string          `json:"method"`
		}
		b, _ := io.ReadAll(r.Body)
		_ = json.Unmarshal(b, &m)
		if m.Method != "subscriptions/listen" {
			rw.Header().Set("Content-Type", "application/json")
			fmt.Fprintf(rw, `{"jsonrpc":"2.0","id":%s,"result":{"supportedVersions":["2026-07-28"],"capabilities":{"resources":{}}}}`, m.ID)
			return
		}
		rw.Header().Set("Content-Type", "text/event-stream")
		for r.Context().Err() == nil {
			fmt.Fprintf(rw, "data: %s\n\n", `{"jsonrpc":"2.0","method":"notifications/resources/list_changed","params":{}}`)
			_ = http.NewResponseController(rw).Flush()
			time.Sleep(20 * time.Millisecond)
		}
	}))
	t.Cleanup(func() { srv.CloseClientConnections(); srv.Close() })
	w.at("kb", srv.URL)
	w.view.List["kb"] = true
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, w.url+"/mcp/kb",
		strings.NewReader(`{"jsonrpc":"2.0","id":1,"method":"subscriptions/listen","params":{`+modernMeta+`,"notifications":{"resourcesListChanged":true}}}`))
	if err != nil {
		t.Fatal(err)
	}
	for k, v := range map[string]string{"Content-Type": "application/json", "Accept": "application/json, text/event-stream", "Mcp-Protocol-Version": "2026-07-28",
		"Mcp-Method": "subscriptions/listen"} {
		req.Header.Set(k, v)
	}
	status, lines := w.lines(req)
	if l, ok := <-lines; status != http.StatusOK || !ok || !strings.Contains(l, "list_changed") {
		t.Fatalf("%d %s", status, l)
	}
	w.set(func() { w.why = []remit.Reason{{Code: remit.ReasonSuspended}} })
	ends(t, "suspended", lines)
}

// TestNothingUndecidedGoesUpstream: what a client says beside what is decided does not reach a tool's server, in either era.
func TestNothingUndecidedGoesUpstream(t *testing.T) {
	for _, modern := range []bool{true, false} {
		w := newWorld(t)
		seen := make(chan string, 64)
		srv := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			var m struct {
				ID     json.RawMessage `json:"id"`
				Method string          `json:"method"`
			}
			b, _ := io.ReadAll(r.Body)
			_ = json.Unmarshal(b, &m)
			seen <- fmt.Sprint(string(b), r.Header)
			rw.Header().Set("Content-Type", "application/json")
			result := `{"resultType":"complete","content":[]}`
			switch {
			case len(m.ID) == 0:
				rw.WriteHeader(http.StatusAccepted)
				return
			case m.Method == "server/discover" && !modern:
				fmt.Fprintf(rw, `{"jsonrpc":"2.0","id":%s,"error":{"code":-32601,"message":"x"}}`, m.ID)
				return
			case m.Method == "server/discover":
				result = `{"supportedVersions":["2026-07-28"],"capabilities":{"tools":{}}}`
			case m.Method == "initialize":
				result = `{"protocolVersion":"2025-11-25","capabilities":{"tools":{}},"serverInfo":{"name":"x","version":"1"}}`
			case m.Method == "tools/list":
				result = `{"tools":[{"name":"send","inputSchema":{"type":"object"}}]}`
			}
			fmt.Fprintf(rw, `{"jsonrpc":"2.0","id":%s,"result":%s}`, m.ID, result)
		}))
		t.Cleanup(func() { srv.CloseClientConnections(); srv.Close() })
		w.at("mail", srv.URL)
		w.view.Call["mail/send"] = true
		meta := func(more string) string {
			return `"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{"elicitation":{"form":{"x":"LOOT"}},"LOOT":{}},
				"io.modelcontextprotocol/clientInfo":{"name":"LOOT","version":"1"},"tracestate":"a=LOOT","progressToken":"LOOT","LOOT":"LOOT"` + more + `}`
		}
		call := func(meta string) string {
			_, body, _ := w.send("/mcp/mail", `{"jsonrpc":"2.0","id":"LOOT","method":"tools/call","params":{`+meta+`,"name":"send","arguments":{"to":"bob"},"LOOT":"LOOT"}}`,
				"Mcp-Protocol-Version", "2026-07-28", "Mcp-Method", "tools/call", "Mcp-Name", "send", "LOOT", "LOOT")
			return body
		}
		if body := call(meta("")); !strings.Contains(body, `"content"`) {
			t.Fatalf("modern %v: %s", modern, body)
		}
		for _, bad := range []string{`,"traceparent":"LOOT"`, `,"io.modelcontextprotocol/logLevel":"LOOT"`} {
			if body := call(meta(bad)); !strings.Contains(body, `"error"`) {
				t.Errorf("modern %v, %s: %s", modern, bad, body)
			}
		}
		_, _, head := w.send("/mcp/mail", `{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{"sampling":{"context":{"x":"LOOT"}},"LOOT":{}},"clientInfo":{"name":"LOOT","version":"1"}}}`)
		_, body, _ := w.send("/mcp/mail", `{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"_meta":{"tracestate":"a=LOOT"},"name":"send","arguments":{"to":"bob"}}}`, "Mcp-Session-Id", head.Get("Mcp-Session-Id"))
		if !strings.Contains(body, `"content"`) {
			t.Errorf("modern %v: %s", modern, body)
		}
		for len(seen) > 0 {
			if got := <-seen; strings.Contains(got, "LOOT") || strings.Contains(got, "Loot") {
				t.Errorf("modern %v: the server got %s", modern, got)
			}
		}
	}
}

// TestOnlyQuestionsAreAnswered: answers that the tool did not ask for do not reach it: nobody decided them.
func TestOnlyQuestionsAreAnswered(t *testing.T) {
	w := newWorld(t)
	s := desk(true)
	sdk.AddTool(s, &sdk.Tool{Name: "eager", Description: "takes an answer that it did not ask for, and keeps no state"},
		func(_ context.Context, r *sdk.CallToolRequest, _ greet) (*sdk.CallToolResult, any, error) {
			if a, _ := r.Params.InputResponses["q"].(*sdk.ElicitResult); a != nil {
				return &sdk.CallToolResult{Content: []sdk.Content{&sdk.TextContent{Text: "taken"}}}, nil, nil
			}
			return &sdk.CallToolResult{InputRequests: sdk.InputRequestMap{"other": &sdk.ElicitParams{Message: "?", RequestedSchema: map[string]any{"type": "object",
				"properties": map[string]any{"it": map[string]any{"type": "string"}}}}}}, nil, nil
		})
	w.serveHTTP("desk", s, true)
	w.view.Call["desk/eager"] = true
	w.view.Call["desk/ask"] = true
	answers := `,"inputResponses":{"q":{"action":"accept","content":{"it":"mine"}}}`
	state := `,"requestState":"kept door"`
	if status, body := w.modern("/mcp/desk", "tools/call", "ask", `,"name":"ask","arguments":{"name":"door"}`+state+answers); status != http.StatusBadRequest {
		t.Errorf("a state of one's own: %d %s", status, body)
	}
	if _, body := w.modern("/mcp/desk", "tools/call", "ask", `,"name":"ask","arguments":{"name":"door"}`+answers); !strings.Contains(body, "input_required") {
		t.Errorf("an answer before the question: %s", body)
	}
	_, body := w.modern("/mcp/desk", "tools/call", "ask", `,"name":"ask","arguments":{"name":"door"}`)
	type required struct {
		Result struct {
			State    string                     `json:"requestState"`
			Requests map[string]json.RawMessage `json:"inputRequests"`
		} `json:"result"`
	}
	var r, other required
	if err := json.Unmarshal([]byte(body), &r); err != nil || r.Result.State == "" || len(r.Result.Requests) != 1 {
		t.Fatalf("%v %s", err, body)
	}
	state = fmt.Sprintf(`,"name":"ask","arguments":{"name":"door"},"requestState":%q`, r.Result.State)
	eager := `,"name":"eager","arguments":{"name":"door"}`
	_, body = w.modern("/mcp/desk", "tools/call", "eager", eager)
	if err := json.Unmarshal([]byte(body), &other); err != nil || other.Result.State == "" {
		t.Fatalf("%v %s", err, body)
	}
	if _, body := w.modern("/mcp/desk", "tools/call", "eager", eager+fmt.Sprintf(`,"requestState":%q`, other.Result.State)+answers); !strings.Contains(body, "input_required") {
		t.Errorf("an answer to another question: %s", body)
	}
	for name := range r.Result.Requests {
		if _, body := w.modern("/mcp/desk", "tools/call", "ask", state+strings.Replace(answers, `"q"`, fmt.Sprintf("%q", name), 1)); !strings.Contains(body, "mine") {
			t.Errorf("the answer to what was asked: %s", body)
		}
	}
}

// TestCompletionsAreDecided on all that the server gets: the argument that is completed and those that stand already.
func TestCompletionsAreDecided(t *testing.T) {
	w := deskWorld(t, true)
	complete := func(ref, more string) (int, string) {
		return w.modern("/mcp/desk", "completion/complete", "", `,"ref":`+ref+`,"argument":{"name":"path","value":"../secret"}`+more)
	}
	complete(`{"type":"ref/resource","uri":"file:///public/{path}"}`, `,"context":{"arguments":{"team":"red"}}`)
	if req := w.last(); req.Action != "mcp.read" || req.Args["uri"].Text() != "file:///public/{path}" || req.Args["arguments"].Field("path").Text() != "../secret" ||
		req.Args["arguments"].Field("team").Text() != "red" {
		t.Errorf("%+v", req)
	}
	n := len(w.asked)
	if status, body := complete(`{"type":"ref/prompt","name":"p"}`, `,"context":{"arguments":{"path":"another"}}`); status != http.StatusBadRequest || len(w.asked) != n {
		t.Errorf("one argument twice: %d %s", status, body)
	}
}
