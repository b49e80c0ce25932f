// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
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
		r := s.db.PSQL(ctx, &s.stolen, t.sql)
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
	c, err := s.db.Connect(ctx, &s.stolen)
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
	r = s.db.PSQL(ctx, &s.stolen, "SELECT count(*) FROM transactions")
	if r.Code == 0 {
		return fmt.Errorf("the login outlives its run: %s", r)
	}
	s.Told("%s", story.Short(r.Errs), r.Took)
	if err := s.db.Left(ctx); err != nil {
		return err
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

// withoutLease: who stole the broker's own password reads with a login that no decision stands behind. It is reported.
func (s *refund) withoutLease(ctx context.Context) error {
	return s.WithoutLease(ctx, s.db, s.brokerPassword, "transactions", s.another)
}
