// SPDX-License-Identifier: Apache-2.0

package external_test

import (
	"testing"

	"remit"
	"remit/internal/credential/external"
)

// TestMakesNothing: what is never made cannot arrive late (S18). The driver refuses before and at the mint, for every scope, and an
// end that comes before, after or twice succeeds.
func TestMakesNothing(t *testing.T) {
	var d external.Driver
	l := remit.Lease{ID: remit.NewLeaseID()}
	for range 2 {
		if err := d.Revoke(t.Context(), l); err != nil {
			t.Error(err)
		}
		if c, err := d.Mint(t.Context(), l); err == nil || !c.Secret.IsZero() {
			t.Errorf("it minted %+v", c)
		}
		if _, _, _, err := d.Plan(l); err == nil {
			t.Error("it plans a scope that it cannot hold")
		}
	}
}
