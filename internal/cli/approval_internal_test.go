// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"remit/internal/api"
)

// TestApproverReadsBounds: all that would be allowed stands on the terminal, one fact a line, and nothing of it draws there.
func TestApproverReadsBounds(t *testing.T) {
	until := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for want, would := range map[string]*api.WouldAllow{
		"": nil,
		"approved now, it would be denied still: organisation_rule\n": {Not: "organisation_rule"},
		"would allow: one decision, no credential\n":                  {},
		"would allow: a credential for at most 5m0s, not after " + stamp(until) + "\nlimited: rows at most 7\nobliged: mask=iban\n" +
			"sandbox: at least kernel\nbounded: customer 555\uFFFD[2J\uFFFDbounded: all\nnot bounded: time\nends at worst, without Remit, 2m0s late\n": {Credential: true, Seconds: 300,
			Until: until, Limits: map[string]int64{"rows": 7}, Obligations: []string{"mask=iban"}, Tier: "kernel",
			Bounds: []string{"customer 555\x1b[2J\nbounded: all"}, NotBounded: []string{"time"}, WorstCase: 120},
		"would allow: a credential\nbounded: by sensitive values, which are not shown\n": {Credential: true, Hidden: true},
	} {
		var out bytes.Buffer
		a := &app{out: &out}
		if err := a.showApproval(&api.Approval{Would: would}); err != nil {
			t.Fatal(err)
		}
		if !strings.HasSuffix(out.String(), want) || want == "" && strings.Contains(out.String(), "allow") {
			t.Errorf("%q, not %q", out.String(), want)
		}
	}
}

// TestApplyWarns: a warning stands beside what was applied.
func TestApplyWarns(t *testing.T) {
	var out bytes.Buffer
	(&app{out: &out}).printApplied(api.Applied{Warnings: []string{"nobody can log in"}})
	if !strings.Contains(out.String(), "\nwarning: nobody can log in\n") {
		t.Errorf("%q", out.String())
	}
}
