// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"
)

// TestBridge drives the bridge with a real client in front and a real server behind, in both eras.
func TestBridge(t *testing.T) {
	for _, version := range []string{"2025-11-25", "2026-07-28"} {
		t.Run(version, func(t *testing.T) {
			s := sdk.NewServer(&sdk.Implementation{Name: "x", Version: "1"}, nil)
			sdk.AddTool(s, &sdk.Tool{Name: "ask"}, func(ctx context.Context, r *sdk.CallToolRequest, _ struct{}) (*sdk.CallToolResult, any, error) {
				if version == "2026-07-28" {
					return &sdk.CallToolResult{Content: []sdk.Content{&sdk.TextContent{Text: "yes"}}}, nil, nil
				}
				a, err := r.Session.Elicit(ctx, &sdk.ElicitParams{Message: "sure?", RequestedSchema: map[string]any{"type": "object"}})
				if err != nil {
					return nil, nil, err
				}
				return &sdk.CallToolResult{Content: []sdk.Content{&sdk.TextContent{Text: a.Action}}}, nil, nil
			})
			h := sdk.NewStreamableHTTPHandler(func(*http.Request) *sdk.Server { return s }, &sdk.StreamableHTTPOptions{Stateless: version == "2026-07-28"})
			var deleted, bad atomic.Int64
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Header.Get("Txn-Token") != "the-token" {
					bad.Add(1)
				}
				if r.Method == http.MethodDelete {
					deleted.Add(1)
				}
				h.ServeHTTP(w, r)
			}))
			defer srv.Close()
			defer srv.CloseClientConnections()
			token := filepath.Join(t.TempDir(), "t")
			if err := os.WriteFile(token, []byte("the-token\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			inR, inW := io.Pipe()
			outR, outW := io.Pipe()
			b := &bridge{url: srv.URL, token: ask{tokenFile: token}, client: srv.Client(), idle: func() {}, out: outW, calls: map[string]context.CancelFunc{}}
			done := make(chan error, 1)
			go func() { done <- b.run(context.Background(), inR); _ = outW.Close() }()
			c := sdk.NewClient(&sdk.Implementation{Name: "c", Version: "1"}, &sdk.ClientOptions{
				ElicitationHandler: func(context.Context, *sdk.ElicitRequest) (*sdk.ElicitResult, error) {
					return &sdk.ElicitResult{Action: "decline"}, nil
				}})
			ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
			defer cancel()
			session, err := c.Connect(ctx, &sdk.IOTransport{Reader: outR, Writer: inW}, &sdk.ClientSessionOptions{ProtocolVersion: version})
			if err != nil {
				t.Fatal(err)
			}
			r, err := session.CallTool(ctx, &sdk.CallToolParams{Name: "ask", Arguments: map[string]any{}})
			want := map[string]string{"2025-11-25": "decline", "2026-07-28": "yes"}[version]
			if err != nil || r.Content[0].(*sdk.TextContent).Text != want {
				t.Fatalf("%v %+v", err, r)
			}
			_ = session.Close()
			_ = inW.Close()
			if err := <-done; err != nil {
				t.Error(err)
			}
			if bad.Load() != 0 || version == "2025-11-25" && deleted.Load() != 1 {
				t.Errorf("%d without the run token, %d sessions ended", bad.Load(), deleted.Load())
			}
		})
	}
}

func TestBridgeSaysWhatIsWrong(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "show an X.509-SVID", http.StatusUnauthorized)
	}))
	defer srv.Close()
	token := filepath.Join(t.TempDir(), "t")
	_ = os.WriteFile(token, []byte("x"), 0o600)
	var out bytes.Buffer
	b := &bridge{url: srv.URL, token: ask{tokenFile: token}, client: srv.Client(), idle: func() {}, out: &out, calls: map[string]context.CancelFunc{}}
	if err := b.run(context.Background(), strings.NewReader(`{"jsonrpc":"2.0","id":7,"method":"tools/list"}`+"\nrubbish\n")); err != nil {
		t.Fatal(err)
	}
	if got := out.String(); !strings.Contains(got, `"id":7`) || !strings.Contains(got, "401: show an X.509-SVID") || strings.Count(got, "\n") != 1 {
		t.Error(got)
	}
}

func TestClientSetup(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "mcp.json")
	const before = `{"other": {"keep": 12345678901234567890}, "mcpServers": {"theirs": {"command": "x"}, "remit": {"command": "old"}}, "last": true}`
	if err := os.WriteFile(file, []byte(before), 0o640); err != nil {
		t.Fatal(err)
	}
	var out, errw bytes.Buffer
	run := func(args ...string) int {
		out.Reset()
		errw.Reset()
		return Main(args, strings.NewReader(""), &out, &errw)
	}
	if code := run("client", "setup", "cursor", "--file", file, "--env", "REMIT_URL=https://h"); code != 0 || !strings.Contains(out.String(), `"REMIT_URL": "https://h"`) {
		t.Errorf("%d %s %s", code, out.String(), errw.String())
	}
	if b, _ := os.ReadFile(file); string(b) != before {
		t.Error("written without --write")
	}
	if code := run("client", "setup", "cursor", "--file", file, "--write", "--tool", "crm"); code != 0 {
		t.Fatalf("%d %s", code, errw.String())
	}
	b, _ := os.ReadFile(file)
	got := string(b)
	if !strings.Contains(got, `12345678901234567890`) || !strings.Contains(got, `"theirs"`) || strings.Contains(got, `"old"`) || !strings.Contains(got, `"--tool"`) ||
		strings.Index(got, `"other"`) > strings.Index(got, `"mcpServers"`) || strings.Index(got, `"mcpServers"`) > strings.Index(got, `"last"`) {
		t.Error(got)
	}
	if kept, _ := os.ReadFile(file + ".before-remit"); string(kept) != before {
		t.Errorf("kept %q", kept)
	}
	if st, _ := os.Stat(file); st.Mode().Perm() != 0o640 {
		t.Error(st.Mode())
	}
	for _, bad := range []string{"// comment\n{}", "[]", `{"mcpServers": []}`, `{} {}`, `{`} {
		_ = os.WriteFile(file, []byte(bad), 0o600)
		if code := run("client", "setup", "cursor", "--file", file, "--write"); code != 2 {
			t.Errorf("%q: %d", bad, code)
		}
		if b, _ := os.ReadFile(file); string(b) != bad {
			t.Errorf("%q was changed", bad)
		}
	}
	if code := run("client", "setup", "nobody"); code != 2 || !strings.Contains(errw.String(), "claude") {
		t.Errorf("%d %s", code, errw.String())
	}
}
