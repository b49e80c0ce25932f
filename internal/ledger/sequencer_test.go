// SPDX-License-Identifier: Apache-2.0

package ledger_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/transparency-dev/tessera"
	"github.com/transparency-dev/tessera/storage/posix"
	"golang.org/x/mod/sumdb/note"

	"remit"
	"remit/internal/ledger"
)

// run runs a sequencer until it ends by itself, or for ten seconds.
func (w *world) run(t *testing.T, source ledger.Source) error {
	t.Helper()
	seq, err := ledger.NewSequencer(ledger.SequencerConfig{Dir: w.log, Source: source, Key: w.key})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	return seq.Run(ctx)
}

// The sequencer builds on the newest files. What does not match their checkpoint is not built on, and the log stays as it is.
func TestSequencerRefusesDamagedFiles(t *testing.T) {
	for _, name := range []string{"tile/entries/001.p/44", "tile/1/000.p/1", "checkpoint"} {
		w := newWorld(t)
		stop := w.sequence(t)
		w.commit(t, 300)
		w.published(t, 300)
		stop()
		path := filepath.Join(w.log, name)
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		text[len(text)-2] ^= 1
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		w.commit(t, 300)
		if err := w.run(t, w.store); err == nil {
			t.Errorf("%s: the sequencer goes on", name)
		}
		if _, err := os.Stat(filepath.Join(w.log, "tile/entries/001")); err == nil {
			t.Errorf("%s: a bundle was written on top of damaged files", name)
		}
	}
}

// gap leaves one entry out.
type gap struct{ ledger.Source }

func (g gap) Entries(after uint64, limit int) ([]remit.Entry, error) {
	entries, err := g.Source.Entries(after, limit)
	for i := range entries {
		if entries[i].Seq == 7 {
			return append(entries[:i:i], entries[i+1:]...), err
		}
	}
	return entries, err
}

func TestSequencerRefusesAGap(t *testing.T) {
	w := newWorld(t)
	w.commit(t, 10)
	if err := w.run(t, gap{w.store}); err == nil {
		t.Error("a log with a gap was written")
	}
	if cp, err := w.open(t).Checkpoint(); err != nil || cp.Size > 6 {
		t.Errorf("%d entries, %v", cp.Size, err)
	}
}

// Parts of tiles go when the full tile is published; clients with an older checkpoint take the full one.
func TestSupersededPartsAreRemoved(t *testing.T) {
	w := newWorld(t)
	stop := w.sequence(t)
	w.commit(t, 200)
	w.published(t, 200)
	old, err := w.open(t).Checkpoint()
	if err != nil {
		t.Fatal(err)
	}
	w.commit(t, 200)
	w.published(t, 400)
	stop()
	for _, name := range []string{"tile/entries/000.p", "tile/0/000.p"} {
		if _, err := os.Stat(filepath.Join(w.log, name)); err == nil {
			t.Errorf("%s is still there", name)
		}
	}
	if err := w.open(t).Consistent(t.Context(), old); err != nil {
		t.Error(err)
	}
	judgeByTessera(t, w)
}

// Logs of earlier versions were written by Tessera's own driver.
func TestTakesUpALogThatTesseraWrote(t *testing.T) {
	w := newWorld(t)
	w.commit(t, 700)
	writtenByTessera(t, w, 300)
	stop := w.sequence(t)
	w.published(t, 700)
	stop()
	if r := verify(t, w.open(t), ledger.VerifyOptions{Tail: w.store}); !r.Complete() || r.Size != 700 || len(r.Strays) > 0 {
		t.Errorf("%+v", r)
	}
	judgeByTessera(t, w)
}

func writtenByTessera(t *testing.T, w *world, n int) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(w.dir, "ledger.key"))
	if err != nil {
		t.Fatal(err)
	}
	private, _, _ := strings.Cut(string(text), "\n")
	signer, err := note.NewSigner(private)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	driver, err := posix.New(ctx, posix.Config{Path: w.log})
	if err != nil {
		t.Fatal(err)
	}
	appender, shutdown, _, err := tessera.NewAppender(ctx, driver, tessera.NewAppendOptions().WithCheckpointSigner(signer).
		WithBatching(1024, 50*time.Millisecond).WithCheckpointInterval(100*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	entries, err := w.store.Entries(0, n)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		appender.Add(ctx, tessera.NewEntry(e.Body))
	}
	if err := shutdown(ctx); err != nil {
		t.Fatal(err)
	}
}
