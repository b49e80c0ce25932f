// SPDX-License-Identifier: Apache-2.0

package authorizer_test

import (
	"fmt"
	"testing"
	"time"

	"remit"
)

// A question that waits for a person ends in a denial, however often it is asked meanwhile.
func TestHoldEndsInDenial(t *testing.T) {
	l := setUp(t)
	l.needs = []remit.Need{{Kind: remit.EvidenceApproval, Source: "approval", Within: 10 * time.Minute}}
	l.judgement = remit.Judgement{Effect: remit.Hold, Reasons: []remit.Reason{{Code: remit.ReasonApproval}}}
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
		if d := ask(after, "foo"); d.Effect != remit.Hold || !d.Until.Equal(end) {
			t.Errorf("after %s: %+v", after, d)
		}
	}
	if d := ask(10*time.Minute, "foo"); d.Effect != remit.Deny || d.Reasons[0].Code != remit.ReasonHoldExpired {
		t.Errorf("at its end: %+v", d)
	}
	if d := ask(10*time.Minute, "bar"); d.Effect != remit.Hold || !d.Until.Equal(end.Add(10*time.Minute)) {
		t.Errorf("another question: %+v", d)
	}
	if d := l.auth.Again(t.Context(), asking(l, "baz", 0)); d.Effect != remit.Hold {
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
	l.judgement = remit.Judgement{Effect: remit.Hold, Reasons: []remit.Reason{{Code: remit.ReasonApproval}}}
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
