// SPDX-License-Identifier: Apache-2.0

package server

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"remit"
	"remit/internal/api"
	"remit/internal/evidence/evidencetest"
	"remit/internal/store"
)

const changes = `---
kind: EvidenceSource
name: change-desk
type: ticket
url: URL/api/changes/{id}
ca: CAFILE
token: {file: TOKENFILE}
id: "CHG-[0-9]+"
fields: {id: /number, state: /state, service: /service, namespace: /namespace, start: /start, end: /end, requester: /requester,
  approver: /approver, requester_groups: /groups, approver_groups: /boards, customer: /customer}
same: {service: app}
requester_groups: [platform]
approver_groups: [change-board]
---
kind: Workflow
name: change
parameters: {app: {type: name}, ticket: {type: string}}
start: {by: [operator/ci], expires: 1h}
stages:
- name: only
  end: {by: [operator/ci]}
  may:
  - {name: change, who: agent/deploy, action: memory.write, target: cluster, where: {app: $app}, ttl: 5m,
     evidence: [{ticket: {id: $ticket, source: change-desk, state: approved}}]}
`

// desk is a running server with a ticket system beside it.
type desk struct {
	*fixture
	*evidencetest.Desk
}

func setUpDesk(t *testing.T) *desk {
	t.Helper()
	d := &desk{setUp(t), evidencetest.StartDesk(t)}
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte("desk-token\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	d.files += strings.NewReplacer("URL", d.URL, "CAFILE", d.CA, "TOKENFILE", token).Replace(changes)
	d.write(d.files)
	d.must("/v1/apply", nil, nil)
	return d
}

// ticket puts a ticket as it now is into the ticket system.
func (d *desk) ticket(id, state string, delay time.Duration) {
	d.t.Helper()
	at := func(h time.Duration) string { return time.Now().Add(h * time.Hour).UTC().Format(time.RFC3339) }
	b, err := json.Marshal(map[string]any{"number": id, "state": state, "service": "foo", "namespace": "production", "start": at(-1), "end": at(2),
		"requester": "rita", "approver": "abe", "groups": []string{"platform"}, "boards": []string{"change-board"}, "customer": 555})
	if err != nil {
		d.t.Fatal(err)
	}
	d.Put("/api/changes/"+id, evidencetest.Reply{Body: string(b), Delay: delay})
}

// changing starts a run about a ticket and returns the agent in it.
func (d *desk) changing(ticket string) (*workload, remit.Run) {
	d.t.Helper()
	var r remit.Run
	d.must("/v1/runs", api.StartRun{Workflow: "change", Params: map[string]string{"app": "foo", "ticket": ticket}}, &r)
	return d.agent("agent/deploy", d.shared()).enter(r), r
}

// lastLease is the newest event about a lease.
func (f *fixture) lastLease() (remit.EventKind, string) {
	f.t.Helper()
	var kind remit.EventKind
	var body string
	for _, k := range []remit.EventKind{remit.EventLeaseActive, remit.EventLeaseFailed, remit.EventLeaseEnded} {
		entries, _, err := f.srv.store.Events(store.EventFilter{Kind: k}, 0, 1000)
		if err != nil {
			f.t.Fatal(err)
		}
		if n := len(entries); n > 0 && (kind == "" || string(entries[n-1].Open().Body) > body) {
			kind, body = k, string(entries[n-1].Open().Body)
		}
	}
	return kind, body
}

// TestTicketClosedBeforeMint: S15. The ticket says approved at the decision; while the target is looked at, half a minute goes by
// and the ticket is closed. The same with a ticket system that does not answer any more.
func TestTicketClosedBeforeMint(t *testing.T) {
	for name, c := range map[string]struct {
		state string
		delay time.Duration
		want  remit.ReasonCode
	}{
		"open still": {"approved", 0, ""},
		"closed":     {"closed", 0, remit.ReasonEvidenceField},
		"silent":     {"approved", 10 * time.Second, remit.ReasonEvidenceSource},
	} {
		t.Run(name, func(t *testing.T) {
			d := setUpDesk(t)
			d.ticket("CHG-1", "approved", 0)
			w, _ := d.changing("CHG-1")
			d.backend.set(&d.backend.checking, func() {
				d.ticket("CHG-1", c.state, c.delay)
				d.ahead.Store(int64(31 * time.Second))
			})
			g := w.ask("change")
			if c.want == "" {
				if g.Secret == "" || d.backend.count() != 1 {
					t.Fatalf("%+v", g)
				}
				return
			}
			if g.Secret != "" || g.code() != string(c.want) || d.backend.count() != 0 {
				t.Errorf("%+v, %d at the target", g, d.backend.count())
			}
			if n := d.events(remit.EventLeaseFailed); n != 1 || d.events(remit.EventDecision) != 2 {
				t.Errorf("%d failed leases, %d decisions on record", n, d.events(remit.EventDecision))
			}
			d.ticket("CHG-1", "approved", 0)
			d.ahead.Store(int64(62 * time.Second))
			if g := w.ask("change"); g.Secret == "" {
				t.Errorf("approved again: %+v", g)
			}
		})
	}
}

// TestLaunchEndsItsGrants: what a launched process was given ends with it, at the target; another's of the same agent stays.
func TestLaunchEndsItsGrants(t *testing.T) {
	f := setUp(t)
	r := f.startRun()
	l, launched := f.launch(r)
	own := f.agent("agent/deploy", f.shared()).enter(r)
	if launched.ask("write").Secret == "" || launched.ask("secret").Secret == "" || own.ask("write").Secret == "" {
		t.Fatal("no credential")
	}
	f.backend.whileBusy(func() { launched.ask("write") }) // while the target is slow it asks once more
	f.must("/v1/launches/"+string(l.ID)+"/end", nil, nil)
	if n := f.backend.count(); n != 1 {
		t.Errorf("%d leases stand, not the other process's one", n)
	}
	if _, body := f.lastLease(); !strings.Contains(body, "its launch ended") {
		t.Errorf("the ledger says %s", body)
	}
}
