// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"remit"
	"remit/internal/testpostgres"
)

const psqlFiles = `kind: Agent
name: analyst
owner: payments team
launch: {by: [operator/ci], commands: [%[1]q], uid: 4001}
---
kind: Agent
name: other
owner: payments team
launch: {by: [operator/ci], command: "sha256:%064[2]d", uid: 4002}
---
kind: Target
name: payments-db
type: postgres
server: "127.0.0.1:%[3]d"
database: payments
installation: main1
password: {file: %[4]q}
views:
- {name: transactions, table: public.transactions, columns: [id, customer_id, amount], rows: {customer_id: bigint}}
---
kind: Workflow
name: report
parameters: {customer: {type: integer}}
start: {by: [operator/ci], expires: 1h}
stages:
- name: read
  end: {by: [operator/ci]}
  may:
  - name: read-rows
    who: agent/analyst
    action: postgres.select
    target: payments-db
    where: {table: public.transactions, columns: [id, customer_id, amount], rows: {customer_id: $customer}}
    ttl: 5m
  - {name: read-others, who: agent/other, action: postgres.select, target: payments-db, where: {table: public.transactions, columns: [id, customer_id, amount], rows: {customer_id: $customer}}}
`

// reports is an installation with a database, and an agent that is launched.
type reports struct {
	t   *testing.T
	dir string
	db  *testpostgres.Server
	run string
}

func (r *reports) remit(args ...string) (string, int) {
	r.t.Helper()
	cmd := exec.CommandContext(r.t.Context(), binary, append([]string{"--dir", filepath.Join(r.dir, "remit")}, args...)...)
	out, err := cmd.CombinedOutput()
	if _, ok := errors.AsType[*exec.ExitError](err); err != nil && !ok {
		r.t.Fatal(err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

func (r *reports) must(args ...string) string {
	r.t.Helper()
	out, code := r.remit(args...)
	if code != 0 {
		r.t.Fatalf("remit %s: exit %d: %s", strings.Join(args, " "), code, out)
	}
	return out
}

// sql runs statements as the database's administrator.
func (r *reports) sql(database, sql string) string {
	r.t.Helper()
	cmd := r.db.Command(r.t.Context(), "psql", nil, "-qAtX", "-v", "ON_ERROR_STOP=1", r.db.Admin(database))
	cmd.Stdin = strings.NewReader(sql)
	out, err := cmd.CombinedOutput()
	if err != nil {
		r.t.Fatalf("%.100s: %v: %s", sql, err, out)
	}
	return strings.TrimSpace(string(out))
}

// exec launches psql as the agent.
func (r *reports) exec(agent, permission string, args ...string) (string, int) {
	r.t.Helper()
	return r.remit(append([]string{"exec", "--run", r.run, "--as", agent, "--for", permission, "--arg", `columns=["id","customer_id","amount"]`, "--",
		filepath.Join(r.db.Bin, "psql"), "-AtX"}, args...)...)
}

func setUpReports(t *testing.T) *reports {
	t.Helper()
	if testing.Short() || os.Getuid() != 0 {
		t.Skip("a launch under a user of its own needs root, and a database some seconds")
	}
	db, err := testpostgres.Start(t.Context(), testpostgres.Config{})
	if errors.Is(err, testpostgres.ErrMissing) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Stop() })
	dir, err := os.MkdirTemp("", "remit-psql-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	r := &reports{t: t, dir: dir, db: db}
	program, err1 := os.ReadFile(binary)
	l, err2 := net.Listen("tcp", "127.0.0.1:0")
	if err := errors.Join(err1, err2, os.Chmod(dir, 0o755), l.Close()); err != nil { //nolint:gosec // the agent's user runs what is below
		t.Fatal(err)
	}
	r.must("init", "--trust-domain", "company.com", "--operator", "ci", "--https", l.Addr().String())
	password := filepath.Join(dir, "db.password")
	files := fmt.Sprintf(psqlFiles, fmt.Sprintf("sha256:%x", sha256.Sum256(program)), 0, db.Port, password)
	if err := errors.Join(os.WriteFile(filepath.Join(dir, "remit", "config", "report.yaml"), []byte(files), 0o600),
		os.WriteFile(password, []byte("the broker's own"), 0o600)); err != nil {
		t.Fatal(err)
	}
	p, err := startProcess(filepath.Join(dir, "serve.log"), nil, binary, "--dir", filepath.Join(dir, "remit"), "serve")
	if err != nil || !p.isReady() {
		b, _ := os.ReadFile(filepath.Join(dir, "serve.log"))
		t.Fatalf("%v\n%s", err, b)
	}
	t.Cleanup(func() { _ = p.stop() })
	r.sql("postgres", "CREATE DATABASE payments")
	r.sql("payments", `CREATE TABLE public.transactions (id bigint PRIMARY KEY, customer_id bigint NOT NULL, amount numeric NOT NULL);
		INSERT INTO public.transactions SELECT i, 550 + i % 10, i FROM generate_series(1, 1000) i;`)
	r.sql("payments", r.must("doctor", "payments-db", "--setup")+";\nALTER ROLE remit_main1_broker PASSWORD 'the broker''s own';")
	r.must("doctor", "payments-db")
	var run remit.Run
	if err := json.Unmarshal([]byte(r.must("run", "start", "report", "--param", "customer=555", "-o", "json")), &run); err != nil {
		t.Fatal(err)
	}
	r.run = string(run.ID)
	return r
}

// TestExecPsql is remit exec -- psql from the launch to the database: psql sees the run's customer and nothing else, its exit code is the
// command's, the password is in no argument and no environment, and with the process the login is gone.
func TestExecPsql(t *testing.T) {
	r := setUpReports(t)
	out, code := r.exec("agent/analyst", "read-rows", "-c", "SELECT count(*), min(customer_id), max(customer_id) FROM transactions",
		"-c", `\! id -u; cat /proc/$PPID/cmdline /proc/$PPID/environ | tr '\0' '\n'; echo PASSFILE; cat "$PGPASSFILE"`)
	said, passfile, ok := strings.Cut(out, "PASSFILE\n")
	if code != 0 || !ok || !strings.HasPrefix(said, "100|555|555\n4001\n") {
		t.Fatalf("exit %d: %s", code, out)
	}
	fields := strings.Split(strings.TrimSpace(passfile), ":")
	if password := fields[len(fields)-1]; len(password) < 20 || strings.Contains(said, password) {
		t.Errorf("the password stands in arguments or environment: %s", out)
	}
	for sql, want := range map[string]string{
		"SELECT count(*) FROM public.transactions":                       "permission denied",
		"BEGIN READ WRITE; UPDATE transactions SET amount = 0":           "cannot update view",
		"SELECT count(*)/0 FROM transactions":                            "division by zero",
		"SET ROLE remit_main1_broker; SELECT count(*) FROM transactions": "permission denied",
	} {
		if out, code := r.exec("agent/analyst", "read-rows", "-v", "ON_ERROR_STOP=1", "-c", sql); code != 1 || !strings.Contains(out, want) {
			t.Errorf("%s: exit %d: %s", sql, code, out)
		}
	}
	if out, code := r.exec("agent/other", "read-others", "-c", "SELECT 1"); code == 0 || !strings.Contains(out, "command") {
		t.Errorf("a program that its file does not list: exit %d: %s", code, out)
	}
	left := ""
	for end := time.Now().Add(10 * time.Second); left != "0" && time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		left = r.sql("payments", "SELECT (SELECT count(*) FROM pg_roles WHERE rolname ~ '^remit_main1_[a-z2-7]{26}$') + (SELECT count(*) FROM remit.scope)")
	}
	if left != "0" {
		t.Errorf("%s roles and rows of scope are left after the launches ended", left)
	}
}
