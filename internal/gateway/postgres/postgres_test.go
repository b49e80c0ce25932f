// SPDX-License-Identifier: Apache-2.0

package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"remit"
	"remit/internal/gateway/postgres"
)

type ledger struct {
	acts []remit.Outcome
	err  error
}

func (l *ledger) Executed(_ context.Context, acts []remit.Outcome) error {
	if l.err == nil {
		l.acts = append(l.acts, acts...)
	}
	return l.err
}

type fixture struct {
	path  string
	saved []byte
	ledger
	lease remit.Lease
}

func (f *fixture) log(t *testing.T) *postgres.Log {
	t.Helper()
	l, err := postgres.New(postgres.Config{Target: "db", Path: f.path, Installation: "main1", Database: "payments", Acts: &f.ledger,
		Lease: func(id remit.LeaseID) (remit.Lease, bool) { return f.lease, id == f.lease.ID },
		Load:  func() ([]byte, error) { return f.saved, nil }, Save: func(b []byte) error { f.saved = b; return nil }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Close)
	return l
}

func setUp(t *testing.T) *fixture {
	f := &fixture{path: filepath.Join(t.TempDir(), "postgres.json"), lease: remit.Lease{ID: remit.NewLeaseID(), Target: "db", Action: "postgres.select"}}
	f.write(t, "")
	return f
}

func (f *fixture) write(t *testing.T, text string) {
	t.Helper()
	file, err := os.OpenFile(f.path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err == nil {
		_, err = file.WriteString(text)
	}
	if err := errors.Join(err, file.Close()); err != nil {
		t.Fatal(err)
	}
}

func (f *fixture) role() string {
	return "remit_main1_" + strings.TrimPrefix(string(f.lease.ID), "lease-")
}

func entry(user, severity, state, message, statement string) string {
	return fmt.Sprintf(`{"timestamp":"2026-11-30 12:00:00.123 UTC","user":%q,"dbname":"payments","session_id":"a.b","line_num":7,"error_severity":%q,"state_code":%q,"message":%q,"statement":%q}`+"\n",
		user, severity, state, message, statement)
}

func read(t *testing.T, l *postgres.Log) {
	t.Helper()
	if err := l.Read(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestLogJoinsStatementsToLeases(t *testing.T) {
	f := setUp(t)
	stranger := "remit_main1_" + strings.Repeat("a", 26)
	f.write(t, entry(f.role(), "LOG", "00000", "duration: 0.5 ms  statement: SELECT 1", "")+
		entry(f.role(), "LOG", "00000", "duration: 0.5 ms  parse <unnamed>: SELECT 2", "")+
		entry(f.role(), "LOG", "00000", "duration: 0.5 ms  execute stmtcache_1: UPDATE x\n SET a = 1", "")+
		entry(f.role(), "ERROR", "42501", "permission denied for table salaries", "SELECT * FROM salaries")+
		entry(f.role(), "FATAL", "28P01", "password authentication failed", "")+
		entry("app", "LOG", "00000", "duration: 0.5 ms  statement: SELECT 'remit_main1_'", "")+
		entry("remit_main1_broker", "LOG", "00000", "duration: 0.5 ms  statement: SELECT 1", "")+
		entry(stranger, "LOG", "00000", "duration: 0.5 ms  statement: SELECT 3", "")+
		"not JSON remit_main1_\n")
	read(t, f.log(t))
	if len(f.acts) != 4 {
		t.Fatalf("%d acts: %+v", len(f.acts), f.acts)
	}
	for i, want := range []struct {
		verb               string
		status             int
		allowed, effective bool
		lease              remit.LeaseID
	}{{"select", 200, true, true, f.lease.ID}, {"update", 200, true, false, f.lease.ID}, {"select", 403, false, false, f.lease.ID}, {"select", 200, true, false, ""}} {
		a := f.acts[i]
		if a.Verb != want.verb || a.Status != want.status || a.Allowed != want.allowed || a.Effective != want.effective || a.Lease != want.lease {
			t.Errorf("%d: %+v", i, a)
		}
	}
}

func TestLogIsReadOnce(t *testing.T) {
	f := setUp(t)
	one := entry(f.role(), "LOG", "00000", "duration: 0.5 ms  statement: SELECT 1", "")
	l := f.log(t)
	f.write(t, one+one[:20])
	read(t, l)
	f.write(t, one[20:])
	read(t, l)
	read(t, f.log(t)) // after a restart
	if len(f.acts) != 2 {
		t.Fatalf("%d acts", len(f.acts))
	}
	f.err = errors.New("disk full")
	f.write(t, one)
	if err := l.Read(t.Context()); err == nil {
		t.Error("a failed record went unseen")
	}
	f.err = nil
	read(t, l)
	f.write(t, one)
	if err := os.Rename(f.path, f.path+".1"); err != nil {
		t.Fatal(err)
	}
	f.write(t, one)
	read(t, l) // the rest of the old file, and the new one
	if len(f.acts) != 5 {
		t.Errorf("%d acts after a failure and a rotation", len(f.acts))
	}
	f.write(t, strings.Repeat("x", 3<<20)+"\n"+one)
	read(t, l)
	if len(f.acts) != 7 || f.acts[5].Verb != "unread" {
		t.Errorf("%d acts after a line that is too long", len(f.acts))
	}
}

func FuzzLog(f *testing.F) {
	f.Add(entry("remit_main1_"+strings.Repeat("a", 26), "LOG", "00000", "duration: 1 ms  statement: SELECT 1", ""))
	f.Fuzz(func(t *testing.T, text string) {
		x := setUp(t)
		x.write(t, text+"\n")
		read(t, x.log(t))
		for _, a := range x.acts {
			if a.Lease != "" {
				t.Errorf("joined to a lease that is not there: %+v", a)
			}
		}
	})
}
