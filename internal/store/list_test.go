// SPDX-License-Identifier: Apache-2.0

package store_test

import (
	"fmt"
	"path/filepath"
	"testing"
	"time"

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
		if i == 100 {
			time.Sleep(100 * time.Millisecond) // the writer is idle: it indexes
		}
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
