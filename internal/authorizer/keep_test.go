// SPDX-License-Identifier: Apache-2.0

package authorizer_test

import (
	"testing"
	"time"

	"remit"
)

// TestUnknownObligationDenies: an obligation that the enforcement point does not carry out is a denial, on record, and nothing is
// minted; what it knows, and the tier that the line holds to itself, is not.
func TestUnknownObligationDenies(t *testing.T) {
	for name, c := range map[string]struct {
		obligations, keeps []string
		want               remit.Effect
	}{
		"none known":  {[]string{"watermark=x"}, nil, remit.Deny},
		"known":       {[]string{"redact=/a", "sandbox=kernel"}, []string{"bytes", "redact"}, remit.Allow},
		"one unknown": {[]string{"redact=/a", "watermark"}, []string{"redact"}, remit.Deny},
		"a prefix":    {[]string{"redaction"}, []string{"redact"}, remit.Deny},
		"the tier":    {[]string{"sandbox=kernel"}, nil, remit.Allow},
	} {
		l := setUp(t)
		l.judgement = remit.Judgement{Effect: remit.Allow, TTL: time.Minute, Obligations: c.obligations}
		req := l.request()
		req.Keeps = c.keeps
		d, _, cred, err := l.auth.Grant(t.Context(), req)
		if err != nil || d.Effect != c.want || cred.Secret.IsZero() != (c.want == remit.Deny) || l.lastDecision(t).Effect != c.want {
			t.Errorf("%s: %v %+v", name, err, d)
		}
		if c.want == remit.Deny && d.Reasons[0].Code != remit.ReasonObligation {
			t.Errorf("%s: %+v", name, d.Reasons)
		}
	}
}

// TestLimitOfNothingDenies: a rule that leaves no rows is a denial also where the driver holds a limit; it is not the lack of one.
func TestLimitOfNothingDenies(t *testing.T) {
	for rows, want := range map[int64]remit.Effect{0: remit.Deny, 1: remit.Allow} {
		l := setUp(t)
		l.judgement = remit.Judgement{Effect: remit.Allow, TTL: time.Minute, Limits: map[string]int64{"rows": rows}}
		req := l.request()
		req.Via, req.Keeps = "token", []string{"limits.rows"}
		if d, err := l.auth.Decide(t.Context(), req); err != nil || d.Effect != want {
			t.Errorf("%d rows: %v %+v", rows, err, d)
		}
	}
}

// TestUnheldLimitDenies: nobody holds a login, a call of a tool or a request to a number of rows; an enforcement point that asks by AuthZEN
// is told it.
func TestUnheldLimitDenies(t *testing.T) {
	for via, want := range map[string]remit.Effect{"token": remit.Deny, "mcp": remit.Deny, "egress": remit.Deny, "": remit.Deny, "authzen": remit.Allow} {
		l := setUp(t)
		l.judgement = remit.Judgement{Effect: remit.Allow, TTL: time.Minute, Limits: map[string]int64{"rows": 100}}
		req := l.request()
		req.Via = via
		d, err := l.auth.Decide(t.Context(), req)
		if err != nil || d.Effect != want || l.lastDecision(t).Effect != want {
			t.Errorf("%s: %v %+v", via, err, d)
		}
		if req.Keeps = []string{"limits.rows"}; via == "token" { // a driver that knows it
			if d, err := l.auth.Decide(t.Context(), req); err != nil || d.Effect != remit.Allow {
				t.Errorf("a limit that the driver holds: %v %+v", err, d)
			}
			l.judgement.Limits = map[string]int64{"bytes": 100}
			if d, err := l.auth.Decide(t.Context(), req); err != nil || d.Effect != remit.Deny || d.Reasons[0].Of != "limits.bytes" {
				t.Errorf("another limit than the driver's: %v %+v", err, d)
			}
		}
		if want == remit.Deny && (d.Reasons[0].Code != remit.ReasonObligation || d.Reasons[0].Of != "limits.rows") {
			t.Errorf("%s: %+v", via, d.Reasons)
		}
	}
}
