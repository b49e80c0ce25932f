// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/rogpeppe/go-internal/testscript"

	"remit/internal/testpostgres"
)

const dbPassword = "the-brokers-own-password-of-the-laboratory"

// startDatabase runs a real PostgreSQL; where it is not installed, databases are not attacked.
func (l *lab) startDatabase(ctx context.Context, _ string) error {
	db, err := testpostgres.Start(ctx, testpostgres.Config{})
	if errors.Is(err, testpostgres.ErrMissing) {
		return nil
	}
	if err != nil {
		return err
	}
	l.database = db
	return os.WriteFile(l.path("db.password"), []byte(dbPassword), 0o600)
}

// prepareDatabase does what docs/postgres.md tells an administrator to do.
func (l *lab) prepareDatabase(ctx context.Context, _ string) error {
	if l.database == nil {
		return nil
	}
	setup, err := l.run(ctx, "doctor", "accounts-db", "--setup")
	if err != nil {
		return fmt.Errorf("%w: %s", err, setup)
	}
	for _, s := range []struct{ database, sql string }{
		{"postgres", "CREATE DATABASE accounts"}, {"postgres", "CREATE DATABASE elsewhere"},
		{"accounts", `CREATE TABLE public.accounts (id bigint PRIMARY KEY, customer bigint NOT NULL, amount numeric NOT NULL, iban text NOT NULL);
			CREATE TABLE public.salaries (who text, amount numeric); INSERT INTO public.salaries VALUES ('boss', 1);
			INSERT INTO public.accounts SELECT i, 550 + i % 10, i, 'DE' || i FROM generate_series(1, 200) i`},
		{"accounts", string(setup)}, {"accounts", "ALTER ROLE remit_lab_broker PASSWORD '" + dbPassword + "'"},
	} {
		c, err := pgx.Connect(ctx, l.database.Admin(s.database))
		if err != nil {
			return err
		}
		_, err = c.Exec(ctx, s.sql, pgx.QueryExecModeSimpleProtocol)
		if err := errors.Join(err, c.Close(ctx)); err != nil {
			return fmt.Errorf("%.60s: %w", s.sql, err)
		}
	}
	if out, err := l.run(ctx, "doctor", "accounts-db"); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

// databaseFile declares the database, and who may read and change what there.
func (l *lab) databaseFile() string {
	if l.database == nil {
		return ""
	}
	return strings.NewReplacer("@PORT@", fmt.Sprint(l.database.Port), "@DIR@", l.dir).Replace(`
---
kind: Target
name: accounts-db
type: postgres
server: "127.0.0.1:@PORT@"
database: accounts
installation: lab
password: {file: @DIR@/db.password}
views:
- {name: accounts, table: public.accounts, columns: [id, customer, amount], rows: {customer: bigint}}
- {name: set_amount, table: public.accounts, action: update, columns: [amount], reads: [id], rows: {customer: bigint}}
---
kind: Workflow
name: accounts
parameters: {customer: {type: integer}}
start: {by: [operator/ci], expires: 1h}
stages:
- name: read
  end: {by: [operator/ci]}
  may:
  - name: rows
    who: agent/deploy
    action: postgres.select
    target: accounts-db
    where: {table: public.accounts, columns: [id, customer, amount], rows: {customer: $customer}}
    ttl: 5m
  - name: amounts
    who: agent/deploy
    action: postgres.update
    target: accounts-db
    where: {table: public.accounts, columns: [amount], reads: [id], rows: {customer: $customer}}
    ttl: 5m
- name: later
  may:
  - {name: nothing, who: agent/other, action: kubernetes.get, target: desk-target}
---
kind: Workflow
name: lend
parameters: {customer: {type: integer}}
start: {by: [operator/ci], expires: 1h}
stages:
- name: read
  may:
  - {name: lend, who: agent/deploy, action: mcp.call, target: issue-refund/ask, where: {customer: $customer, path: {any: true}, details: {any: true}, later: {any: true}}}
  - {name: lately, who: agent/deploy, action: mcp.call, target: issue-refund/lately}
  - name: tool-rows
    who: tool/issue-refund
    under: lend
    action: postgres.select
    target: accounts-db
    where: {table: public.accounts, columns: [id, customer, amount], rows: {customer: $call.customer}}
    ttl: 5m
`)
}

// dbLogin is a login for the laboratory's database, and the sessions that were opened with it.
type dbLogin struct {
	user, password string
	sessions       map[string]*pgx.Conn
}

// lent NAME: NAME holds the login of the last answer.
func (a *attack) lent(_ *testscript.TestScript, args []string) error {
	var v struct {
		Password   string            `json:"access_token"`
		Credential map[string]string `json:"credential"`
	}
	if err := json.Unmarshal([]byte(a.last.text), &v); err != nil || v.Credential["user"] == "" {
		return fmt.Errorf("the last answer is no login: %s", a.last.text)
	}
	return a.addLogin(args[0], v.Credential["user"], v.Password)
}

// steal NAME USER PASSWORD: NAME holds a login that was found elsewhere.
func (a *attack) steal(_ *testscript.TestScript, args []string) error {
	return a.addLogin(args[0], args[1], args[2])
}

func (a *attack) addLogin(name, user, password string) error {
	if a.logins == nil {
		a.logins = map[string]*dbLogin{}
	}
	l := &dbLogin{user: user, password: password, sessions: map[string]*pgx.Conn{}}
	a.logins[name] = l
	a.undo = append(a.undo, func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		for _, c := range l.sessions {
			_ = c.Close(ctx)
		}
	})
	return nil
}

// sql NAME[/SESSION[@DATABASE]] STATEMENT: what the login's holder gets in that session, which stays open. Nothing that is seen, changed or
// done is no success: its status is "sql nothing"; that of a refusal is the database's own code.
func (a *attack) sql(_ *testscript.TestScript, args []string) (*answer, error) {
	name, session, _ := strings.Cut(args[0], "/")
	l, ok := a.logins[name]
	if !ok {
		return nil, fmt.Errorf("nobody has a login %q", name)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	c := l.sessions[session]
	if c == nil {
		_, database, _ := strings.Cut(session, "@")
		if database == "" {
			database = "accounts"
		}
		cfg, err := pgx.ParseConfig(fmt.Sprintf("host=127.0.0.1 port=%d dbname=%s user=%s sslmode=disable", a.profile.lab.database.Port, database, l.user))
		if err != nil {
			return nil, err
		}
		cfg.Password = l.password
		if c, err = pgx.ConnectConfig(ctx, cfg); err != nil {
			return refusedBy(err), nil
		}
		l.sessions[session] = c
	}
	results, err := c.PgConn().Exec(ctx, args[1]).ReadAll()
	if err != nil {
		return refusedBy(err), nil
	}
	got := &answer{status: "sql", reasons: []string{"nothing"}}
	for _, r := range results {
		for _, row := range r.Rows {
			got.text += string(joined(row)) + "\n"
		}
		if tag := r.CommandTag; len(r.Rows) > 0 || (tag.Insert() || tag.Update() || tag.Delete()) && tag.RowsAffected() > 0 {
			got.allowed, got.reasons = true, []string{"done"}
		}
	}
	if !got.allowed {
		got.text = "no row\n" + got.text
	}
	return got, nil
}

func joined(row [][]byte) (out []byte) {
	for i, v := range row {
		if i > 0 {
			out = append(out, '|')
		}
		out = append(out, v...)
	}
	return out
}

// refusedBy is the answer of a database that refuses, with its code; of one that says nothing, "gone".
func refusedBy(err error) *answer {
	got := &answer{status: "sql", reasons: []string{"gone"}, text: err.Error()}
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok {
		got.reasons = []string{pg.Code}
	}
	return got
}
