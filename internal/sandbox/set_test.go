// SPDX-License-Identifier: Apache-2.0

package sandbox_test

import (
	"context"
	"strings"
	"testing"

	"remit"
	"remit/internal/sandbox"
)

// fake is a driver that says it works.
type fake struct {
	tier   remit.Tier
	works  bool
	probes int
}

func (d *fake) Name() string     { return "fake-" + string(d.tier) }
func (d *fake) Tier() remit.Tier { return d.tier }
func (d *fake) Probe(context.Context) sandbox.Report {
	d.probes++
	r := sandbox.Report{Driver: d.Name(), Tier: d.tier, Works: d.works}
	if !d.works {
		r.Problems = []sandbox.Problem{{What: "broken", Fix: "mend"}}
	}
	return r
}
func (d *fake) Prepare(context.Context, sandbox.Spec) (*sandbox.Instance, error) {
	return nil, sandbox.ErrUnsupported
}
func (d *fake) Sweep(context.Context) error { return nil }

// TestNeverLess: what is asked and does not work is refused; something weaker is no answer, something stronger is.
func TestNeverLess(t *testing.T) {
	process, kernel, vm := &fake{tier: remit.TierProcess, works: true}, &fake{tier: remit.TierKernel}, &fake{tier: remit.TierVM}
	s := sandbox.NewSet(vm, kernel, process)
	if d, _, err := s.For(t.Context(), remit.TierKernel); remit.CodeOf(err) != remit.CodeUnavailable || d != nil || !strings.Contains(err.Error(), "broken") {
		t.Errorf("kernel: %v, %v", d, err)
	}
	if d, _, err := s.For(t.Context(), remit.TierProcess); err != nil || d != sandbox.Driver(process) {
		t.Errorf("process: %v, %v", d, err)
	}
	for _, least := range []remit.Tier{"", "docker"} {
		if d, _, err := s.For(t.Context(), least); err == nil {
			t.Errorf("tier %q gave %s", least, d.Name())
		}
	}
	vm.works = true
	if d, _, err := sandbox.NewSet(process, vm, kernel).For(t.Context(), remit.TierKernel); err != nil || d != sandbox.Driver(vm) {
		t.Errorf("kernel where only vm works: %v, %v", d, err)
	}
	if kernel.probes != 2 {
		t.Errorf("kernel was probed %d times", kernel.probes)
	}
}
