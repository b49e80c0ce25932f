// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"remit"
	"remit/internal/sandbox"
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
	r := &refunds{fixture: f, payments: &paymentService{}, folder: filepath.Join(f.dir, "refund")}
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

// TestToolInSandbox is the whole way: an agent calls a tool that Remit starts in a sandbox; the tool posts under that call, and only
// what it was called with; the credential is put in outside; all of it is in the ledger; and with the stage the sandbox is gone.
func TestToolInSandbox(t *testing.T) {
	for _, tier := range []string{"kernel", "process"} {
		t.Run(tier, func(t *testing.T) {
			r := setUpSandboxed(t, tier)
			if got := r.call("echo", map[string]any{"text": "hello"}); got != "hello" {
				t.Fatal(got)
			}
			if got := r.call("refund", map[string]any{"url": r.url + "/refunds", "customer": 555, "amount": 40}); got != "200 paid" {
				t.Error(got)
			}
			if seen := r.payments.all(); len(seen) != 1 || seen[0] != `Bearer sk-live-0123456789abcdef {"amount":40,"customer":555}` {
				t.Errorf("the payments saw %q", seen)
			}
			started := r.entries(remit.EventSandboxStarted, 1)
			e := started[0]
			if len(started) != 1 || e.Agent != "tool/issue-refund" || e.Run != r.run.ID || e.Data.Stage != "refund" || string(e.Data.About.Tier) != tier || e.Data.Files == "" {
				t.Errorf("%+v", started)
			}
			r.must("/v1/runs/"+string(r.run.ID)+"/advance", map[string]string{"to": "rest"}, nil)
			if list := r.srv.claims.List(); len(list) != 0 {
				t.Errorf("after its stage: %+v", list)
			}
			ended := r.entries(remit.EventSandboxEnded, 1)[0]
			if ended.Data.Why != "the stage ended" || ended.Data.Cause != "killed" || ended.Data.Calls != 2 || ended.Data.Launch != e.Data.Launch {
				t.Errorf("%+v", ended)
			}
			if a := ended.Data.Activity; tier == "kernel" && (a == nil || a.Executed == 0 || a.Connected == 0) {
				t.Errorf("what was seen of it: %+v", a)
			}
			if left, _ := filepath.Glob(filepath.Join(r.dir, "run", "b", string(e.Data.About.Sandbox))); len(left) > 0 { // another may be prepared
				t.Errorf("left: %q", left)
			}
			if got := r.call("echo", map[string]any{"text": "again"}); got != "again" {
				t.Errorf("in the next stage: %s", got)
			}
			if n := len(r.entries(remit.EventSandboxStarted, 2)); n != 2 {
				t.Errorf("%d sandboxes, want one for each stage", n)
			}
		})
	}
}

// TestSandboxRefusals: what a tool in a sandbox tries, and what is tried on it from outside.
func TestSandboxRefusals(t *testing.T) {
	r := setUpSandboxed(t, "process")
	t.Run("another amount", r.otherAmount)
	t.Run("outside a call", r.outsideACall)
	t.Run("past the proxy", r.pastTheProxy)
	t.Run("its sockets", r.itsSockets)
	t.Run("its identity", r.itsIdentity)
	if n := len(r.payments.all()); n != 0 {
		t.Errorf("the payments were reached %d times: %q", n, r.payments.all())
	}
}

// S24: a tool that was called with 40 posts 40 or nothing.
func (r *refunds) otherAmount(t *testing.T) {
	got := r.call("refund", map[string]any{"url": r.url + "/refunds", "customer": 555, "amount": 40, "post": 4000})
	if !strings.HasPrefix(got, "403 ") || !strings.Contains(got, "argument_mismatch") {
		t.Error(got)
	}
	if got := r.call("refund", map[string]any{"url": r.url + "/elsewhere", "customer": 555, "amount": 40}); !strings.HasPrefix(got, "403 ") {
		t.Errorf("another path: %s", got)
	}
	if got := r.call("refund", map[string]any{"url": "http://metadata.company.com/refunds", "customer": 555, "amount": 40}); !strings.HasPrefix(got, "403 ") {
		t.Errorf("another host: %s", got)
	}
}

// S24: what a tool does once its call has ended is denied, on record.
func (r *refunds) outsideACall(t *testing.T) {
	if got := r.call("later", map[string]any{"url": r.url + "/refunds", "customer": 555, "amount": 40}); got != "soon" {
		t.Fatal(got)
	}
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		for _, e := range r.entries(remit.EventDecision, 1) {
			if e.Agent == "tool/issue-refund" && len(e.Data.Reasons) > 0 && e.Data.Reasons[0].Code == remit.ReasonUnder {
				return
			}
		}
		if time.Now().After(end) {
			t.Fatal("no denial on record")
		}
	}
}

func (r *refunds) pastTheProxy(t *testing.T) {
	for _, address := range []string{strings.TrimPrefix(r.url, "http://"), r.port, "169.254.169.254:80", "8.8.8.8:53"} {
		if got := r.call("dial", map[string]any{"address": address}); !strings.HasPrefix(got, "error: ") {
			t.Errorf("%s: %s", address, got)
		}
	}
	for _, path := range []string{filepath.Join(r.dir, "remit.yaml"), filepath.Join(r.dir, "payments.key"), "/etc/shadow", "/etc/machine-id"} {
		if got := r.call("read", map[string]any{"path": path}); !strings.HasPrefix(got, "error: ") {
			t.Errorf("%s: %s", path, got)
		}
	}
	if got := r.call("environment", nil); strings.Contains(got, "sk-live") || strings.Contains(got, r.dir) || !strings.Contains(got, "LANG=C") {
		t.Error(got)
	}
}

// S27: the sockets of a sandbox are of no use to another process of the host, not even to one of root's.
func (r *refunds) itsSockets(t *testing.T) {
	r.call("echo", map[string]any{"text": "hello"})
	folder := filepath.Join(r.dir, "run", "b", string(r.srv.claims.List()[0].About.Sandbox))
	if info, err := os.Stat(filepath.Dir(folder)); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the folder of sockets: %v %v", info, err)
	}
	if _, err := r.tryAgent("tool/issue-refund", filepath.Join(folder, workloadSocket)); err == nil || !strings.Contains(err.Error(), "not in the sandbox") {
		t.Errorf("its identity: %v", err)
	}
	c, err := net.Dial("unix", filepath.Join(folder, "egress.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	_, _ = io.WriteString(c, "GET "+r.url+"/refunds HTTP/1.1\r\nHost: x\r\n\r\n")
	if n, err := c.Read(make([]byte, 100)); n != 0 || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("its way out answers: %d %v", n, err)
	}
}

// S27: an identity that was carried out of its sandbox, with its key, proves nothing.
func (r *refunds) itsIdentity(t *testing.T) {
	id, chain, ok := strings.Cut(r.call("identity", nil), "\n")
	if !ok || id != "spiffe://company.com/tool/issue-refund" {
		t.Fatalf("the tool has no identity in its sandbox: %s %s", id, chain)
	}
	svid, err := x509svid.Parse([]byte(chain), []byte(chain))
	if err != nil {
		t.Fatal(err)
	}
	w := &workload{f: r.fixture, svid: svid, http: clientOf(svid, r.srv.ids.authority)}
	resp, err := w.http.Post("https://"+r.port+"/v1/runs", "application/json", strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if b, _ := io.ReadAll(resp.Body); resp.StatusCode != http.StatusUnauthorized || !strings.Contains(string(b), "own socket") {
		t.Errorf("%s %s", resp.Status, b)
	}
}

// TestSandboxEnds: whatever a tool does, the call has a clear end within its time, and the next call gets a fresh sandbox.
func TestSandboxEnds(t *testing.T) {
	r := setUpSandboxed(t, "process")
	for i, c := range []struct{ name, want, cause string }{
		{"crash", "it has ended", "exited"}, {"memory", "it has ended", "oom"}, {"flood", "it has ended", "output"},
	} {
		if got := r.call(c.name, nil); !strings.Contains(got, c.want) {
			t.Errorf("%s: %s", c.name, got)
		}
		if e := r.entries(remit.EventSandboxEnded, i+1)[i]; e.Data.Cause != c.cause {
			t.Errorf("%s: %+v", c.name, e.Data)
		}
		r.recovers()
	}
	if got := r.call("bad", nil); !strings.Contains(got, "result") || !strings.HasPrefix(got, "failed: ") {
		t.Errorf("bad: %s", got)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	if got := r.callIn(ctx, "hang", nil); !strings.HasPrefix(got, "failed: ") {
		t.Errorf("hang: %s", got)
	}
	if e := r.entries(remit.EventSandboxEnded, 4)[3]; e.Data.Why != "a call was given up" {
		t.Errorf("hang: %+v", e.Data)
	}
	r.client = r.connect()
	r.recovers()
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

// TestSandboxIsTaken: a sandbox ends with its tool's standing, and with its configuration.
func TestSandboxIsTaken(t *testing.T) {
	r := setUpSandboxed(t, "process")
	ends := func(n int, why string) {
		t.Helper()
		if list := r.srv.claims.List(); len(list) != 0 {
			t.Errorf("%s: %+v", why, list)
		}
		if e := r.entries(remit.EventSandboxEnded, n)[n-1]; e.Data.Why != why {
			t.Errorf("%+v, want %s", e.Data, why)
		}
	}
	r.recovers()
	r.must("/v1/apply", nil, nil)
	if len(r.srv.claims.List()) != 1 {
		t.Error("an apply without a change ended it")
	}
	config := filepath.Join(r.dir, dirConfig, "story.yaml")
	before, err := os.ReadFile(config)
	if err != nil {
		t.Fatal(err)
	}
	r.write(strings.Replace(string(before), "LANG: C", "LANG: D", 1))
	r.must("/v1/apply", nil, nil)
	ends(1, "the tool's configuration changed")
	r.write(string(before))
	r.must("/v1/apply", nil, nil)
	r.recovers()

	// S27: files that changed are not run, and that is a denial on record.
	program := filepath.Join(r.folder, "hostile")
	content, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(program, append(content, 0), 0o700); err != nil {
		t.Fatal(err)
	}
	r.must("/v1/runs/"+string(r.run.ID)+"/advance", map[string]string{"to": "rest"}, nil)
	ends(2, "the stage ended")
	if got := r.call("echo", map[string]any{"text": "hello"}); !strings.Contains(got, "target_unfit (server)") {
		t.Errorf("changed files: %s", got)
	}
	list := r.entries(remit.EventDecision, 1)
	if d := list[len(list)-1].Data; len(d.Reasons) != 1 || d.Reasons[0].Code != remit.ReasonTarget || d.Reasons[0].Of != "server" {
		t.Errorf("%+v", d)
	}
	if err := os.WriteFile(program, content, 0o700); err != nil {
		t.Fatal(err)
	}
	r.recovers()
	r.must("/v1/agents/tool/issue-refund/suspend", map[string]string{"reason": "odd"}, nil)
	ends(3, "agent suspended")
	if got := r.call("echo", map[string]any{"text": "hello"}); got == "hello" {
		t.Error("a suspended tool serves")
	}
}

// TestSandboxesEndWithTheServer: a stop leaves nothing, and neither does the start after a crash.
func TestSandboxesEndWithTheServer(t *testing.T) {
	r := setUpSandboxed(t, "kernel")
	r.recovers()
	r.restart()
	if e := r.entries(remit.EventSandboxEnded, 1)[0]; e.Data.Why != "the server stopped" && e.Data.Why != connectionClosed {
		t.Errorf("%+v", e.Data)
	}
	if left, _ := filepath.Glob(filepath.Join(r.dir, "run", "s", "*", "box", "*")); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
	// What an earlier process left is gone before anything is served.
	id := remit.NewSandboxID()
	set, err := r.srv.sandboxes.open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	d, _, err := set.For(t.Context(), remit.TierKernel)
	if err != nil {
		t.Fatal(err)
	}
	box, err := d.Prepare(t.Context(), sandbox.Spec{ID: id, Command: []string{"/bin/sleep", "100"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := box.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	row := remit.LaunchRecord{ID: remit.NewLaunchID(), Agent: "tool/issue-refund", Run: r.run.ID, By: "remit", Tier: remit.TierKernel, Started: r.srv.now()}
	if _, err := r.srv.store.Commit(t.Context(), remit.Change{Rows: []remit.Row{row}}); err != nil {
		t.Fatal(err)
	}
	r.restart()
	select {
	case <-box.Done():
	case <-time.After(30 * time.Second):
		t.Error("a sandbox of an earlier process runs")
	}
	if l, ok := r.srv.store.Launch(row.ID); !ok || l.Ended.IsZero() {
		t.Errorf("its identity lives: %+v", l)
	}
	_ = box.Destroy(context.Background())
}

const connectionClosed = "its connection was closed"
