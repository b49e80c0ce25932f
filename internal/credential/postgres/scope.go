// SPDX-License-Identifier: Apache-2.0

package postgres

import (
	"encoding/hex"
	"fmt"
	"maps"
	"math/big"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"remit"
)

// scope is a lease's scope, parsed: whatever is in it, the database holds.
type scope struct {
	view *View
	keys [][]string // for each of the view's keys, the values
	// masked are columns of the view that read as NULL.
	masked []string
	// most rows that are seen; 0: all.
	most int64
}

const (
	maxValues   = 1000 // of one key
	maxTextKey  = 1024 // bytes of one value
	maxNumerics = 64   // digits
)

// parseScope finds the view that is exactly what the lease says: the same action, table, columns and reads, and rows by the same keys.
// An argument that is not understood would be one that is not enforced.
func (c *Config) parseScope(action string, args remit.Args) (scope, error) {
	for _, k := range slices.Sorted(maps.Keys(args)) {
		//remit:guard S17 TestPlanRefusesWhatTheDatabaseCannotHold
		if !slices.Contains([]string{"table", "columns", "reads", "rows"}, k) && !args[k].IsNull() {
			return scope{}, invalid("name only table, columns, reads and rows", "argument %.60q of %s cannot be held at the database", k, action)
		}
	}
	if args["table"].Kind() != remit.String {
		return scope{}, invalid("name one table as SCHEMA.TABLE", "table is missing")
	}
	columns, err := nameSet("columns", args["columns"])
	if err != nil {
		return scope{}, err
	}
	reads, err := nameSet("reads", args["reads"])
	if err != nil {
		return scope{}, err
	}
	rows := args["rows"]
	if rows.Kind() != remit.Object {
		return scope{}, invalid("write rows: {COLUMN: value}", "rows does not say whose rows they are")
	}
	for i := range c.Views {
		v := &c.Views[i]
		if v.action() == action && v.Table == args["table"].Text() && same(v.Columns, columns) && same(v.Reads, reads) && same(v.keys(), slices.Sorted(maps.Keys(rows.Fields()))) {
			return v.scope(rows)
		}
	}
	return scope{}, invalid("the target declares: "+c.declares(action), "no view is %s of table %.100q with columns [%.300s], reads [%.300s] and rows by [%.200s]",
		action, args["table"].Text(), strings.Join(columns, ", "), strings.Join(reads, ", "), strings.Join(slices.Sorted(maps.Keys(rows.Fields())), ", "))
}

func (v *View) scope(rows remit.Value) (scope, error) {
	s := scope{view: v}
	for _, key := range v.keys() {
		given := rows.Field(key)
		values := given.Elements()
		if given.Kind() != remit.List {
			values = []remit.Value{given}
		}
		//remit:guard S17 TestPlanRefusesWhatTheDatabaseCannotHold
		if len(values) == 0 || len(values) > maxValues {
			return s, invalid("name the values", "rows: %d values of %s: 1 to %d are possible", len(values), key, maxValues)
		}
		texts := make([]string, len(values))
		for i, value := range values {
			text, ok := typed(v.Rows[key], value)
			//remit:guard S17 TestPlanRefusesWhatTheDatabaseCannotHold
			if !ok {
				return s, invalid("write values of type "+v.Rows[key], "rows: %s is of type %s, which %.80s is not", key, v.Rows[key], value.String())
			}
			texts[i] = text
		}
		s.keys = append(s.keys, texts)
	}
	return s, nil
}

// typed returns the value as the database reads it, if it is of the type.
func typed(typ string, v remit.Value) (string, bool) {
	text := v.Text()
	switch typ {
	case "bigint", "integer", "smallint":
		n, ok := new(big.Int).SetString(text, 10)
		bits := map[string]int{"bigint": 64, "integer": 32, "smallint": 16}[typ]
		return text, ok && v.Kind() == remit.Number && inRange(n, bits)
	case "numeric":
		return text, v.Kind() == remit.Number && len(text) <= maxNumerics
	case "uuid":
		plain, err := hex.DecodeString(strings.ReplaceAll(text, "-", ""))
		return text, err == nil && v.Kind() == remit.String && len(plain) == 16 && len(text) == 36
	case "text":
		return text, v.Kind() == remit.String && len(text) <= maxTextKey && utf8.ValidString(text) && !strings.ContainsRune(text, 0)
	}
	return "", false
}

func inRange(n *big.Int, bits int) bool {
	limit := new(big.Int).Lsh(big.NewInt(1), uint(bits-1)) //nolint:gosec // 16, 32 or 64
	return n.Cmp(limit) < 0 && n.Cmp(new(big.Int).Neg(limit)) >= 0
}

// nameSet reads a list of names; absent is none.
func nameSet(arg string, v remit.Value) ([]string, error) {
	if v.IsNull() {
		return nil, nil
	}
	if v.Kind() == remit.String {
		v = remit.ListValue(v)
	}
	if v.Kind() != remit.List || len(v.Elements()) == 0 || len(v.Elements()) > maxColumns {
		return nil, invalid("write a list of names", "%s is not a list of 1 to %d names", arg, maxColumns)
	}
	var out []string
	for _, e := range v.Elements() {
		if e.Kind() != remit.String {
			return nil, invalid("write a list of names", "%s holds a %s", arg, e.Kind())
		}
		out = append(out, e.Text())
	}
	return out, nil
}

// same compares two sets.
func same(a, b []string) bool {
	set := func(s []string) []string { return slices.Compact(slices.Sorted(slices.Values(s))) }
	return slices.Equal(set(a), set(b))
}

// declares lists the views of an action, for the hint of a refusal. It is for operators: agents see a code.
func (c *Config) declares(action string) string {
	var out []string
	for i := range c.Views {
		if v := &c.Views[i]; v.action() == action {
			out = append(out, v.Table+" ["+strings.Join(v.Columns, ", ")+"] by ["+strings.Join(v.keys(), ", ")+"]")
		}
	}
	if len(out) == 0 {
		return "nothing for " + action
	}
	return remit.Clip(strings.Join(out, "; "), 600)
}

// Plan implements credential.Planner. It refuses what the database cannot hold.
func (d *Driver) Plan(l remit.Lease) (bounds, notBounded []string, worst time.Duration, err error) {
	s, err := d.plan(l)
	if err != nil {
		return nil, nil, 0, err
	}
	bounds, notBounded = s.bounds(&d.cfg)
	return bounds, notBounded, clockSkew, nil
}

func (d *Driver) plan(l remit.Lease) (scope, error) {
	if _, err := remit.ParseLeaseID(string(l.ID)); err != nil {
		return scope{}, err
	}
	s, err := d.cfg.parseScope(l.Action, l.Scope)
	if err != nil {
		return s, err
	}
	//remit:guard S12 TestPlanRefusesWhatTheDatabaseCannotHold
	if ttl := l.Expires.Sub(l.Issued); ttl <= 0 || ttl > maxTTL {
		return s, invalid("shorten the permission's ttl", "a lease of %s is not possible: at most %s", ttl, maxTTL)
	}
	for _, c := range l.Masks {
		if !slices.Contains(s.view.selected(), c) {
			continue // it is not shown at all
		}
		//remit:guard S17 TestMaskedColumns
		if !slices.Contains(s.view.Mask, c) {
			return s, invalid("list it under mask, and run the set-up again", "view %s cannot mask %.80q, as a rule demands", s.view.Name, c)
		}
		s.masked = append(s.masked, c)
	}
	//remit:guard S17 TestRowLimit
	if l.Rows > 0 && s.view.LimitBy == "" {
		return s, invalid("say limit_by, and run the set-up again", "view %s cannot hold a lease to a number of rows, as limits: rows demands", s.view.Name)
	}
	s.most = l.Rows
	return s, nil
}

// bounds says in words what the database holds the lease to, and what it does not.
func (s *scope) bounds(c *Config) (bounds, notBounded []string) {
	v := s.view
	by := "view remit." + v.Name
	if v.RowSecurity {
		by = "its row security"
	}
	bounds = []string{"database " + c.Database, "table " + v.Table + ", by " + by}
	for i, k := range v.keys() {
		bounds = append(bounds, "rows where "+k+" is "+remit.Clip(strings.Join(s.keys[i], " or "), 200))
	}
	columns := strings.Join(v.Columns, ", ")
	switch v.Action {
	case "select":
		bounds = append(bounds, "reading only, columns "+columns)
		if s.most > 0 {
			bounds = append(bounds, fmt.Sprintf("of these rows only %d, those with the greatest %s", s.most, v.LimitBy))
		}
		if len(s.masked) > 0 {
			bounds = append(bounds, "masked, read as NULL: "+strings.Join(s.masked, ", "))
		}
	case "insert":
		bounds = append(bounds, "inserting only, columns "+columns)
	case "update":
		bounds = append(bounds, "changing only, columns "+columns)
	case "delete":
		bounds = append(bounds, "deleting only")
	}
	if len(v.Reads) > 0 {
		bounds = append(bounds, "reading of these rows beside: "+strings.Join(v.Reads, ", "))
	}
	bounds = append(bounds, "until the end, by the database's clock at every row, also in open sessions, transactions and cursors",
		"no objects of its own: no tables, temporary tables, functions, large objects")
	notBounded = []string{
		"names of tables, columns, roles and databases, and who is connected: the catalogs are everybody's",
		"whether a row of somebody else exists, through constraint errors, query plans, row counts of EXPLAIN ANALYZE, and time",
		"rows that a statement had read before the end", "the server's time and memory within the timeouts, which a holder can lift in its own session",
		"advisory locks and NOTIFY: signals between sessions",
	}
	if v.Action == "delete" {
		notBounded = append(notBounded, "locks on the whole table, until their transaction ends (LOCK TABLE)")
	}
	if v.RowSecurity {
		notBounded = append(notBounded, "the names and values of its own scope; row security that an administrator disables at the table while the lease lives")
	}
	if v.writes() {
		notBounded = append(notBounded, "what triggers, rules, defaults and foreign keys of the table do", "how many rows within the scope",
			"if Remit is dead: when a transaction that wrote before the end commits")
	}
	return bounds, notBounded
}
