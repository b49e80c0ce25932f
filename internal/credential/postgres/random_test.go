// SPDX-License-Identifier: Apache-2.0

package postgres_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"pgregory.net/rapid"
)

// expression is a random condition over the view's columns, with what tells rows apart if it meets them: errors, casts, sub-selects.
func expression(r *rapid.T, from string, depth int) string {
	column := rapid.SampledFrom([]string{"id", "customer_id", "amount"}).Draw(r, "column")
	number := fmt.Sprint(rapid.IntRange(-3, 2100).Draw(r, "number"))
	if depth == 0 {
		return column + rapid.SampledFrom([]string{" = ", " <> ", " < ", " >= "}).Draw(r, "operator") + number
	}
	inner := func() string { return expression(r, from, depth-1) }
	switch rapid.IntRange(0, 8).Draw(r, "form") {
	case 0:
		return "(" + inner() + " AND " + inner() + ")"
	case 1:
		return "(" + inner() + " OR " + inner() + ")"
	case 2:
		return "NOT " + inner()
	case 3:
		return fmt.Sprintf("1 / nullif(customer_id - 5, 0) IS NULL AND %s", inner())
	case 4:
		return fmt.Sprintf("1 / (CASE WHEN customer_id = 5 THEN 1 ELSE 0 END) = 1 AND %s", inner())
	case 5:
		return fmt.Sprintf("EXISTS (SELECT FROM %s x WHERE x.id = t.id + %s)", from, number)
	case 6:
		return fmt.Sprintf("%s::text LIKE '%%%s%%'", column, number)
	case 7:
		return fmt.Sprintf("id IN (SELECT id FROM %s ORDER BY amount DESC, id LIMIT 5)", from)
	}
	return "t IS NOT NULL AND " + inner()
}

// TestRandomStatementsStayInScope: whatever a holder asks, it gets what the owner would get of the rows in scope; whatever it changes or
// deletes, no row of others changes.
func TestRandomStatementsStayInScope(t *testing.T) {
	for mode, how := range modes {
		t.Run(mode, func(t *testing.T) { stayInScope(t, newDatabase(t, how), 0) })
	}
	t.Run("views that count", func(t *testing.T) { stayInScope(t, newDatabase(t, countRows), 20) })
}

// stayInScope compares with what the owner would show; most 0 is all.
func stayInScope(t *testing.T, d *database, most int64) {
	t.Helper()
	exec(t, d.admin, fmt.Sprintf("CREATE VIEW public.mine AS SELECT id, customer_id, amount, created FROM public.transactions WHERE customer_id = 5 ORDER BY id DESC LIMIT nullif(%d, 0)", most))
	l := lease("transactions")
	l.Rows = most
	reader, writer, remover := d.session(d.mint(l)), d.session(d.mint(lease("set_amount"))), d.session(d.mint(lease("drop_transactions")))
	ask := func(c *pgx.Conn, sql string) string {
		var out string
		if err := c.QueryRow(t.Context(), sql, pgx.QueryExecModeSimpleProtocol).Scan(&out); err != nil {
			return sqlstate(err)
		}
		return out
	}
	const others = "SELECT md5(string_agg(t::text, '' ORDER BY id)) || count(*) FROM public.transactions t WHERE customer_id <> 5"
	before := ask(d.admin, others)
	rapid.Check(t, func(r *rapid.T) {
		where := expression(r, "FROM_HERE", rapid.IntRange(0, 3).Draw(r, "depth"))
		sql := "SELECT coalesce(string_agg(id || ' ' || amount, ',' ORDER BY id), '') FROM FROM_HERE t WHERE " + where
		got, want := ask(reader, strings.ReplaceAll(sql, "FROM_HERE", d.says("remit.transactions"))), ask(d.admin, strings.ReplaceAll(sql, "FROM_HERE", "public.mine"))
		// A whole row is every column of the table there, and some are not granted.
		whole := d.policies() && strings.Contains(where, "t IS NOT NULL")
		if got != want && !(whole && got == "refused: 42501") {
			r.Fatalf("%s: the holder sees %q, the owner %q", sql, got, want)
		}
		exec(t, writer, "BEGIN READ WRITE")
		_, err := writer.Exec(t.Context(), strings.ReplaceAll("UPDATE FROM_HERE t SET amount = -1 WHERE "+where, "FROM_HERE", d.says("remit.set_amount")))
		exec(t, writer, map[bool]string{true: "COMMIT", false: "ROLLBACK"}[err == nil])
		exec(t, remover, "BEGIN READ WRITE")
		_, _ = remover.Exec(t.Context(), d.says("DELETE FROM remit.drop_transactions t WHERE id > 1990 AND ")+where) // most name columns that it may not read
		exec(t, remover, "ROLLBACK")
		if now := ask(d.admin, others); now != before {
			r.Fatalf("%s: rows of others changed", where)
		}
	})
}

func sqlstate(err error) string {
	if e, ok := errors.AsType[*pgconn.PgError](err); ok {
		return "refused: " + e.Code
	}
	return err.Error()
}
