// SPDX-License-Identifier: Apache-2.0

package config_test

import (
	"testing"
	"time"

	"remit/internal/config"
)

// TestQuotas: what is left out has its default, and no quota is a quota of nothing.
func TestQuotas(t *testing.T) {
	const base = "trust_domain: company.com\noperators: [{name: ci, uid: 0, roles: [admin]}]\n"
	parse := func(quotas string) (*config.ServerConfig, error) {
		return config.ParseServer("remit.yaml", []byte(base+quotas), "/srv")
	}
	s, err := parse("quotas: {agents: {rate: 10, bytes: 4096}, fold: 1m}\n")
	must(t, err)
	if want := (config.Quota{Rate: 10, Burst: 2000, Concurrent: 256, Bytes: 4096}); s.Quotas.Agents != want || s.Quotas.Fold != time.Minute ||
		s.Quotas.Points.Rate != 50000 || s.Quotas.People.Rate != 20 || s.Quotas.Runs.Burst != 200 {
		t.Errorf("%+v", s.Quotas)
	}
	if s, err = parse(""); err != nil || s.Quotas.Fold != 10*time.Second {
		t.Errorf("nothing said: %v", err)
	}
	for _, bad := range []string{"{agents: {rate: 0}}", "{points: {concurrent: 0}}", "{runs: {burst: 0}}", "{people: {rate: 0}}", "{agents: {bytes: 0}}", "{people: {bytes: 4096}}", "{fold: 2h}", "{fold: 0s}",
		"{fold: -1s}", "{agents: {rate: -1}}", "{agents: {speed: 1}}", "{everybody: {rate: 1}}"} {
		if _, err := parse("quotas: " + bad + "\n"); err == nil {
			t.Errorf("%s was taken", bad)
		}
	}
}
