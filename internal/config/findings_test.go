// SPDX-License-Identifier: Apache-2.0

package config_test

import (
	"strings"
	"testing"
	"time"

	"remit"
	"remit/internal/config"
)

// TestFindings: only hard evidence suspends unless the file says more; what could not be carried out is refused.
func TestFindings(t *testing.T) {
	const base = "trust_domain: company.com\noperators: [{name: ci, uid: 0, roles: [admin]}]\n"
	parse := func(findings string) (*config.ServerConfig, error) {
		return config.ParseServer("remit.yaml", []byte(base+findings), "/srv")
	}
	s, err := parse("")
	must(t, err)
	for kind, want := range map[remit.FindingKind]remit.Response{
		remit.FindingActWithoutGrant: remit.RespondSuspend, remit.FindingCanary: remit.RespondSuspend, remit.FindingStolenToken: remit.RespondSuspend,
		remit.FindingOtherHolder: remit.RespondNotice, remit.FindingOutsideWorkflow: remit.RespondNotice, remit.FindingDenialBurst: remit.RespondNotice, remit.FindingUnusual: remit.RespondNotice,
		remit.FindingConfiguration: remit.RespondNotice,
	} {
		if got := s.Findings.Respond[kind]; got != want {
			t.Errorf("%s: %s, want %s", kind, got, want)
		}
	}
	if f := s.Findings; f.Denials != 30 || f.Within != time.Minute || f.Suspensions != 3 || len(f.Canaries) != 0 {
		t.Errorf("%+v", f)
	}
	s, err = parse("findings: {respond: {denial_burst: kill, canary_touched: step-up}, step_up: security, denials: {count: 5, within: 10s}, suspensions_an_hour: 0, canaries: [{name: a, target: db, value: \"9\"}]}\n")
	must(t, err)
	if f := s.Findings; f.Respond[remit.FindingDenialBurst] != remit.RespondKill || f.Respond[remit.FindingCanary] != remit.RespondStepUp || f.StepUp != "security" ||
		f.Denials != 5 || f.Suspensions != 0 || f.Canaries[0] != (config.Canary{Name: "a", Target: "db", Value: "9"}) {
		t.Errorf("%+v", f)
	}
	if b := s.Findings.Baselines; b != (config.Baselines{Budget: 0.05, Shadow: 168 * time.Hour, Alert: 336 * time.Hour}) {
		t.Errorf("%+v", b)
	}
	s, err = parse("findings: {respond: {unusual_behaviour: suspend}, baselines: {findings_an_agent_week: 0.1, shadow: 72h, alert: 24h}}\n")
	must(t, err)
	if f := s.Findings; f.Respond[remit.FindingUnusual] != remit.RespondSuspend || f.Baselines != (config.Baselines{Budget: 0.1, Shadow: 72 * time.Hour, Alert: 24 * time.Hour}) {
		t.Errorf("%+v", f)
	}
	for bad, want := range map[string]string{
		"{baselines: {findings_an_agent_week: 2}}":                   "remit.yaml:3: findings: baselines: findings_an_agent_week: 2: write 0, or 0.001 to 1",
		"{baselines: {findings_an_agent_week: often}}":               "expected a decimal number",
		"{baselines: {shadow: 1h}}":                                  "write 24h or more",
		"{baselines: {alert: 9000h}}":                                "more than the limit",
		"{baselines: {threshold: 3}}":                                "unknown key",
		"{respond: {denial_burst: explode}}":                         "write notice, step-up, throttle, suspend or kill",
		"{respond: {denial_burst: step-up}}":                         "step-up needs a group",
		"{respond: {configuration_refused: suspend}}":                "unknown key",
		"{denials: {count: 1, within: 1m}}":                          "write 2 to 1000",
		"{denials: {count: 10, within: 2h}}":                         "more than the limit",
		"{denials: {count: 10}}":                                     "within is missing",
		"{suspensions_an_hour: -1}":                                  "write 0 to 1000",
		"{throttle: 0}":                                              "write 1 to 3600",
		"{canaries: [{name: a}]}":                                    "everything would touch it",
		"{canaries: [{name: a, value: x}]}":                          "everything would touch it",
		"{canaries: [{name: a, agent: agent/x, value: x}]}":          "a value and no target",
		"{canaries: [{name: a, target: db}, {name: a, target: db}]}": "stands twice",
		"{canaries: [{name: a, target: db, value: \" 9\"}]}":         "begins or ends with a space",
	} {
		if _, err := parse("findings: " + bad + "\n"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", bad, err, want)
		}
	}
}
