// SPDX-License-Identifier: Apache-2.0

package store_test

import (
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"remit"
	"remit/internal/store"
)

// BenchmarkDisk is the limit: 700 bytes appended to a file of fixed size, one fdatasync each.
func BenchmarkDisk(b *testing.B) {
	f, err := os.Create(filepath.Join(b.TempDir(), "raw"))
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Write(make([]byte, 8<<20)); err != nil {
		b.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		b.Fatal(err)
	}
	buf := make([]byte, 700)
	for i := 0; b.Loop(); i++ {
		if _, err := f.WriteAt(buf, int64(i*4096%(8<<20-4096))); err != nil {
			b.Fatal(err)
		}
		if err := unix.Fdatasync(int(f.Fd())); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkCommit appends one event of about 700 bytes a change, from 1 to 256 committers.
func BenchmarkCommit(b *testing.B) {
	for _, c := range []struct {
		name string
		n    int
	}{{"1", 1}, {"16", 16}, {"64", 64}, {"256", 256}} {
		b.Run(c.name, func(b *testing.B) { benchmarkCommit(b, c.n) })
	}
}

func benchmarkCommit(b *testing.B, committers int) {
	s := open(b, store.Config{})
	data := []byte(`{"id":"` + string(make700()) + `"}`)
	b.SetParallelism((committers + 1) / 2)
	if committers == 1 {
		for b.Loop() {
			commit(b, s, remit.Change{Events: []remit.Event{decisionEvent(data)}})
		}
	} else {
		var errs atomic.Int64
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				if _, err := s.Commit(b.Context(), remit.Change{Events: []remit.Event{decisionEvent(data)}}); err != nil {
					errs.Add(1)
				}
			}
		})
		if errs.Load() > 0 {
			b.Fatal(errs.Load(), "commits failed")
		}
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "commits/s")
}

func make700() []byte {
	out := make([]byte, 420)
	for i := range out {
		out[i] = 'a' + byte(i%26)
	}
	return out
}

func decisionEvent(data []byte) remit.Event {
	return remit.Event{At: time.Now(), Kind: remit.EventDecision, Agent: "agent/deploy", Run: "run-aaaaaaaaaaaaaaaaaaaaaaaaaa",
		Decision: remit.NewDecisionID(), By: "spiffe://company.com/agent/deploy", Data: data}
}

func BenchmarkRun(b *testing.B) {
	s := open(b, store.Config{})
	run := newRun()
	commit(b, s, remit.Change{Rows: []remit.Row{run}})
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, ok := s.Run(run.ID); !ok {
				b.Fatal("no run")
			}
		}
	})
}

func BenchmarkPosture(b *testing.B) {
	s := open(b, store.Config{})
	s.SetSuspended("agent/deploy", "test")
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if !s.Posture("agent/deploy").Suspended {
				b.Fatal("not suspended")
			}
		}
	})
}
