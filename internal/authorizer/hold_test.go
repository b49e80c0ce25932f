// SPDX-License-Identifier: Apache-2.0

package authorizer_test

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"remit"
)

// A question that waits for a person ends in a denial, however often it is asked meanwhile.
func TestHoldEndsInDenial(t *testing.T) {
	l := setUp(t)
	l.needs = []remit.Need{{Kind: remit.EvidenceApproval, Source: "approval", Within: 10 * time.Minute}}
	ask := func(after time.Duration, name string) remit.Decision {
		t.Helper()
		d, err := l.auth.Decide(t.Context(), asking(l, name, after))
		if err != nil {
			t.Fatal(err)
		}
		if got := l.lastDecision(t); got.ID != d.ID || got.Effect != d.Effect {
			t.Errorf("the ledger says %+v", got)
		}
		return d
	}
	end := l.now.Add(10 * time.Minute)
	for _, after := range []time.Duration{0, 9 * time.Minute} {
		if d := ask(after, "foo"); d.Effect != remit.Hold || !d.Until.Equal(end) || d.Hold == "" {
			t.Errorf("after %s: %+v", after, d)
		}
	}
	if d := ask(10*time.Minute, "foo"); d.Effect != remit.Deny || d.Reasons[0].Code != remit.ReasonHoldExpired {
		t.Errorf("at its end: %+v", d)
	}
	if d := ask(10*time.Minute, "bar"); d.Effect != remit.Hold || !d.Until.Equal(end.Add(10*time.Minute)) {
		t.Errorf("another question: %+v", d)
	}
	if d := l.auth.Again(t.Context(), asking(l, "baz", 0)); d.Effect != remit.Hold || d.Hold != "" {
		t.Errorf("judged again: %+v", d)
	}
	if d := ask(20*time.Minute, "baz"); d.Effect != remit.Hold {
		t.Errorf("nobody had asked: %+v", d)
	}
}

func asking(l *line, name string, after time.Duration) *remit.Request {
	req := l.request()
	req.At, req.Args = l.now.Add(after), remit.Args{"name": remit.StringValue(name)}
	return req
}

// TestHoldsOfOneRun: one run cannot use up what all share.
func TestHoldsOfOneRun(t *testing.T) {
	l := setUp(t)
	l.needs = []remit.Need{{Kind: remit.EvidenceApproval, Source: "approval", Within: 10 * time.Minute}}
	for i := range 101 {
		d, err := l.auth.Decide(t.Context(), asking(l, fmt.Sprintf("foo-%d", i), 0))
		if err != nil {
			t.Fatal(err)
		}
		if i < 100 && d.Effect != remit.Hold || i == 100 && (d.Effect != remit.Deny || d.Reasons[0].Code != remit.ReasonLimit) {
			t.Fatalf("question %d: %+v", i, d)
		}
	}
	if d, err := l.auth.Decide(t.Context(), asking(l, "foo-7", time.Minute)); err != nil || d.Effect != remit.Hold {
		t.Errorf("a known question: %+v %v", d, err)
	}
}

// approval needs a scan, and one person of finance.
func approval() []remit.Need {
	return []remit.Need{{Kind: remit.EvidenceScan, Source: "trivy"}, {Kind: remit.EvidenceApproval, Source: "approval", Within: 10 * time.Minute,
		Match: map[string]string{"group": "finance", "people": "1"}}}
}

// answer gives or denies what is held, as the server does after it looked at the person.
func (l *line) answer(t *testing.T, id remit.HoldID, state remit.HeldState) {
	t.Helper()
	h, ok, err := l.store.Held(id)
	if err != nil || !ok {
		t.Fatalf("%s: %v", id, err)
	}
	_, epoch, _ := l.store.HeldAs(h.Digest)
	h.State = state
	h.Answers = append(h.Answers, remit.Answer{Person: "operator/bob", Account: "s-bob", Groups: []string{"finance"}, Approve: state == remit.HeldApproved, At: l.now})
	if _, err := l.store.Commit(t.Context(), remit.Change{Rows: []remit.Row{h}, Require: []remit.Precondition{{Key: h.EpochKey(), Epoch: epoch}}}); err != nil {
		t.Fatal(err)
	}
}

func (l *line) decide(t *testing.T, req *remit.Request) remit.Decision {
	t.Helper()
	d, err := l.auth.Decide(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	if got := l.lastDecision(t); got.ID != d.ID || got.Effect != d.Effect || got.Hold != d.Hold {
		t.Errorf("the ledger says %+v", got)
	}
	return d
}

// TestApprovalCountsOnce: an approval is for exactly what was held, and for one decision. The evidence names who gave it.
func TestApprovalCountsOnce(t *testing.T) {
	l := setUp(t)
	l.needs = approval()
	first := l.decide(t, asking(l, "foo", 0))
	if first.Effect != remit.Hold || first.Hold == "" {
		t.Fatalf("%+v", first)
	}
	if again := l.decide(t, asking(l, "foo", time.Minute)); again.Hold != first.Hold {
		t.Errorf("asked again: %+v", again)
	}
	l.answer(t, first.Hold, remit.HeldApproved)
	if other := l.decide(t, asking(l, "bar", time.Minute)); other.Effect != remit.Hold || other.Hold == first.Hold {
		t.Errorf("another payload: %+v", other)
	}
	d := l.decide(t, asking(l, "foo", time.Minute))
	if d.Effect != remit.Allow || len(d.Evidence) != 2 || d.Evidence[1].Signer != "operator/bob" || d.Evidence[1].Name != string(first.Hold) {
		t.Fatalf("approved: %+v", d)
	}
	if h, _, _ := l.store.Held(first.Hold); h.State != remit.HeldUsed || h.Used != d.ID {
		t.Errorf("used: %+v", h)
	}
	if d := l.decide(t, asking(l, "foo", 2*time.Minute)); d.Effect != remit.Hold || d.Hold == first.Hold {
		t.Errorf("used a second time: %+v", d)
	}
	req := asking(l, "foo", 2*time.Minute)
	req.Approved = d.Evidence[1:]
	if d := l.auth.Again(t.Context(), req); d.Effect != remit.Allow {
		t.Errorf("judged again for its grant: %+v", d)
	}
}

// TestDeniedStaysDenied: what a person denied is denied for as long as the run lives.
func TestDeniedStaysDenied(t *testing.T) {
	l := setUp(t)
	l.needs = approval()
	first := l.decide(t, asking(l, "foo", 0))
	l.answer(t, first.Hold, remit.HeldDenied)
	if d := l.decide(t, asking(l, "foo", time.Minute)); d.Effect != remit.Deny || d.Reasons[0].Code != remit.ReasonApprovalDenied {
		t.Errorf("%+v", d)
	}
}

// TestApprovalRaces: an answer, its withdrawal or a second use between any two steps of the line is noticed at the commit, and
// before the credential is handed over.
func TestApprovalRaces(t *testing.T) {
	for _, at := range []string{"judge", "commit", "mint"} {
		l := setUp(t)
		l.needs = approval()
		held := l.decide(t, asking(l, "foo", 0))
		l.answer(t, held.Hold, remit.HeldApproved)
		commits := 0
		l.step = func(name string) {
			if name == at && commits == 0 {
				commits++
				l.step = func(string) {}
				h, _, _ := l.store.Held(held.Hold)
				h.State = remit.HeldDenied
				if _, err := l.store.Commit(t.Context(), remit.Change{Rows: []remit.Row{h}}); err != nil {
					t.Error(err)
				}
			}
		}
		d, _, cred, err := l.auth.Grant(t.Context(), asking(l, "foo", time.Minute))
		if !cred.Secret.IsZero() || l.handed || at != "mint" && (err != nil || d.Effect != remit.Deny || d.Reasons[0].Code != remit.ReasonConflict) || at == "mint" && err == nil {
			t.Errorf("denied at %s: %v %+v", at, err, d)
		}
	}
	l := setUp(t)
	l.needs = approval()
	held := l.decide(t, asking(l, "foo", 0))
	l.answer(t, held.Hold, remit.HeldApproved)
	if d, _, cred, err := l.auth.Grant(t.Context(), asking(l, "foo", time.Minute)); err != nil || d.Effect != remit.Allow || cred.Secret.IsZero() {
		t.Errorf("nobody interfered: %v %+v", err, d)
	}
}

// TestRuleThatAsksOthersEachTime: nobody is asked when the question would never end.
func TestRuleThatAsksOthersEachTime(t *testing.T) {
	l := setUp(t)
	l.asks = []remit.Need{{Kind: remit.EvidenceApproval, Source: remit.SourceRule, Match: map[string]string{"group": "finance", "people": "1"}}}
	if d := l.decide(t, asking(l, "foo", 0)); d.Effect != remit.Deny || d.Reasons[0].Of != "rules.approvers" || d.Hold != "" {
		t.Errorf("%+v", d)
	}
}

// TestHeldAtOnce: the same request, asked by many at once, is one question.
func TestHeldAtOnce(t *testing.T) {
	l := setUp(t)
	l.needs = approval()
	var wg sync.WaitGroup
	ids := make([]remit.HoldID, 8)
	for i := range ids {
		wg.Go(func() {
			d, err := l.auth.Decide(t.Context(), asking(l, "foo", 0))
			if ids[i] = d.Hold; err != nil || d.Effect != remit.Hold {
				t.Errorf("%v %+v", err, d)
			}
		})
	}
	wg.Wait()
	for _, id := range ids {
		if id != ids[0] {
			t.Errorf("two questions: %s, %s", id, ids[0])
		}
	}
}
