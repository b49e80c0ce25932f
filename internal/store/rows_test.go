// SPDX-License-Identifier: Apache-2.0

package store_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"zombiezen.com/go/sqlite"
	"zombiezen.com/go/sqlite/sqlitex"

	"remit"
	"remit/internal/store"
)

// twice runs a check on the store as it is, and again after it was closed and opened.
func twice(t *testing.T, s *store.Store, path string, check func(*testing.T, *store.Store)) *store.Store {
	t.Helper()
	t.Run("written", func(t *testing.T) { check(t, s) })
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, store.Config{Path: path})
	t.Run("reopened", func(t *testing.T) { check(t, s) })
	return s
}

func equal(t *testing.T, got, want any) {
	t.Helper()
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(remit.Value{}), cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestRuns(t *testing.T) {
	path := filepath.Join(t.TempDir(), "remit.db")
	s := open(t, store.Config{Path: path})
	var runs []remit.Run
	for i := range 5 {
		r := newRun()
		if r.Workflow = "deploy"; i%2 == 1 {
			r.Workflow, r.State = "refund", remit.RunFinished
		}
		commit(t, s, remit.Change{Rows: []remit.Row{r}})
		r.Epoch = 1
		runs = append(runs, r)
	}
	twice(t, s, path, func(t *testing.T, s *store.Store) {
		for _, want := range runs {
			got, ok := s.Run(want.ID)
			if !ok {
				t.Fatal("no run")
			}
			equal(t, got, want)
		}
		if _, ok := s.Run(remit.NewRunID()); ok {
			t.Error("a run out of nowhere")
		}
		page, err := s.Runs(store.RunFilter{Workflow: "deploy"}, 2, "")
		if err != nil {
			t.Fatal(err)
		}
		equal(t, page, []remit.Run{runs[4], runs[2]})
		page, err = s.Runs(store.RunFilter{Workflow: "deploy", State: remit.RunActive}, 2, runs[2].ID)
		if err != nil {
			t.Fatal(err)
		}
		equal(t, page, []remit.Run{runs[0]})
		if n := len(s.LiveRuns()); n != 3 {
			t.Errorf("%d live runs, want 3", n)
		}
	})
}

func TestGrantsAndLeases(t *testing.T) {
	path := filepath.Join(t.TempDir(), "remit.db")
	s := open(t, store.Config{Path: path})
	now := time.Now().UTC()
	run := remit.NewRunID()
	var grants []remit.Grant
	var leases []remit.Lease
	for i, state := range []remit.GrantState{remit.GrantPending, remit.GrantActive, remit.GrantEnded} {
		g := remit.Grant{ID: remit.NewGrantID(), Agent: "agent/deploy", Run: run, State: state, Issued: now,
			Scope: remit.Args{"namespace": remit.StringValue("production")}}
		l := remit.Lease{ID: remit.NewLeaseID(), Grant: g.ID, Agent: g.Agent, Run: run, Target: "cluster", State: state,
			Issued: now.Add(time.Duration(i)), Credentials: []string{fmt.Sprintf("JTI=%d", i)}}
		commit(t, s, remit.Change{Rows: []remit.Row{g, l}})
		grants, leases = append(grants, g), append(leases, l)
	}
	s = twice(t, s, path, func(t *testing.T, s *store.Store) {
		for i := range grants {
			g, ok := s.Grant(grants[i].ID)
			l, ok2 := s.Lease(leases[i].ID)
			c, ok3 := s.LeaseByCredential(fmt.Sprintf("JTI=%d", i))
			if !ok || !ok2 || !ok3 {
				t.Fatal(ok, ok2, ok3)
			}
			equal(t, g, grants[i])
			equal(t, l, leases[i])
			equal(t, c, leases[i])
		}
		if _, ok := s.LeaseByCredential("JTI=none"); ok {
			t.Error("a lease out of nowhere")
		}
		equal(t, s.LiveLeases(nil), leases[:2])
		equal(t, s.LiveLeases(func(l *remit.Lease) bool { return l.Run == run && l.State == remit.GrantActive }), leases[1:2])
		equal(t, s.LiveLeases(func(l *remit.Lease) bool { return l.Grant == grants[0].ID }), leases[:1])
		equal(t, len(s.LiveLeases(func(l *remit.Lease) bool { return l.Agent == "agent/other" })), 0)
		equal(t, s.LiveGrants(store.GrantFilter{State: remit.GrantPending}), grants[:1])
		page, err := s.Grants(store.GrantFilter{Run: run}, 10, grants[2].ID)
		if err != nil {
			t.Fatal(err)
		}
		equal(t, page, []remit.Grant{grants[1], grants[0]})
		of, err := s.LeasesOf(grants[2].ID)
		if err != nil {
			t.Fatal(err)
		}
		equal(t, of, leases[2:])
	})
	leases[1].State = remit.GrantEnded
	commit(t, s, remit.Change{Rows: []remit.Row{leases[1]}})
	equal(t, s.LiveLeases(nil), leases[:1])
	if l, ok := s.LeaseByCredential("JTI=1"); !ok || l.State != remit.GrantEnded {
		t.Errorf("an ended lease is found by its credential: %v %v", l.State, ok)
	}
}

func TestStatements(t *testing.T) {
	path := filepath.Join(t.TempDir(), "remit.db")
	s := open(t, store.Config{Path: path})
	base := time.UnixMilli(1700000000000).UTC()
	add := func(i int, name string, subjects ...remit.Digest) remit.Statement {
		e := remit.Statement{ID: remit.NewEvidenceID(), Kind: remit.EvidenceScan, Source: "trivy-ci", Name: name, Subjects: subjects,
			Envelope: []byte("{}"), Added: base.Add(time.Duration(i) * time.Second), AddedBy: "operator/ci"}
		commit(t, s, remit.Change{Rows: []remit.Row{e}})
		return e
	}
	if got := s.Statements("trivy-ci", remit.EvidenceScan, "sha256:aa", "", 10); len(got) != 0 {
		t.Fatal("statements out of nowhere")
	}
	a := add(1, "scan-1", "sha256:aa")
	b := add(3, "scan-2", "sha256:aa", "sha256:bb")
	c := add(2, "scan-3", "sha256:cc")
	find := func(s *store.Store, subject remit.Digest, name string, limit int) []remit.Statement {
		return s.Statements("trivy-ci", remit.EvidenceScan, subject, name, limit)
	}
	s = twice(t, s, path, func(t *testing.T, s *store.Store) {
		for range 2 { // the second time from the cache
			equal(t, find(s, "sha256:aa", "", 10), []remit.Statement{b, a})
			equal(t, find(s, "sha256:aa", "", 1), []remit.Statement{b})
			equal(t, find(s, "", "scan-3", 10), []remit.Statement{c})
			equal(t, find(s, "sha256:bb", "scan-1", 10), []remit.Statement{b, a})
			equal(t, find(s, "", "", 10), []remit.Statement{b, c, a})
		}
		equal(t, len(s.Statements("other", remit.EvidenceScan, "sha256:aa", "", 10)), 0)
		equal(t, len(s.Statements("trivy-ci", remit.EvidenceProvenance, "sha256:aa", "", 10)), 0)
		got, ok := s.Statement(c.ID)
		equal(t, ok, true)
		equal(t, got, c)
		list, err := s.ListStatements("trivy-ci", 2, "")
		if err != nil {
			t.Fatal(err)
		}
		equal(t, list, []remit.Statement{c, b})
		equal(t, s.EvidenceEpoch("trivy-ci"), uint64(3))
	})
	d := add(9, "scan-4", "sha256:aa")
	equal(t, find(s, "sha256:aa", "", 10), []remit.Statement{d, b, a})
	forged := d
	forged.Envelope, forged.Subjects = []byte("other"), []remit.Digest{"sha256:ff"}
	commit(t, s, remit.Change{Rows: []remit.Row{forged}})
	equal(t, find(s, "sha256:ff", "", 10), []remit.Statement(nil))
	if got, _ := s.Statement(d.ID); string(got.Envelope) != "{}" {
		t.Error("a stored envelope was replaced")
	}
}

func TestRevisionsLaunchesIssued(t *testing.T) {
	path := filepath.Join(t.TempDir(), "remit.db")
	now := time.Now().UTC()
	s := open(t, store.Config{Path: path})
	if _, ok := s.ActiveRevision(); ok {
		t.Fatal("a revision out of nowhere")
	}
	one := remit.Revision{Digest: "sha256:01", Files: map[string][]byte{"a.yaml": []byte("kind: Agent")}, At: now, By: "operator/ci"}
	two := remit.Revision{Digest: "sha256:02", Files: map[string][]byte{}, At: now}
	for _, r := range []remit.Revision{one, two, one} { // and back again
		commit(t, s, remit.Change{Rows: []remit.Row{r}})
	}
	l := remit.LaunchRecord{ID: remit.NewLaunchID(), Agent: "agent/deploy", Started: now}
	ended := remit.LaunchRecord{ID: remit.NewLaunchID(), Agent: "agent/deploy", Started: now, Ended: now}
	i := remit.Issued{Credential: "0a", Agent: "agent/deploy", Level: remit.LevelUser, Until: now.Add(time.Hour)}
	commit(t, s, remit.Change{Rows: []remit.Row{l, ended, i}})
	twice(t, s, path, func(t *testing.T, s *store.Store) {
		active, ok := s.ActiveRevision()
		equal(t, ok, true)
		equal(t, active, one)
		old, ok := s.Revision("sha256:02")
		equal(t, ok, true)
		equal(t, old, two)
		equal(t, s.Epoch(remit.PolicyKey), uint64(3))
		for _, want := range []remit.LaunchRecord{l, ended} {
			got, _ := s.Launch(want.ID)
			equal(t, got, want)
		}
		equal(t, s.LiveLaunches(), []remit.LaunchRecord{l})
		got, ok := s.Issued("0a")
		equal(t, ok, true)
		equal(t, got, i)
	})
}

// A used assertion stays used across a restart, until it may be forgotten.
func TestUsedOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "remit.db")
	now := time.Now()
	clock := func() time.Time { return now }
	s := open(t, store.Config{Path: path, Now: clock})
	use := func() error {
		_, err := s.Commit(context.Background(), remit.Change{
			Rows:    []remit.Row{remit.Used{Issuer: "https://a", JTI: "j", Until: now.Add(time.Minute)}},
			Require: []remit.Precondition{{Key: remit.UsedKey("https://a", "j"), Epoch: 0}}})
		return err
	}
	if err := use(); err != nil {
		t.Fatal(err)
	}
	wantCode(t, use(), remit.CodeConflict)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, store.Config{Path: path, Now: clock})
	wantCode(t, use(), remit.CodeConflict)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	now = now.Add(2 * time.Minute)
	s = open(t, store.Config{Path: path, Now: clock})
	if err := use(); err != nil {
		t.Fatal(err)
	}
}

func TestOpenRefuses(t *testing.T) {
	path := filepath.Join(t.TempDir(), "remit.db")
	s := open(t, store.Config{Path: path})
	_, err := store.Open(store.Config{Path: path, Sign: signBatch})
	wantCode(t, err, remit.CodeUnavailable)
	commit(t, s, remit.Change{Rows: []remit.Row{newRun()}})
	for _, suffix := range []string{"", "-wal", "-shm", ".lock"} {
		info, err := os.Stat(path + suffix)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != 0o600 {
			t.Errorf("remit.db%s has mode %o", suffix, info.Mode().Perm())
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	conn, err := sqlite.OpenConn(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := sqlitex.ExecuteTransient(conn, "PRAGMA user_version = 999", nil); err != nil {
		t.Fatal(err)
	}
	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}
	_, err = store.Open(store.Config{Path: path, Sign: signBatch})
	wantCode(t, err, remit.CodeInvalid)
}

func TestBackup(t *testing.T) {
	dir := t.TempDir()
	s := open(t, store.Config{})
	run := newRun()
	commit(t, s, remit.Change{Rows: []remit.Row{run}, Events: []remit.Event{decisionEvent(nil)}})
	path := filepath.Join(dir, "backup.db")
	if err := s.Backup(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	if err := s.Backup(t.Context(), path); err == nil {
		t.Fatal("a backup was overwritten")
	}
	restored := open(t, store.Config{Path: path})
	if _, ok := restored.Run(run.ID); !ok || restored.LastSeq() != 1 {
		t.Fatal("the backup is not whole")
	}
}

// TestNarrowedTwice: a throttle beside a step-up lifts nothing, whichever comes first, and the last of them is committed with both.
func TestNarrowedTwice(t *testing.T) {
	for _, first := range []remit.AgentStatus{{Agent: "agent/build", StepUp: "finance"}, {Agent: "agent/build", Throttled: true}} {
		s := open(t, store.Config{})
		second := remit.AgentStatus{Agent: "agent/build", Throttled: first.StepUp != ""}
		if first.Throttled {
			second.StepUp = "finance"
		}
		s.Narrow(&first)
		epoch, ok := s.Narrow(&second)
		if p := s.Posture("agent/build"); !ok || epoch != p.Epoch || p.StepUp != "finance" || !p.Throttled || second.StepUp != "finance" || !second.Throttled {
			t.Errorf("%+v: %+v", second, p)
		}
	}
}

// TestTools: what a server said first outlives the process, and two first lists cannot both be the first.
func TestTools(t *testing.T) {
	path := filepath.Join(t.TempDir(), "remit.db")
	s := open(t, store.Config{Path: path})
	if r, epoch := s.Tool("tool/crm"); r != nil || epoch != 0 {
		t.Fatalf("%+v at %d", r, epoch)
	}
	want := remit.ToolRecord{Tool: "tool/crm", Of: remit.DigestOf([]byte("origin")), First: time.Unix(1_800_000_000, 0).UTC(),
		Tools: map[string]remit.ToolPin{"look": {Digest: remit.DigestOf([]byte("look")), Tool: []byte(`{"name":"look"}`)}}}
	first := []remit.Precondition{{Key: remit.ToolKey("tool/crm")}}
	commit(t, s, remit.Change{Rows: []remit.Row{want}, Require: first})
	other := want
	other.Of = remit.DigestOf([]byte("other"))
	if _, err := s.Commit(t.Context(), remit.Change{Rows: []remit.Row{other}, Require: first}); remit.CodeOf(err) != remit.CodeConflict {
		t.Errorf("a second first list: %v", err)
	}
	twice(t, s, path, func(t *testing.T, s *store.Store) {
		got, epoch := s.Tool("tool/crm")
		if got == nil || epoch != 1 {
			t.Fatalf("%+v at %d", got, epoch)
		}
		equal(t, *got, want)
	})
}
