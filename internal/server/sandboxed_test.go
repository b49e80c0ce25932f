// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"

	"remit"
	"remit/internal/store"
	"remit/internal/tool"
	"remit/internal/tool/tooltest"
)

// sandboxed is a workflow in which an agent calls a tool that Remit starts in a sandbox, and the tool posts what it was called with.
const sandboxed = `
---
kind: Tool
name: issue-refund
server:
  command: [/tool/hostile]
  files: {from: "FILES", digest: "DIGEST"}
  environment: {LANG: C}
  limits: {wall: 2m, memory: 192MiB, output: 2MiB}
  sandbox: TIER
---
kind: Target
name: payments
type: http
url: "URL"
private: true
inject: {header: Authorization, prefix: "Bearer ", secret: {file: "SECRET"}, methods: [POST], paths: [/refunds]}
---
kind: Workflow
name: refund
parameters: {customer: {type: integer}}
start: {by: [operator/ci], expires: 1h}
stages:
- name: refund
  end: {by: [operator/ci]}
  may:
  - {name: ask, who: agent/deploy, action: mcp.call, target: issue-refund/refund, sandbox: process,
     where: {url: {any: true}, customer: $customer, amount: {min: 0.01, max: 100}, post: {any: true}}}
  - {name: pay, who: tool/issue-refund, under: ask, action: http.post, target: payments, sandbox: process, where: {path: /refunds, body: {customer: $customer, amount: $call.amount}}}
  - {name: later, who: agent/deploy, action: mcp.call, target: issue-refund/later, sandbox: process, where: {url: {any: true}, customer: $customer, amount: {any: true}}}
  - {name: lend, who: agent/deploy, action: mcp.call, target: issue-refund/ask, sandbox: process,
     where: {path: {any: true}, details: {any: true}, assertion: {any: true}, later: {any: true}, customer: $customer}}
  - {name: bound, who: tool/issue-refund, under: lend, action: memory.pay, target: cluster, sandbox: process, where: {customer: $call.customer}}
  - {name: free, who: tool/issue-refund, action: memory.read, target: cluster, sandbox: process, where: {customer: $customer}}
OTHERS
- name: rest
  end: {by: [operator/ci]}
  may:
  - {name: see, who: agent/deploy, action: mcp.call, target: issue-refund/echo, sandbox: process, where: {text: {any: true}}}
`

// paymentService is what the tool posts to.
type paymentService struct {
	mu   sync.Mutex
	seen []string // Authorization and body
}

func (p *paymentService) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	b, _ := io.ReadAll(r.Body)
	p.mu.Lock()
	p.seen = append(p.seen, r.Header.Get("Authorization")+" "+string(b))
	p.mu.Unlock()
	fmt.Fprint(w, "paid")
}

func (p *paymentService) all() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string(nil), p.seen...)
}

type refunds struct {
	*fixture
	payments *paymentService
	tier     string
	url      string
	folder   string // of the tool's files
	run      remit.Run
	caller   *workload
	client   *sdk.ClientSession
}

// setUpSandboxed makes a server with a tool in a sandbox of the tier, and a run of its workflow. It needs root, as sandboxes do.
func setUpSandboxed(t *testing.T, tier string) *refunds {
	t.Helper()
	if os.Getuid() != 0 || testing.Short() {
		t.Skip("sandboxes are made by root, and take their time")
	}
	executable, err := tooltest.Build(tooltest.Box)
	if err != nil {
		t.Fatal(err)
	}
	hostile, err := tooltest.Build(tooltest.Hostile)
	if err != nil {
		t.Fatal(err)
	}
	f := setUp(t)
	f.program = executable
	f.restart()
	r := &refunds{fixture: f, tier: tier, payments: &paymentService{}, folder: filepath.Join(f.dir, "refund")}
	srv := httptest.NewServer(r.payments)
	t.Cleanup(srv.Close)
	r.url = srv.URL
	secret := filepath.Join(f.dir, "payments.key")
	program, err := os.ReadFile(hostile)
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{filepath.Join(r.folder, "hostile"): program, secret: []byte("sk-live-0123456789abcdef\n")} {
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, content, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	digest, err := tool.Digest(r.folder)
	if err != nil {
		t.Fatal(err)
	}
	others := ""
	for _, name := range []string{"echo text", "crash", "hang", "flood", "bad", "identity", "change", "read path", "dial address", "environment", "memory", "born"} {
		n, arg, ok := strings.Cut(name, " ")
		where := "{}"
		if ok {
			where = "{" + arg + ": {any: true}}"
		}
		others += fmt.Sprintf("  - {name: %s, who: agent/deploy, action: mcp.call, target: issue-refund/%s, sandbox: process, where: %s}\n", n, n, where)
	}
	f.write(f.files + strings.NewReplacer("FILES", r.folder, "DIGEST", string(digest), "TIER", tier, "URL", srv.URL, "SECRET", secret, "OTHERS\n", others).Replace(sandboxed))
	f.must("/v1/apply", nil, nil)
	f.must("/v1/runs", map[string]any{"workflow": "refund", "params": map[string]string{"customer": "555"}}, &r.run)
	r.caller = f.agent("agent/deploy", f.shared()).enter(r.run)
	r.client = r.connect()
	return r
}

func (r *refunds) connect() *sdk.ClientSession {
	r.t.Helper()
	c := sdk.NewClient(&sdk.Implementation{Name: "test", Version: "1"}, nil)
	ctx, cancel := context.WithTimeout(r.t.Context(), 60*time.Second)
	defer cancel()
	s, err := c.Connect(ctx, &sdk.StreamableClientTransport{Endpoint: "https://" + r.port + "/mcp/issue-refund",
		HTTPClient: &http.Client{Transport: &headed{r.caller.http.Transport, "Txn-Token", r.caller.token}}}, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = s.Close() })
	return s
}

func (r *refunds) call(name string, args map[string]any) string {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), 60*time.Second)
	defer cancel()
	return r.callIn(ctx, name, args)
}

func (r *refunds) callIn(ctx context.Context, name string, args map[string]any) string {
	got, err := r.client.CallTool(ctx, &sdk.CallToolParams{Name: name, Arguments: args})
	if err != nil {
		return "failed: " + err.Error()
	}
	return got.Content[0].(*sdk.TextContent).Text
}

type entry struct {
	Kind  remit.EventKind `json:"kind"`
	Agent remit.Name      `json:"agent"`
	Run   remit.RunID     `json:"run"`
	Data  struct {
		tool.About
		Launch  remit.LaunchID `json:"launch"`
		Stage   string         `json:"stage"`
		Why     string         `json:"why"`
		Cause   string         `json:"cause"`
		Calls   uint64         `json:"calls"`
		Effect  string         `json:"effect"`
		Action  string         `json:"action"`
		Tier    remit.Tier     `json:"sandbox_tier"`
		Reasons []remit.Reason `json:"reasons"`

		Activity *tool.Activity `json:"activity"`
		Usage    tool.Usage     `json:"usage"`
	} `json:"data"`
}

// entries waits for at least n entries of a kind.
func (r *refunds) entries(kind remit.EventKind, n int) (out []entry) {
	r.t.Helper()
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		list, _, err := r.srv.store.Events(store.EventFilter{Kind: kind}, 0, 1000)
		if err != nil {
			r.t.Fatal(err)
		}
		if len(list) >= n {
			for _, e := range list {
				var x entry
				_ = json.Unmarshal(e.Body, &x)
				out = append(out, x)
			}
			return out
		}
		if time.Now().After(end) {
			r.t.Fatalf("%d entries of %s, want %d", len(list), kind, n)
		}
	}
}

// recovers waits until a call succeeds: after a crash there is a pause.
func (r *refunds) recovers() {
	r.t.Helper()
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		got := r.call("echo", map[string]any{"text": "hello"})
		if got == "hello" {
			return
		}
		if time.Now().After(end) {
			r.t.Fatal(got)
		}
	}
}
