// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"sync"
	"time"

	"github.com/transparency-dev/tessera"
	"github.com/transparency-dev/tessera/storage/posix"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/sys/unix"

	"remit"
	"remit/internal/ledger"
	"remit/internal/store"
)

// appends are the three ways to make 700 bytes durable that are compared; each returns what went wrong.
type appends struct {
	ours, tessera, disk func() error
	close               []func() error
}

// ledger compares a durable append with its receipt, the log being written behind it, with one fdatasync and with Tessera.
func (b *bench) ledger(ctx context.Context) (err error) {
	a := &appends{}
	defer func() {
		for _, c := range a.close {
			err = errors.Join(err, c())
		}
	}()
	key, s, err := b.openLedger(a)
	if err != nil {
		return err
	}
	if err := b.openTessera(ctx, a); err != nil {
		return err
	}
	if err := b.openDisk(a); err != nil {
		return err
	}
	var sync1, ours1, ours256, tessera1, tessera256 appended
	for range b.rounds {
		for _, m := range []struct {
			into *appended
			n    int
			f    func() error
		}{{&sync1, 1, a.disk}, {&ours1, 1, a.ours}, {&tessera256, 256, a.tessera}, {&ours256, 256, a.ours}, {&tessera1, 1, a.tessera}} {
			if err := m.into.round(m.n, b.round, m.f, func() error { return b.sequenced(s) }); err != nil {
				return err
			}
		}
	}
	each := func(a appended) string { return figure(1e3/median(a.rate)) + " ms" }
	b.table.add(row{what: "ledger append, durable, 1 writer", ours: each(ours1), theirs: "one fdatasync: " + each(sync1), got: median(sync1.rate) / median(ours1.rate), want: 2.5, unit: "× time"})
	b.table.add(row{what: "the same beside Tessera POSIX", ours: each(ours1), theirs: each(tessera1), got: median(ours1.rate) / median(tessera1.rate), want: 10, least: true, unit: "× faster"})
	b.table.add(row{what: "ledger append, durable, 256 writers", ours: ours256.String(), theirs: "Tessera POSIX: " + tessera256.String(),
		got: median(ours256.rate) / median(tessera256.rate), want: 4, least: true, unit: "× rate"})
	return b.check(ctx, key, s)
}

// appended are the rounds of one way to append: a second, and µs of processor time each, work that was put off included.
type appended struct{ rate, cpu []float64 }

func (a *appended) String() string {
	return fmt.Sprintf("%s/s, CPU %s µs", figure(median(a.rate)), figure(median(a.cpu)))
}

func (a *appended) round(n int, d time.Duration, f, settle func() error) error {
	before, err := cpu(os.Getpid())
	if err != nil {
		return err
	}
	r, err := rate(n, d, f)
	if err = errors.Join(err, settle()); err != nil {
		return err
	}
	after, err := cpu(os.Getpid())
	a.rate, a.cpu = append(a.rate, r), append(a.cpu, float64((after-before).Microseconds())/(r*d.Seconds()))
	return err
}

func (b *bench) openLedger(a *appends) (*ledger.Key, *store.Store, error) {
	key, err := ledger.CreateKey(b.path("ledger.key"), trustDomain+"/bench")
	if err != nil {
		return nil, nil, err
	}
	s, err := store.Open(store.Config{Path: b.path("ledger.db"), Sign: key.SignBatch})
	if err != nil {
		return nil, nil, err
	}
	sequencer, err := ledger.NewSequencer(ledger.SequencerConfig{Dir: b.path("ledger"), Source: s, Key: key, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- sequencer.Run(ctx) }()
	a.close = append(a.close, func() error { cancel(); return errors.Join(<-done, s.Close()) })
	a.ours = func() error {
		_, err := s.Commit(ctx, remit.Change{Events: []remit.Event{sampleEvent()}})
		return err
	}
	return key, s, nil
}

// openTessera is Tessera used directly, in the setting that is its best for throughput.
func (b *bench) openTessera(ctx context.Context, a *appends) error {
	ctx, cancel := context.WithCancel(ctx)
	a.close = append(a.close, func() error { cancel(); return nil })
	driver, err := posix.New(ctx, posix.Config{Path: b.path("direct")})
	if err != nil {
		return err
	}
	private, _, err := note.GenerateKey(rand.Reader, "direct")
	if err != nil {
		return err
	}
	signer, err := note.NewSigner(private)
	if err != nil {
		return err
	}
	appender, _, _, err := tessera.NewAppender(ctx, driver, tessera.NewAppendOptions().WithCheckpointSigner(signer).
		WithBatching(256, 10*time.Millisecond).WithCheckpointInterval(250*time.Millisecond).WithGarbageCollectionInterval(5*time.Second))
	if err != nil {
		return err
	}
	a.tessera = func() error {
		e := sampleEvent()
		_, err := appender.Add(ctx, tessera.NewEntry(e.AppendJSON(nil, 1)))()
		return err
	}
	return nil
}

// openDisk is the limit: 700 bytes written to a file of fixed size, one fdatasync each.
func (b *bench) openDisk(a *appends) error {
	const size = 8 << 20
	f, err := os.Create(b.path("raw"))
	if err != nil {
		return err
	}
	a.close = append(a.close, f.Close)
	if _, err := f.Write(make([]byte, size)); err != nil {
		return err
	}
	buf, at := make([]byte, 700), int64(0)
	a.disk = func() error {
		_, err := f.WriteAt(buf, at)
		at = (at + 4096) % (size - 4096)
		return errors.Join(err, unix.Fdatasync(int(f.Fd())))
	}
	return f.Sync()
}

// sequenced waits until the log has what the store has, so that work which was put off is nobody else's burden.
func (b *bench) sequenced(s *store.Store) error {
	key, err := ledger.LoadKey(b.path("ledger.key"))
	if err != nil {
		return err
	}
	log, err := ledger.OpenLog(b.path("ledger"), key.Public())
	if err != nil {
		return err
	}
	for end := time.Now().Add(2 * time.Minute); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if cp, err := log.Checkpoint(); err == nil && cp.Size >= s.LastSeq() {
			return nil
		}
	}
	return errors.New("the log does not catch up")
}

// check lets Tessera's own, unmodified fsck judge the tiles.
func (b *bench) check(ctx context.Context, key *ledger.Key, s *store.Store) error {
	if err := os.WriteFile(b.path("ledger.pub"), []byte(key.Public().String()), 0o600); err != nil {
		return err
	}
	if err := b.sequenced(s); err != nil {
		return err
	}
	u := url.URL{Scheme: "file", Path: b.path("ledger") + "/"}
	d, _, err := took(ctx, nil, b.fsck, "--storage_url="+u.String(), "--public_key="+b.path("ledger.pub"), "--ui=false", "--N=2")
	if err != nil {
		return err
	}
	b.table.add(row{what: "tiles judged by Tessera's fsck", ours: fmt.Sprintf("%d entries intact", s.LastSeq()), theirs: d.Round(time.Millisecond).String()})
	return nil
}

// rate calls f from n goroutines for a while and returns calls per second.
func rate(n int, d time.Duration, f func() error) (float64, error) {
	var wg sync.WaitGroup
	counts, errs := make([]int, n), make([]error, n)
	began := time.Now()
	for i := range n {
		wg.Go(func() {
			for errs[i] == nil && time.Since(began) < d {
				errs[i] = f()
				counts[i]++
			}
		})
	}
	wg.Wait()
	total := 0
	for _, c := range counts {
		total += c
	}
	return float64(total) / time.Since(began).Seconds(), errors.Join(errs...)
}

func sampleEvent() remit.Event {
	data := append(make([]byte, 0, 512), `{"text":"`...)
	for len(data) < 500 {
		data = append(data, 'x')
	}
	return remit.Event{At: time.Now(), Kind: remit.EventDecision, Agent: "agent/deploy", Run: "run-aaaaaaaaaaaaaaaaaaaaaaaaaa",
		Decision: "dec-aaaaaaaaaaaaaaaaaaaaaaaaaa", By: agentID("agent/deploy"), Data: append(data, `"}`...)}
}
