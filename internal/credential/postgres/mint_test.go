// SPDX-License-Identifier: Apache-2.0

package postgres_test

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

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

// TestLoginHasItsBounds: what the server itself holds a login to, as the administrator reads it; and that it is over without anybody ending it.
func TestLoginHasItsBounds(t *testing.T) {
	d := newDatabase(t, nil)
	for view, readOnly := range map[string]bool{"transactions": true, "set_amount": false} {
		l := lease(view)
		d.mint(l)
		var connections int
		var until time.Time
		var settings []string
		role := "remit_" + d.cfg.Installation + "_" + strings.TrimPrefix(string(l.ID), "lease-")
		err := d.admin.QueryRow(t.Context(), `SELECT r.rolconnlimit, r.rolvaliduntil, coalesce(s.setconfig, '{}') FROM pg_roles r LEFT JOIN pg_db_role_setting s ON s.setrole = r.oid
			WHERE r.rolname = $1 AND r.rolcanlogin AND NOT (r.rolsuper OR r.rolcreaterole OR r.rolcreatedb OR r.rolreplication OR r.rolbypassrls)`, role).Scan(&connections, &until, &settings)
		if err != nil || connections < 1 || until.After(l.Expires) || until.Before(l.Expires.Add(-time.Second)) {
			t.Errorf("%s: %v, %d connections until %s", view, err, connections, until)
		}
		for _, setting := range []string{"statement_timeout=", "idle_in_transaction_session_timeout=", "search_path="} {
			if !slices.ContainsFunc(settings, func(s string) bool { return strings.HasPrefix(s, setting) && s != setting+"0" }) {
				t.Errorf("%s: no %s in %q", view, setting, settings)
			}
		}
		if slices.Contains(settings, "default_transaction_read_only=on") != readOnly {
			t.Errorf("%s: %q", view, settings)
		}
	}
	short := lease("transactions")
	short.Expires = time.Now().Add(2 * time.Second)
	c := d.mint(short)
	if err := as(t.Context(), c, "SELECT 1"); err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Until(short.Expires) + 100*time.Millisecond)
	if err := as(t.Context(), c, "SELECT 1"); err == nil {
		t.Error("it logs in after its end")
	}
}
