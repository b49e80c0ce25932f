// SPDX-License-Identifier: Apache-2.0

package server

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"remit"
	"remit/internal/api"
	"remit/internal/store"
)

// refund is a workflow whose customer comes from a ticket: refunds require the ticket, letters leave it to the starter to name one.
const refund = `---
kind: Workflow
name: refunds
parameters: {app: {type: name}, ticket: {type: string}, customer: {type: integer, min: 1, source: ticket.customer}}
start: {by: [operator/ci], expires: 1h, per_hour: {runs: 6, values: 2}}
stages:
- name: look
  end: {by: [operator/ci], when: [read executed, read granted, ask allowed]}
  may:
  - {name: read, who: agent/deploy, action: memory.read, target: cluster, where: {app: $app, customer: $customer}, ttl: 5m,
     evidence: [{ticket: {id: $ticket, source: change-desk, state: approved}}]}
  - {name: ask, who: agent/deploy, action: memory.ask, target: cluster, where: {app: $app}, ttl: 5m}
- name: pay
  end: {by: [operator/ci]}
  may:
  - {name: pay, who: agent/deploy, action: memory.pay, target: cluster, where: {customer: $customer}, ttl: 5m}
---
kind: Workflow
name: letters
parameters: {app: {type: name}, customer: {type: integer, source: ticket.customer}}
start: {by: [operator/ci], expires: 1h}
stages:
- name: only
  may:
  - {name: write, who: agent/deploy, action: memory.write, target: cluster, where: {app: $app, customer: $customer}, ttl: 5m}
`

func setUpRefunds(t *testing.T) *desk {
	t.Helper()
	d := setUpDesk(t)
	d.files += refund
	d.write(d.files)
	d.must("/v1/apply", nil, nil)
	return d
}

type params = map[string]string

// TestSourcedParameter: S9. The customer comes from the verified ticket; a value of the starter's is refused; a ticket that does not
// hold starts nothing.
func TestSourcedParameter(t *testing.T) {
	d := setUpRefunds(t)
	d.ticket("CHG-1", "approved", 0)
	d.ticket("CHG-2", "closed", 0)
	d.ticket("CHG-3", "approved", 0)
	ticket := map[remit.EvidenceKind]string{"ticket": "CHG-3"}
	before := len(d.srv.store.LiveRuns())
	for name, c := range map[string]struct {
		in   api.StartRun
		want remit.Code
	}{
		"the starter's own word":    {api.StartRun{Workflow: "refunds", Params: params{"app": "foo", "ticket": "CHG-1", "customer": "999"}}, remit.CodeInvalid},
		"a ticket in another state": {api.StartRun{Workflow: "refunds", Params: params{"app": "foo", "ticket": "CHG-2"}}, remit.CodeDenied},
		"no such ticket":            {api.StartRun{Workflow: "refunds", Params: params{"app": "foo", "ticket": "CHG-9"}}, remit.CodeDenied},
		"about another service":     {api.StartRun{Workflow: "refunds", Params: params{"app": "bar", "ticket": "CHG-1"}}, remit.CodeDenied},
		"another than required":     {api.StartRun{Workflow: "refunds", Params: params{"app": "foo", "ticket": "CHG-1"}, Evidence: ticket}, remit.CodeDenied},
		"which is not said":         {api.StartRun{Workflow: "letters", Params: params{"app": "foo"}}, remit.CodeDenied},
		"a parameter is missing":    {api.StartRun{Workflow: "refunds", Params: params{"ticket": "CHG-1"}}, remit.CodeInvalid},
		"not a declared one":        {api.StartRun{Workflow: "refunds", Params: params{"app": "foo", "ticket": "CHG-1", "x": "y"}}, remit.CodeInvalid},
	} {
		if code := d.post("/v1/runs", c.in, nil); code != c.want {
			t.Errorf("%s: %q, not %q", name, code, c.want)
		}
	}
	if n := len(d.srv.store.LiveRuns()); n != before {
		t.Fatalf("%d runs started", n-before)
	}
	var one, two remit.Run
	d.must("/v1/runs", api.StartRun{Workflow: "refunds", Params: params{"app": "foo", "ticket": "CHG-1"}}, &one)
	d.must("/v1/runs", api.StartRun{Workflow: "letters", Params: params{"app": "foo"}, Evidence: ticket}, &two)
	for _, r := range []remit.Run{one, two} {
		if r.Params["customer"].Text() != "555" || !strings.HasPrefix(r.Sources["customer"], "ticket.customer of change-desk CHG-") || r.Sources["app"] != "operator/ci" {
			t.Errorf("%+v", r)
		}
	}
	if code := d.post("/v1/runs", api.StartRun{Workflow: "letters", Params: params{"app": "foo"}, Evidence: map[remit.EvidenceKind]string{"ticket": "CHG-1"}}, nil); code != remit.CodeDenied {
		t.Errorf("a ticket serves two runs: %q", code)
	}
}

// TestExitFacts: S9. A stage is left when what its file asks for is in the ledger, of this run, and never before.
func TestExitFacts(t *testing.T) {
	d := setUpRefunds(t)
	d.ticket("CHG-1", "approved", 0)
	d.ticket("CHG-2", "approved", 0)
	start := func(ticket string) (remit.Run, *workload) {
		var r remit.Run
		d.must("/v1/runs", api.StartRun{Workflow: "refunds", Params: params{"app": "foo", "ticket": ticket}}, &r)
		return r, d.agent("agent/deploy", d.shared()).enter(r)
	}
	r, w := start("CHG-1")
	other, _ := start("CHG-2")
	leave := func(r remit.Run) remit.Code {
		return d.post("/v1/runs/"+string(r.ID)+"/advance", api.AdvanceRun{}, nil)
	}
	if code := leave(r); code != remit.CodeConflict {
		t.Fatalf("nothing happened: %q", code)
	}
	read, asked := w.ask("read"), w.ask("ask")
	if read.Secret == "" || asked.Secret == "" {
		t.Fatalf("%+v %+v", read, asked)
	}
	if code := leave(r); code != remit.CodeConflict {
		t.Errorf("nothing was executed: %q", code)
	}
	act := func(id remit.GrantID, allowed, effective bool, status int) {
		leases, err := d.srv.store.LeasesOf(id)
		if err != nil || len(leases) != 1 {
			t.Fatal(leases, err)
		}
		if err := d.srv.authorizer.Executed(t.Context(), []remit.Outcome{{At: d.srv.now(), Target: "cluster", Lease: leases[0].ID, Status: status, Allowed: allowed, Effective: effective, Source: "test"}}); err != nil {
			t.Fatal(err)
		}
	}
	act(asked.Grant, true, true, 200) // another permission's
	act(read.Grant, false, true, 403)
	act(read.Grant, true, true, 500)
	act(read.Grant, true, false, 200) // a look, or a dry run
	if code := leave(r); code != remit.CodeConflict {
		t.Errorf("what was executed failed, or was something else: %q", code)
	}
	act(read.Grant, true, true, 200)
	if code := leave(other); code != remit.CodeConflict {
		t.Errorf("another run's facts: %q", code)
	}
	if code := leave(r); code != "" {
		t.Errorf("all is there: %q", code)
	}
	if code := d.post("/v1/runs/"+string(r.ID)+"/advance", api.AdvanceRun{To: "look"}, nil); code != remit.CodeConflict {
		t.Errorf("back: %q", code)
	}
	if code := d.post("/v1/runs/"+string(other.ID)+"/finish", nil, nil); code != "" {
		t.Errorf("finish takes authority and needs no facts: %q", code)
	}
}

// TestTwinProvesNothing: S9. What grant verify makes and tries is not what a stage waits for.
func TestTwinProvesNothing(t *testing.T) {
	f := setUp(t)
	r := f.startRun()
	g, _ := f.srv.store.Grant(f.agent("agent/deploy", f.shared()).enter(r).ask("write").Grant)
	facts := func(g remit.Grant) (n int) {
		body := fmt.Sprintf(`{"grant":%q,"data":{"allowed":true,"effective":true,"status":200}}`, g.ID)
		for _, fact := range []string{remit.FactGranted, remit.FactExecuted} {
			if f.srv.proves(remit.Entry{Body: []byte(body)}, &r, remit.ExitFact{Permission: g.Permission.Name, Fact: fact}) {
				n++
			}
		}
		return n
	}
	twin := g
	twin.ID, twin.TwinOf = remit.NewGrantID(), g.ID
	if _, err := f.srv.store.Commit(t.Context(), remit.Change{Rows: []remit.Row{twin}}); err != nil {
		t.Fatal(err)
	}
	if facts(g) != 2 || facts(twin) != 0 {
		t.Errorf("the grant proves %d facts, its twin %d", facts(g), facts(twin))
	}
}

// TestRunStartFlood: S9. A starter that starts runs without end is refused, also by the next process, and not for ever.
func TestRunStartFlood(t *testing.T) {
	f := setUp(t)
	f.write(strings.Replace(f.files, "start: {by: [operator/ci], expires: 1h}", "start: {by: [operator/ci], expires: 2h, per_hour: {runs: 3}}", 1))
	f.must("/v1/apply", nil, nil)
	start := func() remit.Code {
		return f.post("/v1/runs", api.StartRun{Workflow: "deploy", Params: params{"app": "foo"}}, nil)
	}
	for i := range 5 {
		want := remit.Code("")
		if i >= 3 {
			want = remit.CodeExhausted
		}
		if code := start(); code != want {
			t.Errorf("run %d: %q", i+1, code)
		}
	}
	f.restart()
	if code := start(); code != remit.CodeExhausted || len(f.srv.store.LiveRuns()) != 3 {
		t.Errorf("after a restart: %q, %d runs", code, len(f.srv.store.LiveRuns()))
	}
	f.ahead.Store(int64(time.Hour + time.Second))
	if code := start(); code != "" {
		t.Errorf("an hour later: %q", code)
	}
}

// TestDistinctValuesAreLimited: S9. A starter that goes through customers one by one is stopped.
func TestDistinctValuesAreLimited(t *testing.T) {
	w := &remit.Workflow{Name: "refunds", Start: remit.Start{Runs: 10, Values: 2},
		Parameters: []remit.Parameter{{Name: "customer", Source: "ticket.customer"}, {Name: "note"}}}
	var s starts
	start := func(who remit.Name, customer int64) error {
		return s.take(w, &remit.Run{ID: remit.NewRunID(), Workflow: w.Name, Starter: who, Started: time.Unix(1e9, 0),
			Params: map[string]remit.Value{"customer": remit.IntValue(customer), "note": remit.StringValue(fmt.Sprint(customer))}})
	}
	for _, customer := range []int64{1, 2, 1, 2} {
		if err := start("operator/desk", customer); err != nil {
			t.Fatal(err)
		}
	}
	if err := start("operator/desk", 3); remit.CodeOf(err) != remit.CodeExhausted {
		t.Errorf("a third customer: %v", err)
	}
	if err := start("operator/other", 3); err != nil {
		t.Errorf("another starter: %v", err)
	}
}

// TestTwoRunsOfOneAgent: two runs of one agent never share authority: neither token, nor grant, nor open call, nor end.
func TestTwoRunsOfOneAgent(t *testing.T) {
	f := setUp(t)
	var one, two remit.Run
	f.must("/v1/runs", api.StartRun{Workflow: "deploy", Params: params{"app": "one"}}, &one)
	f.must("/v1/runs", api.StartRun{Workflow: "deploy", Params: params{"app": "two"}}, &two)
	first, second := f.agent("agent/deploy", f.shared()).enter(one), f.agent("agent/deploy", f.shared()).enter(two)
	a, b := first.ask("write"), second.ask("write")
	leases := func() (scopes []string) {
		for _, g := range f.srv.store.LiveGrants(store.GrantFilter{}) {
			scopes = append(scopes, string(g.Run)+" "+g.Scope["app"].Text())
		}
		return scopes
	}
	if a.Secret == "" || b.Secret == "" || len(leases()) != 2 {
		t.Fatalf("%+v %+v", a, b)
	}
	for _, scope := range leases() {
		if scope != string(one.ID)+" one" && scope != string(two.ID)+" two" {
			t.Errorf("a grant of one run about the other's application: %s", scope)
		}
	}
	swapped := *first
	swapped.token = second.token
	if g := swapped.ask("write"); g.Secret != "" {
		if got, _ := f.srv.store.Grant(g.Grant); got.Run != two.ID || got.Scope["app"].Text() != "two" {
			t.Errorf("the other run's token gives %+v", got)
		}
		f.must("/v1/grants/"+string(g.Grant)+"/revoke", api.Reasoned{Reason: "test"}, nil)
	}
	f.must("/v1/runs/"+string(one.ID)+"/finish", nil, nil)
	if left := leases(); len(left) != 1 || left[0] != string(two.ID)+" two" || f.backend.count() != 1 {
		t.Errorf("after the end of one: %v", left)
	}
	if g := first.ask("write"); g.Secret != "" {
		t.Error("the ended run gives a credential while the other lives")
	}
}
