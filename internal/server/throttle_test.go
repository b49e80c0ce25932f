// SPDX-License-Identifier: Apache-2.0

package server

import (
	"testing"

	"remit"
	"remit/internal/api"
)

// TestThrottle: S36. After a throttle an agent is given little, and what is more is denied; live grants go on; a restart and a step-up
// change nothing; reinstating ends it.
func TestThrottle(t *testing.T) {
	d := setUpApprovals(t, 1)
	w, before := d.noticed("{respond: {credential_of_another: throttle}, throttle: 20}", remit.RespondThrottle)
	spend := func(w *workload) (given int) {
		t.Helper()
		for range 5 {
			g := d.pay(w, "41", "")
			switch {
			case g.Secret != "":
				given++
			case g.code() != string(remit.ReasonThrottled):
				t.Fatalf("%+v", g)
			}
		}
		return given
	}
	if n := spend(w); n != 2 { // a tenth of 20 at once
		t.Errorf("%d were given", n)
	}
	d.srv.recheck(t.Context(), "remit", func(*remit.Grant) bool { return true })
	if g := d.grant(before.Grant); g.State != remit.GrantActive {
		t.Errorf("what was given before: %s", g.Why)
	}
	d.restart()
	if p := d.srv.store.Posture("agent/deploy"); !p.Throttled || p.Suspended {
		t.Errorf("after a restart: %+v", p)
	}
	w = d.agent("agent/deploy", d.shared()).enter(d.refunds(d.as("dave")))
	if n := spend(w); n != 2 {
		t.Errorf("%d were given after a restart", n)
	}
	d.must("/v1/agents/agent/deploy/reinstate", api.Reasoned{Reason: "looked"}, nil)
	if n := spend(w); n != 5 {
		t.Errorf("%d were given to a reinstated agent", n)
	}
	if n := d.events(remit.EventFinding); n != 0 { // all of it was judged a second time
		t.Errorf("%d second opinions differ", n)
	}
}
