// SPDX-License-Identifier: Apache-2.0

package store_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"remit"
	"remit/internal/store"
)

// childPath, when set, makes the test binary the process whose files may not grow.
const childPath = "STORE_TEST_CHILD"

func TestMain(m *testing.M) {
	if path := os.Getenv(childPath); path != "" {
		time.AfterFunc(2*time.Minute, func() { os.Exit(3) }) // never outlives a parent that was killed by much
		if err := fullDisk(path); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// TestFullDisk runs fullDisk in a process of its own, because a limit on file sizes holds for the whole process.
func TestFullDisk(t *testing.T) {
	cmd := exec.Command(os.Args[0]) //nolint:gosec // ourselves
	cmd.Env = append(os.Environ(), childPath+"="+filepath.Join(t.TempDir(), "remit.db"))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

// fullDisk makes every write beyond a file size fail, as a full disk does: commits fail and acknowledge nothing, suspension
// still acts, and when there is room again the store works, with no gap and nothing of what had failed.
func fullDisk(path string) error {
	signal.Ignore(unix.SIGXFSZ) // so that write returns EFBIG
	s, err := store.Open(store.Config{Path: path, Sign: signBatch})
	if err != nil {
		return err
	}
	event := remit.Change{Events: []remit.Event{decisionEvent(nil)}}
	for range 50 {
		if _, err := s.Commit(context.Background(), event); err != nil {
			return err
		}
	}
	info, err := os.Stat(path + "-wal")
	if err != nil {
		return err
	}
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_FSIZE, &old); err != nil {
		return err
	}
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: uint64(info.Size()) + 10_000, Max: old.Max}); err != nil {
		return err
	}
	acknowledged, failed, err := untilFull(s)
	if err != nil {
		return err
	}
	last := s.LastSeq()
	if failed == 0 || last != uint64(50+acknowledged) {
		return fmt.Errorf("%d acknowledged, %d failed, %d written", acknowledged, failed, last-50)
	}
	s.SetSuspended("agent/deploy", "stolen")
	if !s.Posture("agent/deploy").Suspended {
		return fmt.Errorf("a full disk kept a suspension from acting")
	}
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &old); err != nil {
		return err
	}
	r, err := s.Commit(context.Background(), event)
	if err != nil || r.Seq != last+1 {
		return fmt.Errorf("with room again: entry %d after %d, %w", r.Seq, last, err)
	}
	return s.Close()
}

// untilFull commits from several goroutines until each has failed.
func untilFull(s *store.Store) (acknowledged, failed int, err error) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 5000 { // far more than there is room for
				_, e := s.Commit(context.Background(), remit.Change{Events: []remit.Event{decisionEvent(nil)}})
				mu.Lock()
				switch {
				case e == nil:
					acknowledged++
				case remit.CodeOf(e) != remit.CodeUnavailable:
					err = e
				default:
					failed++
				}
				mu.Unlock()
				if e != nil {
					return
				}
			}
		})
	}
	wg.Wait()
	return acknowledged, failed, err
}

// A database that reached its bound refuses, and goes on where it may grow again.
func TestMaxBytes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "remit.db")
	s := open(t, store.Config{Path: path, MaxBytes: 600 << 10})
	big := remit.Change{Events: []remit.Event{decisionEvent(append(append([]byte(`"`), bytes.Repeat([]byte("x"), 60_000)...), '"'))}}
	var last uint64
	for {
		r, err := s.Commit(t.Context(), big)
		if err != nil {
			wantCode(t, err, remit.CodeUnavailable)
			break
		}
		last = r.Seq
	}
	if last == 0 || s.LastSeq() != last {
		t.Fatalf("acknowledged up to %d, written up to %d", last, s.LastSeq())
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, store.Config{Path: path})
	if r := commit(t, s, big); r.Seq != last+1 {
		t.Fatalf("entry %d after %d", r.Seq, last)
	}
}

// The log of pages is copied into the database while commits go on, and does not grow without end.
func TestLogOfPagesStaysSmall(t *testing.T) {
	path := filepath.Join(t.TempDir(), "remit.db")
	s := open(t, store.Config{Path: path})
	data := append(append([]byte(`"`), bytes.Repeat([]byte("x"), 60_000)...), '"')
	var slowest time.Duration
	for range 1500 { // 90 MB
		start := time.Now()
		commit(t, s, remit.Change{Events: []remit.Event{decisionEvent(data)}})
		slowest = max(slowest, time.Since(start))
	}
	info, err := os.Stat(path + "-wal")
	if err != nil {
		t.Fatal(err)
	}
	if info.Size() > 48<<20 {
		t.Fatalf("the log of pages has %d bytes", info.Size())
	}
	t.Logf("log of pages %d MB, slowest commit %v", info.Size()>>20, slowest)
}

// Expired assertions and issued identities are forgotten by a store that runs on, in memory and in the database.
func TestPurge(t *testing.T) {
	path := filepath.Join(t.TempDir(), "remit.db")
	var mu sync.Mutex
	now := time.Now()
	s := open(t, store.Config{Path: path, Now: func() time.Time { mu.Lock(); defer mu.Unlock(); return now }})
	time.Sleep(50 * time.Millisecond) // the first purge, which finds nothing, is over
	until := now.Add(time.Minute)
	commit(t, s, remit.Change{Rows: []remit.Row{remit.Used{Issuer: "a", JTI: "j", Until: until},
		remit.Issued{Credential: "0a", Until: until}, remit.Issued{Credential: "0b", Until: until.Add(time.Hour)}}})
	mu.Lock()
	now = now.Add(10 * time.Minute)
	mu.Unlock()
	commit(t, s, remit.Change{Events: []remit.Event{decisionEvent(nil)}}) // a writer that rested already looks at the clock again
	for deadline := time.Now().Add(10 * time.Second); s.Epoch(remit.UsedKey("a", "j")) != 0; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("an expired assertion is still remembered")
		}
	}
	if _, ok := s.Issued("0a"); ok {
		t.Error("an expired identity is still remembered")
	}
	if _, ok := s.Issued("0b"); !ok {
		t.Error("a live identity was forgotten")
	}
}
