// SPDX-License-Identifier: Apache-2.0

package postgres

import (
	_ "embed"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"text/template"

	"remit"
)

//go:embed setup.sql
var setupText string

// functionsQuery is what the functions in the schema remit are: whatever changes one of them changes its result.
const functionsQuery = `SELECT encode(sha256(convert_to(string_agg(concat_ws('|', p.oid::regprocedure, pg_get_functiondef(p.oid), pg_get_userbyid(p.proowner), p.proacl), E'\n' ORDER BY p.oid::regprocedure::text), 'UTF8')), 'hex') FROM pg_proc p WHERE p.pronamespace = 'remit'::regnamespace`

// setup is what the template of the set-up sees.
type setup struct {
	Database, Installation        string
	Prefix                        string
	Broker, Definer, Owner, Lease string
	Roles, Groups                 []string
	GroupPattern, LeasePattern    string
	PolicyPattern                 string
	Connections                   int
	StatementTimeout, IdleTimeout string
	Views                         []setupView
	Logged                        bool
	KeyColumns                    []scopeColumn // that the views need
	NoColumns                     []string      // the other ones that there can be
	Replicated                    bool          // agents may read elsewhere: a lease's commit waits as the server's settings say
	Digest                        string
	FunctionsQuery                string
}

// scopeColumn is a column of remit.scope: values of the key that is the Key-th.
type scopeColumn struct {
	Name, Type string
	Key        int
}

type setupView struct {
	Name, Group, Schema, Table           string
	Selected, KeyColumns                 []string
	OwnerGrants, GroupGrants, Conditions []string
	Shown                                string
	Joins                                []string
	LimitBy                              string
	Inner                                []string // columns of the table that a view which counts rows needs
	Key                                  string   // the first
	Writes, RowSecurity                  bool
	Policy, Permit, Restrict             string // condition, and names of the two policies
	Relation, Base                       string // what holders name, and the table
}

var setupTemplate = sync.OnceValue(func() *template.Template {
	return template.Must(template.New("setup").Funcs(template.FuncMap{
		"ident": quoteIdent, "idents": quoteIdents, "literal": quoteLiteral, "literals": quoteLiterals,
	}).Parse(setupText))
})

// Setup returns the SQL that an administrator runs in the database: roles, schema, functions and views.
func (d *Driver) Setup() string { return d.setup }

// Names of roles. A lease's own is the prefix and the 26 characters of its id.
func (c *Config) prefix() string           { return "remit_" + c.Installation + "_" }
func (c *Config) group(view string) string { return c.prefix() + "v_" + view }

// makeSetup fills the template; its digest is of everything in it, so that a set-up that was not run again after a change shows.
func (c *Config) makeSetup(database string) (text, digest string, err error) {
	p := c.prefix()
	s := setup{
		Database: database, Installation: c.Installation, Prefix: p, Broker: p + "broker", Definer: p + "definer", Owner: p + "owner", Lease: p + "lease",
		GroupPattern: "^" + p + "v_[a-z0-9_]+$", LeasePattern: "^" + p + "[a-z2-7]{26}$", PolicyPattern: "^" + p + "[pr]_[a-z0-9_]+$", Connections: c.Connections,
		StatementTimeout: strconv.FormatInt(c.StatementTimeout.Milliseconds(), 10), IdleTimeout: strconv.FormatInt(c.StatementTimeout.Milliseconds(), 10),
		FunctionsQuery: functionsQuery, Logged: c.Log != "", Replicated: c.Agents != "",
	}
	var needed []string
	for i := range c.Views {
		needed = append(needed, c.Views[i].keyColumns()...)
	}
	for n := range maxKeys {
		for _, typ := range []string{"bigint", "numeric", "text", "uuid"} {
			if name := keyColumn(n+1, typ); slices.Contains(needed, name) {
				s.KeyColumns = append(s.KeyColumns, scopeColumn{name, typ, n + 1})
			} else {
				s.NoColumns = append(s.NoColumns, name)
			}
		}
	}
	s.Roles = []string{s.Broker, s.Definer, s.Owner, s.Lease}
	for i := range c.Views {
		v := &c.Views[i]
		g := c.group(v.Name)
		s.Roles, s.Groups = append(s.Roles, g), append(s.Groups, g)
		s.Views = append(s.Views, setupView{Name: v.Name, Group: g, Schema: v.schema(), Table: v.table(), Selected: v.selected(), KeyColumns: v.keyColumns(),
			OwnerGrants: v.ownerGrants(), GroupGrants: v.groupGrants(g), Conditions: v.conditions(), Shown: v.shown(), Joins: v.joins(), LimitBy: v.LimitBy, Inner: v.read(), Key: v.keys()[0], Writes: v.writes(),
			RowSecurity: v.RowSecurity, Policy: v.policy(), Permit: p + "p_" + v.Name, Restrict: p + "r_" + v.Name, Relation: v.onRelation(),
			Base: quoteIdent(v.schema()) + "." + quoteIdent(v.table())})
	}
	fill := func() string {
		var b strings.Builder
		if err = setupTemplate().Execute(&b, s); err != nil {
			err = fmt.Errorf("write the set-up: %w", err)
		}
		return b.String()
	}
	s.Digest = string(remit.DigestOf([]byte(fill())))
	return fill(), s.Digest, err
}

// quoteIdent quotes a name. NUL, which no statement can hold, cannot come here: all names have passed a pattern.
func quoteIdent(s string) string { return `"` + strings.ReplaceAll(s, `"`, `""`) + `"` }

// quoteLiteral quotes a text; E” makes backslashes mean the same whatever standard_conforming_strings is.
func quoteLiteral(s string) string {
	s = strings.ReplaceAll(s, `'`, `''`)
	if strings.Contains(s, `\`) {
		return ` E'` + strings.ReplaceAll(s, `\`, `\\`) + `'`
	}
	return `'` + s + `'`
}

func quoteIdents(names []string) string   { return joined(names, quoteIdent) }
func quoteLiterals(texts []string) string { return joined(texts, quoteLiteral) }

func joined(words []string, quote func(string) string) string {
	out := make([]string, len(words))
	for i, w := range words {
		out[i] = quote(w)
	}
	return strings.Join(out, ", ")
}
