// SPDX-License-Identifier: Apache-2.0

package store

import (
	"os"
	"testing"

	"remit"
)

// S34: what the disk failed to keep is neither acknowledged nor shown, and nothing is written after it, until the store is opened again.
func TestDiskThatLosesWrites(t *testing.T) {
	cfg := Config{Path: t.TempDir() + "/db", Sign: func(_, _ uint64, _ [32]byte) (string, []byte, error) { return "k", make([]byte, 64), nil }}
	s, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	event := remit.Change{Events: []remit.Event{{Kind: remit.EventDecision, Data: []byte("{}")}}}
	if _, err := s.Commit(t.Context(), event); err != nil {
		t.Fatal(err)
	}
	pipe, _, err := os.Pipe() // of which no data can be synced
	if err != nil {
		t.Fatal(err)
	}
	log := s.w.log
	s.w.log = pipe
	for _, c := range []remit.Change{event, {Rows: []remit.Row{remit.Run{ID: remit.NewRunID(), State: remit.RunActive}}}} {
		if _, err := s.Commit(t.Context(), c); remit.CodeOf(err) != remit.CodeUnavailable {
			t.Errorf("acknowledged: %v", err)
		}
		if all, err := s.Entries(0, 10); len(all) != 1 || err != nil || s.LastSeq() != 1 {
			t.Errorf("%d entries are shown: %v", len(all), err)
		}
		s.tail = eventTail{} // so that the database is asked
		s.w.log = log        // and now the disk says that all is well
	}
	s.SetSuspended("agent/deploy", "stolen")
	if !s.Posture("agent/deploy").Suspended {
		t.Error("the disk kept a suspension from acting")
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := pipe.Close(); err != nil {
		t.Fatal(err)
	}
	if s, err = Open(cfg); err != nil {
		t.Fatal(err)
	}
	defer s.Close() //nolint:errcheck // the end of the test
	r, err := s.Commit(t.Context(), event)
	if err != nil || r.Seq != 3 { // the one that was not acknowledged may be there, and is
		t.Errorf("entry %d: %v", r.Seq, err)
	}
}
