// SPDX-License-Identifier: Apache-2.0

package postgres_test

import (
	"context"
	"testing"

	"remit"
	"remit/internal/credential/credentialtest"
	"remit/internal/credential/postgres"
)

func TestDriver(t *testing.T) {
	for _, c := range []struct{ view, act string }{
		{"transactions", "SELECT id, customer_id, amount, created FROM remit.transactions"},
		{"new_transactions", "INSERT INTO remit.new_transactions (id, customer_id, amount) SELECT 100000 + (random() * 1e9)::bigint, 5, 1"},
		{"set_amount", "UPDATE remit.set_amount SET amount = amount + 1 WHERE id = 4"},
		{"drop_transactions", "DELETE FROM remit.drop_transactions WHERE id = 24"},
	} {
		for mode, how := range modes {
			t.Run(c.view+" by "+mode, func(t *testing.T) {
				if testing.Short() && (c.view != "transactions" || how != nil) {
					t.Skip("SHORT=1 runs the suite for one action")
				}
				credentialtest.Test(t, func(t *testing.T) credentialtest.Live { return newDatabase(t, how).live(c.view, c.act) })
			})
		}
	}
}

// noEnd is a driver whose Revoke does nothing, with all the rest.
type noEnd struct{ *postgres.Driver }

func (noEnd) Revoke(context.Context, remit.Lease) error { return nil }

// blind is a driver whose trials see nothing.
type blind struct{ *postgres.Driver }

func (blind) Try(context.Context, remit.Lease, remit.Credential) ([]remit.Trial, error) {
	return []remit.Trial{{Act: "read", Granted: true, Outcome: remit.TrialPassed}, {Act: "write", Outcome: remit.TrialRefused}}, nil
}

func TestSuiteNoticesBrokenDrivers(t *testing.T) {
	credentialtest.MustFail(t, func(t *testing.T) credentialtest.Live {
		d := newDatabase(t, nil)
		v := d.live("transactions", "SELECT id FROM remit.transactions")
		v.Driver = noEnd{d.driver}
		return v
	})
	credentialtest.BlindMustFail(t, func(t *testing.T) credentialtest.Live {
		d := newDatabase(t, nil)
		v := d.live("transactions", "SELECT id FROM remit.transactions")
		v.Driver = blind{d.driver}
		return v
	})
}
