// SPDX-License-Identifier: Apache-2.0

package postgres

import (
	"fmt"
	"slices"
	"strings"
)

// attempts are all acts of a verification: what is granted, then what lies beyond each bound.
func (s *scope) attempts(d *Driver) []attempt {
	out := append([]attempt{s.granted()}, s.othersRows()...)
	out = append(out, s.otherVerbs()...)
	out = append(out, s.base()...)
	return append(append(out, s.reviews(d)...), powers(d)...)
}

// onView is the name of the lease's view, or of the table that policies hold.
func (s *scope) onView() string { return s.view.onRelation() }

// nothing inserts no row: the right to insert is asked for, and nothing is evaluated.
func insertNothing(into string, columns []string) string {
	nulls := strings.TrimSuffix(strings.Repeat("NULL, ", len(columns)), ", ")
	return fmt.Sprintf("INSERT INTO %s (%s) SELECT %s WHERE false", into, quoteIdents(columns), nulls)
}

func (s *scope) granted() attempt {
	v := s.view
	schema, name := v.relation()
	a := attempt{act: v.Action + " through " + schema + "." + name, granted: true}
	switch v.Action {
	case "select":
		a.sql = fmt.Sprintf("SELECT %s FROM %s LIMIT 1", quoteIdents(v.Columns), s.onView())
	case "insert":
		a.sql = insertNothing(s.onView(), v.Columns)
	case "update":
		a.sql = fmt.Sprintf("UPDATE %s SET %s = NULL WHERE false", s.onView(), quoteIdent(v.Columns[0]))
	case "delete":
		a.sql = fmt.Sprintf("DELETE FROM %s WHERE false", s.onView())
	}
	return a
}

// readable are the columns that the holder may name in a condition.
func (v *View) readable() []string {
	if v.Action == "select" {
		return v.Columns
	}
	return v.Reads
}

// othersRows are rows with other values of the keys: to read, to change, to delete, to make.
func (s *scope) othersRows() []attempt {
	v := s.view
	var out []attempt
	for i, key := range v.keys() {
		if !slices.Contains(v.readable(), key) {
			continue
		}
		others := fmt.Sprintf("%s <> ALL ($1::text[]::%s[])", quoteIdent(key), v.Rows[key])
		add := func(a attempt) { a.args = []any{s.keys[i]}; out = append(out, a) }
		add(attempt{act: "read rows of another " + key, counts: true, sql: fmt.Sprintf("SELECT count(*) FROM %s WHERE %s", s.onView(), others)})
		add(attempt{act: "see rows of another " + key + " by an expression that fails on them", leaks: true, sql: fmt.Sprintf(
			"SELECT count(*) FROM %s WHERE 1 / (CASE WHEN %s THEN 0 ELSE 1 END) = 1", s.onView(), others)})
		switch v.Action {
		case "update":
			add(attempt{act: "change rows of another " + key, affects: true, sql: fmt.Sprintf("UPDATE %s SET %s = NULL WHERE %s", s.onView(), quoteIdent(v.Columns[0]), others)})
		case "delete":
			add(attempt{act: "delete rows of another " + key, affects: true, sql: fmt.Sprintf("DELETE FROM %s WHERE %s", s.onView(), others)})
		}
	}
	if s.most > 0 {
		out = append(out, attempt{act: fmt.Sprintf("read more than %d rows", s.most), counts: true, sql: fmt.Sprintf("SELECT count(*) - %d FROM %s", s.most, s.onView())})
	}
	if v.Action == "insert" {
		out = append(out, attempt{act: "insert a row of another " + v.keys()[0], insertOther: true})
	}
	if v.Action == "update" {
		key := quoteIdent(v.keys()[0])
		out = append(out, attempt{act: "give rows to another " + v.keys()[0], sql: fmt.Sprintf("UPDATE %s.%s SET %s = NULL WHERE false", quoteIdent(v.schema()), quoteIdent(v.table()), key)})
		if slices.Contains(v.selected(), v.keys()[0]) {
			out = append(out, attempt{act: "give rows to another " + v.keys()[0] + " through the view", sql: fmt.Sprintf("UPDATE %s SET %s = NULL WHERE false", s.onView(), key)})
		}
	}
	return out
}

// otherVerbs are what the lease may not do through its own view.
func (s *scope) otherVerbs() []attempt {
	v := s.view
	column := []string{v.selected()[0]}
	all := map[string]string{
		"insert": insertNothing(s.onView(), column),
		"update": fmt.Sprintf("UPDATE %s SET %s = NULL WHERE false", s.onView(), quoteIdent(column[0])),
		"delete": fmt.Sprintf("DELETE FROM %s WHERE false", s.onView()),
	}
	if len(v.readable()) == 0 {
		all["select"] = fmt.Sprintf("SELECT %s FROM %s LIMIT 1", quoteIdent(column[0]), s.onView())
	}
	var out []attempt
	for _, verb := range []string{"select", "insert", "update", "delete"} {
		if all[verb] != "" && verb != v.Action {
			out = append(out, attempt{act: verb + " through the view", sql: all[verb]})
		}
	}
	return out
}

// base is the table itself, past the view.
func (s *scope) base() []attempt {
	t := quoteIdent(s.view.schema()) + "." + quoteIdent(s.view.table())
	key := quoteIdent(s.view.keys()[0])
	table := []attempt{
		{act: "truncate the table", sql: "TRUNCATE " + t},
		{act: "change the table's definition", sql: "ALTER TABLE " + t + " DISABLE ROW LEVEL SECURITY"},
		{act: "read its statistics", sql: "SELECT 1 FROM pg_catalog.pg_statistic LIMIT 1"},
	}
	if s.view.RowSecurity {
		return append(table, attempt{act: "read past the policies", before: []string{"SET LOCAL row_security = off"}, sql: "SELECT count(*) FROM " + t},
			attempt{act: "change the policies", sql: "CREATE POLICY remit_probe_absent ON " + t + " USING (true)"},
			attempt{act: "change the scope that the policies read", sql: "UPDATE remit.mine SET expires = 'infinity' WHERE false"})
	}
	return append(table, []attempt{
		{act: "read the table itself", sql: "SELECT count(*) FROM " + t},
		{act: "copy the table out", sql: "COPY (SELECT count(*) FROM " + t + ") TO STDOUT"},
		{act: "insert into the table itself", sql: insertNothing(t, s.view.keys())},
		{act: "change the table itself", sql: "UPDATE " + t + " SET " + key + " = NULL WHERE false"},
		{act: "delete from the table itself", sql: "DELETE FROM " + t + " WHERE false"},
		{act: "lock the table", sql: "LOCK TABLE " + t + " IN ACCESS EXCLUSIVE MODE NOWAIT"},
	}...)
}

// reviews count, by the catalogs and as the holder, everything that the holder may touch beside its view.
func (s *scope) reviews(d *Driver) []attempt {
	v := s.view
	schema, name := v.relation()
	const relations = `FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
		WHERE n.nspname NOT IN ('pg_catalog', 'information_schema') AND c.relkind IN ('r', 'p', 'v', 'm', 'f') AND pg_catalog.has_schema_privilege(n.oid, 'USAGE')`
	columns := func(verb string) string {
		return `SELECT count(*) FROM (SELECT c.oid, c.relname, n.nspname ` + relations + `) r JOIN pg_catalog.pg_attribute a ON a.attrelid = r.oid
			WHERE a.attnum > 0 AND NOT a.attisdropped AND pg_catalog.has_column_privilege(r.oid, a.attnum, '` + verb + `')
			AND NOT (r.nspname = $3 AND r.relname = $1 AND a.attname = ANY ($2::text[]))
			AND NOT ($4 AND r.nspname = '` + schemaName + `' AND r.relname = 'mine' AND '` + verb + `' = 'SELECT')`
	}
	granted := map[string][]string{"SELECT": v.readable(), "INSERT": nil, "UPDATE": nil}
	if v.Action == "insert" || v.Action == "update" {
		granted[strings.ToUpper(v.Action)] = v.Columns
	}
	var out []attempt
	for _, verb := range []string{"SELECT", "INSERT", "UPDATE"} {
		out = append(out, attempt{act: "the right " + verb + " on any other column of the database", counts: true, sql: columns(verb),
			args: []any{name, append([]string{}, granted[verb]...), schema, v.RowSecurity}})
	}
	out = append(out, attempt{act: "rights to delete from, truncate or trigger anything else", counts: true, args: []any{name, v.Action == "delete", schema},
		sql: `SELECT count(*) ` + relations + ` AND (pg_catalog.has_table_privilege(c.oid, 'TRUNCATE, TRIGGER, REFERENCES')
			OR pg_catalog.has_table_privilege(c.oid, 'DELETE') AND NOT ($2 AND n.nspname = $3 AND c.relname = $1))`},
		attempt{act: "membership in any other role", counts: true, args: []any{d.cfg.group(v.Name), d.cfg.prefix() + "lease"},
			sql: `SELECT count(*) FROM pg_catalog.pg_roles WHERE rolname <> session_user AND rolname NOT IN ($1, $2) AND pg_catalog.pg_has_role(oid, 'MEMBER')`},
		attempt{act: "attributes of its role", counts: true, sql: `SELECT count(*) FROM pg_catalog.pg_roles WHERE rolname = session_user
			AND (rolsuper OR rolcreaterole OR rolcreatedb OR rolreplication OR rolbypassrls)`},
		attempt{act: "functions that act with their owner's rights", counts: true, sql: `SELECT count(*) FROM pg_catalog.pg_proc p
			WHERE p.prosecdef AND pg_catalog.has_function_privilege(p.oid, 'EXECUTE') AND pg_catalog.has_schema_privilege(p.pronamespace, 'USAGE')`},
		attempt{act: "what other sessions are running", counts: true, sql: `SELECT count(*) FROM pg_catalog.pg_stat_activity
			WHERE usename <> session_user AND query NOT IN ('', '<insufficient privilege>')`},
		attempt{act: "transactions that outlive the session", counts: true, sql: `SELECT pg_catalog.current_setting('max_prepared_transactions')::bigint`})
	return out
}

// powers are ways to more authority, to the server's files, and to other databases.
func powers(d *Driver) []attempt {
	p := d.cfg.prefix()
	self := func(act, what string) attempt { return attempt{act: act, selfAlter: what} }
	out := []attempt{
		{act: "read the scopes of leases", sql: "SELECT 1 FROM remit.scope LIMIT 1"},
		{act: "write its own scope", sql: "UPDATE remit.scope SET expires = 'infinity' WHERE false"},
		{act: "make a lease", sql: "SELECT remit.lease_begin('[{}]', '')"},
		{act: "list leases", sql: "SELECT remit.lease_list()"},
		{act: "become the views' owner", sql: "SET ROLE " + quoteIdent(p+"owner")},
		{act: "become the definer", sql: "SET ROLE " + quoteIdent(p+"definer")},
		{act: "become the broker by SET SESSION AUTHORIZATION", sql: "SET SESSION AUTHORIZATION " + quoteIdent(p+"broker")},
		{act: "become a superuser by SET ROLE", sql: "DO $$ BEGIN EXECUTE (SELECT format('SET ROLE %I', rolname) FROM pg_catalog.pg_roles WHERE rolsuper LIMIT 1); END $$"},
		{act: "grant itself the owner", sql: "GRANT " + quoteIdent(p+"owner") + " TO session_user"},
		{act: "grant itself pg_read_all_data", sql: "GRANT pg_read_all_data TO session_user"},
		self("make itself a superuser", "SUPERUSER"), self("live longer", "VALID UNTIL 'infinity'"), self("have more sessions", "CONNECTION LIMIT -1"),
		{act: "create a role", sql: "CREATE ROLE remit_probe_absent"},
		{act: "create a schema", sql: "CREATE SCHEMA remit_probe_absent"},
		{act: "create a table beside the views", sql: "CREATE TABLE remit.probe_absent (x int)"},
		{act: "create a table in schema public", sql: "CREATE TABLE public.remit_probe_absent (x int)"},
		{act: "create a temporary table", sql: "CREATE TEMP TABLE probe_absent (x int)"},
		{act: "create a temporary view that a search path would find first", before: []string{"SET LOCAL search_path = pg_temp, remit"},
			sql: "CREATE TEMP VIEW " + quoteIdent(d.cfg.Views[0].Name) + " AS SELECT 1"},
		{act: "create a function that shows what it is given", sql: "CREATE FUNCTION pg_temp.leak(text) RETURNS boolean LANGUAGE plpgsql COST 0.0001 AS 'BEGIN RAISE NOTICE ''%'', $1; RETURN true; END'"},
		{act: "create a function in schema remit", sql: "CREATE FUNCTION remit.leak() RETURNS int LANGUAGE sql AS 'SELECT 1'"},
		{act: "replace a view", sql: "CREATE OR REPLACE VIEW remit." + quoteIdent(d.cfg.Views[0].Name) + " AS SELECT 1"},
		{act: "create an extension", sql: "CREATE EXTENSION dblink"},
		{act: "connect from the database to itself (dblink)", sql: "SELECT dblink_connect('dbname=' || current_database())"},
		{act: "make a large object", sql: "SELECT lo_create(0)"},
		{act: "read a file into a large object", sql: "SELECT lo_import('/etc/hostname')"},
		{act: "read a file of the server", sql: "SELECT pg_read_file('PG_VERSION')"},
		{act: "copy from a file of the server", before: nil, sql: "DO $$ BEGIN EXECUTE 'COPY remit.scope FROM ''/dev/null'''; END $$"},
		{act: "run a program at the server", sql: "COPY (SELECT 1) TO PROGRAM 'true'"},
		{act: "write a file at the server", sql: "COPY (SELECT 1) TO '/dev/null'"},
		{act: "read password hashes", sql: "SELECT 1 FROM pg_catalog.pg_authid LIMIT 1"},
		{act: "skip triggers (session_replication_role)", sql: "SET LOCAL session_replication_role = replica"},
		{act: "change the server's settings", sql: "SELECT 1 FROM pg_catalog.pg_file_settings LIMIT 1"},
		{act: "reload the server's settings", counts: true, sql: "SELECT count(*) FROM pg_catalog.pg_proc WHERE proname = 'pg_reload_conf' AND pg_catalog.has_function_privilege(oid, 'EXECUTE')"},
	}
	for _, db := range []string{"postgres", "template1"} {
		if db != d.cfg.Database {
			out = append(out, attempt{act: "log in to database " + db, database: db})
		}
	}
	return out
}
