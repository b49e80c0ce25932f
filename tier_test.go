// SPDX-License-Identifier: Apache-2.0

package remit_test

import (
	"testing"

	"remit"
)

func TestTierOrder(t *testing.T) {
	order := []remit.Tier{remit.TierRemote, remit.TierProcess, remit.TierKernel, remit.TierVM}
	for i, have := range order {
		for j, least := range order {
			if have.AtLeast(least) != (i >= j) {
				t.Errorf("%s where %s is asked: %v", have, least, have.AtLeast(least))
			}
		}
		for _, none := range []remit.Tier{0, 9} {
			if have.AtLeast(none) || none.AtLeast(have) {
				t.Errorf("tier %d satisfies or is satisfied by %s", none, have)
			}
		}
		if back, err := remit.ParseTier(have.String()); err != nil || back != have {
			t.Errorf("%s reads back as %s, %v", have, back, err)
		}
	}
	if _, err := remit.ParseTier("none"); err == nil {
		t.Error("none is read as a tier")
	}
}
