// SPDX-License-Identifier: Apache-2.0

package server

import (
	"encoding/json"
	"fmt"
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

// eventually waits until a condition holds.
func (f *fixture) eventually(what string, holds func() bool) {
	f.t.Helper()
	for end := time.Now().Add(20 * time.Second); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			f.t.Fatalf("not in time: %s", what)
		}
	}
}

// ends demands that a grant ends, at its target and on record, with a reason whose decision is in the ledger, too.
func (f *fixture) ends(id remit.GrantID, code remit.ReasonCode) {
	f.t.Helper()
	var g remit.Grant
	f.eventually("grant "+string(id)+" ended for "+string(code), func() bool {
		g, _ = f.srv.store.Grant(id)
		return g.State == remit.GrantEnded
	})
	if !strings.Contains(g.Why, "no longer allowed: "+string(code)) {
		f.t.Errorf("why: %s", g.Why)
	}
	f.eventually("the decision is on record", func() bool {
		entries, _, err := f.srv.store.Events(store.EventFilter{Kind: remit.EventDecision, Grant: id}, 0, 10)
		if len(entries) > 1 {
			f.t.Fatalf("%d decisions say why it ended", len(entries))
		}
		return err == nil && len(entries) == 1 && strings.Contains(string(entries[0].Body), `"code":"`+string(code)+`"`)
	})
	for _, l := range f.srv.store.LiveLeases(nil) {
		if l.Grant == id {
			f.t.Errorf("lease %s is %s", l.ID, l.State)
		}
	}
}

// TestPolicyChangeEndsGrants: S12. A configuration that does not allow it any more ends a live grant at its target; one that still
// does ends nothing.
func TestPolicyChangeEndsGrants(t *testing.T) {
	rule := "---\nkind: Rule\nname: freeze\nrego: |\n  package remit.rules\n  deny contains \"frozen\" if input.target == \"cluster\"\n"
	for name, c := range map[string]struct {
		edit func(string) string
		want remit.ReasonCode
	}{
		"a remark":         {func(s string) string { return s + "# a remark\n" }, ""},
		"a rule":           {func(s string) string { return s + rule }, remit.ReasonRule},
		"another workflow": {func(s string) string { return strings.Replace(s, "name: write,", "name: writes,", 1) }, remit.ReasonWorkflowChanged},
		"a target in production": {func(s string) string {
			return strings.Replace(s, "name: cluster\n", "name: cluster\nproduction: true\n", 1)
		}, remit.ReasonLevel},
	} {
		t.Run(name, func(t *testing.T) {
			f := setUp(t)
			w := f.agent("agent/deploy", f.shared()).enter(f.startRun())
			g := w.ask("write")
			f.write(c.edit(f.files))
			var out api.Applied
			f.must("/v1/apply", nil, &out)
			if c.want == "" {
				if out.Ended != 0 || f.backend.count() != 1 {
					t.Errorf("ended %d, %d stand", out.Ended, f.backend.count())
				}
				return
			}
			if f.backend.count() != 0 {
				t.Error("it stands at the target after apply answered")
			}
			f.ends(g.Grant, c.want)
			if out.Ended != 1 {
				t.Errorf("apply says %+v", out)
			}
		})
	}
}

// TestPolicyChangedWhileDown: the same when the files change while no server runs.
func TestPolicyChangedWhileDown(t *testing.T) {
	f := setUp(t)
	w := f.agent("agent/deploy", f.shared()).enter(f.startRun())
	g := w.ask("write")
	f.write(strings.Replace(f.files, "name: write,", "name: writes,", 1))
	f.restart()
	f.ends(g.Grant, remit.ReasonWorkflowChanged)
	f.backend.waitEmpty(t)
}

// TestClosedTicketEndsGrants: S12. The ticket of a live grant is closed; a system that does not answer ends it, too, but not at
// once.
func TestClosedTicketEndsGrants(t *testing.T) {
	t.Run("closed", func(t *testing.T) {
		d := setUpDesk(t)
		d.ticket("CHG-1", "approved", 0)
		w, _ := d.changing("CHG-1")
		g := w.ask("change")
		d.ahead.Store(int64(31 * time.Second))
		asked := d.Asked("/api/changes/CHG-1")
		d.eventually("it was read again", func() bool { return d.Asked("/api/changes/CHG-1") != asked })
		if got, _ := d.srv.store.Grant(g.Grant); got.State != remit.GrantActive {
			t.Fatalf("with its ticket open the grant is %s", got.State)
		}
		d.ticket("CHG-1", "closed", 0)
		d.ahead.Store(int64(62 * time.Second))
		d.ends(g.Grant, remit.ReasonEvidenceField)
		d.backend.waitEmpty(t)
		if n := d.Asked("/api/changes/CHG-1"); n != "3" {
			t.Errorf("asked %s times in a minute", n)
		}
	})
	t.Run("silent", func(t *testing.T) {
		d := setUpDesk(t)
		d.ticket("CHG-1", "approved", 0)
		w, _ := d.changing("CHG-1")
		g := w.ask("change")
		d.ticket("CHG-1", "approved", 10*time.Second)
		d.ahead.Store(int64(31 * time.Second))
		d.eventually("it was noticed", func() bool { return d.srv.rechecks.isSilent(g.Grant) })
		if got, _ := d.srv.store.Grant(g.Grant); got.State != remit.GrantActive || d.backend.count() != 1 {
			t.Fatalf("at once the grant is %s", got.State)
		}
		d.ahead.Store(int64(2 * time.Minute))
		d.ends(g.Grant, remit.ReasonEvidenceSource)
	})
}

const scans = `---
kind: EvidenceSource
name: trivy-ci
type: scan
signers:
- {name: ci-scanner, key: {file: KEY1}}
- {name: second-scanner, key: {file: KEY2}}
---
kind: Workflow
name: scanned
parameters: {image: {type: image}}
start: {by: [operator/ci], expires: 1h}
stages:
- name: only
  end: {by: [operator/ci]}
  may:
  - {name: ship, who: agent/deploy, action: memory.write, target: cluster, where: {image: $image}, ttl: 5m,
     evidence: [{scan: {of: $image, source: trivy-ci, worst: medium, within: 24h}}]}
`

// TestEvidenceEndsGrants: S12. A newer failing scan, a signer that is not trusted any more and a source that is gone each end a live
// grant; a newer passing scan ends nothing.
func TestEvidenceEndsGrants(t *testing.T) {
	for name, c := range map[string]struct {
		do   func(*scanned)
		want remit.ReasonCode
	}{
		"newer passing scan":     {func(s *scanned) { s.add(s.second, "scan-2", "low") }, ""},
		"newer failing scan":     {func(s *scanned) { s.add(s.first, "scan-2", "critical") }, remit.ReasonEvidenceSeverity},
		"another's failing scan": {func(s *scanned) { s.add(s.second, "scan-2", "critical") }, remit.ReasonEvidenceSeverity},
		"distrusted signer": {func(s *scanned) {
			s.apply(strings.Replace(s.files, "- {name: ci-scanner, key: {file: "+s.keys[0]+"}}\n", "", 1))
		}, remit.ReasonEvidenceSigner},
		"distrusted key in same files": {func(s *scanned) {
			if err := os.WriteFile(s.keys[0], []byte(s.stranger.PublicPEM()), 0o600); err != nil {
				s.t.Fatal(err)
			}
			s.apply(s.files)
		}, remit.ReasonEvidenceSigner},
		"removed source": {func(s *scanned) {
			head, tail, _ := strings.Cut(s.files, "kind: EvidenceSource")
			_, tail, _ = strings.Cut(tail, "---\n")
			s.apply(head + strings.Replace(tail, ",\n     evidence: [{scan: {of: $image, source: trivy-ci, worst: medium, within: 24h}}]", "", 1))
		}, remit.ReasonWorkflowChanged},
	} {
		t.Run(name, func(t *testing.T) {
			s := setUpScanned(t)
			s.add(s.first, "scan-1", "low")
			g := s.w.ask("ship")
			if g.Secret == "" {
				t.Fatalf("%+v", g)
			}
			c.do(s)
			if c.want != "" {
				s.ends(g.Grant, c.want)
				s.backend.waitEmpty(t)
				return
			}
			done := make(chan struct{})
			s.srv.recheck(t.Context(), "test", func(*remit.Grant) bool { close(done); return true })
			<-done
			if s.backend.count() != 1 {
				t.Error("it ended")
			}
		})
	}
}

// scanned is a running server with a run about an image and scanners.
type scanned struct {
	*fixture
	first, second, stranger *evidencetest.Signer
	keys                    [2]string
	image                   remit.Digest
	w                       *workload
}

func setUpScanned(t *testing.T) *scanned {
	t.Helper()
	s := &scanned{fixture: setUp(t), image: remit.DigestOf([]byte("image"))}
	for i, into := range []**evidencetest.Signer{&s.first, &s.second, &s.stranger} {
		signer, err := evidencetest.NewSigner(fmt.Sprint("signer-", i))
		if err != nil {
			t.Fatal(err)
		}
		if *into = signer; i == len(s.keys) {
			break
		}
		s.keys[i] = filepath.Join(t.TempDir(), "key.pem")
		if err := os.WriteFile(s.keys[i], []byte(signer.PublicPEM()), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s.files += strings.NewReplacer("KEY1", s.keys[0], "KEY2", s.keys[1]).Replace(scans)
	s.apply(s.files)
	var r remit.Run
	s.must("/v1/runs", api.StartRun{Workflow: "scanned", Params: map[string]string{"image": "registry.company.com/foo@" + string(s.image)}}, &r)
	s.w = s.agent("agent/deploy", s.shared()).enter(r)
	return s
}

func (s *scanned) apply(files string) {
	s.t.Helper()
	s.write(files)
	s.must("/v1/apply", nil, nil)
}

// add hands in a scan of the image.
func (s *scanned) add(by *evidencetest.Signer, id, severity string) {
	s.t.Helper()
	scan := evidencetest.Scan{ID: id, Image: "registry.company.com/foo", Subjects: []remit.Digest{s.image}, Finished: time.Now(),
		Findings: []evidencetest.Finding{{ID: "CVE-2026-0001", Severity: severity}}}
	envelope, err := by.Sign(scan.Statement())
	if err != nil {
		s.t.Fatal(err)
	}
	s.must("/v1/evidence", api.AddEvidence{Source: "trivy-ci", Envelope: envelope}, nil)
}
