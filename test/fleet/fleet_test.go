// SPDX-License-Identifier: Apache-2.0

package main

import (
	"io"
	"testing"
)

// TestBudget plays a small world: honest agents cost no more than twice the budget, before and after the change of their work, although a
// limit that was frozen before it does not hold; and some attacks are found, else silence would pass.
func TestBudget(t *testing.T) {
	o := options{seeds: 2, first: 1, agents: 20, budget: 0.1}
	if testing.Short() {
		o.seeds = 1
	}
	var r result
	for i := range o.seeds {
		r.add(simulate(uint64(o.first+i), o)) //nolint:gosec // small
	}
	r.print(io.Discard, o)
	found := 0
	for _, n := range r.caught {
		found += n[0] + n[1]
	}
	t.Logf("before %.3f, after %.3f findings an agent-week; %d campaigns found", r.rate(0, 0), r.rate(0, 1), found)
	for period := range 2 {
		if got := r.rate(0, period); got > 2*o.budget {
			t.Errorf("period %d: %.3f findings an agent-week, budget %.3f", period, got, o.budget)
		}
	}
	if found == 0 {
		t.Error("no attack was found")
	}
}
