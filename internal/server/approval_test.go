// SPDX-License-Identifier: Apache-2.0

package server

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"remit"
	"remit/internal/api"
	"remit/internal/gateway/login/logintest"
	"remit/internal/store"
)

// refundStory is a workflow whose larger refunds a person of finance approves.
const refundStory = `---
kind: Workflow
name: refunds
parameters: {customer: {type: integer}}
start: {by: [operator/ci, operator/dave], expires: 1h}
stages:
- name: refund
  end: {by: [operator/ci]}
  may:
  - {name: pay, who: agent/deploy, action: memory.pay, target: cluster, ttl: 5m,
     where: {customer: $customer, amount: {min: 0.01, max: 1000}, note: {any: true}},
     evidence: [{approval: {when: {amount: {above: 100}}, group: finance, people: PEOPLE, by: not-starter, within: 15m}}]}
`

// refundDesk is a server with people of several kinds, who log in at a real provider.
type refundDesk struct {
	*people
	who map[string]*api.Client
}

func setUpApprovals(t *testing.T, quorum int) *refundDesk {
	t.Helper()
	account := func(name string, groups ...string) logintest.Account {
		return logintest.Account{Subject: "s-" + name, Name: name, Groups: groups}
	}
	p := logintest.Start(t, map[string]logintest.Account{
		"bob": account("bob", "finance", "approvers"), "carol": account("carol", "finance", "approvers"), "dave": account("dave", "finance", "approvers"),
		"erin": account("erin", "finance", "approvers"), "frank": account("frank", "sales", "approvers"), "grace": account("grace", "finance", "approvers", "authors"),
		"heidi": account("heidi", "finance", "audit"),
	})
	ca := filepath.Join(t.TempDir(), "provider.pem")
	if err := os.WriteFile(ca, p.CA, 0o600); err != nil {
		t.Fatal(err)
	}
	block := fmt.Sprintf("people:\n  issuer: %s\n  client_id: %s\n  ca: %q\n  name: preferred_username\n  roles:\n"+
		"  - {claim: groups, has: approvers, roles: [approver]}\n  - {claim: groups, has: audit, roles: [auditor]}\n  - {claim: groups, has: authors, roles: [author]}\n", p.Issuer, logintest.ClientID, ca)
	d := &refundDesk{people: &people{setUp(t, "# Who manages", block+"# Who manages"), p}, who: map[string]*api.Client{}}
	d.files = strings.Replace(d.files, "kind: Agent\nname: deploy\n", "kind: Agent\nname: deploy\nowner: erin\n", 1) + strings.Replace(refundStory, "PEOPLE", fmt.Sprint(quorum), 1)
	d.write(d.files)
	d.must("/v1/apply", nil, nil)
	return d
}

// as returns the person's client; a login the first time.
func (d *refundDesk) as(name string) *api.Client {
	d.t.Helper()
	if d.who[name] == nil {
		c, _, err := d.login(name)
		if err != nil {
			d.t.Fatalf("%s: %v", name, err)
		}
		d.who[name] = c
	}
	return d.who[name]
}

func (d *refundDesk) answer(name, what string, id remit.HoldID) (v api.Approval, err error) {
	d.t.Helper()
	err = d.as(name).Post(d.t.Context(), "/v1/approvals/"+string(id)+"/"+what, api.Answered{Reason: "looked at it"}, &v)
	return v, err
}

func (d *refundDesk) refunds(starter *api.Client) remit.Run {
	d.t.Helper()
	var r remit.Run
	if err := starter.Post(d.t.Context(), "/v1/runs", api.StartRun{Workflow: "refunds", Params: map[string]string{"customer": "555"}}, &r); err != nil {
		d.t.Fatal(err)
	}
	return r
}

// pay asks for a refund; more is JSON members of arguments.
func (d *refundDesk) pay(w *workload, amount, more string) given {
	d.t.Helper()
	return w.ask(`pay","amount":` + amount + more + `,"stage":"refund`)
}

// held is the newest held request.
func (d *refundDesk) newest() remit.Held {
	d.t.Helper()
	rows, err := d.srv.store.ListHeld(store.HeldFilter{}, 1, "")
	if err != nil || len(rows) == 0 {
		d.t.Fatalf("nothing is held: %v", err)
	}
	return rows[0]
}

func want(t *testing.T, what string, err error, code remit.Code, text string) {
	t.Helper()
	if remit.CodeOf(err) != code || code != "" && !strings.Contains(err.Error(), text) {
		t.Errorf("%s: %v, want %s %q", what, err, code, text)
	}
}

// TestTwoPeople is the story: a small refund passes, a large one waits for a second person, who logs in at a real provider, sees what
// is asked and approves it; exactly that passes once, and all of it is in the ledger.
func TestTwoPeople(t *testing.T) {
	d := setUpApprovals(t, 1)
	r := d.refunds(d.as("dave"))
	w := d.agent("agent/deploy", d.shared()).enter(r)
	if g := d.pay(w, "40", ""); g.Secret == "" {
		t.Fatalf("a small refund: %+v", g)
	}
	if g := d.pay(w, "900", ""); g.Error != "authorization_pending" {
		t.Fatalf("a large one: %+v", g)
	}
	h := d.newest()
	var list api.List[api.Approval]
	if err := d.as("bob").Get(t.Context(), "/v1/approvals", map[string][]string{"state": {"pending"}}, &list); err != nil || len(list.Items) != 1 {
		t.Fatalf("%v %+v", err, list)
	}
	v := list.Items[0]
	if v.ID != h.ID || v.Agent != "agent/deploy" || v.Starter != "operator/dave" || v.Owner != "erin" || v.Args[0].Value != "900" || v.Args[0].Declared != "from 0.01 to 1000" || v.You != "" || v.Seconds < 800 {
		t.Errorf("what bob sees: %+v", v)
	}
	if v, err := d.answer("bob", "approve", h.ID); err != nil || v.State != remit.HeldApproved {
		t.Fatalf("%v %+v", err, v)
	}
	if g := d.pay(w, "901", ""); g.Error != "authorization_pending" {
		t.Errorf("another payload: %+v", g)
	}
	g := d.pay(w, "900", "")
	if g.Secret == "" {
		t.Fatalf("approved: %+v", g)
	}
	if g := d.pay(w, "900", ""); g.Error != "authorization_pending" {
		t.Errorf("a second time: %+v", g)
	}
	if n := d.events(remit.EventApproved); n != 1 {
		t.Errorf("%d approvals on record", n)
	}
	d.srv.rechecks.ask("") // the grant rests on what it used up
	time.Sleep(100 * time.Millisecond)
	if g, ok := d.srv.store.Grant(g.Grant); !ok || g.State != remit.GrantActive {
		t.Errorf("judged again: %+v", g)
	}
	d.restart()
	if g := d.pay(w, "900", ""); g.Error != "authorization_pending" {
		t.Errorf("after a restart: %+v", g)
	}
	if n := len(d.srv.store.LiveHeld()); n != 2 {
		t.Errorf("%d requests are held after the restart", n)
	}
}

// TestFourEyes: nobody approves what he started, asked for, answers for or wrote.
func TestFourEyes(t *testing.T) {
	d := setUpApprovals(t, 1)
	d.write(strings.Replace(d.files, "max: 1000", "max: 1001", 1))
	if err := d.as("grace").Post(t.Context(), "/v1/apply", nil, nil); err != nil {
		t.Fatal(err)
	}
	r := d.refunds(d.as("dave"))
	w := d.agent("agent/deploy", d.shared()).enter(r)
	d.pay(w, "900", "")
	h := d.newest()
	for name, why := range map[string]string{"dave": "started the run", "erin": "answers for agent/deploy", "grace": "is an author"} {
		_, err := d.answer(name, "approve", h.ID)
		want(t, name, err, remit.CodeForbidden, why)
	}
	who := remit.Principal{Person: "operator/bob", Method: remit.MethodSession, Account: "x", Roles: []string{"approver"}, Groups: []string{"finance"}}
	launched := h
	launched.Requester = "operator/bob"
	want(t, "who launched it", d.srv.mayApprove(&launched, who, d.srv.now()), remit.CodeForbidden, "launched the process")
	want(t, "somebody else", d.srv.mayApprove(&h, who, d.srv.now()), "", "")
	d.restart()
	_, err := d.answer("grace", "approve", h.ID)
	want(t, "an author, after a restart", err, remit.CodeForbidden, "is an author")
	if h := d.newest(); len(h.Answers) != 0 || h.State != remit.HeldPending {
		t.Errorf("%+v", h)
	}
}

// TestApproverOfAnotherGroup: the group that the file names, stated by the provider; a role alone is not enough, nor a group.
func TestApproverOfAnotherGroup(t *testing.T) {
	d := setUpApprovals(t, 1)
	w := d.agent("agent/deploy", d.shared()).enter(d.refunds(d.admin))
	d.pay(w, "900", "")
	h := d.newest()
	_, err := d.answer("frank", "approve", h.ID)
	want(t, "of another group", err, remit.CodeForbidden, "no group that is asked")
	_, err = d.answer("heidi", "approve", h.ID)
	want(t, "without the role", err, remit.CodeForbidden, "needs the role approver")
}

// TestApprovalNeedsASession: not the admin socket, whoever's uid it is, not a CI job, not an agent.
func TestApprovalNeedsASession(t *testing.T) {
	d := setUpApprovals(t, 1)
	w := d.agent("agent/deploy", d.shared()).enter(d.refunds(d.as("dave")))
	d.pay(w, "900", "")
	h := d.newest()
	path := "/v1/approvals/" + string(h.ID) + "/approve"
	want(t, "the admin socket", d.admin.Post(t.Context(), path, api.Answered{}, nil), remit.CodeForbidden, "in a session of their own")
	job := remit.Principal{Person: "operator/job", Method: remit.MethodSession, Roles: []string{"approver"}, Groups: []string{"finance"}}
	want(t, "a CI job", d.srv.mayApprove(&h, job, d.srv.now()), remit.CodeForbidden, "no CI job")
	for _, at := range []string{"/admin" + path, path} {
		var out struct{ Code remit.Code }
		if w.call(at, "application/json", strings.NewReader(`{}`), nil); d.newest().State != remit.HeldPending {
			t.Errorf("the agent approved: %v", out)
		}
	}
	if err := d.admin.Post(t.Context(), "/v1/approvals/"+string(h.ID)+"/deny", api.Answered{}, nil); err != nil {
		t.Errorf("a denial only tightens: %v", err)
	}
	if g := d.pay(w, "900", ""); g.code() != string(remit.ReasonApprovalDenied) {
		t.Errorf("denied: %+v", g)
	}
}

// TestQuorum: as many people as the file says, each once.
func TestQuorum(t *testing.T) {
	d := setUpApprovals(t, 2)
	w := d.agent("agent/deploy", d.shared()).enter(d.refunds(d.admin))
	d.pay(w, "900", "")
	h := d.newest()
	if v, err := d.answer("bob", "approve", h.ID); err != nil || v.State != remit.HeldPending || v.People[0].Missing != 1 {
		t.Fatalf("%v %+v", err, v)
	}
	if g := d.pay(w, "900", ""); g.Error != "authorization_pending" {
		t.Errorf("one of two: %+v", g)
	}
	_, err := d.answer("bob", "approve", h.ID)
	want(t, "the same person", err, remit.CodeForbidden, "answered it already")
	d.who["bob"] = nil
	_, err = d.answer("bob", "approve", h.ID)
	want(t, "the same person in another session", err, remit.CodeForbidden, "answered it already")
	if v, err := d.answer("carol", "approve", h.ID); err != nil || v.State != remit.HeldApproved {
		t.Fatalf("%v %+v", err, v)
	}
	if g := d.pay(w, "900", ""); g.Secret == "" {
		t.Errorf("two of two: %+v", g)
	}
}

// TestApproveAfterExpiry: what nobody answered in time is over, and stays it; so is what waits in a run that ended, and what was
// approved and not used in time.
func TestApproveAfterExpiry(t *testing.T) {
	d := setUpApprovals(t, 1)
	r := d.refunds(d.admin)
	w := d.agent("agent/deploy", d.shared()).enter(r)
	d.pay(w, "900", "")
	late := d.newest()
	d.pay(w, "800", "")
	ended := d.newest()
	d.pay(w, "700", "")
	approved := d.newest()
	if _, err := d.answer("carol", "approve", approved.ID); err != nil {
		t.Fatal(err)
	}
	bob := remit.Principal{Person: "operator/bob", Method: remit.MethodSession, Account: "x", Roles: []string{"approver"}, Groups: []string{"finance"}}
	want(t, "in time", d.srv.mayApprove(&ended, bob, d.srv.now()), "", "")
	want(t, "at its end", d.srv.mayApprove(&ended, bob, ended.Until), remit.CodeConflict, "no answers any more")
	d.must("/v1/runs/"+string(r.ID)+"/finish", struct{}{}, nil)
	want(t, "the run is over", d.srv.mayApprove(&ended, bob, d.srv.now()), remit.CodeConflict, "its run is over")
	deadline := time.Now().Add(5 * time.Second)
	for d.events(remit.EventUnanswered) < 2 && time.Now().Before(deadline) {
		time.Sleep(20 * time.Millisecond)
	}
	for _, h := range []remit.Held{late, ended} {
		if now, _, err := d.srv.held(h.ID); err != nil || now.State != remit.HeldExpired {
			t.Errorf("%v %+v", err, now)
		}
		_, err := d.answer("bob", "approve", h.ID)
		want(t, "after it", err, remit.CodeConflict, "no answers any more")
	}
}

// TestTwoAnswersAtOnce: of an approval and a denial one is first, and a denial is never lost.
func TestTwoAnswersAtOnce(t *testing.T) {
	d := setUpApprovals(t, 1)
	w := d.agent("agent/deploy", d.shared()).enter(d.refunds(d.admin))
	d.as("bob")
	d.as("carol")
	for i := range 10 {
		amount := fmt.Sprint(200 + i)
		d.pay(w, amount, "")
		h := d.newest()
		var wg sync.WaitGroup
		wg.Go(func() { _, _ = d.answer("bob", "approve", h.ID) })
		wg.Go(func() {
			if _, err := d.answer("carol", "deny", h.ID); err != nil {
				t.Errorf("deny: %v", err)
			}
		})
		wg.Wait()
		if h, _, _ := d.srv.held(h.ID); h.State != remit.HeldDenied {
			t.Fatalf("%+v", h)
		}
		if g := d.pay(w, amount, ""); g.code() != string(remit.ReasonApprovalDenied) {
			t.Fatalf("%+v", g)
		}
	}
}

// TestApproversSeeWhatIsAsked: nothing that the agent writes draws on the screen or passes for another value, and what is cut is
// said to be; and it shows how this differs from the last one.
func TestApproversSeeWhatIsAsked(t *testing.T) {
	d := setUpApprovals(t, 1)
	w := d.agent("agent/deploy", d.shared()).enter(d.refunds(d.admin))
	d.pay(w, "900", "")
	if _, err := d.answer("bob", "approve", d.newest().ID); err != nil {
		t.Fatal(err)
	}
	if g := d.pay(w, "900", ""); g.Secret == "" {
		t.Fatalf("%+v", g)
	}
	d.pay(w, "950", `,"note":"ok\u202e004 \u001b[2J\u200b\u2028approved\u00a0by bob`+strings.Repeat("A", 2000)+`"`)
	var v api.Approval
	if err := d.as("bob").Get(t.Context(), "/v1/approvals/"+string(d.newest().ID), nil, &v); err != nil {
		t.Fatal(err)
	}
	amount, customer, note := v.Args[0], v.Args[1], v.Args[2]
	if amount.Value != "950" || amount.Last != "900" || amount.Kind != "number" || customer.Last != "" || customer.Declared != "$customer" || v.Last == nil || v.Last.Same {
		t.Errorf("%+v", v.Args)
	}
	if note.Kind != "string" || note.Length < 2000 || len(note.Value) > 420 || note.Last != "(none)" {
		t.Errorf("%+v", note)
	}
	for _, r := range note.Value {
		if !plain(r) {
			t.Errorf("%q is shown", r)
		}
	}
	if !strings.Contains(note.Value, `\u{202e}`) || !strings.Contains(note.Value, `\u{200b}`) {
		t.Errorf("%s", note.Value)
	}
}

// TestWhoSeesApprovals: what agents ask for is for people with a role that has to do with it.
func TestWhoSeesApprovals(t *testing.T) {
	d := setUpApprovals(t, 1)
	w := d.agent("agent/deploy", d.shared()).enter(d.refunds(d.admin))
	d.pay(w, "900", "")
	for _, path := range []string{"/v1/approvals", "/v1/approvals/" + string(d.newest().ID)} {
		if err := d.as("heidi").Get(t.Context(), path, nil, nil); err != nil {
			t.Errorf("an auditor: %v", err)
		}
		if who := (remit.Principal{Person: "operator/x", Roles: []string{"author"}}); seesApprovals(who) == nil {
			t.Error("an author sees it")
		}
	}
}

// TestErasedIsNotApproved: nobody approves what cannot be shown any more.
func TestErasedIsNotApproved(t *testing.T) {
	d := setUpApprovals(t, 1)
	w := d.agent("agent/deploy", d.shared()).enter(d.refunds(d.admin))
	d.pay(w, "900", "")
	h := d.newest()
	e, ok, err := d.srv.store.Decision(h.Decision)
	if err != nil || !ok {
		t.Fatal(err)
	}
	if _, err := d.srv.store.Commit(t.Context(), remit.Change{Rows: []remit.Row{remit.Erasure{Entries: []uint64{e.Seq}}}}); err != nil {
		t.Fatal(err)
	}
	_, err = d.answer("bob", "approve", h.ID)
	want(t, "erased", err, remit.CodeConflict, "cannot be shown")
}

// TestHoldOfARuleIsAnswered: an organisation's rule holds a request and names who may approve it; he does, and exactly that passes once.
// A rule that names nobody denies.
func TestHoldOfARuleIsAnswered(t *testing.T) {
	d := setUpApprovals(t, 1)
	rules := filepath.Join(d.dir, dirConfig, "rules")
	if err := os.MkdirAll(rules, 0o700); err != nil {
		t.Fatal(err)
	}
	d.files += "---\nkind: Rule\nname: notes\nfile: rules/notes.rego\n"
	rule := "package remit.rules\n\nhold contains \"a note of the agent's own\" if input.args.note\n"
	apply := func(more string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(rules, "notes.rego"), []byte(rule+more), 0o600); err != nil {
			t.Fatal(err)
		}
		d.write(d.files)
		d.must("/v1/apply", nil, nil)
	}
	apply("\napprovers contains \"sales\"\n")
	w := d.agent("agent/deploy", d.shared()).enter(d.refunds(d.as("dave")))
	ask := func(amount string) given {
		return w.ask(`pay","stage":"refund","amount":` + amount + `,"note":"please`)
	}
	if g := ask("40"); g.Error != "authorization_pending" {
		t.Fatalf("%+v", g)
	}
	h := d.newest()
	if len(h.Needs) != 1 || h.Needs[0].Match["group"] != "sales" {
		t.Fatalf("%+v", h)
	}
	_, err := d.answer("bob", "approve", h.ID)
	want(t, "of finance", err, remit.CodeForbidden, "in no group that is asked")
	if v, err := d.answer("frank", "approve", h.ID); err != nil || v.State != remit.HeldApproved {
		t.Fatalf("%v %+v", err, v)
	}
	if g := ask("41"); g.Error != "authorization_pending" {
		t.Errorf("another payload: %+v", g)
	}
	g := ask("40")
	if g.Secret == "" {
		t.Fatalf("approved: %+v", g)
	}
	d.srv.rechecks.ask("") // the grant rests on what it used up
	time.Sleep(100 * time.Millisecond)
	if g, ok := d.srv.store.Grant(g.Grant); !ok || g.State != remit.GrantActive {
		t.Errorf("judged again: %+v", g)
	}
	if g := ask("40"); g.Error != "authorization_pending" {
		t.Errorf("a second time: %+v", g)
	}

	if g := ask("900"); g.Error != "authorization_pending" { // the permission asks finance, the rule sales
		t.Fatalf("%+v", g)
	}
	h = d.newest()
	for _, name := range []string{"frank", "bob"} {
		if g := ask("900"); g.Secret != "" {
			t.Errorf("before %s: %+v", name, g)
		}
		if _, err := d.answer(name, "approve", h.ID); err != nil {
			t.Fatal(name, err)
		}
	}
	if g := ask("900"); g.Secret == "" {
		t.Errorf("both approved: %+v", g)
	}

	apply("")
	if g := ask("42"); g.code() != "organisation_rule" || g.Error == "authorization_pending" {
		t.Errorf("nobody may approve: %+v", g)
	}
}
