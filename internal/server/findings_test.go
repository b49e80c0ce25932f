// SPDX-License-Identifier: Apache-2.0

package server

import (
	"encoding/json"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"remit"
	"remit/internal/api"
	"remit/internal/behaviour"
	"remit/internal/store"
)

// found waits for a finding of the kind and returns it.
func (f *fixture) found(kind remit.FindingKind) (out remit.Finding) {
	f.t.Helper()
	f.eventually("finding "+string(kind), func() bool {
		var list api.List[remit.Finding]
		if err := f.admin.Get(f.t.Context(), "/v1/findings", map[string][]string{"kind": {string(kind)}}, &list); err != nil {
			f.t.Fatal(err)
		}
		if len(list.Items) > 0 {
			out = list.Items[0]
		}
		return len(list.Items) > 0
	})
	return out
}

// stolenOnce has deploy show the run token of build, and waits until that is found.
func (f *fixture) stolenOnce() {
	f.t.Helper()
	thief := f.agent("agent/deploy", f.shared())
	thief.token = f.agent("agent/build", f.shared()).enter(f.startRun()).token
	thief.ask("write")
	f.eventually("another theft is found", func() bool { return f.srv.store.Posture("agent/deploy").Suspended && f.events(remit.EventRaised) > 1 })
}

// findingsOf is remit.yaml with findings set.
func findingsOf(yaml string) []string {
	return []string{"# Where agents and enforcement", "findings: " + yaml + "\n# Where agents and enforcement"}
}

// backendOf is the backend of the story's targets.
func backendOf(files string) string {
	_, rest, _ := strings.Cut(files, "backend: \"")
	name, _, _ := strings.Cut(rest, "\"")
	return name
}

// askFor asks with authorization details.
func (w *workload) askFor(details string) given {
	w.f.t.Helper()
	form := url.Values{"grant_type": {"client_credentials"}, "client_id": {w.svid.ID.String()}, "authorization_details": {"[" + details + "]"}}
	var g given
	w.call("/oauth2/token", "application/x-www-form-urlencoded", strings.NewReader(form.Encode()), &g)
	return g
}

// stolen has build show the run token of deploy.
func (f *fixture) stolen(r remit.Run) given {
	f.t.Helper()
	thief := f.agent("agent/build", f.shared())
	thief.token = f.agent("agent/deploy", f.shared()).enter(r).token
	return thief.ask("build")
}

// TestHardEvidenceSuspends: an agent that shows another one's run token is denied from then on, its grants end, and the ledger says
// why, how fast, and on which entry that rests. A restart finds nothing twice; the other agent goes on; a person gives it back.
func TestHardEvidenceSuspends(t *testing.T) {
	f := setUp(t)
	r := f.startRun()
	honest := f.agent("agent/build", f.shared()).enter(r)
	if g := honest.ask("build"); g.Secret == "" {
		t.Fatalf("%+v", g)
	}
	if g := f.stolen(r); g.code() != string(remit.ReasonRunToken) {
		t.Fatalf("%+v", g)
	}
	got := f.found(remit.FindingStolenToken)
	if got.Agent != "agent/build" || got.Run != r.ID || got.Response != remit.RespondSuspend || got.Severity != remit.SeverityCritical || got.State != remit.FindingOpen {
		t.Errorf("%+v", got)
	}
	e, ok, err := f.srv.store.Entry(got.Seq())
	if err != nil || !ok || !strings.Contains(string(e.Body), `"kind":"decision"`) || !strings.Contains(string(e.Body), `"of":"agent"`) {
		t.Errorf("%s %v", e.Body, err)
	}
	f.backend.waitEmpty(t)
	f.eventually("the suspension is on record", func() bool { return f.events(remit.EventSuspended) == 1 })
	list, _, err := f.srv.store.Events(store.EventFilter{Kind: remit.EventSuspended}, 0, 1)
	if err != nil {
		t.Fatal(err)
	}
	var on struct {
		By   string         `json:"by"`
		Data suspensionData `json:"data"`
	}
	if err := json.Unmarshal(list[0].Body, &on); err != nil || on.By != "remit" || on.Data.Finding != got.ID || on.Data.Grants != 1 || len(on.Data.Steps) < 3 {
		t.Errorf("%v: %s", err, list[0].Body)
	}
	if g := honest.ask("build"); g.code() != string(remit.ReasonSuspended) {
		t.Errorf("after it: %+v", g)
	}
	if _, err := f.tryAgent("agent/build", f.shared()); err == nil {
		t.Error("a new SVID was issued")
	}
	if f.srv.store.Posture("agent/deploy").Suspended {
		t.Error("whose token was stolen is suspended")
	}
	f.restart()
	if !f.srv.store.Posture("agent/build").Suspended || f.events(remit.EventRaised) != 1 {
		t.Errorf("after a restart: %d findings", f.events(remit.EventRaised))
	}
	f.must("/v1/findings/"+string(got.ID)+"/close", api.Reasoned{Reason: "a copied environment"}, &got)
	if got.State != remit.FindingClosed || got.ClosedBy != "operator/ci" || !f.srv.store.Posture("agent/build").Suspended {
		t.Errorf("closed: %+v", got)
	}
	if code := f.post("/v1/findings/"+string(got.ID)+"/close", api.Reasoned{Reason: "again"}, nil); code != remit.CodeConflict {
		t.Errorf("closed twice: %s", code)
	}
	f.must("/v1/agents/agent/build/reinstate", api.Reasoned{Reason: "a copied environment"}, nil)
	if g := f.agent("agent/build", f.shared()).enter(f.startRun()).ask("build"); g.Secret == "" {
		t.Errorf("reinstated: %+v", g)
	}
	f.restart()
	f.stolenOnce() // something new, so that all before it was read
	if f.events(remit.EventRaised) != 2 || f.srv.store.Posture("agent/build").Suspended {
		t.Error("a restart acts again on what it had acted on")
	}
	var after api.List[remit.Finding]
	if err := f.admin.Get(t.Context(), "/v1/findings", nil, &after); err != nil || len(after.Items) != 2 || after.Items[1].State != remit.FindingClosed {
		t.Errorf("%v %+v", err, after)
	}
}

// TestSuspensionCutShort: what a process that died had decided and not carried out is carried out at the next start, once: the agent's runs
// freeze, others' leases in them end, and it is told.
func TestSuspensionCutShort(t *testing.T) {
	f := setUp(t)
	r := f.startRun()
	if g := f.agent("agent/build", f.shared()).enter(r).ask("build"); g.Secret == "" {
		t.Fatalf("%+v", g)
	}
	of := remit.NewFindingID(remit.FindingStolenToken, "agent/deploy", "", 1)
	if _, err := f.srv.store.Commit(t.Context(), remit.Change{Rows: []remit.Row{remit.AgentStatus{Agent: "agent/deploy", Suspended: true, Ending: of, At: time.Now()}}}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		f.restart()
		f.eventually("the suspension is on record", func() bool { return f.events(remit.EventSuspended) == 1 })
		if r, _ := f.srv.store.Run(r.ID); r.State != remit.RunFrozen {
			t.Errorf("the run is %s", r.State)
		}
		f.backend.waitEmpty(t)
	}
	time.Sleep(200 * time.Millisecond)
	if n := f.events(remit.EventSuspended); n != 1 {
		t.Errorf("%d suspensions are on record after another start", n)
	}
}

// TestSuspensionsHaveABudget: S36. Beyond the budget a finding only tells, and says so. The budget outlives a restart.
func TestSuspensionsHaveABudget(t *testing.T) {
	f := setUp(t, findingsOf("{suspensions_an_hour: 1}")...)
	r := f.startRun()
	f.stolen(r)
	f.found(remit.FindingStolenToken)
	f.eventually("the suspension is on record", func() bool { return f.events(remit.EventSuspended) == 1 })
	f.restart()
	thief := f.agent("agent/deploy", f.shared())
	thief.token = f.agent("agent/other", f.shared()).enter(f.startRun()).token
	thief.ask("write")
	f.eventually("the second", func() bool { return f.events(remit.EventRaised) == 2 })
	var list api.List[remit.Finding]
	if err := f.admin.Get(t.Context(), "/v1/findings", map[string][]string{"agent": {"agent/deploy"}}, &list); err != nil || len(list.Items) != 1 {
		t.Fatal(err, list)
	}
	if got := list.Items[0]; got.Response != remit.RespondNotice || !strings.Contains(got.Held, "a person has to decide") || f.srv.store.Posture("agent/deploy").Suspended {
		t.Errorf("%+v", got)
	}
}

// TestOutsideItsWorkflow: the target is declared, another workflow has it, this one has not. By default that is only told.
func TestOutsideItsWorkflow(t *testing.T) {
	f := setUp(t)
	f.write(f.files + "---\nkind: Target\nname: payments\ntype: memory\nbackend: \"" + backendOf(f.files) + "\"\n")
	f.must("/v1/apply", nil, nil)
	w := f.agent("agent/deploy", f.shared()).enter(f.startRun())
	w.askFor(`{"type":"memory.read","target":"payments"}`)
	w.askFor(`{"type":"memory.read","target":"no-such-target"}`)
	w.askFor(`{"type":"memory.read","target":"cluster"}`)
	got := f.found(remit.FindingOutsideWorkflow)
	if got.Target != "payments" || got.Agent != "agent/deploy" || got.Response != remit.RespondNotice || f.srv.store.Posture("agent/deploy").Suspended {
		t.Errorf("%+v", got)
	}
	time.Sleep(50 * time.Millisecond)
	if n := f.events(remit.EventRaised); n != 1 {
		t.Errorf("%d findings", n)
	}
}

// TestCanaryAndBurst: a configured canary is told of, a burst of denials suspends where the file says so.
func TestCanaryAndBurst(t *testing.T) {
	f := setUp(t, findingsOf("{respond: {denial_burst: suspend, canary_touched: notice}, denials: {count: 5, within: 1m}, canaries: [{name: row, target: cluster, value: trap}]}")...)
	w := f.agent("agent/deploy", f.shared()).enter(f.startRun())
	w.askFor(`{"type":"memory.write","target":"cluster","app":"trap"}`)
	if got := f.found(remit.FindingCanary); got.Target != "canary row" || got.Response != remit.RespondNotice {
		t.Errorf("%+v", got)
	}
	for range 6 {
		w.askFor(`{"type":"memory.write","target":"cluster","app":"bar"}`)
	}
	f.ahead.Store(int64(11 * time.Second)) // what repeats itself is folded for 10 s
	if got := f.found(remit.FindingDenialBurst); got.Agent != "agent/deploy" || got.Response != remit.RespondSuspend {
		t.Errorf("%+v", got)
	}
}

// TestSlowFollower: nothing on the line waits for findings; what was not looked at yet is looked at later.
func TestSlowFollower(t *testing.T) {
	f := setUp(t)
	r := f.startRun()
	for range responding { // all that respond hang
		f.srv.findings.slots <- struct{}{}
	}
	f.stolen(r)
	f.eventually("it is denied at once", func() bool { return f.srv.store.Posture("agent/build").Suspended })
	w := f.agent("agent/deploy", f.shared()).enter(f.startRun())
	for range 100 {
		if g := w.ask("write"); g.Secret == "" {
			t.Fatalf("%+v", g)
		}
	}
	if n := f.events(remit.EventRaised); n != 0 {
		t.Fatalf("the follower does not stand still: %d", n)
	}
	for range responding {
		<-f.srv.findings.slots
	}
	f.found(remit.FindingStolenToken)
	f.eventually("and then on record", func() bool { return f.events(remit.EventSuspended) == 1 })
}

// TestFoundAgain: folding the ledger again, with another detector, finds what is on record.
func TestFoundAgain(t *testing.T) {
	f := setUp(t)
	f.stolen(f.startRun())
	got := f.found(remit.FindingStolenToken)
	entries, err := f.srv.store.Entries(0, 4096)
	if err != nil {
		t.Fatal(err)
	}
	var again []remit.Finding
	d := behaviour.New(f.srv.rules())
	for _, e := range entries {
		again = append(again, d.Next(e)...)
	}
	got.Response = remit.RespondNotice // that is the server's
	if diff := cmp.Diff([]remit.Finding{got}, again); diff != "" {
		t.Error(diff)
	}
}

// TestBlastRadius: what lives and for how long, what could be asked for now, and what a suspension leaves of it.
func TestBlastRadius(t *testing.T) {
	f := setUp(t)
	r := f.startRun()
	w := f.agent("agent/build", f.shared()).enter(r)
	if g := w.ask("build"); g.Secret == "" {
		t.Fatalf("%+v", g)
	}
	var b api.BlastRadius
	get := func() {
		t.Helper()
		b = api.BlastRadius{}
		if err := f.admin.Get(t.Context(), "/v1/agents/agent/build/blast-radius", nil, &b); err != nil {
			t.Fatal(err)
		}
	}
	get()
	if len(b.Grants) != 1 || b.Grants[0].Minutes < 4 || b.Grants[0].Minutes > 5.1 || b.Grants[0].Target != "cluster" {
		t.Errorf("%+v", b.Grants)
	}
	if len(b.Now) != 1 || b.Now[0].Permission != "build" || b.Now[0].Where["app"] != "$app" || b.Now[0].Params["app"].Text() != "foo" || b.Now[0].Run != r.ID {
		t.Errorf("now: %+v", b.Now)
	}
	if until := b.Now[0].Until; !until.After(b.At) || until.After(r.Expires) {
		t.Errorf("until %s", until)
	}
	f.srv.store.Narrow(&remit.AgentStatus{Agent: "agent/build", StepUp: "security"})
	if get(); len(b.Now) != 1 || !strings.Contains(strings.Join(b.Now[0].Needs, " "), "approval of security, after a finding") {
		t.Errorf("after a step-up: %+v", b.Now)
	}
	f.srv.store.SetSuspended(remit.Installation, "the clock")
	if get(); len(b.Now)+len(b.Later) != 0 || len(b.Grants) != 1 {
		t.Errorf("while halted: %+v", b)
	}
	f.must("/v1/clock/confirm", api.Reasoned{Reason: "a test"}, nil)
	get()
	if len(b.Later) != 1 || b.Later[0].Permission != "ship" || b.Later[0].Stage != "ship" { // it may leave the stage itself
		t.Errorf("later: %+v", b.Later)
	}
	if len(b.Remaining) != 1 || !strings.Contains(b.Remaining[0].What, "SVID") {
		t.Errorf("remaining: %+v", b.Remaining)
	}
	f.must("/v1/agents/agent/build/suspend", api.Reasoned{Reason: "hijacked"}, nil)
	if get(); len(b.Grants)+len(b.Now)+len(b.Later) != 0 || !b.Agent.Suspended {
		t.Errorf("suspended: %+v", b)
	}
}

// TestKill: the process that was launched with the identity ends, and the launch with it.
func TestKill(t *testing.T) {
	f := setUp(t, findingsOf("{respond: {credential_of_another: kill}}")...)
	r := f.startRun()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	child := exec.Command(self)
	child.Env = append(os.Environ(), envWaits+"=1")
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- child.Wait() }()
	var l api.Launched
	f.must("/v1/launches", api.Launch{Run: r.ID, Agent: "agent/deploy", For: "write"}, &l)
	f.must("/v1/launches/"+string(l.ID)+"/pid", api.LaunchPID{PID: child.Process.Pid}, nil)
	thief := f.agent("agent/deploy", f.shared())
	thief.token = f.agent("agent/build", f.shared()).enter(r).token
	thief.ask("write")
	if got := f.found(remit.FindingStolenToken); got.Response != remit.RespondKill || got.Agent != "agent/deploy" {
		t.Errorf("%+v", got)
	}
	select {
	case err := <-ended:
		if err == nil || !strings.Contains(err.Error(), "killed") {
			t.Errorf("it ended by itself: %v", err)
		}
	case <-time.After(10 * time.Second):
		_ = child.Process.Kill()
		t.Error("the process runs on")
	}
}

// TestSuspendEndsAllAtOnce: a target that hangs keeps nothing else from ending, and each step says when it was done.
func TestSuspendEndsAllAtOnce(t *testing.T) {
	f := setUp(t)
	w := f.agent("agent/deploy", f.shared()).enter(f.startRun())
	if g := w.ask("write"); g.Secret == "" {
		t.Fatalf("%+v", g)
	}
	f.backend.whileBusy(func() { time.Sleep(300 * time.Millisecond) })
	var out api.Suspended
	f.must("/v1/agents/agent/deploy/suspend", api.Reasoned{Reason: "hijacked"}, &out)
	after := map[string]float64{}
	for _, s := range out.Steps {
		after[s.What] = s.MS
	}
	if len(after) != 4 || after["leases"] < 300 || after["sandboxes of tools"] > 200 || after["decisions"] > 200 || out.MS < after["leases"] {
		t.Errorf("%+v", out)
	}
}

// noticed restarts with these findings, and has another's run token shown under agent/deploy, which was given something before.
func (d *refundDesk) noticed(findings string, answer remit.Response) (w *workload, before given) {
	d.t.Helper()
	name := filepath.Join(d.dir, fileServer)
	b, err := os.ReadFile(name)
	if err == nil {
		err = os.WriteFile(name, append(b, "findings: "+findings+"\nsecond_opinion: {one_in: 1}\n"...), 0o644)
	}
	if err != nil {
		d.t.Fatal(err)
	}
	d.restart()
	w = d.agent("agent/deploy", d.shared()).enter(d.refunds(d.as("dave")))
	if before = d.pay(w, "40", ""); before.Secret == "" {
		d.t.Fatalf("%+v", before)
	}
	thief := *w
	thief.token = d.agent("agent/build", d.shared()).enter(d.startRun()).token
	thief.ask("pay")
	if got := d.found(remit.FindingStolenToken); got.Response != answer {
		d.t.Errorf("%+v", got)
	}
	d.startRun() // a commit after it: the posture moves no more
	return w, before
}

// TestStepUp: S12. After a step-up whatever the agent is given a person of the group has to approve first, each time; live grants go on;
// a restart changes nothing; reinstating ends it.
func TestStepUp(t *testing.T) {
	d := setUpApprovals(t, 1)
	w, before := d.noticed("{respond: {credential_of_another: step-up}, step_up: finance}", remit.RespondStepUp)
	if g := d.pay(w, "41", ""); g.Error != "authorization_pending" {
		t.Fatalf("after it: %+v", g)
	}
	held := d.newest().ID
	if _, err := d.answer("frank", "approve", held); remit.CodeOf(err) != remit.CodeForbidden {
		t.Errorf("a person of another group: %v", err)
	}
	if _, err := d.answer("bob", "approve", held); err != nil {
		t.Fatal(err)
	}
	if g := d.pay(w, "41", ""); g.Secret == "" {
		t.Errorf("approved: %+v", g)
	}
	if g := d.pay(w, "41", ""); g.Error != "authorization_pending" {
		t.Errorf("once more: %+v", g)
	}
	if g := d.pay(w, "900", ""); g.Error != "authorization_pending" { // the permission asks, too: one answer counts for both
		t.Errorf("a large one: %+v", g)
	}
	if _, err := d.answer("bob", "approve", d.newest().ID); err != nil {
		t.Fatal(err)
	}
	if g := d.pay(w, "900", ""); g.Secret == "" {
		t.Errorf("a large one, approved: %+v", g)
	}
	d.srv.recheck(t.Context(), "remit", func(*remit.Grant) bool { return true })
	if g := d.grant(before.Grant); g.State != remit.GrantActive {
		t.Errorf("what was given before: %s", g.Why)
	}
	d.restart()
	if p := d.srv.store.Posture("agent/deploy"); p.StepUp != "finance" || p.Suspended {
		t.Errorf("after a restart: %+v", p)
	}
	w = d.agent("agent/deploy", d.shared()).enter(d.refunds(d.as("dave")))
	if g := d.pay(w, "42", ""); g.Error != "authorization_pending" {
		t.Errorf("after a restart: %+v", g)
	}
	d.must("/v1/agents/agent/deploy/reinstate", api.Reasoned{Reason: "looked"}, nil)
	if g := d.pay(w, "42", ""); g.Secret == "" {
		t.Errorf("reinstated: %+v", g)
	}
	if n := d.events(remit.EventFinding); n != 0 { // all of it was judged a second time
		list, _, _ := d.srv.store.Events(store.EventFilter{Kind: remit.EventFinding}, 0, 10)
		t.Errorf("the printed policy differs: %s", list[0].Body)
	}
}

// TestSuspensionsRace: of suspensions and reinstatements at once the last on record is what holds, in memory and after a restart, and a
// credential outlives none.
func TestSuspensionsRace(t *testing.T) {
	f := setUp(t)
	for range 5 {
		if !f.srv.store.Posture("agent/deploy").Suspended {
			f.agent("agent/deploy", f.shared()).enter(f.startRun()).ask("write")
		}
		var both sync.WaitGroup
		for i := range 6 {
			both.Go(func() {
				f.post("/v1/agents/agent/deploy/"+[]string{"suspend", "reinstate"}[i%2], api.Reasoned{Reason: "a race"}, nil)
			})
		}
		both.Wait()
		last := remit.EventKind("")
		for after := uint64(0); ; {
			list, next, err := f.srv.store.Events(store.EventFilter{Agent: "agent/deploy"}, after, 1000)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range list {
				if k := behaviour.KindOf(e.Body); k == remit.EventSuspended || k == remit.EventReinstated {
					last = k
				}
			}
			if after = next; next == 0 {
				break
			}
		}
		status, _ := f.srv.store.AgentStatus("agent/deploy")
		if now := f.srv.store.Posture("agent/deploy").Suspended; now != (last == remit.EventSuspended) || now != status.Suspended {
			t.Errorf("suspended %v, on record %v, last %s", now, status.Suspended, last)
		}
		f.backend.waitEmpty(t)
	}
	f.must("/v1/agents/agent/deploy/suspend", api.Reasoned{Reason: "for good"}, nil)
	f.restart()
	if !f.srv.store.Posture("agent/deploy").Suspended {
		t.Error("forgotten by a restart")
	}
}

// TestFindingsArePaged: lists take limit and after, newest first.
func TestFindingsArePaged(t *testing.T) {
	f := setUp(t, findingsOf("{respond: {credential_of_another: notice}}")...)
	f.stolen(f.startRun())
	f.found(remit.FindingStolenToken)
	thief := f.agent("agent/deploy", f.shared())
	thief.token = f.agent("agent/build", f.shared()).enter(f.startRun()).token
	thief.ask("write")
	f.eventually("two", func() bool { return f.events(remit.EventRaised) == 2 })
	var got []remit.Name
	for after := ""; ; {
		var list api.List[remit.Finding]
		if err := f.admin.Get(t.Context(), "/v1/findings", map[string][]string{"limit": {"1"}, "after": {after}}, &list); err != nil || len(list.Items) > 1 {
			t.Fatal(err, list)
		}
		for _, x := range list.Items {
			got = append(got, x.Agent)
		}
		if after = list.Next; after == "" {
			break
		}
	}
	if diff := cmp.Diff([]remit.Name{"agent/deploy", "agent/build"}, got); diff != "" {
		t.Error(diff)
	}
}
