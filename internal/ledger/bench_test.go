// SPDX-License-Identifier: Apache-2.0

package ledger_test

import (
	"context"
	"crypto/rand"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/transparency-dev/tessera"
	"github.com/transparency-dev/tessera/storage/posix"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/sys/unix"

	"remit"
)

// BenchmarkAppend measures a durable append with its receipt, the sequencer running, as ratios in one run: with one writer to one
// fdatasync, with 256 writers to Tessera used directly in the setting that was its best for throughput. Rounds interleave.
func BenchmarkAppend(b *testing.B) {
	const rounds, each = 3, 700 * time.Millisecond
	w := newWorld(b)
	defer w.sequence(b)()
	w.published(b, 0)
	ours := func() {
		if _, err := w.store.Commit(context.Background(), remit.Change{Events: []remit.Event{benchEvent()}}); err != nil {
			b.Error(err)
		}
	}
	direct := directTessera(b)
	disk := rawDisk(b)
	var sync1, ours1, ours256, tessera256, tessera1 float64
	for range rounds {
		sync1 += rate(1, each, disk)
		ours1 += rate(1, each, ours)
		ours256 += rate(256, each, ours)
		tessera256 += rate(256, each, direct)
		tessera1 += rate(1, each, direct)
	}
	b.ReportMetric(sync1/ours1, "x-fdatasync/1")
	b.ReportMetric(ours1/tessera1, "x-tessera/1")
	b.ReportMetric(ours256/tessera256, "x-tessera/256")
	b.ReportMetric(ours256/rounds, "appends/s/256")
	b.ReportMetric(ours1/rounds, "appends/s/1")
	b.ReportMetric(tessera256/rounds, "tessera/s/256")
	b.ReportMetric(0, "ns/op")
}

// rate calls f from n goroutines for a while and returns calls per second.
func rate(n int, d time.Duration, f func()) float64 {
	var wg sync.WaitGroup
	counts := make([]int, n)
	start := time.Now()
	for i := range n {
		wg.Go(func() {
			for time.Since(start) < d {
				f()
				counts[i]++
			}
		})
	}
	wg.Wait()
	total := 0
	for _, c := range counts {
		total += c
	}
	return float64(total) / time.Since(start).Seconds()
}

func benchEvent() remit.Event {
	e := testEvent(1)
	e.Data = make([]byte, 0, 512)
	e.Data = append(e.Data, `{"text":"`...)
	for len(e.Data) < 500 {
		e.Data = append(e.Data, 'x')
	}
	e.Data = append(e.Data, `"}`...)
	return e
}

func directTessera(b *testing.B) func() {
	b.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	b.Cleanup(cancel)
	driver, err := posix.New(ctx, posix.Config{Path: filepath.Join(b.TempDir(), "direct")})
	if err != nil {
		b.Fatal(err)
	}
	private, _, err := note.GenerateKey(rand.Reader, "direct")
	if err != nil {
		b.Fatal(err)
	}
	signer, err := note.NewSigner(private)
	if err != nil {
		b.Fatal(err)
	}
	appender, _, _, err := tessera.NewAppender(ctx, driver, tessera.NewAppendOptions().WithCheckpointSigner(signer).
		WithBatching(256, 10*time.Millisecond).WithCheckpointInterval(250*time.Millisecond).
		WithGarbageCollectionInterval(5*time.Second))
	if err != nil {
		b.Fatal(err)
	}
	return func() {
		e := benchEvent()
		if _, err := appender.Add(ctx, tessera.NewEntry(e.AppendJSON(nil, 1)))(); err != nil {
			b.Error(err)
		}
	}
}

func rawDisk(b *testing.B) func() {
	b.Helper()
	f, err := os.Create(filepath.Join(b.TempDir(), "raw"))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = f.Close() })
	const size = 8 << 20
	if _, err := f.Write(make([]byte, size)); err != nil {
		b.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		b.Fatal(err)
	}
	buf, at := make([]byte, 700), int64(0)
	return func() {
		if _, err := f.WriteAt(buf, at); err != nil {
			b.Error(err)
		}
		if err := unix.Fdatasync(int(f.Fd())); err != nil {
			b.Error(err)
		}
		at = (at + 4096) % (size - 4096)
	}
}
