// SPDX-License-Identifier: Apache-2.0

package postgres_test

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"pgregory.net/rapid"

	"remit"
	"remit/internal/credential/postgres"
)

// hostile are texts that end a name, a literal, a list or a statement for somebody who quotes badly.
var hostile = []string{`x"; DROP TABLE y; --`, `x" AS SELECT 1; --`, `a'||(SELECT 1)||'`, `$$;SELECT 1;$$`, `"`, `'`, `\`, `a b`, `a.b`, `*`, `a,b`, `a)`, "a\x00", "a\n", `é`, "a\u202eb", `U&"\0041"`,
	`{{.Database}}`, `%s`, strings.Repeat("a", 64), ""}

// name is a name that PostgreSQL knows as it is only in quotes: of any case, with a dollar, up to its greatest length, or a word of its own.
func name() *rapid.Generator[string] {
	return rapid.OneOf(rapid.StringMatching(`[A-Za-z_][A-Za-z0-9_$]{0,62}`), rapid.SampledFrom([]string{"select", "User", "table", "session_user", "NULL", "t", "s", "role", "expires", "order"}))
}

// TestNamesOfTheFile: whatever stands where the file has a name, it is refused, or it is a plain one.
func TestNamesOfTheFile(t *testing.T) {
	plain := regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_$]{0,62}$`)
	places := map[string]func(v *postgres.View, n string){
		"view":   func(v *postgres.View, n string) { v.Name = n },
		"schema": func(v *postgres.View, n string) { v.Table = n + ".rows" },
		"table":  func(v *postgres.View, n string) { v.Table = "public." + n },
		"column": func(v *postgres.View, n string) { v.Columns = []string{"id", n} },
		"key":    func(v *postgres.View, n string) { v.Rows = map[string]string{n: "text"} },
		"limit":  func(v *postgres.View, n string) { v.LimitBy = n },
	}
	broken := rapid.Custom(func(r *rapid.T) string {
		return name().Draw(r, "before") + rapid.SampledFrom(hostile).Draw(r, "inside") + rapid.StringMatching(`[a-z0-9]{0,5}`).Draw(r, "after")
	})
	texts := rapid.OneOf(rapid.String(), rapid.SampledFrom(hostile), broken, broken, broken, name())
	taken := 0
	rapid.Check(t, func(r *rapid.T) {
		n := texts.Draw(r, "name")
		for place, put := range places {
			_, err := postgres.New(config(view(func(v *postgres.View) { put(v, n) })))
			if err != nil && remit.CodeOf(err) != remit.CodeInvalid {
				r.Fatal(err)
			}
			if err == nil {
				taken++
			}
			if err == nil && !plain.MatchString(n) && !(place == "limit" && n == "") {
				r.Fatalf("%s %q is taken", place, n)
			}
		}
	})
	if taken == 0 {
		t.Error("no name is good enough")
	}
}

// drawn is a view with names at random, over a table with a row in scope and one that is not.
type drawn struct {
	postgres.View
	schema, quoted string
	columns        []string // quoted
}

func drawView(r *rapid.T) drawn {
	names := rapid.SliceOfNDistinct(name(), 2, 4, rapid.ID[string]).Draw(r, "columns")
	d := drawn{schema: name().Filter(func(s string) bool {
		return s != "remit" && s != "public" && s != "information_schema" && !strings.HasPrefix(s, "pg_")
	}).Draw(r, "schema")}
	table := name().Draw(r, "table")
	d.View = postgres.View{Name: rapid.StringMatching(`[a-z][a-z0-9_]{0,20}`).Draw(r, "view") + "_v", Table: d.schema + "." + table, Columns: names, Rows: map[string]string{names[0]: "text"}}
	if rapid.Bool().Draw(r, "masked") {
		d.Mask = names[1:2]
	}
	d.quoted = pgx.Identifier{d.schema, table}.Sanitize()
	for _, n := range names {
		d.columns = append(d.columns, pgx.Identifier{n}.Sanitize())
	}
	return d
}

// TestNamesAreNames: with tables and columns of any name, the set-up makes the view that the file means and nothing else, and a lease of it
// shows the row in its scope, by its names. What quotes here is pgx, not what is tested.
func TestNamesAreNames(t *testing.T) {
	d := newDatabase(t, nil)
	made := func() []string {
		rows, err := d.admin.Query(t.Context(), `SELECT 'relation ' || c.oid::regclass || ' ' || coalesce(array_to_string(c.reloptions, ','), '') FROM pg_class c WHERE relnamespace = 'remit'::regnamespace
			UNION ALL SELECT 'function ' || oid::regprocedure FROM pg_proc WHERE pronamespace = 'remit'::regnamespace
			UNION ALL SELECT 'role ' || rolname FROM pg_roles WHERE rolname LIKE 'remit\_' || $1 || '\_%'
			UNION ALL SELECT 'schema ' || nspname FROM pg_namespace ORDER BY 1`, d.cfg.Installation)
		if err != nil {
			t.Fatal(err)
		}
		out, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	ofView := func(v drawn) []string {
		return []string{"relation remit." + v.Name + " security_barrier=true", "role remit_" + d.cfg.Installation + "_v_" + v.Name, "schema " + v.schema}
	}
	var rest []string // what is there beside the view's
	rapid.Check(t, func(r *rapid.T) {
		v := drawView(r)
		d.cfg.Views = []postgres.View{v.View}
		driver := d.remake()
		exec(t, d.admin, fmt.Sprintf("CREATE SCHEMA %[1]s; CREATE TABLE %[2]s (%[3]s text); INSERT INTO %[2]s VALUES ('mine'%[4]s), ('theirs'%[4]s)", pgx.Identifier{v.schema}.Sanitize(), v.quoted,
			strings.Join(v.columns, " text, "), strings.Repeat(", 'x'", len(v.columns)-1)))
		defer exec(t, d.admin, "DROP SCHEMA "+pgx.Identifier{v.schema}.Sanitize()+" CASCADE")
		exec(t, d.admin, driver.Setup())
		got, own := made(), ofView(v)
		others := slices.DeleteFunc(slices.Clone(got), func(s string) bool { return slices.Contains(own, s) })
		if rest == nil {
			rest = others
		}
		if len(got)-len(others) != len(own) || !slices.Equal(others, rest) {
			r.Fatalf("%+v made %q, and not %q beside %q", v, got, own, rest)
		}
		l := lease("transactions")
		l.Scope = remit.Args{"table": text(v.Table), "columns": list(v.Columns...), "rows": remit.ObjectValue(map[string]remit.Value{v.Columns[0]: text("mine")})}
		c, err := driver.Mint(t.Context(), l)
		if err != nil {
			r.Fatal(errorText(err))
		}
		named, err := count(t.Context(), c, fmt.Sprintf("SELECT count(*) FROM remit.%s WHERE %s = 'mine' AND (%s) IS NOT NULL", v.Name, v.columns[0], strings.Join(v.columns, ", ")))
		all, aerr := count(t.Context(), c, "SELECT count(*) FROM remit."+v.Name)
		if err != nil || aerr != nil || named != 1 || all != 1 {
			r.Fatalf("of the row in scope %d, and %d rows are seen: %v %v", named, all, err, aerr)
		}
		if err := driver.Revoke(t.Context(), l); err != nil {
			r.Fatal(errorText(err))
		}
		if left, err := d.standing(t.Context(), l); err != nil || len(left) > 0 {
			r.Fatalf("left: %q %v", left, err)
		}
	})
}
