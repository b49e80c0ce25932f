// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"remit"
	"remit/internal/sandbox"
)

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

// TestSandboxSockets: the same sockets where the way out is one of them, because the sandbox's network is not this kernel's.
func TestSandboxSockets(t *testing.T) {
	t.Run("its sockets", setUpSandboxed(t, "kernel").itsSockets)
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
	if r.tier == "process" {
		if err == nil {
			t.Error("its way out is a socket of the host, though its network has one", c.Close())
		}
		return
	}
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
