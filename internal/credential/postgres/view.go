// SPDX-License-Identifier: Apache-2.0

package postgres

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"sync"
)

// View is one shape of permission: what is done to which columns of one table, and which columns say whose rows are meant.
type View struct {
	// Name of the view in the schema remit, as holders of leases write it: a-z, 0-9 and _, at most 40 characters. Required.
	Name string `yaml:"name"`
	// Table is SCHEMA.TABLE. Required.
	Table string `yaml:"table"`
	// Action is select (default), insert, update or delete.
	Action string `yaml:"action"`
	// Columns are those that are read, given or changed; for delete none.
	Columns []string `yaml:"columns"`
	// Reads are columns that can be read beside, to find rows and to get them back: for insert, update and delete.
	Reads []string `yaml:"reads"`
	// Rows are the columns whose values every lease fixes, with their types: bigint, integer, smallint, numeric, text or uuid. 1 to 4.
	// A lease sees, changes and makes only rows with its values.
	Rows map[string]string `yaml:"rows"`
	// Mask are columns, not of rows, that a rule of the organisation can have masked (obligation mask=COLUMN): they read as NULL then. A
	// mask that the view does not list is a denial. For select.
	Mask []string `yaml:"mask"`
	// LimitBy is the column by which rows are counted where a permission or a rule says limits: rows. Of its rows a lease then sees as many as the
	// limit says, those with the greatest values, and no other ones whatever it asks; without such a limit, all. Not null, and by itself a key of
	// the table. Reading one row costs as much as reading all of the lease then. For select.
	LimitBy string `yaml:"limit_by"`
	// RowSecurity holds leases by row-level-security policies at the table itself instead of by a view: holders name the table, and can name
	// nothing that the view would not show. The table must have row security enabled, which changes it for everybody else. No mask.
	RowSecurity bool `yaml:"row_security"`
}

const (
	actionSelect = "postgres.select"
	actionInsert = "postgres.insert"
	actionUpdate = "postgres.update"
	actionDelete = "postgres.delete"
	maxColumns   = 256
	maxKeys      = 4
)

// kinds of key columns: the types whose equality is of the value that a person reads, with what a column of that kind may be.
var keyTypes = map[string][]string{
	"bigint": {"bigint", "integer", "smallint"}, "integer": {"integer", "smallint"}, "smallint": {"smallint"}, "numeric": {"numeric"},
	"text": {"text", "character varying"}, "uuid": {"uuid"},
}

var (
	viewPattern  = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[a-z][a-z0-9_]{0,39}$`) })
	identPattern = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_$]{0,62}$`) })
)

// action is the view's action as permissions name it.
func (v *View) action() string { return "postgres." + v.Action }

func (v *View) writes() bool { return v.Action != "select" }

// schema and table of the table, which complete has checked.
func (v *View) schema() string { s, _, _ := strings.Cut(v.Table, "."); return s }
func (v *View) table() string  { _, t, _ := strings.Cut(v.Table, "."); return t }

// relation is what holders name: the view, or the table.
func (v *View) relation() (schema, name string) {
	if v.RowSecurity {
		return v.schema(), v.table()
	}
	return schemaName, v.Name
}

// onRelation is the same, quoted.
func (v *View) onRelation() string {
	schema, name := v.relation()
	return quoteIdent(schema) + "." + quoteIdent(name)
}

// keys are the columns of Rows in the order in which a scope row holds their values.
func (v *View) keys() []string { return slices.Sorted(maps.Keys(v.Rows)) }

// limits is the column of LimitBy, if there is one.
func (v *View) limits() []string {
	if v.LimitBy == "" {
		return nil
	}
	return []string{v.LimitBy}
}

// selected are the columns that the view has.
func (v *View) selected() []string {
	all := slices.Concat(v.Columns, v.Reads)
	if len(all) == 0 {
		all = v.keys()
	}
	out := all[:0:0]
	for _, c := range all {
		if !slices.Contains(out, c) {
			out = append(out, c)
		}
	}
	return out
}

func (v *View) complete() error {
	if v.Action == "" {
		v.Action = "select"
	}
	schema, table, ok := strings.Cut(v.Table, ".")
	//remit:guard S17 TestInjectionThroughTheFile
	if !viewPattern().MatchString(v.Name) || slices.Contains([]string{"scope", "declared", "installed", "mine"}, v.Name) {
		return invalid("write a-z, 0-9 and _; scope, declared, installed and mine are Remit's own", "view name %.60q", v.Name)
	}
	//remit:guard S17 TestInjectionThroughTheFile
	if !ok || !identPattern().MatchString(schema) || !identPattern().MatchString(table) || schema == "remit" || strings.HasPrefix(schema, "pg_") || schema == "information_schema" {
		return invalid("write SCHEMA.TABLE, a table of yours", "view %s: table %.150q", v.Name, v.Table)
	}
	if !slices.Contains([]string{"select", "insert", "update", "delete"}, v.Action) {
		return invalid("write select, insert, update or delete", "view %s: action %.40q", v.Name, v.Action)
	}
	for _, c := range slices.Concat(v.Columns, v.Reads, v.keys(), v.limits()) {
		//remit:guard S17 TestInjectionThroughTheFile
		if !identPattern().MatchString(c) {
			return invalid("write names of letters, digits, _ and $", "view %s: column %.80q", v.Name, c)
		}
	}
	return v.fits()
}

// fits checks that columns, reads and rows are what the action needs.
func (v *View) fits() error {
	//remit:guard S17 TestViewsThatHoldNothing
	if len(v.Rows) == 0 || len(v.Rows) > maxKeys {
		return invalid("name the columns that say whose rows they are, with their types", "view %s fixes %d columns of rows: 1 to %d are possible", v.Name, len(v.Rows), maxKeys)
	}
	for c, typ := range v.Rows {
		if keyTypes[typ] == nil {
			return invalid("write bigint, integer, smallint, numeric, text or uuid", "view %s: rows: type %.40q of %s", v.Name, typ, c)
		}
		//remit:guard S17 TestViewsThatHoldNothing
		if v.Action == "update" && slices.Contains(v.Columns, c) {
			return invalid("take it out of columns", "view %s would let a holder give rows away: %s is fixed and changeable", v.Name, c)
		}
		if v.Action == "insert" && !slices.Contains(v.Columns, c) {
			return invalid("add it to columns", "view %s: a row that is inserted must give %s", v.Name, c)
		}
	}
	for _, c := range v.Mask {
		//remit:guard S17 TestViewsThatHoldNothing
		if v.Action != "select" || v.RowSecurity || !slices.Contains(v.Columns, c) || v.Rows[c] != "" {
			return invalid("mask columns that are read through a view and do not say whose rows they are", "view %s cannot mask %s", v.Name, c)
		}
	}
	//remit:guard S17 TestViewsThatHoldNothing
	if v.LimitBy != "" && (v.Action != "select" || v.RowSecurity) {
		return invalid("take limit_by out, or read through a view", "view %s cannot count rows", v.Name)
	}
	switch n := len(v.Columns) + len(v.Reads); {
	case n > maxColumns:
		return invalid("leave some out", "view %s has %d columns, more than %d", v.Name, n, maxColumns)
	case v.Action == "delete" && len(v.Columns) > 0:
		return invalid("a row is deleted as a whole; reads are columns that can be read to find it", "view %s: delete has no columns", v.Name)
	case v.Action != "delete" && len(v.Columns) == 0:
		return invalid("list the columns", "view %s has no columns", v.Name)
	case v.Action == "select" && len(v.Reads) > 0:
		return invalid("write them under columns", "view %s: reads are for insert, update and delete", v.Name)
	}
	return nil
}

// read are the columns of the table that the view has to read.
func (v *View) read() []string {
	return slices.Compact(slices.Sorted(slices.Values(slices.Concat(v.selected(), v.keys(), v.limits()))))
}

// ownerGrants are the rights on the table that the view needs, all that its owner gets.
func (v *View) ownerGrants() []string {
	on := " ON TABLE " + quoteIdent(v.schema()) + "." + quoteIdent(v.table())
	out := []string{"SELECT (" + quoteIdents(v.read()) + ")" + on}
	switch v.Action {
	case "insert", "update":
		out = append(out, strings.ToUpper(v.Action)+" ("+quoteIdents(v.Columns)+")"+on)
	case "delete":
		out = append(out, "DELETE"+on)
	}
	return out
}

// groupGrants are the rights on view or table that leases get through its group.
func (v *View) groupGrants(group string) []string {
	on := " ON TABLE " + v.onRelation() + " TO " + quoteIdent(group)
	var out []string
	if v.RowSecurity {
		out = append(out, "USAGE ON SCHEMA "+quoteIdent(v.schema())+" TO "+quoteIdent(group), "SELECT ON remit.mine TO "+quoteIdent(group))
	}
	if v.Action == "select" && !v.RowSecurity {
		out = append(out, "SELECT"+on) // the view has no other columns, and a right on the whole is found faster at every statement
	} else if v.Action == "select" {
		out = append(out, "SELECT ("+quoteIdents(v.Columns)+")"+on)
	} else if len(v.Reads) > 0 {
		out = append(out, "SELECT ("+quoteIdents(v.Reads)+")"+on)
	}
	switch v.Action {
	case "insert", "update":
		out = append(out, strings.ToUpper(v.Action)+" ("+quoteIdents(v.Columns)+")"+on)
	case "delete":
		out = append(out, "DELETE"+on)
	}
	return out
}

// keyColumn is the column of remit.scope with the values of the key that is the n-th, from 1: one for each type of values.
func keyColumn(n int, typ string) string { return fmt.Sprintf("%s%d", scopeType(typ), n) }

// scopeType is the type in which values of a key are kept; whole numbers of all sizes compare with each other.
func scopeType(typ string) string {
	if typ == "integer" || typ == "smallint" {
		return "bigint"
	}
	return typ
}

// keyColumns are those of the view's keys, in their order.
func (v *View) keyColumns() []string {
	var out []string
	for i, c := range v.keys() {
		out = append(out, keyColumn(i+1, v.Rows[c]))
	}
	return out
}

// policy says of the table's rows which are the lease's, by the row of scope that its holder may see.
func (v *View) policy() string {
	of := " FROM remit.mine s WHERE remit.same(s.at_view, " + quoteLiteral(v.Name) + "))"
	out := "clock_timestamp() < (SELECT s.expires" + of
	for i, c := range v.keys() {
		out += fmt.Sprintf(" AND %s = ANY ((SELECT s.%s%s::%s[])", quoteIdent(c), quoteIdent(keyColumn(i+1, v.Rows[c])), of, scopeType(v.Rows[c]))
	}
	return out
}

// conditions say whose rows they are. The sub-selects stand for themselves, so that they are evaluated once for each statement.
func (v *View) conditions() []string {
	var out []string
	for i, c := range v.keys() {
		out = append(out, fmt.Sprintf("t.%s = ANY ((SELECT s.%s FROM remit.scope s WHERE s.role = session_user AND remit.same(s.at_view, %s))::%s[])",
			quoteIdent(c), quoteIdent(keyColumn(i+1, v.Rows[c])), quoteLiteral(v.Name), scopeType(v.Rows[c])))
	}
	return out
}

// shown are the columns of a view that is only read: one that can be masked is NULL where the lease says so.
func (v *View) shown() string {
	return joined(v.selected(), func(c string) string {
		if !slices.Contains(v.Mask, c) {
			return "t." + quoteIdent(c)
		}
		return fmt.Sprintf("CASE WHEN %s = ANY (s.masked) THEN NULL ELSE t.%s END AS %s", quoteLiteral(c), quoteIdent(c), quoteIdent(c))
	})
}

// joins say the same of the lease's row s, for a view that is only read.
func (v *View) joins() []string {
	var out []string
	for i, c := range v.keys() {
		out = append(out, fmt.Sprintf("t.%s = ANY (s.%s)", quoteIdent(c), quoteIdent(keyColumn(i+1, v.Rows[c]))))
	}
	return out
}
