// SPDX-License-Identifier: Apache-2.0

package workloadapi_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"remit"
	"remit/internal/identity/workloadapi"
)

func TestSelectors(t *testing.T) {
	needRoot(t)
	f := newFixture(t, nil)
	path := filepath.Join(f.dir, "helper")
	f.configure(agent("other", "unix:uid:4001")) // so that the helper is copied
	_ = f.ask(4001, "fetch", f.socket)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(b)
	hash := hex.EncodeToString(sum[:])
	for _, c := range []struct {
		selectors []string
		uid       int
		want      string
	}{
		{[]string{"unix:uid:4001"}, 4001, "OK"},
		{[]string{"unix:uid:4001"}, 4002, "PermissionDenied"},
		{[]string{"unix:uid:4001"}, 0, "PermissionDenied"},
		{[]string{"unix:gid:4002"}, 4002, "OK"},
		{[]string{"unix:gid:400"}, 4002, "PermissionDenied"},
		{[]string{"unix:uid:4001 unix:gid:4002"}, 4001, "PermissionDenied"},
		{[]string{"unix:uid:4009", "unix:uid:4002"}, 4002, "OK"},
		{[]string{"unix:uid:4001 unix:path:" + path}, 4001, "OK"},
		{[]string{"unix:uid:4001 unix:path:" + path + "-evil"}, 4001, "PermissionDenied"},
		{[]string{"unix:uid:4001 unix:path:" + filepath.Dir(path)}, 4001, "PermissionDenied"},
		{[]string{"unix:uid:4001 unix:sha256:" + hash}, 4001, "OK"},
		{[]string{"unix:uid:4001 unix:sha256:" + hash[:63] + "x"}, 4001, "PermissionDenied"},
		{[]string{"unix:user:daemon"}, 4001, "PermissionDenied"},
		{[]string{"k8s:ns:default"}, 4001, "PermissionDenied"},
		{[]string{""}, 4001, "PermissionDenied"},
		{nil, 4001, "PermissionDenied"},
	} {
		f.configure(agent("deploy", c.selectors...))
		got := f.ask(c.uid, "fetch", f.socket)
		if code := codeOf(got); code != c.want {
			t.Errorf("%v for user %d: %s, want %s", c.selectors, c.uid, code, c.want)
		}
	}
}

// TestEmptyAttestation: a set without selectors holds for nobody, not for everybody.
func TestEmptyAttestation(t *testing.T) {
	a := agent("deploy")
	a.Attest = []remit.Attestation{{}}
	f := newFixture(t, nil, a)
	if got, err := f.client().FetchX509SVID(context.Background()); status.Code(err) != codes.PermissionDenied {
		t.Errorf("%v, %v", got, err)
	}
}

func codeOf(a answer) string {
	if a.Code == "" {
		return "OK"
	}
	return a.Code
}

func TestRecordsAndLevels(t *testing.T) {
	needRoot(t)
	for _, allow := range []bool{false, true} {
		f := newFixture(t, nil2(func(c *workloadapi.Config) { c.AllowOwnUID = allow }), agent("deploy", "unix:uid:4001", "unix:uid:0"))
		got := f.ask(4001, "fetch", f.socket)
		rec, ok := f.Issued(got.Serial)
		want := remit.Issued{Credential: got.Serial, Agent: "agent/deploy", Level: remit.LevelUser, Workload: map[string]string{"uid": "4001", "gid": "4001"}}
		rec.Until = time.Time{}
		if diff := cmp.Diff(want, rec); !ok || diff != "" {
			t.Errorf("record (-want +got):\n%s", diff)
		}
		level := remit.LevelNone
		if allow {
			level = remit.LevelUser
		}
		got = f.ask(0, "fetch", f.socket) // the server's own user
		if rec, ok := f.Issued(got.Serial); !ok || rec.Level != level || rec.Workload["uid"] != "0" {
			t.Errorf("own user, allowed %v: %+v", allow, rec)
		}
		if j := f.ask(4001, "jwt", f.socket); j.Code != "" {
			t.Errorf("JWT: %s", j.Code)
		} else if rec, ok := f.Issued(j.Serial); !ok || rec.Level != remit.LevelUser {
			t.Errorf("JWT record: %+v", rec)
		}
	}
}

func (f *fixture) bind(b workloadapi.Binding) *workloadapi.Bound {
	f.t.Helper()
	b.Agent, b.Path = "agent/deploy", filepath.Join(f.dir, fmt.Sprintf("launch-%d", time.Now().UnixNano()), "api.sock")
	b.Launch = remit.NewLaunchID()
	bound, err := f.server.Bind(b)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { _ = bound.Close() })
	return bound
}

func TestBoundSocket(t *testing.T) {
	needRoot(t)
	const launched, evil = "spiffe://company.com/agent/deploy", "PermissionDenied"
	f := newFixture(t, nil, agent("deploy"), agent("evil", "unix:uid:4002"))
	for _, c := range []struct {
		name    string
		inherit bool
		mode    string
		want    string
	}{
		{"the process itself", false, "fetch", launched},
		{"its child", false, "child", evil},
		{"its child, inherited", true, "child", launched},
		{"an orphan, inherited", true, "orphan", evil},
	} {
		b := f.bind(workloadapi.Binding{Inherit: c.inherit, Owner: 4001})
		if got := f.ask(0, "fetch", b.Path); got.Code != evil {
			t.Errorf("%s: before the process is known: %+v", c.name, got)
		}
		p := f.start(4001, c.mode, b.Path)
		if _, err := b.Attach(p.cmd.Process.Pid, 0); err != nil {
			t.Fatal(err)
		}
		if _, err := b.Attach(os.Getpid(), 0); err == nil {
			t.Error("attached twice")
		}
		if got := f.ask(0, "fetch", b.Path); got.Code != evil {
			t.Errorf("%s: a stranger got %+v", c.name, got)
		}
		if got := f.ask(4002, "fetch", b.Path); got.Code == "" {
			t.Errorf("%s: another user got %+v", c.name, got)
		}
		p.release()
		got := p.next()
		if c.want == evil {
			if got.Code != evil {
				t.Errorf("%s got %+v", c.name, got)
			}
			continue
		}
		if len(got.IDs) != 1 || got.IDs[0] != c.want {
			t.Errorf("%s got %+v", c.name, got)
		}
		if rec, _ := f.Issued(got.Serial); rec.Level != remit.LevelLaunched || rec.Launch != b.Launch || rec.Workload["uid"] != "4001" {
			t.Errorf("%s: record %+v", c.name, rec)
		}
	}
	if got := f.ask(4001, "fetch", f.socket); got.Code != evil {
		t.Errorf("the launched agent's identity over the shared socket: %+v", got)
	}
}

// TestBoundSocketSharedByUser: without an owner every user may connect; the process is what counts.
func TestBoundSocketWithoutOwner(t *testing.T) {
	needRoot(t)
	f := newFixture(t, nil, agent("deploy"))
	b := f.bind(workloadapi.Binding{Owner: -1})
	p := f.start(4001, "fetch", b.Path)
	if _, err := b.Attach(p.cmd.Process.Pid, 0); err != nil {
		t.Fatal(err)
	}
	if got := f.ask(4001, "fetch", b.Path); got.Code != "PermissionDenied" {
		t.Errorf("another process of the same user got %+v", got)
	}
	p.release()
	if got := p.next(); got.Code != "" {
		t.Errorf("the process got %+v", got)
	}
}

func TestBoundSocketOfAnotherUser(t *testing.T) {
	needRoot(t)
	a := agent("deploy")
	a.Launch.OwnUID, a.Launch.UID = true, 4001
	f := newFixture(t, nil, a)
	b := f.bind(workloadapi.Binding{Owner: -1})
	p := f.start(4002, "fetch", b.Path)
	if _, err := b.Attach(p.cmd.Process.Pid, 0); err != nil {
		t.Fatal(err)
	}
	p.release()
	if got := p.next(); got.Code != "PermissionDenied" {
		t.Errorf("a process of the wrong user got %+v", got)
	}
}

func TestBoundSocketEnds(t *testing.T) {
	needRoot(t)
	f := newFixture(t, nil, agent("deploy"))
	b := f.bind(workloadapi.Binding{Owner: 4001})
	p := f.start(4001, "watch", b.Path)
	if !b.Alive() {
		t.Error("not alive before its process")
	}
	if _, err := b.Attach(p.cmd.Process.Pid, 0); err != nil {
		t.Fatal(err)
	}
	if !b.Alive() {
		t.Error("not alive with its process")
	}
	p.release()
	if got := p.next(); got.Code != "" {
		t.Fatalf("got %+v", got)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if got := p.next(); got.Code == "" {
		t.Errorf("after the end: %+v", got)
	}
	if _, err := os.Stat(b.Path); !os.IsNotExist(err) {
		t.Errorf("the socket is left: %v", err)
	}
	if b.Alive() {
		t.Error("alive after the end")
	}
	if _, err := b.Attach(os.Getpid(), 0); err == nil {
		t.Error("attached after the end")
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
}

func TestLaunchedUnderTheServersUser(t *testing.T) {
	needRoot(t)
	for _, allow := range []bool{false, true} {
		f := newFixture(t, nil2(func(c *workloadapi.Config) { c.AllowOwnUID = allow }), agent("deploy"))
		b := f.bind(workloadapi.Binding{Owner: -1})
		p := f.start(0, "fetch", b.Path)
		if _, err := b.Attach(p.cmd.Process.Pid, 0); err != nil {
			t.Fatal(err)
		}
		p.release()
		want := remit.LevelNone
		if allow {
			want = remit.LevelLaunched
		}
		if rec, _ := f.Issued(p.next().Serial); rec.Level != want {
			t.Errorf("allowed %v: level %s", allow, rec.Level)
		}
	}
}

func TestLaunchIsOverWithItsProcess(t *testing.T) {
	needRoot(t)
	f := newFixture(t, nil, agent("deploy"))
	b := f.bind(workloadapi.Binding{Owner: -1, Inherit: true})
	p := f.start(4001, "fetch", b.Path)
	if _, err := b.Attach(p.cmd.Process.Pid, 0); err != nil {
		t.Fatal(err)
	}
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
	if b.Alive() {
		t.Error("alive without its process")
	}
	if got := f.ask(4001, "fetch", b.Path); got.Code != "PermissionDenied" {
		t.Errorf("after its process ended: %+v", got)
	}
}

// program writes the helper, with more behind it, to a file of its own.
func (f *fixture) program(name, more string) string {
	f.t.Helper()
	b, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		f.t.Fatal(err)
	}
	path := filepath.Join(f.dir, name)
	if err := os.WriteFile(path, append(b, more...), 0o755); err != nil {
		f.t.Fatal(err)
	}
	return path
}

// becomes launches a process that waits with first open, is measured, and then executes it; between may change things.
func (f *fixture) becomes(path string, between func(), b *workloadapi.Bound) answer {
	f.t.Helper()
	file, err := os.Open(path)
	if err != nil {
		f.t.Fatal(err)
	}
	p := f.start(4001, "become", b.Path, file)
	if _, err := b.Attach(p.cmd.Process.Pid, 3); err != nil {
		f.t.Fatal(err)
	}
	_ = file.Close()
	between()
	p.release()
	return p.next()
}

// TestLaunchedRunsAnother: S4. The server measures what runs; what the launcher says counts nothing.
func TestLaunchedRunsAnother(t *testing.T) {
	needRoot(t)
	f := newFixture(t, nil, agent("deploy"))
	listed, other := f.program("listed", ""), f.program("other", "\n")
	nothing := func() {}
	if got := f.becomes(listed, nothing, f.bind(workloadapi.Binding{Owner: 4001})); len(got.IDs) != 1 {
		t.Errorf("what is listed got %+v", got)
	}
	if got := f.becomes(other, nothing, f.bind(workloadapi.Binding{Owner: 4001})); got.Code != "PermissionDenied" {
		t.Errorf("what is not listed got %+v", got)
	}
	// The name that was measured leads to another file afterwards: what is executed is the descriptor, which lost its name.
	swap := func() {
		if err := os.Rename(other, listed); err != nil {
			t.Fatal(err)
		}
	}
	if got := f.becomes(listed, swap, f.bind(workloadapi.Binding{Owner: 4001})); got.Code != "PermissionDenied" {
		t.Errorf("swapped by name: %+v", got)
	}
	// The file itself becomes another between measure and execution.
	victim := f.program("victim", "")
	overwrite := func() { f.program("victim", "\n") }
	if got := f.becomes(victim, overwrite, f.bind(workloadapi.Binding{Owner: 4001})); got.Code != "PermissionDenied" {
		t.Errorf("overwritten between measure and execution: %+v", got)
	}
}

// TestLaunchedExecutesAnother: the process that was measured executes something else later, and keeps its number.
func TestLaunchedExecutesAnother(t *testing.T) {
	needRoot(t)
	f := newFixture(t, nil, agent("deploy"))
	other, err := os.Open(f.program("other", "\n"))
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	b := f.bind(workloadapi.Binding{Owner: 4001})
	p := f.start(4001, "become", b.Path, other)
	if _, err := b.Attach(p.cmd.Process.Pid, 0); err != nil { // it runs what is listed, now
		t.Fatal(err)
	}
	p.release()
	if got := p.next(); got.Code != "PermissionDenied" {
		t.Errorf("after execve of what is not listed: %+v", got)
	}
}

// TestLaunchedFileIsTouched: S4. Content that was written and written back is no longer what was measured.
func TestLaunchedFileIsTouched(t *testing.T) {
	needRoot(t)
	f := newFixture(t, nil, agent("deploy"))
	path := f.program("listed", "")
	again := func() { f.program("listed", "") }
	if got := f.becomes(path, again, f.bind(workloadapi.Binding{Owner: 4001})); got.Code != "PermissionDenied" {
		t.Errorf("written to between measure and execution: %+v", got)
	}
}

// TestOperatorsProcessIsNoAgent: S2. A process that could manage Remit is given no identity, by whatever selector.
func TestOperatorsProcessIsNoAgent(t *testing.T) {
	needRoot(t)
	operator := func(uid uint32) bool { return uid == 4001 }
	f := newFixture(t, nil2(func(c *workloadapi.Config) { c.Operator = operator }), agent("deploy", "unix:uid:4001"), agent("build", "unix:gid:4001"),
		agent("other", "unix:uid:4002"))
	if got := f.ask(4001, "fetch", f.socket); got.Code != "PermissionDenied" {
		t.Errorf("an operator's process got %+v", got)
	}
	if got := f.ask(4002, "fetch", f.socket); len(got.IDs) != 1 {
		t.Errorf("another process got %+v", got)
	}
}
