// SPDX-License-Identifier: Apache-2.0

package server

import (
	"net"
	"strings"
	"testing"
	"time"

	"remit"
	"remit/internal/api"
)

// TestBrokenFilesKeepTheRevision: a failed apply changes nothing, whatever is wrong.
func TestBrokenFilesKeepTheRevision(t *testing.T) {
	f := setUp(t)
	w := f.agent("agent/deploy", f.shared()).enter(f.startRun())
	before := f.srv.rev.Load()
	for name, files := range map[string]string{
		"no YAML":               "{",
		"unknown key":           f.files + "---\nkind: Agent\nname: more\npowers: all\n",
		"twice":                 f.files + "---\nkind: Agent\nname: deploy\n",
		"unknown target type":   strings.Replace(f.files, "type: memory", "type: nothing", 1),
		"unknown target":        strings.Replace(f.files, "target: cluster", "target: nowhere", 1),
		"a target's audience":   strings.Replace(f.files, "name: build\n", "name: build\naudiences: [\"https://"+backendName(f)+".company.com\"]\n", 1),
		"the grants' issuer":    strings.Replace(f.files, "name: build\n", "name: build\naudiences: [\""+f.srv.cfg.GrantIssuer+"\"]\n", 1),
		"the server's identity": strings.Replace(f.files, "name: build\n", "name: build\nid: spiffe://company.com/remit/server\n", 1),
	} {
		f.write(files)
		if code := f.post("/v1/apply", nil, nil); code != remit.CodeInvalid {
			t.Errorf("%s: %q", name, code)
		}
		if f.srv.rev.Load() != before {
			t.Fatalf("%s: the revision changed", name)
		}
	}
	f.write(f.files + "# a remark\n")
	var out api.Applied
	if f.must("/v1/apply?dry_run=true", nil, &out); len(out.Changed) != 1 || f.srv.rev.Load() != before {
		t.Errorf("dry run: %+v", out)
	}
	if g := w.ask("write"); g.Secret == "" {
		t.Errorf("the old revision does not decide: %+v", g)
	}
}

func backendName(f *fixture) string {
	_, rest, _ := strings.Cut(f.files, "backend: ")
	name, _, _ := strings.Cut(rest, "\n")
	return name
}

// without returns the files without an agent and everything that names it.
func without(files, agent string) string {
	files = strings.Replace(files, "kind: Agent\nname: "+agent+"\n", "kind: Agent\nname: "+agent+"-gone\n", 1)
	return strings.ReplaceAll(files, "who: agent/"+agent+",", "who: agent/"+agent+"-gone,")
}

// TestRemovedAgent: its leases end, it is nobody any more, and its SVID proves nothing.
func TestRemovedAgent(t *testing.T) {
	for name, apply := range map[string]func(*fixture){
		"by apply":                  func(f *fixture) { f.must("/v1/apply", nil, nil) },
		"while the server is down":  func(f *fixture) { f.restart() },
		"while a revision is stale": func(f *fixture) { f.must("/v1/apply", nil, nil); f.restart() },
	} {
		t.Run(name, func(t *testing.T) {
			f := setUp(t)
			w := f.agent("agent/deploy", f.shared()).enter(f.startRun())
			if w.ask("write").Secret == "" {
				t.Fatal("no credential")
			}
			f.write(without(f.files, "deploy"))
			apply(f)
			f.backend.waitEmpty(t)
			w.http.CloseIdleConnections()
			if g := w.ask("write"); g.Secret != "" || g.code() == "" {
				t.Errorf("removed: %+v", g)
			}
			if _, err := f.tryAgent("agent/deploy", f.shared()); err == nil {
				t.Error("a removed agent gets an identity")
			}
		})
	}
}

// TestMovedTarget: the file of a target now names another backend. A lease ends where it was minted.
func TestMovedTarget(t *testing.T) {
	for name, restart := range map[string]bool{"by apply": false, "while the server is down": true} {
		t.Run(name, func(t *testing.T) {
			f := setUp(t)
			w := f.agent("agent/deploy", f.shared()).enter(f.startRun())
			g := w.ask("write")
			other, _ := newBackend(t)
			f.write(strings.ReplaceAll(f.files, backendName(f), other))
			if restart {
				f.restart()
			} else {
				f.must("/v1/apply", nil, nil)
			}
			f.must("/v1/grants/"+string(g.Grant)+"/revoke", api.Reasoned{Reason: "test"}, nil)
			if n := f.backend.count(); n != 0 {
				t.Errorf("%d leases are on record as ended and stand where they were minted", n)
			}
		})
	}
}

// TestRemovedTarget: the same for a target that no file has any more.
func TestRemovedTarget(t *testing.T) {
	for name, restart := range map[string]bool{"by apply": false, "while the server is down": true} {
		t.Run(name, func(t *testing.T) {
			f := setUp(t)
			w := f.agent("agent/deploy", f.shared()).enter(f.startRun())
			if w.ask("write").Secret == "" {
				t.Fatal("no credential")
			}
			files := strings.Replace(f.files, "kind: Target\nname: cluster\n", "kind: Target\nname: cluster-two\n", 1)
			f.write(strings.ReplaceAll(files, "target: cluster,", "target: cluster-two,"))
			if restart {
				f.restart()
			} else {
				f.must("/v1/apply", nil, nil)
			}
			f.backend.waitEmpty(t)
		})
	}
}

// TestParentMustBeOpen: a decision that has run out carries no inner request (S24).
func TestParentMustBeOpen(t *testing.T) {
	f := setUp(t)
	w := f.agent("agent/deploy", f.shared()).enter(f.startRun())
	g, ok := f.srv.store.Grant(w.ask("write").Grant)
	if !ok {
		t.Fatal("no grant")
	}
	if _, open := f.srv.parent(g.Decision); !open {
		t.Error("a fresh call is closed")
	}
	f.ahead.Store(int64(6 * time.Minute))
	if _, open := f.srv.parent(g.Decision); open {
		t.Error("a call is open after its decision's time")
	}
	if _, open := f.srv.parent(remit.NewDecisionID()); open {
		t.Error("an invented call is open")
	}
}

// TestParentsAreBounded: only open calls are kept in memory, so many at most, and none that was erased.
func TestParentsAreBounded(t *testing.T) {
	var p parents
	at := time.Now()
	for range maxParents + 10 {
		p.put(remit.Decision{ID: remit.NewDecisionID(), Effect: remit.Allow, At: at, TTL: time.Minute}, at)
	}
	if len(p.open) > maxParents {
		t.Errorf("%d are kept", len(p.open))
	}
	denied := remit.Decision{ID: remit.NewDecisionID(), At: at, TTL: time.Minute}
	p.put(denied, at)
	if _, ok := p.get(denied.ID); ok {
		t.Error("a denial is kept")
	}
	last := remit.Decision{ID: remit.NewDecisionID(), Effect: remit.Allow, At: at.Add(time.Hour), TTL: time.Minute}
	p.put(last, at.Add(time.Hour))
	if _, ok := p.get(last.ID); !ok || len(p.open) != 1 {
		t.Errorf("%d are kept, of which one is open", len(p.open))
	}
	if p.forget(); len(p.open) != 0 {
		t.Error("what was erased is kept")
	}
}

// TestLimitedListener: connections beyond the limit are closed, and places are given back.
func TestLimitedListener(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	limit := &limited{Listener: l, most: 2}
	accepted := make(chan net.Conn)
	go func() {
		for {
			c, err := limit.Accept()
			if err != nil {
				close(accepted)
				return
			}
			accepted <- c
		}
	}()
	dial := func() net.Conn {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	dial()
	dial()
	first := <-accepted
	<-accepted
	over := dial()
	_ = over.SetReadDeadline(time.Now().Add(2 * time.Second))
	if _, err := over.Read(make([]byte, 1)); err == nil || strings.Contains(err.Error(), "timeout") {
		t.Errorf("the third connection stays: %v", err)
	}
	_, _ = first.Close(), first.Close() // twice gives back one place
	dial()
	select {
	case <-accepted:
	case <-time.After(2 * time.Second):
		t.Error("the place was not given back")
	}
}
