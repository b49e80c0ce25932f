// SPDX-License-Identifier: Apache-2.0

package behaviour_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"remit"
	"remit/internal/behaviour"
)

// history writes entries as the store does.
type history struct {
	seq     uint64
	at      time.Time
	entries []remit.Entry
}

func newHistory() *history { return &history{at: time.Date(2026, 3, 2, 9, 0, 0, 0, time.UTC)} }

func (h *history) add(after time.Duration, e remit.Event) {
	h.at, h.seq = h.at.Add(after), h.seq+1
	if e.At.IsZero() {
		e.At = h.at
	}
	h.entries = append(h.entries, remit.Entry{Seq: h.seq, Body: e.AppendJSON(nil, h.seq), Payload: e.Payload, Private: e.Private})
}

// decides adds a decision as the line records it.
func (h *history) decides(after time.Duration, d remit.Decision) {
	d.ID, d.At, d.Policy = remit.NewDecisionID(), h.at.Add(after), "sha256:p"
	s := &remit.Seal{}
	data := d.AppendSealed(nil, s)
	h.add(after, remit.Event{Kind: remit.EventDecision, Agent: d.Agent, Run: d.Run, Decision: d.ID, By: d.Caller, Data: data, Payload: s.Payload})
}

func (h *history) denied(after time.Duration, agent remit.Name, code remit.ReasonCode, of string) {
	h.decides(after, remit.Decision{Agent: agent, Action: "http.get", Target: "desk", Reasons: []remit.Reason{{Code: code, Of: of, Want: "x", Got: "y"}}})
}

func (h *history) acts(after time.Duration, agent remit.Name, lease remit.LeaseID, data string) {
	h.add(after, remit.Event{Kind: remit.EventAction, Agent: agent, Lease: lease, By: "postgres-log", Data: []byte(data)})
}

func (h *history) fold(cfg behaviour.Config) (out []remit.Finding) {
	if cfg.Entry == nil {
		cfg.Entry = func(seq uint64) (remit.Entry, bool) { return h.entries[seq-1], true }
	}
	d := behaviour.New(cfg)
	for _, e := range h.entries {
		out = append(out, d.Next(e)...)
	}
	return out
}

func kinds(list []remit.Finding) []remit.FindingKind {
	out := []remit.FindingKind{}
	for _, f := range list {
		out = append(out, f.Kind)
	}
	return out
}

func want(t *testing.T, got []remit.Finding, kind ...remit.FindingKind) {
	t.Helper()
	if diff := cmp.Diff(append([]remit.FindingKind{}, kind...), kinds(got)); diff != "" {
		t.Error(diff)
	}
}

const let = `{"target":"db","verb":"select","allowed":true,"effective":true,"source":"postgres-log"}`

// TestActAfterTheLease: an act that the target let through long after its lease's end is found; one that a clock explains is not.
func TestActAfterTheLease(t *testing.T) {
	h := newHistory()
	h.acts(0, "agent/a", "lease-1", let)
	h.add(time.Second, remit.Event{Kind: remit.EventLeaseEnded, Agent: "agent/a", Lease: "lease-1"})
	h.acts(30*time.Second, "agent/a", "lease-1", let)
	want(t, h.fold(behaviour.Config{}))
	h.acts(time.Minute, "agent/a", "lease-1", let)
	got := h.fold(behaviour.Config{})
	want(t, got, remit.FindingActWithoutGrant)
	if f := got[0]; f.Agent != "agent/a" || f.Severity != remit.SeverityCritical || !cmp.Equal(f.Events, []uint64{2, 4}) || f.Seq() != 4 {
		t.Errorf("%+v", f)
	}
}

// TestRejectedActIsNoEvidence: S36. What the target refused, or what the lease is not for (looking at one's own rights), does not
// count.
func TestRejectedActIsNoEvidence(t *testing.T) {
	h := newHistory()
	h.add(0, remit.Event{Kind: remit.EventLeaseEnded, Agent: "agent/a", Lease: "lease-1"})
	h.acts(time.Hour, "agent/a", "lease-1", `{"target":"db","allowed":false,"effective":true}`)
	h.acts(time.Hour, "agent/a", "lease-1", `{"target":"db","allowed":true}`)
	want(t, h.fold(behaviour.Config{}))
}

// TestSeenByTheLine: what parts of the line saw is taken up; an act that nobody is known for is held against nobody.
func TestSeenByTheLine(t *testing.T) {
	h := newHistory()
	for _, data := range []string{
		`{"finding":"act_without_grant","act":{"target":"db","verb":"select","allowed":true,"source":"postgres-log"}}`,
		`{"finding":"second_opinion_differs"}`, `{"finding":"second_opinion_missing"}`, `{"finding":"configuration_refused","why":"version"}`, `{"finding":"other"}`,
	} {
		h.add(time.Second, remit.Event{Kind: remit.EventFinding, Data: []byte(data)})
	}
	got := h.fold(behaviour.Config{})
	want(t, got, remit.FindingActWithoutGrant, remit.FindingSecondOpinion, remit.FindingNoOpinion, remit.FindingConfiguration)
	if got[0].Agent != "" || got[0].Target != "db" {
		t.Errorf("%+v", got[0])
	}
}

// TestTokensInWrongHands: a good run token of another agent, and one of the agent's own from elsewhere.
func TestTokensInWrongHands(t *testing.T) {
	h := newHistory()
	h.denied(0, "agent/a", remit.ReasonRunToken, "")
	h.denied(0, "agent/a", remit.ReasonRunToken, remit.OfHolder)
	h.denied(0, "agent/b", remit.ReasonRunToken, remit.OfAgent)
	want(t, h.fold(behaviour.Config{}), remit.FindingOtherHolder, remit.FindingStolenToken)
}

// TestNamedByAnotherIsNoEvidence: S36. Whoever merely names an agent cannot have anything held against it.
func TestNamedByAnotherIsNoEvidence(t *testing.T) {
	h := newHistory()
	for range 100 {
		h.decides(time.Second, remit.Decision{Agent: "agent/a", Target: "trap", Reasons: []remit.Reason{{Code: remit.ReasonAsserted}, {Code: remit.ReasonRunToken, Of: remit.OfAgent}}})
	}
	want(t, h.fold(behaviour.Config{Denials: 10, Within: time.Hour, Canaries: []behaviour.Canary{{Name: "trap", Target: "trap"}}}))
}

// TestJudgingAgainIsNoEvidence: S36. A change of policy denies live grants by the dozen; their agents did nothing.
func TestJudgingAgainIsNoEvidence(t *testing.T) {
	h := newHistory()
	for range 100 {
		h.decides(time.Second, remit.Decision{Agent: "agent/a", Via: "recheck", Target: "trap", Reasons: []remit.Reason{{Code: remit.ReasonNoPermission}}})
	}
	want(t, h.fold(behaviour.Config{Denials: 10, Within: time.Hour, Canaries: []behaviour.Canary{{Name: "trap", Target: "trap"}}}))
}

// TestOutsideTheWorkflow asks the revision that the decision names.
func TestOutsideTheWorkflow(t *testing.T) {
	h := newHistory()
	h.decides(0, remit.Decision{Agent: "agent/mail", Action: "postgres.select", Target: "payments", WorkflowDigest: "sha256:w", Reasons: []remit.Reason{{Code: remit.ReasonNoPermission}}})
	h.decides(0, remit.Decision{Agent: "agent/mail", Action: "postgres.select", Target: "own", WorkflowDigest: "sha256:w", Reasons: []remit.Reason{{Code: remit.ReasonNoPermission}}})
	h.decides(0, remit.Decision{Agent: "agent/mail", Action: "postgres.select", Target: "payments", WorkflowDigest: "sha256:w", Effect: remit.Allow})
	got := h.fold(behaviour.Config{Outside: func(w, p remit.Digest, target string) bool {
		return w == "sha256:w" && p == "sha256:p" && target == "payments"
	}})
	want(t, got, remit.FindingOutsideWorkflow)
	if got[0].Target != "payments" || got[0].Text != "agent/mail asked for postgres.select at payments, which no stage of its run's workflow has" {
		t.Errorf("%+v", got[0])
	}
}

// TestCanaries: an identity whose credentials are planted, a target, and a row.
func TestCanaries(t *testing.T) {
	cfg := behaviour.Config{Canaries: []behaviour.Canary{{Name: "planted", Agent: "agent/nobody"}, {Name: "trap", Target: "trap"}, {Name: "row", Target: "db", Value: "999"}}}
	for name, c := range map[string]struct {
		add  func(*history)
		want bool
	}{
		"the planted identity acts": {func(h *history) { h.acts(0, "agent/nobody", "lease-1", let) }, true},
		"its credential is made": {func(h *history) {
			h.decides(0, remit.Decision{Agent: "agent/nobody", Target: "db", Effect: remit.Allow})
		}, false},
		"somebody else acts":         {func(h *history) { h.acts(0, "agent/a", "lease-1", let) }, false},
		"the target is asked for":    {func(h *history) { h.decides(0, remit.Decision{Agent: "agent/a", Target: "trap"}) }, true},
		"another target":             {func(h *history) { h.decides(0, remit.Decision{Agent: "agent/a", Target: "traps"}) }, false},
		"the row is asked for":       {func(h *history) { h.decides(0, ofCustomer("db", 999)) }, true},
		"another row":                {func(h *history) { h.decides(0, ofCustomer("db", 9990)) }, false},
		"the same number, elsewhere": {func(h *history) { h.decides(0, ofCustomer("desk", 999)) }, false},
	} {
		h := newHistory()
		c.add(h)
		if got := h.fold(cfg); (len(got) == 1 && got[0].Kind == remit.FindingCanary) != c.want || len(got) > 1 {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

func ofCustomer(target string, n int64) remit.Decision {
	return remit.Decision{Agent: "agent/a", Target: target, Effect: remit.Allow,
		Args: remit.Args{"rows": remit.ObjectValue(map[string]remit.Value{"customer_id": remit.IntValue(n)})}}
}

// TestDenialBurst counts what was folded, forgets what is old, and leaves out what the agent did not cause.
func TestDenialBurst(t *testing.T) {
	cfg := behaviour.Config{Denials: 5, Within: time.Minute}
	h := newHistory()
	for range 20 {
		h.denied(20*time.Second, "agent/slow", remit.ReasonArgument, "where.x")
		h.denied(0, "agent/stopped", remit.ReasonSuspended, "")
	}
	want(t, h.fold(cfg))
	for range 4 {
		h.denied(time.Second, "agent/a", remit.ReasonArgument, "where.x")
		h.denied(0, "agent/b", remit.ReasonArgument, "where.x")
	}
	want(t, h.fold(cfg))
	h.denied(time.Second, "agent/b", remit.ReasonNoPermission, "")
	h.add(time.Second, remit.Event{Kind: remit.EventFolded, Agent: "agent/a", Data: []byte(`{"reasons":["argument_mismatch"],"count":1}`)})
	got := h.fold(cfg)
	want(t, got, remit.FindingDenialBurst, remit.FindingDenialBurst)
	if f := got[1]; f.Agent != "agent/a" || len(f.Events) != 5 || f.Text != "agent/a was denied 5 times within 1m0s" {
		t.Errorf("%+v", f)
	}
}

// TestOneFindingForAll: what goes on is one finding an hour, until somebody closes it or reinstates the agent.
func TestOneFindingForAll(t *testing.T) {
	h := newHistory()
	stolen := func(after time.Duration) { h.denied(after, "agent/a", remit.ReasonRunToken, remit.OfAgent) }
	for range 50 {
		stolen(time.Second)
	}
	want(t, h.fold(behaviour.Config{}), remit.FindingStolenToken)
	h.add(0, remit.Event{Kind: remit.EventClosed, Agent: "agent/a", Data: []byte(`{"kind":"credential_of_another"}`)})
	stolen(0)
	h.add(0, remit.Event{Kind: remit.EventReinstated, Agent: "agent/a"})
	stolen(0)
	h.add(0, remit.Event{Kind: remit.EventReinstated, Agent: "agent/b"})
	stolen(0)
	stolen(2 * time.Hour)
	want(t, h.fold(behaviour.Config{}), remit.FindingStolenToken, remit.FindingStolenToken, remit.FindingStolenToken, remit.FindingStolenToken)
}

// TestSameAgain: the same entries give the same findings with the same ids; clocks that jump and times that run backwards do not
// matter to that, and nothing is lost.
func TestSameAgain(t *testing.T) {
	h := newHistory()
	for i := range 2000 {
		agent := remit.Name(fmt.Sprintf("agent/a%d", i%7))
		h.denied([]time.Duration{time.Second, -30 * time.Minute, 29 * time.Minute, time.Hour}[i%4], agent, remit.ReasonArgument, "where.x")
		h.add(0, remit.Event{Kind: remit.EventLeaseEnded, Agent: agent, Lease: remit.LeaseID(fmt.Sprint(i))})
		h.acts(time.Duration(i%3)*time.Minute, agent, remit.LeaseID(fmt.Sprint(i-5)), let)
	}
	cfg := behaviour.Config{Denials: 3, Within: 10 * time.Minute}
	one, two := h.fold(cfg), h.fold(cfg)
	if diff := cmp.Diff(one, two); diff != "" || len(one) < 10 {
		t.Errorf("%d findings; %s", len(one), diff)
	}
	ids := map[remit.FindingID]bool{}
	for _, f := range one {
		if ids[f.ID] {
			t.Errorf("%s twice", f.ID)
		}
		ids[f.ID] = true
	}
}

// TestForeignEntries: entries of an older version, and bytes that are none, are passed over.
func TestForeignEntries(t *testing.T) {
	d := behaviour.New(behaviour.Config{Denials: 1, Within: time.Minute})
	for _, body := range []string{"", "{", `{"v":1,"seq":1,"at":"2026-01-01T00:00:00Z","kind":"decision","data":7}`, `{"kind":"decision`, `{"v":2,"seq":1,"at":"x","kind":"action"}`} {
		if got := d.Next(remit.Entry{Seq: 1, Body: []byte(body)}); len(got) > 0 {
			t.Errorf("%s: %+v", body, got)
		}
	}
}

// BenchmarkNext is one entry through the rules, of a ledger that is mostly allowed work.
func BenchmarkNext(b *testing.B) {
	h := newHistory()
	for i := range 1000 {
		agent := remit.Name(fmt.Sprintf("agent/a%d", i%100))
		h.decides(time.Second, remit.Decision{Agent: agent, Run: remit.NewRunID(), Action: "postgres.select", Target: "db", Effect: remit.Allow,
			Args: remit.Args{"customer_id": remit.IntValue(int64(i)), "columns": remit.StringValue("id")}})
		h.acts(0, agent, "lease-1", let)
		if i%20 == 0 {
			h.denied(0, agent, remit.ReasonArgument, "where.x")
		}
	}
	d := behaviour.New(behaviour.Config{Denials: 30, Within: time.Minute})
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		d.Next(h.entries[i%len(h.entries)])
	}
}
