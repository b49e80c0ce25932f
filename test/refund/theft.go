// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"remit"
	"remit/internal/api"
	"remit/test/story"
)

// login is what the careless tool answers with.
type login struct {
	Host, Port, Database, User, CA, Password string
	Expires                                  time.Time
}

func (l *login) connect(ctx context.Context, s *refund) (*pgx.Conn, error) {
	cfg, err := pgx.ParseConfig(fmt.Sprintf("host=%s port=%s dbname=%s user=%s sslmode=verify-full sslrootcert=%s", l.Host, l.Port, l.Database, l.User, s.Path("db", "ca.pem")))
	if err != nil {
		return nil, err
	}
	cfg.Password = l.Password
	return pgx.ConnectConfig(ctx, cfg)
}

// psql runs a statement with a login, past Remit: psql itself, as anybody on the network could.
func (s *refund) psql(ctx context.Context, l *login, sql string) story.Result {
	r := story.Result{Argv: []string{"psql", "-c", sql}}
	cmd := s.db.Command(ctx, "psql", []string{"PGPASSWORD=" + l.Password, "PGSSLMODE=verify-full", "PGSSLROOTCERT=" + s.Path("db", "ca.pem")},
		"-X", "-q", "-A", "-t", "-h", l.Host, "-p", l.Port, "-d", l.Database, "-U", l.User, "-v", "ON_ERROR_STOP=1", "-c", sql)
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	began := time.Now()
	if cmd.Run() != nil {
		r.Code = 1
	}
	r.Out, r.Errs, r.Took = strings.TrimSpace(out.String()), strings.TrimSpace(errs.String()), time.Since(began)
	return r
}

// steal takes the login out of a careless tool's answer, uses it directly, and gets the customer's rows and nothing else.
func (s *refund) steal(ctx context.Context) (err error) {
	st, took, err := s.call("read-transactions__read", fmt.Sprintf(`{"customer":%d,"debug":true}`, s.customer))
	var got rows
	if err = errors.Join(err, json.Unmarshal([]byte(st.Text), &got)); err != nil || got.Login == nil || got.Login.Password == "" {
		return fmt.Errorf("the tool does not let its login out: %+v, %v", st, err)
	}
	s.stolen = *got.Login
	s.Told("%s", "the careless tool says how it logs in, as "+s.stolen.User, took)
	for _, t := range []struct{ sql, out, errs string }{
		{"SELECT count(*), sum(amount) FROM transactions", fmt.Sprintf("%d|%s", s.rows, s.sum), ""}, // what it is for
		{fmt.Sprintf("SELECT count(*) FROM transactions WHERE customer_id = %d", s.another), "0", ""},
		{fmt.Sprintf("SELECT count(*) FROM transactions WHERE customer_id <> %d", s.customer), "0", ""},
		{fmt.Sprintf("SELECT * FROM public.transactions WHERE customer_id = %d", s.another), "", "permission denied"},
		{"COPY public.transactions TO STDOUT", "", "permission denied"},
		{fmt.Sprintf("BEGIN READ WRITE; UPDATE transactions SET amount = 0 WHERE customer_id = %d", s.another), "", "cannot update view"},
		{fmt.Sprintf("BEGIN READ WRITE; INSERT INTO remit.scope SELECT * FROM remit.scope WHERE role <> '%s'", s.stolen.User), "", "permission denied"},
		{"SET ROLE postgres", "", "permission denied"},
		{"SET SESSION AUTHORIZATION remit_main1_definer", "", "permission denied"},
		{"COPY (SELECT 1) TO PROGRAM 'id'", "", "must be superuser"},
		{"BEGIN READ WRITE; CREATE TABLE loot (x int)", "", "permission denied"},
	} {
		s.Ask("psql with it: %s", t.sql)
		r := s.psql(ctx, &s.stolen, t.sql)
		if r.Out != t.out || (r.Code != 0) != (t.errs != "") || !strings.Contains(r.Errs, t.errs) {
			return fmt.Errorf("the database answers otherwise than %q %q: %s", t.out, t.errs, r)
		}
		s.Told("%s", story.Short(r.Out+r.Errs), r.Took)
	}
	if err := s.verify(ctx); err != nil {
		return err
	}
	s.open, err = s.keep(ctx)
	return err
}

// verify has Remit itself try what a twin of the lease can do.
func (s *refund) verify(ctx context.Context) error {
	s.Ask("remit grant verify %s", s.grant)
	r := s.Remit(ctx, "grant", "verify", s.grant, "-o", "json")
	var v remit.Verification
	if err := json.Unmarshal([]byte(r.Out), &v); r.Code != 0 || err != nil || !v.Holds || len(v.Trials) < 50 {
		return fmt.Errorf("it does not hold, %v: %s", err, r)
	}
	s.Told("%s", fmt.Sprintf("holds: of %d trials with a twin of it none got further than it should", len(v.Trials)), r.Took)
	return nil
}

// keep is a session that the thief keeps, in a transaction with a snapshot of its own.
func (s *refund) keep(ctx context.Context) (*pgx.Conn, error) {
	c, err := s.stolen.connect(ctx, s)
	if err != nil {
		return nil, err
	}
	s.Stop(func() { _ = c.Close(context.Background()) })
	for _, sql := range []string{"BEGIN ISOLATION LEVEL REPEATABLE READ", "DECLARE loot CURSOR FOR SELECT id FROM transactions", "FETCH 1 FROM loot"} {
		if _, err := c.Exec(ctx, sql); err != nil {
			return nil, err
		}
	}
	s.Told("%s", "the thief keeps a session open, in a transaction with a cursor of its own", 0)
	return c, nil
}

// finish ends the run: the open session is over, nobody logs in, nothing is left at the database.
func (s *refund) finish(ctx context.Context) error {
	s.Ask("%s: remit run finish %s", s.alice, s.run)
	r := s.as(ctx, s.alice, "run", "finish", s.run)
	if r.Code != 0 {
		return fmt.Errorf("%s", r)
	}
	s.Told("%s", "finished", r.Took)
	s.Ask("the thief, in the session that is open: FETCH 1 FROM loot")
	if tag, err := s.open.Exec(ctx, "FETCH 1 FROM loot"); err == nil {
		return fmt.Errorf("the open session goes on after the run: %s", tag)
	} else {
		s.Told("%s", story.Short(err.Error()), 0)
	}
	s.Ask("the thief, anew: SELECT count(*) FROM transactions")
	r = s.psql(ctx, &s.stolen, "SELECT count(*) FROM transactions")
	if r.Code == 0 {
		return fmt.Errorf("the login outlives its run: %s", r)
	}
	s.Told("%s", story.Short(r.Errs), r.Took)
	left := -1
	for end := time.Now().Add(10 * time.Second); left != 0 && time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if err := s.admin.QueryRow(ctx, "SELECT (SELECT count(*) FROM pg_roles WHERE rolname ~ '^remit_main1_[a-z2-7]{26}$') + (SELECT count(*) FROM remit.scope)").Scan(&left); err != nil {
			return err
		}
	}
	if left != 0 {
		return fmt.Errorf("%d roles and rows of scope are left at the database", left)
	}
	s.Told("%s", "no role and no row of scope is left at the database", 0)
	return nil
}

// executed reads what the database's own log says was done under the lease: the tool's statements and the thief's.
func (s *refund) executed(ctx context.Context) error {
	s.Ask("remit grant show %s: what the database's own log says", s.grant)
	want := []string{"WHERE customer_id = $1", fmt.Sprintf("SELECT * FROM public.transactions WHERE customer_id = %d", s.another), "SET ROLE postgres", "DECLARE loot CURSOR"}
	var g api.Grant
	missing := ""
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		r := s.Remit(ctx, "grant", "show", s.grant, "-o", "json")
		if err := json.Unmarshal([]byte(r.Out), &g); r.Code != 0 || err != nil {
			return fmt.Errorf("%s", r)
		}
		if missing = absent(&g, want); missing == "" || time.Now().After(end) {
			break
		}
	}
	if missing != "" || g.Observation != "observed" {
		return fmt.Errorf("%q is not on record under %s, whose acts are %s", missing, s.grant, g.Observation)
	}
	for i := range g.Acts {
		var e struct {
			Data struct {
				Status int
				Detail map[string]string
			}
		}
		if err := json.Unmarshal(g.Acts[i].Event, &e); err != nil {
			return err
		}
		fmt.Printf("  ledger  %d %s\n", e.Data.Status, story.Short(e.Data.Detail["statement"]))
	}
	s.Told("%s", fmt.Sprintf("%d statements under %s, the tool's and the thief's", len(g.Acts), s.grant), 0)
	return nil
}

func absent(g *api.Grant, want []string) string {
	all := ""
	for i := range g.Acts {
		var e struct {
			Data struct{ Detail map[string]string }
		}
		_ = json.Unmarshal(g.Acts[i].Event, &e)
		all += e.Data.Detail["statement"] + "\n"
	}
	for _, w := range want {
		if !strings.Contains(all, w) {
			return w
		}
	}
	return ""
}

// withoutLease: who stole the broker's own password makes a login that no decision stands behind, and reads with it. It is reported.
func (s *refund) withoutLease(ctx context.Context) error {
	broker := login{Host: dbHost, Port: s.stolen.Port, Database: "payments", User: "remit_main1_broker", Password: s.brokerPassword}
	c, err := broker.connect(ctx, s)
	if err != nil {
		return err
	}
	defer c.Close(ctx) //nolint:errcheck // it is over
	name := strings.TrimPrefix(string(remit.NewLeaseID()), "lease-")
	made := login{Host: dbHost, Port: broker.Port, Database: "payments", User: "remit_main1_" + name, Password: s.Word("made")}
	s.Ask("with the broker's own password: make a login for customer %d, and read", s.another)
	verifier, err := scram(made.Password)
	if err != nil {
		return err
	}
	if _, err := c.Exec(ctx, "SELECT remit.lease_begin($1, $2, 'transactions', now() + interval '5 minutes', $3, NULL, NULL, NULL)", name, verifier,
		[]string{fmt.Sprint(s.another)}); err != nil {
		return fmt.Errorf("make a login: %w", err)
	}
	sql := "SELECT count(*) > 0 FROM transactions /* " + s.Word("forged") + " */"
	if r := s.psql(ctx, &made, sql); r.Code != 0 || r.Out != "t" {
		return fmt.Errorf("it does not work, so nothing is shown: %s", r)
	}
	began := time.Now()
	for end := began.Add(10 * time.Second); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		r := s.Remit(ctx, "ledger", "list", "--kind", "finding", "--limit", "1000", "-o", "json")
		if r.Code == 0 && strings.Contains(r.Out, "act_without_grant") && strings.Contains(r.Out, made.User) && strings.Contains(r.Out, sql[len(sql)-12:len(sql)-3]) {
			s.Told("%s", "reported: act_without_grant, "+made.User+": "+sql, time.Since(began))
			return nil
		}
	}
	return errors.New("a statement of a login without a lease is not reported")
}

// scram is what PostgreSQL keeps of a password (RFC 5803).
func scram(password string) (string, error) {
	salt := []byte("salt of a story!")
	salted, err := pbkdf2.Key(sha256.New, password, salt, 4096, sha256.Size)
	mac := func(text string) []byte {
		h := hmac.New(sha256.New, salted)
		_, _ = h.Write([]byte(text))
		return h.Sum(nil)
	}
	stored := sha256.Sum256(mac("Client Key"))
	b64 := base64.StdEncoding.EncodeToString
	return fmt.Sprintf("SCRAM-SHA-256$4096:%s$%s:%s", b64(salt), b64(stored[:]), b64(mac("Server Key"))), err
}
