// SPDX-License-Identifier: Apache-2.0

package server

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"remit"
	"remit/internal/api"
	"remit/internal/store"
	"remit/internal/testpostgres"
)

const paymentsFiles = `
---
kind: Target
name: payments-db
type: postgres
server: "127.0.0.1:PORT"
database: payments
installation: main1
password: {file: PASSWORD}
log: LOG
views:
- {name: transactions, table: public.transactions, columns: [id, customer_id, amount], rows: {customer_id: bigint}, mask: [amount], limit_by: id}
- {name: set_status, table: public.transactions, action: update, columns: [status], reads: [id], rows: {customer_id: bigint}}
---
kind: Workflow
name: refund
parameters: {customer: {type: integer}}
start: {by: [operator/ci], expires: 1h}
stages:
- name: investigate
  end: {by: [operator/ci]}
  may:
  - name: read-rows
    who: agent/deploy
    action: postgres.select
    target: payments-db
    where: {table: public.transactions, columns: [id, customer_id, amount], rows: {customer_id: $customer}}
    ttl: 5m
  - name: close
    who: agent/deploy
    action: postgres.update
    target: payments-db
    where: {table: public.transactions, columns: [status], reads: [id], rows: {customer_id: $customer}}
    ttl: 5m
`

// paymentsDB is a server with a database of transactions, set up as the documentation says.
func paymentsDB(t *testing.T) (*fixture, *pgx.Conn) {
	t.Helper()
	f, admin, _ := paymentsServer(t)
	return f, admin
}

func paymentsServer(t *testing.T) (*fixture, *pgx.Conn, *testpostgres.Server) {
	t.Helper()
	if testing.Short() {
		t.Skip("SHORT=1 leaves out a database server of its own")
	}
	db, err := testpostgres.Start(t.Context(), testpostgres.Config{})
	if errors.Is(err, testpostgres.ErrMissing) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Stop(); err != nil {
			t.Error(err)
		}
	})
	run := func(c *pgx.Conn, sql string) {
		t.Helper()
		if _, err := c.Exec(t.Context(), sql, pgx.QueryExecModeSimpleProtocol); err != nil {
			t.Fatalf("%.200s: %v", sql, err)
		}
	}
	root, err := pgx.Connect(t.Context(), db.Admin("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	run(root, "CREATE DATABASE payments")
	admin, err := pgx.Connect(t.Context(), db.Admin("payments"))
	if err != nil {
		t.Fatal(err)
	}
	run(admin, `CREATE TABLE public.transactions (id bigint PRIMARY KEY, customer_id bigint NOT NULL, amount numeric NOT NULL, status text NOT NULL DEFAULT 'open');
		INSERT INTO public.transactions SELECT i, 550 + i % 10, i FROM generate_series(1, 1000) i`)
	f := setUp(t)
	password := filepath.Join(f.dir, "db-password")
	if err := os.WriteFile(password, []byte("a broker's password"), 0o600); err != nil {
		t.Fatal(err)
	}
	f.files += strings.NewReplacer("PORT", fmt.Sprint(db.Port), "PASSWORD", password, "LOG", db.Log()).Replace(paymentsFiles)
	f.write(f.files)
	f.must("/v1/apply", struct{}{}, nil)
	var setup api.Setup
	if err := f.admin.Get(t.Context(), "/v1/doctor/payments-db/setup", nil, &setup); err != nil {
		t.Fatal(err)
	}
	run(admin, setup.Text)
	run(admin, "ALTER ROLE remit_main1_broker PASSWORD 'a broker''s password'")
	var checks []api.Check
	if err := f.admin.Get(t.Context(), "/v1/doctor/payments-db", nil, &checks); err != nil || len(checks) != 1 || !checks[0].OK {
		t.Fatalf("doctor: %+v, %v", checks, err)
	}
	return f, admin, db
}

type databaseLogin struct {
	given
	Credential map[string]string `json:"credential"`
	Bounds     []string          `json:"bounds"`
	NotBounded []string          `json:"not_bounded"`
	Says       string            `json:"error_description"`
}

// rule has the organisation's rules say this of what is asked at the database.
func (f *fixture) rule(says string) {
	f.t.Helper()
	rules := filepath.Join(f.dir, dirConfig, "rules")
	if err := os.MkdirAll(rules, 0o700); err != nil {
		f.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(rules, "database.rego"), []byte("package remit.rules\n\n"+says+" if input.target == \"payments-db\"\n"), 0o600); err != nil {
		f.t.Fatal(err)
	}
	f.write(f.files + "---\nkind: Rule\nname: database\nfile: rules/database.rego\n")
	f.must("/v1/apply", struct{}{}, nil)
}

func (w *workload) login(detail string) databaseLogin {
	w.f.t.Helper()
	form := url.Values{"grant_type": {"client_credentials"}, "client_id": {w.svid.ID.String()}, "authorization_details": {`[` + detail + `]`}}
	var l databaseLogin
	w.call("/oauth2/token", "application/x-www-form-urlencoded", strings.NewReader(form.Encode()), &l)
	return l
}

func (l databaseLogin) connect(t *testing.T) (*pgx.Conn, error) {
	cfg, err := pgx.ParseConfig(fmt.Sprintf("host=%s port=%s user=%s dbname=%s sslmode=%s", l.Credential["host"], l.Credential["port"], l.Credential["user"],
		l.Credential["database"], l.Credential["sslmode"]))
	if err != nil {
		return nil, err
	}
	cfg.Password = l.Secret
	return pgx.ConnectConfig(t.Context(), cfg)
}

const askRows = `{"permission":"read-rows","columns":["id","customer_id","amount"]`

// TestRowsOfOneCustomer is the whole way: policy, database, trials, log and ledger.
func TestRowsOfOneCustomer(t *testing.T) {
	f, admin := paymentsDB(t)
	var r remit.Run
	f.must("/v1/runs", api.StartRun{Workflow: "refund", Params: map[string]string{"customer": "555"}}, &r)
	agent := f.agent("agent/deploy", f.shared()).enter(r)
	if other := agent.login(askRows + `,"rows":{"customer_id":556}}`); other.code() != string(remit.ReasonArgument) {
		t.Errorf("another customer: %+v", other)
	}
	if more := agent.login(`{"permission":"read-rows","columns":["id","customer_id","amount","status"]}`); more.code() != string(remit.ReasonArgument) {
		t.Errorf("another column: %+v", more)
	}
	got := agent.login(askRows + `}`)
	if got.Secret == "" || len(got.Bounds) == 0 || len(got.NotBounded) == 0 {
		t.Fatalf("%+v", got)
	}
	holder, err := got.connect(t)
	if err != nil {
		t.Fatal(err)
	}
	var rows, others int
	if err := holder.QueryRow(t.Context(), "SELECT count(*), count(*) FILTER (WHERE customer_id <> 555) FROM remit.transactions").Scan(&rows, &others); err != nil || rows != 100 || others != 0 {
		t.Errorf("%d rows, %d of others: %v", rows, others, err)
	}
	if _, err := holder.Exec(t.Context(), "SELECT * FROM public.transactions WHERE customer_id = 556"); err == nil {
		t.Error("the database itself let a holder past")
	}
	var v remit.Verification
	f.must("/v1/grants/"+string(got.Grant)+"/verify", struct{}{}, &v)
	for _, trial := range v.Trials {
		if trial.Wrong() {
			t.Errorf("trial: %+v", trial)
		}
	}
	if !v.Holds || len(v.Trials) < 50 || f.events(remit.EventVerified) != 1 {
		t.Errorf("%d trials, holds %t, %d on record", len(v.Trials), v.Holds, f.events(remit.EventVerified))
	}
	f.eventually("both statements are in the ledger", func() bool { return len(f.grant(got.Grant).Acts) >= 2 })
	g := f.grant(got.Grant)
	if g.Observation != actsObserved || !strings.Contains(string(g.Acts[0].Event), "status") {
		t.Errorf("observation %s: %s", g.Observation, g.Acts[0].Event)
	}
	f.must("/v1/grants/"+string(got.Grant)+"/revoke", api.Reasoned{Reason: "done"}, nil)
	if _, err := holder.Exec(t.Context(), "SELECT 1"); err == nil {
		t.Error("the session outlives its grant")
	}
	if _, err := got.connect(t); err == nil {
		t.Error("the login outlives its grant")
	}
	f.eventually("nothing is left", func() bool {
		var n int
		err := admin.QueryRow(t.Context(), "SELECT (SELECT count(*) FROM pg_roles WHERE rolname ~ '^remit_main1_[a-z2-7]{26}$') + (SELECT count(*) FROM remit.scope)").Scan(&n)
		return err == nil && n == 0
	})
}

// TestStatementWithoutLease: who has the broker's password can make a login that no decision stands behind. What it does is found.
func TestStatementWithoutLease(t *testing.T) {
	f, admin := paymentsDB(t)
	before := f.events(remit.EventFinding)
	name := strings.TrimPrefix(string(remit.NewLeaseID()), "lease-")
	if _, err := admin.Exec(t.Context(), "SET password_encryption = 'scram-sha-256'"); err != nil {
		t.Fatal(err)
	}
	for _, sql := range []string{
		`CREATE ROLE verifier_source PASSWORD 'stolen'`,
		fmt.Sprintf(`SELECT remit.lease_begin(jsonb_build_array(jsonb_build_object('lease', '%s', 'verifier', rolpassword, 'of_view', 'transactions',
			'until', now() + interval '5 minutes', 'k1', ARRAY['555'])), (SELECT digest FROM remit.installed)) FROM pg_authid WHERE rolname = 'verifier_source'`, name),
		fmt.Sprintf(`ALTER ROLE remit_main1_%s PASSWORD 'stolen'`, name),
	} {
		if _, err := admin.Exec(t.Context(), sql, pgx.QueryExecModeSimpleProtocol); err != nil {
			t.Fatal(err)
		}
	}
	l := databaseLogin{given: given{Secret: "stolen"}, Credential: map[string]string{"host": "127.0.0.1", "port": fmt.Sprint(admin.Config().Port),
		"user": "remit_main1_" + name, "database": "payments", "sslmode": "disable"}}
	conn, err := l.connect(t)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Exec(t.Context(), "SELECT count(*) FROM remit.transactions", pgx.QueryExecModeSimpleProtocol); err != nil {
		t.Fatal(err)
	}
	f.eventually("the statement is a finding", func() bool { return f.events(remit.EventFinding) > before })
	entries, _, err := f.srv.store.Events(store.EventFilter{Kind: remit.EventFinding}, 0, 100)
	if err != nil || !strings.Contains(string(entries[len(entries)-1].Body), "act_without_grant") {
		t.Errorf("%s, %v", entries[len(entries)-1].Body, err)
	}
	_ = conn.Close(t.Context())
}

// TestDatabaseGoesWrong: whatever an administrator does to the database, or happens to it, the agent gets no login and none of the database's own
// words, the operator gets them, and what was begun is ended.
func TestDatabaseGoesWrong(t *testing.T) {
	f, admin, db := paymentsServer(t)
	var r remit.Run
	f.must("/v1/runs", api.StartRun{Workflow: "refund", Params: map[string]string{"customer": "555"}}, &r)
	agent := f.agent("agent/deploy", f.shared()).enter(r)
	first := agent.login(askRows + `}`)
	if first.Secret == "" {
		t.Fatalf("%+v", first)
	}
	refused := func(what string) {
		t.Helper()
		got := agent.login(askRows + `}`)
		if got.Secret != "" || got.Error == "" {
			t.Errorf("%s: %+v", what, got)
		}
		told := fmt.Sprintf("%s %+v", got.Says, got.Reasons)
		for _, word := range []string{"public.transactions", "ERROR", "SQLSTATE", "remit.", "127.0.0.1"} {
			if strings.Contains(told, word) {
				t.Errorf("%s: the agent is told %q: %s", what, word, told)
			}
		}
		var checks []api.Check
		if err := f.admin.Get(t.Context(), "/v1/doctor/payments-db", nil, &checks); err != nil || len(checks) != 1 || checks[0].OK {
			t.Errorf("%s: the operator is told %+v, %v", what, checks, err)
		} else {
			t.Logf("%s: %s, %s; the operator: %+v", what, got.Error, got.code(), checks[0])
		}
	}
	for _, c := range []struct{ what, sql, back string }{
		{"table renamed", "ALTER TABLE public.transactions RENAME TO tx", "ALTER TABLE public.tx RENAME TO transactions"},
		{"column renamed", "ALTER TABLE public.transactions RENAME COLUMN amount TO total", "ALTER TABLE public.transactions RENAME COLUMN total TO amount"},
		{"view dropped", "ALTER VIEW remit.transactions RENAME TO gone", "ALTER VIEW remit.gone RENAME TO transactions"},
		{"no connection left", "BEGIN; ALTER ROLE remit_main1_broker CONNECTION LIMIT 0; COMMIT; SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = 'remit_main1_broker'",
			"ALTER ROLE remit_main1_broker CONNECTION LIMIT -1"},
	} {
		if _, err := admin.Exec(t.Context(), c.sql, pgx.QueryExecModeSimpleProtocol); err != nil {
			t.Fatal(err)
		}
		refused(c.what)
		if _, err := admin.Exec(t.Context(), c.back, pgx.QueryExecModeSimpleProtocol); err != nil {
			t.Fatal(err)
		}
		if again := agent.login(askRows + `}`); again.Secret == "" {
			t.Errorf("%s, and put right: %+v", c.what, again)
		}
	}
	if _, err := admin.Exec(t.Context(), "CHECKPOINT"); err != nil { // commits wait for no disk here, and what was put right has to outlive the crash
		t.Fatal(err)
	}
	if err := db.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if again := agent.login(askRows + `}`); again.Secret == "" {
		t.Errorf("after a restart of the database: %+v", again)
	}
	holder, err := first.connect(t)
	if err != nil {
		t.Errorf("a lease does not outlive a restart: %v", err)
	} else {
		_ = holder.Close(t.Context())
	}
	f.must("/v1/runs/"+string(r.ID)+"/finish", struct{}{}, nil)
	admin, err = pgx.Connect(t.Context(), db.Admin("payments"))
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close(t.Context()) //nolint:errcheck // it is over
	f.eventually("nothing is left", func() bool {
		var n int
		err := admin.QueryRow(t.Context(), "SELECT (SELECT count(*) FROM pg_roles WHERE rolname ~ '^remit_main1_[a-z2-7]{26}$') + (SELECT count(*) FROM remit.scope)").Scan(&n)
		return err == nil && n == 0
	})
}

// TestMaskedByARule: an organisation's rule masks a column; the database shows it as NULL. What the target cannot mask, and what no
// database can do, is a denial.
func TestMaskedByARule(t *testing.T) {
	f, _ := paymentsDB(t)
	apply := func(obligation string) { f.rule(`obligations contains "` + obligation + `"`) }
	apply("mask=amount")
	var r remit.Run
	f.must("/v1/runs", map[string]any{"workflow": "refund", "params": map[string]string{"customer": "555"}}, &r)
	w := f.agent("agent/deploy", f.shared()).enter(r)
	const detail = `{"permission":"read-rows","columns":["id","customer_id","amount"]}`
	l := w.login(detail)
	if l.Secret == "" || !strings.Contains(strings.Join(l.Bounds, "\n"), "masked, read as NULL: amount") {
		t.Fatalf("%+v", l)
	}
	conn, err := l.connect(t)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context()) //nolint:errcheck // a connection of a moment
	var all, amounts int
	if err := conn.QueryRow(t.Context(), "SELECT count(*), count(amount) FROM remit.transactions").Scan(&all, &amounts); err != nil || all != 100 || amounts != 0 {
		t.Errorf("%d rows, %d amounts: %v", all, amounts, err)
	}
	for obligation, code := range map[string]string{"mask=id": "target_unfit", "blur=amount": "obligation_unknown"} {
		apply(obligation)
		if g := w.login(detail); g.Secret != "" || g.code() != code {
			t.Errorf("%s: %+v", obligation, g)
		}
	}
}

// TestRowsAreLimitedByARule: an organisation's rule limits how many rows an agent learns of; the database holds it, the live lease is judged
// again when the limit becomes smaller, and what the view cannot count is a denial.
func TestRowsAreLimitedByARule(t *testing.T) {
	f, _ := paymentsDB(t)
	f.rule("rows := 30")
	var r remit.Run
	f.must("/v1/runs", map[string]any{"workflow": "refund", "params": map[string]string{"customer": "555"}}, &r)
	w := f.agent("agent/deploy", f.shared()).enter(r)
	l := w.login(askRows + `}`)
	if l.Secret == "" || !strings.Contains(strings.Join(l.Bounds, "\n"), "only 30, those with the greatest id") {
		t.Fatalf("%+v", l)
	}
	conn, err := l.connect(t)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context()) //nolint:errcheck // a connection of a moment
	n, least := 0, 0
	if err := conn.QueryRow(t.Context(), "SELECT count(*), min(id) FROM remit.transactions").Scan(&n, &least); err != nil || n != 30 || least != 705 {
		t.Errorf("%d rows from %d: %v", n, least, err)
	}
	f.rule("rows := 10")
	f.eventually("the wider lease ends", func() bool {
		err := conn.QueryRow(t.Context(), "SELECT count(*) FROM remit.transactions").Scan(&n)
		return err != nil || n == 0
	})
	if g := w.login(`{"permission":"close","columns":["status"],"reads":["id"]}`); g.Secret != "" || g.code() != "target_unfit" {
		t.Errorf("a view that counts no rows: %+v", g)
	}
}
