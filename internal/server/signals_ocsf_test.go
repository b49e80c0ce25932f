// SPDX-License-Identifier: Apache-2.0

package server

import (
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"remit"
	"remit/internal/store"
)

// setUpReceiver is a server with one receiver, at srv, which has more settings; in them SECRET, TOKEN and KEY are files.
func setUpReceiver(t *testing.T, srv *httptest.Server, more string) *fixture {
	t.Helper()
	dir := t.TempDir()
	for name, b := range map[string][]byte{"ca.pem": pemOf(srv),
		"SECRET": []byte(hookSecret), "TOKEN": []byte("a-token-of-the-collector"), "KEY": setKey(t)} {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, b, 0o600); err != nil {
			t.Fatal(err)
		}
		more = strings.ReplaceAll(more, name, fmt.Sprintf("{file: %q}", file))
	}
	return setUp(t, "# Who manages", fmt.Sprintf("signals:\n- {name: siem, url: %q, ca: %q, %s}\n# Who manages", srv.URL, filepath.Join(dir, "ca.pem"), more))
}

// pemOf is the certificate that a server shows.
func pemOf(srv *httptest.Server) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})
}

// ocsfCollector is a receiver of OCSF. It answers what status says for a body.
type ocsfCollector struct {
	*httptest.Server
	status atomic.Pointer[func(body string) int]

	mu     sync.Mutex // guards what follows
	events []map[string]any
	most   int // in one delivery
	wrong  []string
}

func newCollector(t *testing.T) *ocsfCollector {
	t.Helper()
	c := &ocsfCollector{}
	c.Server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		if f := c.status.Load(); f != nil && (*f)(string(b)) != http.StatusOK {
			w.WriteHeader((*f)(string(b)))
			return
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		var events []map[string]any
		if err := json.Unmarshal(b, &events); err != nil || r.Header.Get("Authorization") != "Bearer a-token-of-the-collector" || r.Header.Get("Content-Type") != "application/json" {
			c.wrong = append(c.wrong, fmt.Sprintf("%v %v %s", err, r.Header, b))
		}
		c.events, c.most = append(c.events, events...), max(c.most, len(events))
	}))
	t.Cleanup(c.Close)
	return c
}

func (c *ocsfCollector) answers(f func(body string) int) { c.status.Store(&f) }

// told are the numbers of the entries that it has, and how many there are of each class.
func (c *ocsfCollector) told() (seqs []uint64, classes map[string]int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	classes = map[string]int{}
	for _, e := range c.events {
		seqs = append(seqs, uint64(e["metadata"].(map[string]any)["sequence"].(float64)))
		classes[e["class_name"].(string)+": "+e["activity_name"].(string)]++
	}
	return seqs, classes
}

// TestSignalsOCSF: a collector is told of every decision, grant, credential, finding and suspension, in order, each once, in batches, and of no
// value; while it was away nothing was lost.
func TestSignalsOCSF(t *testing.T) {
	c := newCollector(t)
	c.answers(func(string) int { return http.StatusServiceUnavailable })
	f := setUpReceiver(t, c.Server, "form: ocsf, token: TOKEN, secret: SECRET, events: [findings, decisions, credentials]")
	w := f.agent("agent/deploy", f.shared()).enter(f.startRun())
	for range 6 {
		if g := w.ask("write"); g.Secret == "" {
			t.Fatalf("%+v", g)
		}
	}
	f.stolen(f.startRun())
	f.eventually("the suspension is on record", func() bool { return f.events(remit.EventSuspended) == 1 })
	f.restart()
	c.answers(func(string) int { return http.StatusOK })
	f.eventually("all of it is told", func() bool {
		_, n := c.told()
		return n["User Management: Disable"] > 0 && n["User Management: Remove Programmatic Credentials"] > 0 && n["Detection Finding: Create"] > 0 // in any order
	})
	seqs, n := c.told()
	if !slices.IsSorted(seqs) || len(slices.Compact(slices.Clone(seqs))) != len(seqs) {
		t.Errorf("told of %v", seqs)
	}
	for what, least := range map[string]int{"API Activity: memory.write": 6, "Authorize Session: Assign Privileges": 6, "User Management: Add Programmatic Credentials": 6, "Detection Finding: Create": 1} {
		if n[what] < least {
			t.Errorf("%s: %d of %d: %v", what, n[what], least, n)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.most < 6 || len(c.wrong) > 0 {
		t.Errorf("at most %d together; %v", c.most, c.wrong)
	}
}

// TestOneRefusedOfMany: of events that are refused together, only the one that is refused alone is given up, on record.
func TestOneRefusedOfMany(t *testing.T) {
	c := newCollector(t)
	c.answers(func(string) int { return http.StatusServiceUnavailable })
	f := setUpReceiver(t, c.Server, "form: ocsf, token: TOKEN, events: [findings, decisions, credentials]")
	f.stolen(f.startRun())
	f.eventually("the suspension is on record", func() bool { return f.events(remit.EventSuspended) == 1 })
	c.answers(func(body string) int {
		if strings.Contains(body, `"event_code":"finding.raised"`) {
			return http.StatusBadRequest
		}
		return http.StatusOK
	})
	f.eventually("what follows is told", func() bool { _, n := c.told(); return n["User Management: Disable"] == 1 })
	f.eventually("the refusal is on record", func() bool { return f.findingsNamed("signal_refused") == 1 })
	if _, n := c.told(); n["Detection Finding: Create"] != 0 || len(n) < 2 {
		t.Errorf("told of %v", n)
	}
}

func (f *fixture) findingsNamed(name string) (n int) {
	f.t.Helper()
	events, _, err := f.srv.store.Events(store.EventFilter{Kind: remit.EventFinding}, 0, 1000)
	if err != nil {
		f.t.Fatal(err)
	}
	for _, e := range events {
		if strings.Contains(string(e.Body), `"finding":"`+name+`"`) {
			n++
		}
	}
	return n
}

// TestReceiverInTrouble: a receiver that answers 401 keeps its place: people are told, once, by the ledger, doctor and metrics; once it answers, it is
// told of all, in order, and nothing is wrong any more.
func TestReceiverInTrouble(t *testing.T) {
	c := newCollector(t)
	c.answers(func(string) int { return http.StatusUnauthorized })
	f := setUpReceiver(t, c.Server, "form: ocsf, token: TOKEN, events: [decisions]")
	w := f.agent("agent/deploy", f.shared()).enter(f.startRun())
	w.ask("write")
	f.eventually("it is on record", func() bool { return f.findingsNamed("signal_undelivered") == 1 })
	w.ask("write")
	check := f.srv.checkSignals()
	if check.OK || !strings.Contains(check.Text, "siem was not told of entry") || !strings.Contains(check.Text, "401") || !strings.Contains(check.Fix, "token") {
		t.Errorf("%+v", check)
	}
	if check := f.check("signals"); check.OK {
		t.Errorf("%+v", check)
	}
	if lines := strings.Join(f.srv.measured(), "\n"); !strings.Contains(lines, `remit_signal_failures{receiver="siem"} `) || strings.Contains(lines, `remit_signal_failures{receiver="siem"} 0`) {
		t.Error(lines)
	}
	c.answers(func(string) int { return http.StatusOK })
	f.eventually("it is told", func() bool { seqs, _ := c.told(); return len(seqs) >= 2 })
	if seqs, _ := c.told(); !slices.IsSorted(seqs) {
		t.Errorf("told of %v", seqs)
	}
	f.eventually("nothing is wrong", func() bool { return f.srv.checkSignals().OK })
	if n := f.findingsNamed("signal_undelivered"); n != 1 {
		t.Errorf("%d times on record", n)
	}
}
