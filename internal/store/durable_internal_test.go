// SPDX-License-Identifier: Apache-2.0

package store

import (
	"os"
	"testing"
	"time"

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
	log := s.keeping.log
	s.keeping.log = pipe
	run := remit.Run{ID: remit.NewRunID(), State: remit.RunActive}
	for _, c := range []remit.Change{event, {Rows: []remit.Row{run}}} {
		if _, err := s.Commit(t.Context(), c); remit.CodeOf(err) != remit.CodeUnavailable {
			t.Errorf("acknowledged: %v", err)
		}
		if all, err := s.Entries(0, 10); len(all) != 1 || err != nil || s.LastSeq() != 1 {
			t.Errorf("%d entries are shown: %v", len(all), err)
		}
		s.tail = eventTail{} // so that the database is asked
		s.keeping.log = log  // and now the disk says that all is well
	}
	if s.keeping.sync() == nil { // what the writer had committed meanwhile
		t.Error("the next batch is acknowledged")
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
	if _, ok := s.Run(run.ID); ok {
		t.Error("what was refused after the failure was written")
	}
	r, err := s.Commit(t.Context(), event)
	if err != nil || r.Seq != 3 { // the one that was not acknowledged may be there, and is
		t.Errorf("entry %d: %v", r.Seq, err)
	}
}

// S11: a change meets the state as a batch leaves it that is committed and neither durable nor visible.
func TestBatchesBuildOnEachOther(t *testing.T) {
	signing, gathered := make(chan struct{}), make(chan struct{})
	entered, release := make(chan struct{}), make(chan struct{})
	s, err := Open(Config{Path: t.TempDir() + "/db", OnCommit: func(n uint64) {
		if n == 2 {
			close(entered)
			<-release
		}
	}, Sign: func(first, _ uint64, _ [32]byte) (string, []byte, error) {
		if first == 1 { // the batch is not passed on before enough waits behind it
			close(signing)
			<-gathered
		}
		return "k", make([]byte, 64), nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close() //nolint:errcheck // the end of the test
	run := remit.Run{ID: remit.NewRunID(), State: remit.RunActive}
	if _, err := s.Commit(t.Context(), remit.Change{Rows: []remit.Row{run}}); err != nil {
		t.Fatal(err)
	}
	event := remit.Change{Events: []remit.Event{{Kind: remit.EventDecision, Data: []byte("{}")}}}
	once := remit.Change{Rows: []remit.Row{run}, Events: event.Events, Require: []remit.Precondition{{Key: run.EpochKey(), Epoch: 1}}}
	first, others := make(chan error, 1), make(chan error, worthwhile)
	go func() { _, err := s.Commit(t.Context(), once); first <- err }()
	<-signing
	go func() { _, err := s.Commit(t.Context(), once); others <- err }()
	for range worthwhile - 1 {
		go func() { _, err := s.Commit(t.Context(), event); others <- err }()
	}
	queued := func(want bool) bool {
		for end := time.Now().Add(20 * time.Second); (s.queue.waiting() == worthwhile) != want; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				return false
			}
		}
		return true
	}
	gatheredAll := queued(true)
	close(gathered)
	<-entered
	taken := queued(false)
	if !gatheredAll || !taken {
		t.Error("the writer waits for the disk though enough changes wait for it")
	}
	if s.Epoch(run.EpochKey()) != 1 || s.LastSeq() != 0 {
		t.Error("what is not durable is shown")
	}
	close(release)
	conflicts := 0
	for range worthwhile {
		if err := <-others; remit.CodeOf(err) == remit.CodeConflict {
			conflicts++
		} else if err != nil {
			t.Error(err)
		}
	}
	if err := <-first; err != nil || conflicts != 1 || s.LastSeq() != worthwhile || s.Epoch(run.EpochKey()) != 2 {
		t.Errorf("%v, %d conflicts, last event %d, epoch %d", err, conflicts, s.LastSeq(), s.Epoch(run.EpochKey()))
	}
}
