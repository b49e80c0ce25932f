// SPDX-License-Identifier: Apache-2.0

package store_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"remit"
	"remit/internal/store"
)

// The log of pages has room before it is written to. What a crash leaves, entries and then zeros, is read up to the last entry.
func TestRoomInTheLog(t *testing.T) {
	path, copied := filepath.Join(t.TempDir(), "remit.db"), filepath.Join(t.TempDir(), "remit.db")
	s := open(t, store.Config{Path: path})
	data := append(append([]byte(`"`), bytes.Repeat([]byte("x"), 60_000)...), '"')
	for range 5 {
		commit(t, s, remit.Change{Events: []remit.Event{decisionEvent(data)}})
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		info, err := os.Stat(path + "-wal")
		if err == nil && info.Size() >= 1<<20 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the log was not made longer than what is written to it: %v, %v", info, err)
		}
	}
	last := commit(t, s, remit.Change{Events: []remit.Event{decisionEvent(nil)}}).Seq
	for _, suffix := range []string{"", "-wal"} { // what is durable, without what is in memory
		b, err := os.ReadFile(path + suffix)
		if err == nil {
			err = os.WriteFile(copied+suffix, b, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	again := open(t, store.Config{Path: copied})
	if got := again.LastSeq(); got != last {
		t.Fatalf("%d entries of %d outlived a crash", got, last)
	}
	if r := commit(t, again, remit.Change{Events: []remit.Event{decisionEvent(nil)}}); r.Seq != last+1 {
		t.Fatalf("entry %d follows %d", r.Seq, last)
	}
}

// A change that nobody's answer depends on is written with the next that somebody waits for, or by itself a moment later.
func TestUnhurriedWaitsForCompany(t *testing.T) {
	s := open(t, store.Config{})
	act := remit.Change{Events: []remit.Event{decisionEvent(nil)}, Unhurried: true}
	if r := commit(t, s, act); r.Seq != 1 {
		t.Fatalf("alone it is entry %d", r.Seq)
	}
	for range 100 { // a busy machine is late at times
		acted := make(chan remit.Receipt, 1)
		go func() {
			r, err := s.Commit(t.Context(), act)
			if err != nil {
				err = fmt.Errorf("an unhurried change: %w", err)
				t.Error(err)
			}
			acted <- r
		}()
		time.Sleep(time.Millisecond)
		r := commit(t, s, remit.Change{Events: []remit.Event{decisionEvent(nil)}})
		if a := <-acted; a.Size == 2 && a.First == r.First {
			return
		}
	}
	t.Fatal("unhurried changes were never written with others")
}

// TestLogOfAnEarlierProcess: what a process that died left in the log of pages is in the database before the next one writes, wherever the
// log's bytes are.
func TestLogOfAnEarlierProcess(t *testing.T) {
	paths := make([]string, 3)
	for i := range paths {
		paths[i] = filepath.Join(t.TempDir(), "remit.db")
	}
	copyTo := func(from, to, suffix string) {
		b, err := os.ReadFile(from + suffix)
		if err == nil {
			err = os.WriteFile(to+suffix, b, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	s := open(t, store.Config{Path: paths[0]})
	last := commit(t, s, remit.Change{Events: []remit.Event{decisionEvent(nil)}}).Seq
	copyTo(paths[0], paths[1], "")
	copyTo(paths[0], paths[1], "-wal")
	open(t, store.Config{Path: paths[1]})
	copyTo(paths[1], paths[2], "") // as if the log were lost
	if got := open(t, store.Config{Path: paths[2]}).LastSeq(); got != last {
		t.Errorf("%d entries of %d are in the database", got, last)
	}
}
