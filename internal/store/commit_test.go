// SPDX-License-Identifier: Apache-2.0

package store_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"

	"remit"
	"remit/internal/store"
)

func wantCode(t *testing.T, err error, code remit.Code) {
	t.Helper()
	if remit.CodeOf(err) != code {
		t.Fatalf("error %v has code %q, want %q", err, remit.CodeOf(err), code)
	}
}

func verifyReceipt(t *testing.T, r remit.Receipt, body []byte) {
	t.Helper()
	leaf := remit.Entry{Body: body}.Hash()
	if !bytes.Equal(leaf[:], r.Leaf) {
		t.Fatalf("receipt %d is of another entry", r.Seq)
	}
	root, err := proof.RootFromInclusionProof(rfc6962.DefaultHasher, r.Seq-r.First, r.Size, r.Leaf, r.Path)
	if err != nil {
		t.Fatal(err)
	}
	if !ed25519.Verify(testKey.Public().(ed25519.PublicKey), batchText(r.First, r.Size, [32]byte(root)), r.Signature) {
		t.Fatalf("receipt %d of batch %d+%d: the signature does not verify", r.Seq, r.First, r.Size)
	}
}

func TestMovedEpochWritesNothing(t *testing.T) {
	s := open(t, store.Config{})
	run := newRun()
	commit(t, s, remit.Change{Rows: []remit.Row{run}})
	if got, _ := s.Run(run.ID); got.Epoch != 1 {
		t.Fatalf("epoch %d after the first write, want 1", got.Epoch)
	}
	stale := remit.Precondition{Key: remit.RunKey(run.ID), Epoch: 0}
	run.Stage = "other"
	_, err := s.Commit(t.Context(), remit.Change{Rows: []remit.Row{run}, Events: []remit.Event{decisionEvent(nil)},
		Require: []remit.Precondition{stale}})
	wantCode(t, err, remit.CodeConflict)
	if got, _ := s.Run(run.ID); got.Stage != "deploy" || got.Epoch != 1 || s.LastSeq() != 0 {
		t.Fatalf("a refused change left traces: %+v, last event %d", got, s.LastSeq())
	}
}

// Of many changes that rest on the same epoch, in one batch or several, exactly one is written.
func TestOneWinnerPerEpoch(t *testing.T) {
	s := open(t, store.Config{})
	for round := range 20 {
		key := remit.UsedKey("issuer", fmt.Sprint(round))
		var won sync.Map
		var wg sync.WaitGroup
		for i := range 32 {
			wg.Go(func() {
				_, err := s.Commit(t.Context(), remit.Change{
					Rows:    []remit.Row{remit.Used{Issuer: "issuer", JTI: fmt.Sprint(round), Until: time.Now().Add(time.Hour)}},
					Events:  []remit.Event{decisionEvent(nil)},
					Require: []remit.Precondition{{Key: key, Epoch: 0}}})
				if err == nil {
					won.Store(i, true)
				} else if remit.CodeOf(err) != remit.CodeConflict {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		n := 0
		won.Range(func(any, any) bool { n++; return true })
		if n != 1 || s.LastSeq() != uint64(round+1) {
			t.Fatalf("round %d: %d winners, last event %d", round, n, s.LastSeq())
		}
	}
}

func TestTightenActsBeforeAnyWrite(t *testing.T) {
	s := open(t, store.Config{})
	run := newRun()
	commit(t, s, remit.Change{Rows: []remit.Row{run}})
	seen, _ := s.Run(run.ID)
	for _, key := range []remit.EpochKey{remit.RunKey(run.ID), remit.AgentKey("agent/deploy"), remit.PolicyKey,
		remit.EvidenceKey("trivy-ci"), remit.LeaseKey("lease-x")} {
		before := s.Epoch(key)
		s.Tighten(key)
		_, err := s.Commit(t.Context(), remit.Change{Events: []remit.Event{decisionEvent(nil)},
			Require: []remit.Precondition{{Key: key, Epoch: before}}})
		wantCode(t, err, remit.CodeConflict)
		commit(t, s, remit.Change{Require: []remit.Precondition{{Key: key, Epoch: before + 1}}})
	}
	if got, _ := s.Run(run.ID); got.Epoch != seen.Epoch+1 {
		t.Fatalf("Run shows epoch %d after Tighten, want %d", got.Epoch, seen.Epoch+1)
	}
}

// A row that ended leaves memory, but its epoch never seems to be an earlier one again.
func TestEndedRowsKeepTheirEpoch(t *testing.T) {
	path := filepath.Join(t.TempDir(), "remit.db")
	s := open(t, store.Config{Path: path})
	run := newRun()
	commit(t, s, remit.Change{Rows: []remit.Row{run}})
	run.State = remit.RunFinished
	commit(t, s, remit.Change{Rows: []remit.Row{run}})
	check := func(s *store.Store, want uint64) {
		t.Helper()
		got, ok := s.Run(run.ID)
		if !ok || got.Epoch != want || s.Epoch(remit.RunKey(run.ID)) != want || got.State != remit.RunFinished {
			t.Fatalf("ended run: %+v %v, epoch %d; want epoch %d", got, ok, s.Epoch(remit.RunKey(run.ID)), want)
		}
		for epoch := range want {
			_, err := s.Commit(t.Context(), remit.Change{Require: []remit.Precondition{{Key: remit.RunKey(run.ID), Epoch: epoch}}})
			wantCode(t, err, remit.CodeConflict)
		}
	}
	check(s, 2)
	s.Tighten(remit.RunKey(run.ID))
	check(s, 3)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	check(open(t, store.Config{Path: path}), 2)
}

func TestSuspensionActsInMemory(t *testing.T) {
	path := filepath.Join(t.TempDir(), "remit.db")
	s := open(t, store.Config{Path: path})
	const agent = remit.Name("agent/deploy")
	seen := s.Posture(agent)
	s.SetSuspended(agent, "stolen")
	if p := s.Posture(agent); !p.Suspended || p.Reason != "stolen" || p.Epoch == seen.Epoch {
		t.Fatalf("posture %+v", p)
	}
	_, err := s.Commit(t.Context(), remit.Change{Require: []remit.Precondition{{Key: remit.AgentKey(agent), Epoch: seen.Epoch}}})
	wantCode(t, err, remit.CodeConflict)

	back := remit.AgentStatus{Agent: agent, At: time.Now()}
	_, err = s.Commit(t.Context(), remit.Change{Rows: []remit.Row{back}})
	wantCode(t, err, remit.CodeInvalid) // a reinstatement says which suspension it lifts
	stale := remit.Precondition{Key: remit.AgentKey(agent), Epoch: s.Posture(agent).Epoch}
	s.SetSuspended(agent, "again")
	_, err = s.Commit(t.Context(), remit.Change{Rows: []remit.Row{back}, Require: []remit.Precondition{stale}})
	wantCode(t, err, remit.CodeConflict)

	commit(t, s, remit.Change{Rows: []remit.Row{remit.AgentStatus{Agent: agent, Suspended: true, Reason: "again"}}})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, store.Config{Path: path})
	if p := s.Posture(agent); !p.Suspended || p.Reason != "again" {
		t.Fatalf("posture after a restart: %+v", p)
	}
	commit(t, s, remit.Change{Rows: []remit.Row{back},
		Require: []remit.Precondition{{Key: remit.AgentKey(agent), Epoch: s.Posture(agent).Epoch}}})
	if s.Posture(agent).Suspended {
		t.Fatal("still suspended")
	}
}

// A suspension between the check and the end of the write of a reinstatement is not undone by it.
func TestSuspensionDuringReinstatement(t *testing.T) {
	signing, goOn := make(chan struct{}), make(chan struct{})
	s := open(t, store.Config{Sign: func(first, size uint64, root [32]byte) (string, []byte, error) {
		signing <- struct{}{}
		<-goOn
		return signBatch(first, size, root)
	}})
	const agent = remit.Name("agent/deploy")
	s.SetSuspended(agent, "first")
	done := make(chan error)
	go func() {
		_, err := s.Commit(context.Background(), remit.Change{Rows: []remit.Row{remit.AgentStatus{Agent: agent}},
			Events:  []remit.Event{decisionEvent(nil)},
			Require: []remit.Precondition{{Key: remit.AgentKey(agent), Epoch: s.Posture(agent).Epoch}}})
		done <- err
	}()
	<-signing
	s.SetSuspended(agent, "second")
	seen := s.Posture(agent).Epoch
	close(goOn)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if p := s.Posture(agent); !p.Suspended || p.Reason != "second" || p.Epoch <= seen {
		t.Fatalf("posture %+v, want the second suspension at an epoch after %d", p, seen)
	}
}

func TestContextEndsWhileQueued(t *testing.T) {
	signing, goOn := make(chan struct{}, 8), make(chan struct{})
	s := open(t, store.Config{Queue: 1, Sign: func(first, size uint64, root [32]byte) (string, []byte, error) {
		signing <- struct{}{}
		<-goOn
		return signBatch(first, size, root)
	}})
	event := remit.Change{Events: []remit.Event{decisionEvent(nil)}}
	first := make(chan error)
	go func() { _, err := s.Commit(context.Background(), event); first <- err }()
	<-signing     // the writer is busy
	for range 3 { // the second and third do not even fit into the queue
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		_, err := s.Commit(ctx, event)
		cancel()
		wantCode(t, err, remit.CodeUnavailable)
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
	}
	close(goOn)
	if err := <-first; err != nil {
		t.Fatal(err)
	}
	commit(t, s, remit.Change{})
	if s.LastSeq() != 1 {
		t.Fatalf("%d events, want 1: who gave up must write nothing", s.LastSeq())
	}
}

// Who waits for room in a full queue is let in when the writer has taken what is before it, and nobody is left waiting by Close.
func TestFullQueue(t *testing.T) {
	signing, goOn := make(chan struct{}, 8), make(chan struct{})
	s := open(t, store.Config{Queue: 1, Sign: func(first, size uint64, root [32]byte) (string, []byte, error) {
		signing <- struct{}{}
		<-goOn
		return signBatch(first, size, root)
	}})
	const committers = 5
	answers := make(chan error)
	for range committers {
		go func() {
			_, err := s.Commit(context.Background(), remit.Change{Events: []remit.Event{decisionEvent(nil)}})
			answers <- err
		}()
	}
	for range 2 { // one at a time, because no more fit into a batch
		<-signing
		goOn <- struct{}{}
		if err := <-answers; err != nil {
			t.Fatal(err)
		}
	}
	<-signing
	closed := make(chan error)
	go func() { closed <- s.Close() }()
	for open := true; open; time.Sleep(time.Millisecond) {
		_, err := s.Entries(0, 1)
		open = err == nil
	}
	close(goOn)
	written := uint64(2)
	for range committers - 2 {
		if err := <-answers; err == nil {
			written++
		} else {
			wantCode(t, err, remit.CodeUnavailable)
		}
	}
	if err := <-closed; err != nil {
		t.Fatal(err)
	}
	if s.LastSeq() != written {
		t.Fatalf("%d written, %d acknowledged", s.LastSeq(), written)
	}
}

func TestFailedSignatureWritesNothing(t *testing.T) {
	fail := errors.New("no key")
	s := open(t, store.Config{Sign: func(first, size uint64, root [32]byte) (string, []byte, error) {
		if fail != nil {
			return "", nil, fail
		}
		return signBatch(first, size, root)
	}})
	run := newRun()
	change := remit.Change{Rows: []remit.Row{run}, Events: []remit.Event{decisionEvent(nil)}}
	_, err := s.Commit(t.Context(), change)
	wantCode(t, err, remit.CodeUnavailable)
	if _, ok := s.Run(run.ID); ok || s.LastSeq() != 0 || len(readAll(t, s)) != 0 {
		t.Fatal("something was written without a receipt")
	}
	fail = nil
	if r := commit(t, s, change); r.Seq != 1 {
		t.Fatalf("entry %d, want 1", r.Seq)
	}
}

// Events are numbered from 1 without gaps, stored as Event.AppendJSON writes them, and every receipt verifies with an
// independent implementation of RFC 6962.
func TestEventsAndReceipts(t *testing.T) {
	path := filepath.Join(t.TempDir(), "remit.db")
	s := open(t, store.Config{Path: path})
	type written struct {
		event   remit.Event
		receipt remit.Receipt
	}
	var mu sync.Mutex
	var all []written
	var wg sync.WaitGroup
	for w := range 32 {
		wg.Go(func() {
			for i := range 20 {
				c := remit.Change{}
				for range 1 + (w+i)%7 {
					c.Events = append(c.Events, decisionEvent([]byte(`{"n":`+fmt.Sprint(i)+`}`)))
				}
				r, err := s.Commit(context.Background(), c)
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				all = append(all, written{c.Events[0], r})
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	last := s.LastSeq()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, store.Config{Path: path})
	if s.LastSeq() != last {
		t.Fatalf("last event %d after a restart, want %d", s.LastSeq(), last)
	}
	entries := readAll(t, s)
	for i, e := range entries {
		if e.Seq != uint64(i+1) {
			t.Fatalf("entry %d at place %d", e.Seq, i+1)
		}
	}
	for _, w := range all {
		body := entries[w.receipt.Seq-1].Body
		if want := w.event.AppendJSON(nil, w.receipt.Seq); !bytes.Equal(body, want) {
			t.Fatalf("stored %s, want %s", body, want)
		}
		verifyReceipt(t, w.receipt, body)
	}
}

func readAll(t *testing.T, s *store.Store) []remit.Entry {
	t.Helper()
	var out []remit.Entry
	for {
		es, err := s.Entries(uint64(len(out)), 1000)
		if err != nil {
			t.Fatal(err)
		}
		if len(es) == 0 {
			return out
		}
		out = append(out, es...)
	}
}

func TestBounds(t *testing.T) {
	s := open(t, store.Config{})
	big := decisionEvent(append(append([]byte(`"`), bytes.Repeat([]byte("x"), 64<<10)...), '"'))
	_, err := s.Commit(t.Context(), remit.Change{Events: []remit.Event{big}})
	wantCode(t, err, remit.CodeExhausted)
	_, err = s.Commit(t.Context(), remit.Change{Events: make([]remit.Event, 5000)})
	wantCode(t, err, remit.CodeExhausted)
	run := newRun()
	_, err = s.Commit(t.Context(), remit.Change{Rows: []remit.Row{&run}})
	wantCode(t, err, remit.CodeInvalid)
	_, err = s.Commit(t.Context(), remit.Change{Rows: []remit.Row{remit.Revision{Files: map[string][]byte{"a": make([]byte, 16<<20)}}}})
	wantCode(t, err, remit.CodeExhausted)
	if s.LastSeq() != 0 {
		t.Fatal("something was written")
	}
}

func TestCommittedWakes(t *testing.T) {
	s := open(t, store.Config{})
	woken := s.Committed()
	commit(t, s, remit.Change{Events: []remit.Event{decisionEvent(nil)}})
	select {
	case <-woken:
	case <-time.After(5 * time.Second):
		t.Fatal("nobody was woken")
	}
}

func TestCloseAnswersEverybody(t *testing.T) {
	s := open(t, store.Config{})
	var wg sync.WaitGroup
	var acknowledged sync.Map
	for range 32 {
		wg.Go(func() {
			for {
				r, err := s.Commit(context.Background(), remit.Change{Events: []remit.Event{decisionEvent(nil)}})
				if err != nil {
					return
				}
				acknowledged.Store(r.Seq, true)
			}
		})
	}
	time.Sleep(20 * time.Millisecond)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	wg.Wait() // nobody hangs
	n := 0
	acknowledged.Range(func(any, any) bool { n++; return true })
	if uint64(n) != s.LastSeq() {
		t.Fatalf("%d acknowledged, %d written", n, s.LastSeq())
	}
	if _, err := s.Entries(0, 1); remit.CodeOf(err) != remit.CodeUnavailable {
		t.Fatal(err)
	}
}

// A Tighten while the end of a run is being written is not forgotten when the run leaves memory.
func TestTightenWhileARunEnds(t *testing.T) {
	signing, goOn := make(chan struct{}), make(chan struct{})
	s := open(t, store.Config{Sign: func(first, size uint64, root [32]byte) (string, []byte, error) {
		signing <- struct{}{}
		<-goOn
		return signBatch(first, size, root)
	}})
	run := newRun()
	commit(t, s, remit.Change{Rows: []remit.Row{run}})
	run.State = remit.RunFinished
	done := make(chan error)
	go func() {
		_, err := s.Commit(context.Background(), remit.Change{Rows: []remit.Row{run}, Events: []remit.Event{decisionEvent(nil)}})
		done <- err
	}()
	<-signing
	s.Tighten(remit.RunKey(run.ID))
	seen, _ := s.Run(run.ID) // still active, at the epoch that the end was given
	close(goOn)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	_, err := s.Commit(t.Context(), remit.Change{Require: []remit.Precondition{{Key: remit.RunKey(run.ID), Epoch: seen.Epoch}}})
	wantCode(t, err, remit.CodeConflict)
}
