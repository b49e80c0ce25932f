// SPDX-License-Identifier: Apache-2.0

package mcp_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestCloseWithOpenStreams: Close awaits the goroutines of streams that are open, and none begins behind its back. The race
// detector sees one that begins without its knowing.
func TestCloseWithOpenStreams(t *testing.T) {
	w := newWorld(t)
	heard := make(chan struct{}, 8)
	upstream := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			rw.Header().Set("Content-Type", "text/event-stream")
			_ = http.NewResponseController(rw).Flush()
			heard <- struct{}{}
			<-r.Context().Done()
			return
		}
		greetOlder(rw, r)
	}))
	t.Cleanup(func() { upstream.CloseClientConnections(); upstream.Close() })
	w.at("desk", upstream.URL)
	w.view.Call["desk/greet"] = true
	_, _, head := w.send("/mcp/desk", hello)
	res, err := http.DefaultClient.Do(w.stream(t, "/mcp/desk", head.Get("Mcp-Session-Id")))
	if err != nil || res.StatusCode != http.StatusOK {
		t.Fatal(err, res.Status)
	}
	defer res.Body.Close()
	<-heard
	w.handler.Close()
	if _, err := io.ReadAll(res.Body); err != nil { // the stream ends with the gateway
		t.Error(err)
	}
	for path, body := range map[string]string{"/mcp/desk": hello, "/mcp": hello} {
		if _, answer, _ := w.send(path, body); !strings.Contains(answer, "is closing") {
			t.Errorf("%s: a session was opened at a gateway that is closed: %s", path, answer)
		}
	}
	if _, answer := w.modern("/mcp/desk", "tools/call", "greet", greetAnn); !strings.Contains(answer, "is closing") {
		t.Error(answer)
	}
}

// TestCloseWhileGreeting: a connection that is closed before its server has answered stays closed, and its session is ended.
func TestCloseWhileGreeting(t *testing.T) {
	w := newWorld(t)
	asked, answer, deleted := make(chan struct{}), make(chan struct{}), make(chan struct{})
	var once sync.Once
	upstream := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodDelete {
			close(deleted)
			return
		}
		once.Do(func() { close(asked); <-answer })
		greetOlder(rw, r)
	}))
	t.Cleanup(func() { upstream.CloseClientConnections(); upstream.Close() })
	w.at("desk", upstream.URL)
	w.view.Call["desk/greet"] = true
	got := make(chan string)
	go func() {
		_, body, _ := w.send("/mcp/desk", hello)
		got <- body
	}()
	<-asked
	w.handler.Close()
	close(answer)
	if body := <-got; !strings.Contains(body, "it has ended") {
		t.Error(body)
	}
	select {
	case <-deleted:
	case <-time.After(20 * time.Second):
		t.Error("the server's session was left open")
	}
}

const hello = `{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"c","version":"1"}}}`

// greetOlder answers as a server of the older era with a session and one tool.
func greetOlder(rw http.ResponseWriter, r *http.Request) {
	var m struct {
		ID     json.RawMessage `json:"id"`
		Method string          `json:"method"`
	}
	_ = json.NewDecoder(r.Body).Decode(&m)
	rw.Header().Set("Content-Type", "application/json")
	switch m.Method {
	case "initialize":
		rw.Header().Set("Mcp-Session-Id", "s")
		fmt.Fprintf(rw, `{"jsonrpc":"2.0","id":%s,"result":{"protocolVersion":"2025-11-25","capabilities":{"tools":{}},"serverInfo":{"name":"x","version":"1"}}}`, m.ID)
	case "tools/list":
		fmt.Fprintf(rw, oneTool, m.ID)
	default:
		rw.WriteHeader(http.StatusAccepted)
	}
}

// stream is the request for the stream of a session.
func (w *world) stream(t *testing.T, path, session string) *http.Request {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, w.url+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept", "text/event-stream")
	req.Header.Set("Mcp-Session-Id", session)
	return req
}
