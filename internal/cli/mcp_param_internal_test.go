// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// bridgeTo returns what the bridge writes for the lines, in front of a gateway that is the handler.
func bridgeTo(t *testing.T, h http.HandlerFunc, lines ...string) string {
	t.Helper()
	srv := httptest.NewServer(h)
	defer srv.Close()
	token := filepath.Join(t.TempDir(), "t")
	if err := os.WriteFile(token, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	b := &bridge{url: srv.URL, token: ask{tokenFile: token}, client: srv.Client(), idle: func() {}, out: &out, calls: map[string]context.CancelFunc{}}
	if err := b.run(t.Context(), strings.NewReader(strings.Join(lines, "\n"))); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// TestBridgeRepeatsArguments: what the stateless era wants in headers, the client on standard input cannot write. A tool that was
// never listed is asked for.
func TestBridgeRepeatsArguments(t *testing.T) {
	lists := 0
	out := bridgeTo(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		if r.Header.Get("Mcp-Method") == "tools/list" {
			lists++
			fmt.Fprint(w, `{"jsonrpc":"2.0","id":"remit-tools","result":{"tools":[{"name":"sell","inputSchema":{"type":"object","properties":{"region":{"type":"string","x-mcp-header":"Region"}}}}]}}`)
			return
		}
		if got := r.Header.Get("Mcp-Param-Region"); got != "=?base64?w7xiZXI=?=" {
			w.WriteHeader(http.StatusBadRequest)
			fmt.Fprintf(w, `{"jsonrpc":"2.0","id":7,"error":{"code":-32020,"message":"Mcp-Param-Region is %s"}}`, got)
			return
		}
		fmt.Fprint(w, `{"jsonrpc":"2.0","id":7,"result":{"content":[]}}`)
	}, `{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28"},"name":"sell","arguments":{"region":"über"}}}`)
	if lists != 1 || !strings.Contains(out, `"result"`) || strings.Count(out, "\n") != 1 {
		t.Errorf("%d lists, %s", lists, out)
	}
}

// TestBridgeIsBounded: whatever either side sends, each request gets an answer, and the bridge goes on.
func TestBridgeIsBounded(t *testing.T) {
	long := strings.Repeat("x", maxMCPLine)
	answers := map[string]func(w http.ResponseWriter){
		"long answer": func(w http.ResponseWriter) {
			fmt.Fprintf(w, `{"jsonrpc":"2.0","id":7,"result":"%s"}`, long)
		},
		"long event": func(w http.ResponseWriter) {
			w.Header().Set("Content-Type", "text/event-stream")
			fmt.Fprintf(w, "data: {\"jsonrpc\":\"2.0\",\"id\":7,\"result\":\"%s\"}\n\n", long)
		},
		"no response": func(w http.ResponseWriter) {
			w.Header().Set("Content-Type", "text/event-stream")
			fmt.Fprint(w, "data: {\"jsonrpc\":\"2.0\",\"method\":\"notifications/message\",\"params\":{}}\n\n")
		},
		"no JSON": func(w http.ResponseWriter) { fmt.Fprint(w, `{"jsonrpc":"2.0","id":7,"res`) },
		"no id": func(w http.ResponseWriter) {
			fmt.Fprint(w, `{"jsonrpc":"2.0","id":null,"error":{"code":-32600,"message":"too much"}}`)
		},
		"nothing":      func(http.ResponseWriter) {},
		"other status": func(w http.ResponseWriter) { http.Error(w, "no", http.StatusTeapot) },
	}
	for name, answer := range answers {
		out := bridgeTo(t, func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			w.Header().Set("Content-Type", "application/json")
			answer(w)
		}, `{"jsonrpc":"2.0","id":6,"method":"`+long+`"}`, `{"jsonrpc":"2.0","id":7,"method":"tools/list"}`)
		if !strings.Contains(out, `{"error":{"code":-32603,"message":"a message of more than 16777216 bytes"},"id":null`) {
			t.Errorf("%s: the long line is not refused: %.300s", name, out)
		}
		if strings.Count(out, `"id":7`) != 1 || len(out) > 1000 {
			t.Errorf("%s: %.300s", name, out)
		}
	}
}
