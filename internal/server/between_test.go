// SPDX-License-Identifier: Apache-2.0

package server

import (
	"strings"
	"testing"
	"time"

	"remit"
	"remit/internal/api"
	"remit/internal/store"
)

// TestNothingBetweenOnTheRunningServer: S11, from the outside. Whatever moves between the decision and its record, or between the
// record and the mint, no credential leaves, and nothing stands at the target when all is over.
func TestNothingBetweenOnTheRunningServer(t *testing.T) {
	for name, c := range map[string]struct {
		move func(*desk, remit.Run)
		only string // the step for which it makes sense; empty: both
	}{
		"suspend": {func(d *desk, _ remit.Run) {
			d.must("/v1/agents/agent/deploy/suspend", api.Reasoned{Reason: "hijacked"}, nil)
		}, ""},
		"stage end":  {func(d *desk, r remit.Run) { d.must("/v1/runs/"+string(r.ID)+"/advance", api.AdvanceRun{}, nil) }, ""},
		"run end":    {func(d *desk, r remit.Run) { d.must("/v1/runs/"+string(r.ID)+"/finish", nil, nil) }, ""},
		"clock jump": {func(d *desk, _ remit.Run) { d.jumped.Store(int64(time.Minute)); d.srv.watchClock() }, ""},
		"policy change": {func(d *desk, _ remit.Run) {
			d.write(d.files + "---\nkind: Rule\nname: freeze\nrego: |\n  package remit.rules\n  deny contains \"frozen\" if input.target == \"cluster\"\n")
			d.must("/v1/apply", nil, nil)
		}, ""},
		"source not trusted any more": {func(d *desk, _ remit.Run) {
			d.write(strings.Replace(d.files, "approver_groups: [change-board]", "approver_groups: [others]", 1))
			d.must("/v1/apply", nil, nil)
		}, ""},
		"ticket closed": {func(d *desk, _ remit.Run) {
			d.ticket("CHG-1", "closed", 0)
			d.ahead.Store(int64(31 * time.Second))
		}, "checking"},
		"revocation": {func(d *desk, _ remit.Run) {
			for _, g := range d.srv.store.LiveGrants(store.GrantFilter{}) {
				d.must("/v1/grants/"+string(g.ID)+"/revoke", api.Reasoned{Reason: "test"}, nil)
			}
		}, "minting"},
	} {
		for _, step := range []string{"checking", "minting"} {
			if c.only != "" && c.only != step {
				continue
			}
			t.Run(name+" while "+step, func(t *testing.T) {
				d := setUpDesk(t)
				d.files += "- name: after\n  end: {by: [operator/ci]}\n  may:\n" +
					"  - {name: after, who: agent/build, action: memory.write, target: cluster, where: {app: $app}}\n"
				d.write(d.files)
				d.must("/v1/apply", nil, nil)
				d.ticket("CHG-1", "approved", 0)
				w, r := d.changing("CHG-1")
				reached := false
				hook := &d.backend.checking
				if step == "minting" {
					hook = &d.backend.minting
				}
				d.backend.set(hook, func() { reached = true; c.move(d, r) })
				g := w.ask("change")
				if !reached {
					t.Fatalf("the step was not reached: %+v", g)
				}
				if g.Secret != "" || g.code() == "" {
					t.Errorf("a credential was handed over: %+v", g)
				}
				d.backend.waitEmpty(t)
				for _, l := range d.srv.store.LiveLeases(nil) {
					if l.State == remit.GrantActive {
						t.Errorf("lease %s is active", l.ID)
					}
				}
			})
		}
	}
}
