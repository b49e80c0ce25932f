// SPDX-License-Identifier: Apache-2.0

package ledger_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"remit"
	"remit/internal/ledger"
	"remit/internal/store"
)

// childDir, when set, makes the test binary the process that is killed.
const childDir = "LEDGER_TEST_CHILD"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		time.AfterFunc(2*time.Minute, func() { os.Exit(3) }) // never outlives a parent that was killed by much
		if err := crashChild(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// crashChild commits from many goroutines, sequences, and prints every receipt that it was handed, until it is killed.
func crashChild(dir string) error {
	key, err := ledger.LoadKey(filepath.Join(dir, "ledger.key"))
	if err != nil {
		return err
	}
	s, err := store.Open(store.Config{Path: filepath.Join(dir, "remit.db"), Sign: key.SignBatch})
	if err != nil {
		return err
	}
	seq, err := ledger.NewSequencer(ledger.SequencerConfig{Dir: filepath.Join(dir, "ledger"), Source: s, Key: key,
		Interval: 100 * time.Millisecond})
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := seq.Run(context.Background()); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	})
	var mu sync.Mutex
	for range 16 {
		wg.Go(func() {
			for i := 0; ; i++ {
				r, err := s.Commit(context.Background(), remit.Change{Events: []remit.Event{testEvent(i), testEvent(i)}})
				if err != nil {
					fmt.Fprintln(os.Stderr, err)
					os.Exit(1)
				}
				line, _ := json.Marshal(r)
				mu.Lock()
				_, _ = os.Stdout.Write(append(line, '\n'))
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return s.Close()
}

// TestKillAtAnyMoment kills the process with SIGKILL again and again. Every receipt that left it proves inclusion afterwards, no
// entry is in the log twice, and the log stays one.
func TestKillAtAnyMoment(t *testing.T) {
	dir := t.TempDir()
	key, err := ledger.CreateKey(filepath.Join(dir, "ledger.key"), "company.com/remit")
	if err != nil {
		t.Fatal(err)
	}
	rounds := 6
	if testing.Short() {
		rounds = 2
	}
	var receipts []remit.Receipt
	var remembered [][]byte
	w := &world{dir: dir, log: filepath.Join(dir, "ledger"), key: key}
	for i := range rounds {
		receipts = append(receipts, runAndKill(t, dir, time.Duration(150+i*97)*time.Millisecond)...)
		if cp, err := w.open(t).Checkpoint(); err == nil {
			remembered = append(remembered, cp.Note)
		}
	}
	w.openStore(t)
	report := verify(t, w.open(t), ledger.VerifyOptions{Receipts: receipts, Remembered: remembered, Tail: w.store})
	if !report.Intact() {
		t.Fatalf("after the kills: %+v", report)
	}
	t.Logf("%d receipts, %d entries, %d in the log, un-sequenced %+v", len(receipts), w.store.LastSeq(), report.Size, report.Unsequenced)
	stop := w.sequence(t)
	w.published(t, w.store.LastSeq())
	stop()
	report = verify(t, w.open(t), ledger.VerifyOptions{Receipts: receipts, Remembered: remembered, Tail: w.store})
	if !report.Complete() || report.Size != w.store.LastSeq() {
		t.Fatalf("after sequencing: %+v", report)
	}
	results, err := w.open(t).Audit(t.Context(), held(receipts[max(0, len(receipts)-500):]))
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range results {
		if r.Status != ledger.AuditProven {
			t.Fatalf("%+v", r)
		}
	}
	judgeByTessera(t, w)
}

// runAndKill starts the child, lets it work for a while after its first receipt, and kills it. A last line that was cut short
// was handed to nobody.
func runAndKill(t *testing.T, dir string, after time.Duration) []remit.Receipt {
	t.Helper()
	cmd := exec.Command(os.Args[0]) //nolint:gosec // ourselves
	cmd.Env = append(os.Environ(), childDir+"="+dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var receipts []remit.Receipt
	lines := bufio.NewReaderSize(out, 1<<20)
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			break
		}
		r, err := ledger.ParseReceipt(line)
		if err != nil {
			t.Fatal(err)
		}
		if len(receipts) == 0 {
			time.AfterFunc(after, func() { _ = cmd.Process.Kill() })
		}
		receipts = append(receipts, r)
	}
	_ = cmd.Wait() // killed
	if len(receipts) == 0 {
		t.Fatal("the child handed out no receipt")
	}
	return receipts
}
