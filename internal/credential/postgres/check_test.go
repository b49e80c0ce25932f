// SPDX-License-Identifier: Apache-2.0

package postgres_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"remit/internal/credential/postgres"
)

func TestUnfitDatabase(t *testing.T) {
	d := newDatabase(t, nil)
	if err := d.driver.Check(t.Context()); err != nil {
		t.Fatalf("a fresh set-up: %v", errorText(err))
	}
	i := d.cfg.Installation
	for _, c := range []struct{ name, break_, mend string }{
		{"a view with other columns", "ALTER VIEW remit.amounts RENAME COLUMN amount TO sum", "ALTER VIEW remit.amounts RENAME COLUMN sum TO amount"},
		{"a view that everybody reads", "GRANT SELECT ON remit.amounts TO PUBLIC", "REVOKE SELECT ON remit.amounts FROM PUBLIC"},
		{"a view without its barrier", "ALTER VIEW remit.amounts RESET (security_barrier)", "ALTER VIEW remit.amounts SET (security_barrier=true)"},
		{"a function of somebody else", "ALTER FUNCTION remit.lease_begin OWNER TO postgres", "ALTER FUNCTION remit.lease_begin OWNER TO remit_" + i + "_definer"},
		{"a function for everybody", "GRANT EXECUTE ON FUNCTION remit.lease_stop TO PUBLIC", "REVOKE EXECUTE ON FUNCTION remit.lease_stop FROM PUBLIC"},
		{"a broker that makes roles", "ALTER ROLE remit_" + i + "_broker CREATEROLE", "ALTER ROLE remit_" + i + "_broker NOCREATEROLE"},
		{"a broker that is the owner", "GRANT remit_" + i + "_owner TO remit_" + i + "_broker", "REVOKE remit_" + i + "_owner FROM remit_" + i + "_broker"},
		{"temporary tables for all", "GRANT TEMPORARY ON DATABASE " + d.name + " TO PUBLIC", "REVOKE TEMPORARY ON DATABASE " + d.name + " FROM PUBLIC"},
		{"large objects for all", "GRANT EXECUTE ON FUNCTION lo_create(oid) TO PUBLIC", "REVOKE EXECUTE ON FUNCTION lo_create(oid) FROM PUBLIC"},
		{"a table for all", "GRANT USAGE ON SCHEMA public TO PUBLIC; GRANT SELECT ON public.salaries TO PUBLIC", "REVOKE SELECT ON public.salaries FROM PUBLIC"},
		{"a definer's function for all", "CREATE FUNCTION public.f() RETURNS bigint LANGUAGE sql SECURITY DEFINER AS 'SELECT count(*) FROM public.salaries'", "DROP FUNCTION public.f"},
		{"a renamed table", "ALTER TABLE public.transactions RENAME TO tx", "ALTER TABLE public.tx RENAME TO transactions"},
	} {
		exec(t, d.admin, c.break_)
		if err := d.driver.Check(t.Context()); err == nil {
			t.Errorf("%s: nobody noticed", c.name)
		} else {
			t.Logf("%s: %v", c.name, errorText(err))
		}
		exec(t, d.admin, c.mend)
	}
	if err := d.driver.Check(t.Context()); err != nil {
		t.Errorf("mended: %v", errorText(err))
	}
	d.cfg.Views = views[:2]
	if err := d.remake().Check(t.Context()); err == nil || !strings.Contains(errorText(err), "other views") {
		t.Errorf("other views than those that were set up: %v", errorText(err))
	}
	d.cfg.Views, d.cfg.Now = views, func() time.Time { return time.Now().Add(10 * time.Second) }
	if err := d.remake().Check(t.Context()); err == nil || !strings.Contains(errorText(err), "clock") {
		t.Errorf("a clock of its own: %v", errorText(err))
	}
}

// TestMintNeedsTheSetUpOfItsFiles: a view that the files narrowed is not shown by a set-up of before, whether or not anybody asked Check.
func TestMintNeedsTheSetUpOfItsFiles(t *testing.T) {
	d := newDatabase(t, nil)
	d.mint(lease("transactions"))
	d.cfg.Views = slices.Clone(views)
	d.cfg.Views[slices.IndexFunc(views, func(v postgres.View) bool { return v.Name == "transactions" })].Mask = []string{"amount"}
	narrowed, l := d.remake(), lease("transactions")
	if _, err := narrowed.Mint(t.Context(), l); err == nil || !strings.Contains(errorText(err), "other views") {
		t.Errorf("minted from what was set up before: %v", errorText(err))
	}
	if left, err := d.standing(t.Context(), l); err != nil || len(left) > 0 {
		t.Errorf("%v %v", left, err)
	}
	exec(t, d.admin, narrowed.Setup())
	if _, err := narrowed.Mint(t.Context(), l); err != nil {
		t.Errorf("set up again: %v", errorText(err))
	}
	if _, err := d.driver.Mint(t.Context(), lease("transactions")); err == nil {
		t.Error("the driver of before still mints")
	}
}

// TestUnfitPolicies: what an administrator does to a table that holds leases itself makes none any more, and is noticed.
func TestUnfitPolicies(t *testing.T) {
	d := newDatabase(t, byPolicies)
	if err := d.driver.Check(t.Context()); err != nil {
		t.Fatalf("a fresh set-up: %v", errorText(err))
	}
	p := "remit_" + d.cfg.Installation
	for _, c := range []struct{ name, break_, mend string }{
		{"row security off", "ALTER TABLE public.transactions DISABLE ROW LEVEL SECURITY", "ALTER TABLE public.transactions ENABLE ROW LEVEL SECURITY"},
		{"another condition", "ALTER POLICY " + p + "_r_amounts ON public.transactions USING (true)", ""},
		{"a policy for all", "ALTER POLICY " + p + "_r_amounts ON public.transactions TO PUBLIC", ""},
		{"no policy", "DROP POLICY " + p + "_r_amounts ON public.transactions", ""},
		{"a column more", "GRANT SELECT (note) ON public.transactions TO " + p + "_v_amounts", "REVOKE SELECT (note) ON public.transactions FROM " + p + "_v_amounts"},
		{"a column for all", "GRANT SELECT (note) ON public.transactions TO PUBLIC", "REVOKE SELECT (note) ON public.transactions FROM PUBLIC"},
		{"another view of the scope", "CREATE OR REPLACE VIEW remit.mine AS SELECT * FROM remit.scope", ""},
		{"a renamed column", "ALTER TABLE public.transactions RENAME amount TO total", "ALTER TABLE public.transactions RENAME total TO amount"},
		{"a renamed table", "ALTER TABLE public.transactions RENAME TO tx", "ALTER TABLE public.tx RENAME TO transactions"},
		{"another table for all, in its schema", "GRANT SELECT ON public.salaries TO PUBLIC", "REVOKE SELECT ON public.salaries FROM PUBLIC"},
	} {
		exec(t, d.admin, c.break_)
		if err := d.driver.Check(t.Context()); err == nil {
			t.Errorf("%s: nobody noticed", c.name)
		}
		if _, err := d.driver.Mint(t.Context(), lease("amounts")); err == nil && c.name != "another table for all, in its schema" {
			t.Errorf("%s: a lease was made", c.name)
		}
		if c.mend == "" {
			c.mend = d.driver.Setup()
		}
		exec(t, d.admin, c.mend)
		if err := d.driver.Check(t.Context()); err != nil {
			t.Fatalf("%s, mended: %v", c.name, errorText(err))
		}
	}
	// Set up while the table lets everybody see everything: refused as a whole.
	exec(t, d.admin, "ALTER TABLE public.transactions DISABLE ROW LEVEL SECURITY")
	if _, err := d.admin.Exec(t.Context(), d.driver.Setup(), pgx.QueryExecModeSimpleProtocol); err == nil || !strings.Contains(err.Error(), "row security is not enabled") {
		t.Errorf("set up at a table without row security: %v", err)
	}
}

// TestBrokenTables: what an administrator does to tables makes clear errors, and nothing is left behind.
func TestBrokenTables(t *testing.T) {
	for name, c := range map[string]struct{ sql, says string }{
		"view dropped":   {"DROP VIEW remit.transactions", "missing"},
		"table dropped":  {"DROP TABLE public.transactions CASCADE", "missing"},
		"table renamed":  {"ALTER TABLE public.transactions RENAME TO tx", "not as it was set up"},
		"column dropped": {"ALTER TABLE public.transactions DROP COLUMN created CASCADE", "missing"},
		"column renamed": {"ALTER TABLE public.transactions RENAME COLUMN amount TO total", "not as it was set up"},
		"view replaced":  {"DROP VIEW remit.transactions; CREATE VIEW remit.transactions WITH (security_barrier) AS SELECT id, customer_id, amount, created FROM public.transactions", "not as it was set up"},
		"schema dropped": {"DROP SCHEMA remit CASCADE", "schema"},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDatabase(t, nil)
			exec(t, d.admin, c.sql)
			l := lease("transactions")
			if _, err := d.driver.Mint(t.Context(), l); err == nil || !strings.Contains(errorText(err), c.says) {
				t.Errorf("minted, or said: %v", errorText(err))
			}
			if name == "schema dropped" {
				return
			}
			if left, err := d.standing(t.Context(), l); err != nil || len(left) > 0 {
				t.Errorf("left: %v, %v", left, err)
			}
		})
	}
}
