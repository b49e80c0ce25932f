// SPDX-License-Identifier: Apache-2.0

package store_test

import (
	"errors"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"zombiezen.com/go/sqlite"
	"zombiezen.com/go/sqlite/sqlitex"

	"remit"
	"remit/internal/store"
)

func TestEventLists(t *testing.T) {
	path := filepath.Join(t.TempDir(), "remit.db")
	s := open(t, store.Config{Path: path})
	var decisions []remit.DecisionID
	runs := []remit.RunID{remit.NewRunID(), remit.NewRunID()}
	for i := range 200 {
		e := remit.Event{At: time.Now(), Kind: remit.EventDecision, Agent: remit.Name(fmt.Sprintf("agent/a%d", i%3)),
			Run: runs[i%2], Decision: remit.NewDecisionID(), By: "remit"}
		grant := remit.Event{At: e.At, Kind: remit.EventGrant, Agent: e.Agent, Run: e.Run, Decision: e.Decision, Grant: remit.NewGrantID(),
			Lease: remit.NewLeaseID()}
		commit(t, s, remit.Change{Events: []remit.Event{e, grant}})
		decisions = append(decisions, e.Decision)
	}
	twice(t, s, path, func(t *testing.T, s *store.Store) {
		for i, id := range decisions {
			e, ok, err := s.Decision(id)
			if err != nil || !ok || e.Seq != uint64(2*i+1) {
				t.Fatalf("decision %d: entry %d, %v, %v", i, e.Seq, ok, err)
			}
		}
		if _, ok, err := s.Decision(remit.NewDecisionID()); ok || err != nil {
			t.Fatal(ok, err)
		}
		for _, c := range []struct {
			name   string
			filter store.EventFilter
			want   int
		}{
			{"all", store.EventFilter{}, 400},
			{"kind", store.EventFilter{Kind: remit.EventGrant}, 200},
			{"agent", store.EventFilter{Agent: "agent/a0"}, 134},
			{"run", store.EventFilter{Run: runs[1]}, 200},
			{"run and kind", store.EventFilter{Run: runs[1], Kind: remit.EventDecision}, 100},
			{"decision", store.EventFilter{Decision: decisions[7]}, 2},
			{"nobody", store.EventFilter{Agent: "agent/none"}, 0},
		} {
			if got := countPages(t, s, c.filter, 17); got != c.want {
				t.Errorf("%s: %d events, want %d", c.name, got, c.want)
			}
		}
	})
}

func countPages(t *testing.T, s *store.Store, f store.EventFilter, limit int) int {
	t.Helper()
	total, after := 0, uint64(0)
	for {
		entries, next, err := s.Events(f, after, limit)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if e.Seq <= after {
				t.Fatalf("entry %d after %d", e.Seq, after)
			}
			after = e.Seq
		}
		total += len(entries)
		if next == 0 {
			return total
		}
		after = next
	}
}

// Refs that wait are in memory, the others in segments; lists find both, across a restart, and however many there are.
func TestEventsAcrossSegments(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	s := open(t, store.Config{Path: path})
	const changes, each = 8, 3000 // about 70,000 refs: two segments and a rest
	run := remit.NewRunID()
	var ids []remit.DecisionID
	for i := range changes {
		events := make([]remit.Event, each)
		for j := range events {
			events[j] = remit.Event{At: time.Now(), Kind: remit.EventDecision, Agent: remit.Name(fmt.Sprintf("agent/a%d", j%3)), Run: run,
				Decision: remit.NewDecisionID(), By: "remit"}
		}
		ids = append(ids, events[0].Decision, events[each-1].Decision)
		commit(t, s, remit.Change{Events: events})
		commit(t, s, remit.Change{Events: []remit.Event{{At: time.Now(), Kind: remit.EventGrant, Agent: "agent/rare", Decision: ids[2*i], By: "remit"}}})
	}
	check := func(t *testing.T, s *store.Store) {
		for i, id := range ids {
			if _, ok, err := s.Decision(id); err != nil || !ok {
				t.Fatalf("decision %d: %v, %v", i, ok, err)
			}
		}
		for f, want := range map[store.EventFilter]int{{Agent: "agent/rare"}: changes, {Agent: "agent/a1"}: changes * each / 3,
			{Decision: ids[4]}: 2, {Run: run}: changes * each} {
			if got := countPages(t, s, f, 1000); got != want {
				t.Errorf("%+v: %d events, want %d", f, got, want)
			}
		}
	}
	s = twice(t, s, path, check)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	asSchema2(t, path)
	check(t, open(t, store.Config{Path: path}))
}

// asSchema2 takes the index back to what it was before segments.
func asSchema2(t *testing.T, path string) {
	t.Helper()
	conn, err := sqlite.OpenConn(path, sqlite.OpenReadWrite)
	if err != nil {
		t.Fatal(err)
	}
	err = sqlitex.ExecuteScript(conn, `DROP TABLE ref_segments; DROP TABLE ref_blocks; DROP TABLE sessions; DROP TABLE people; DROP TABLE held; DROP TABLE findings; DROP TABLE tools;
		CREATE TABLE refs (ref INTEGER NOT NULL, seq INTEGER NOT NULL, PRIMARY KEY (ref, seq)) WITHOUT ROWID;
		INSERT INTO meta (name, value) VALUES ('indexed', 7); PRAGMA user_version = 2;`, nil)
	if err := errors.Join(err, conn.Close()); err != nil {
		t.Fatal(err)
	}
}
