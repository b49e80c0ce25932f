// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/transparency-dev/tessera"
	"github.com/transparency-dev/tessera/client"
	"github.com/transparency-dev/tessera/storage/posix"
	"golang.org/x/sys/unix"

	"remit"
)

// Source is where durable entries come from; the store implements it.
type Source interface {
	// Entries returns the entries after a number, in order and without gaps, at most limit.
	Entries(after uint64, limit int) ([]remit.Entry, error)
	// Committed returns a channel that is closed when there may be more entries.
	Committed() <-chan struct{}
}

// SequencerConfig says what goes where.
type SequencerConfig struct {
	// Dir holds the log; it is made with mode 0700. Required. One Sequencer at a time may run on it.
	Dir string
	// Source is read in order. Required.
	Source Source
	// Key signs checkpoints. Required.
	Key *Key
	// Interval between checkpoints, at least 100 ms; 0 is 250 ms. An entry is provable within about twice of it and half a second.
	Interval time.Duration
	// Log hears of failed attempts, which are repeated; nil is slog.Default().
	Log *slog.Logger
}

const (
	chunkSize    = 4096                   // entries that are added together, at most
	chunkAge     = 100 * time.Millisecond // how long Tessera waits for a chunk to fill
	gather       = 400 * time.Millisecond // between chunks that were not full: each costs a dozen files, and syncs of them
	collectEvery = 5 * time.Second        // of superseded partial tiles
	retryAfter   = time.Second
	stopWithin   = 10 * time.Second
)

// Sequencer moves entries from the store to the log, where the entry with number N has index N-1. It keeps no state of its own:
// after a crash the log's size says where to go on, so nothing is added twice.
type Sequencer struct{ cfg SequencerConfig }

// NewSequencer checks the configuration.
func NewSequencer(cfg SequencerConfig) (*Sequencer, error) {
	if cfg.Dir == "" || cfg.Source == nil || cfg.Key == nil {
		return nil, errors.New("ledger: Dir, Source and Key are required")
	}
	if cfg.Interval == 0 {
		cfg.Interval = 250 * time.Millisecond
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	return &Sequencer{cfg: cfg}, nil
}

// Run sequences until the context ends, which is no error; then it publishes what it added. Attempts that fail, as on a full
// disk, are logged and repeated. It returns an error at once when going on would damage the log: the store is older than the
// log, or the log assigned an index that is not the entry's.
func (s *Sequencer) Run(ctx context.Context) error {
	lock, err := s.acquire()
	if err != nil {
		return err
	}
	defer lock.Close()                                              //nolint:errcheck // releases the lock in any case
	inner, cancel := context.WithCancel(context.WithoutCancel(ctx)) // Tessera stops after the last checkpoint, not before
	defer cancel()
	appender, shutdown, reader, err := s.open(inner)
	if err != nil {
		return fmt.Errorf("open the log in %s: %w", s.cfg.Dir, err)
	}
	err = s.check(inner, reader)
	for err == nil && ctx.Err() == nil {
		committed := s.cfg.Source.Committed() // before reading, so that no commit is missed
		var n int
		n, err = s.step(inner, appender, reader)
		switch {
		case errors.Is(err, errDisorder):
		case err != nil:
			s.cfg.Log.Warn("sequencing entries into the ledger; trying again", "error", err)
			err = nil
			pause(ctx, nil, retryAfter)
		case n == 0:
			pause(ctx, committed, retryAfter)
		case n < chunkSize:
			pause(ctx, nil, gather)
		}
	}
	stop, stopped := context.WithTimeout(inner, stopWithin)
	defer stopped()
	return errors.Join(err, shutdown(stop))
}

// pause waits for a commit, for a while, or for the end.
func pause(ctx context.Context, committed <-chan struct{}, most time.Duration) {
	t := time.NewTimer(most)
	defer t.Stop()
	select {
	case <-committed:
	case <-ctx.Done():
	case <-t.C:
	}
}

// acquire makes the folder and keeps a second sequencer out.
func (s *Sequencer) acquire() (*os.File, error) {
	if err := os.MkdirAll(s.cfg.Dir, 0o700); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(s.cfg.Dir, ".lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(&remit.Error{Code: remit.CodeUnavailable, Msg: "another process sequences into " + s.cfg.Dir, Cause: err}, f.Close())
	}
	return f, nil
}

func (s *Sequencer) open(ctx context.Context) (*tessera.Appender, func(context.Context) error, tessera.LogReader, error) {
	driver, err := posix.New(ctx, posix.Config{Path: s.cfg.Dir})
	if err != nil {
		return nil, nil, nil, err
	}
	return tessera.NewAppender(ctx, driver, tessera.NewAppendOptions().
		WithCheckpointSigner(s.cfg.Key.signer).
		WithBatching(chunkSize, chunkAge).
		WithCheckpointInterval(s.cfg.Interval).
		WithGarbageCollectionInterval(collectEvery))
}

// errDisorder means that going on would damage the log.
var errDisorder = errors.New("log and store disagree")

// check compares the log's last entry with the store's entry of that number.
func (s *Sequencer) check(ctx context.Context, reader tessera.LogReader) error {
	size, err := reader.IntegratedSize(ctx)
	if err != nil || size == 0 {
		return err
	}
	stored, err := s.cfg.Source.Entries(size-1, 1)
	if err != nil {
		return err
	}
	if len(stored) == 0 {
		return fmt.Errorf("%w: the log has %d entries, the store fewer; the store was restored from an older backup", errDisorder, size)
	}
	bundle, err := client.GetEntryBundle(ctx, reader.ReadEntryBundle, (size-1)/bundleWidth, size)
	if err != nil {
		return err
	}
	if n := len(bundle.Entries); n == 0 || !bytes.Equal(bundle.Entries[(size-1)%bundleWidth%uint64(n)], stored[0].Body) {
		return fmt.Errorf("%w: entry %d differs; the store does not belong to this log", errDisorder, size)
	}
	return nil
}

// step adds the next chunk and waits until it is in the log. Only one chunk is ever under way, because Tessera promises the
// order of entries within a batch, not of batches.
func (s *Sequencer) step(ctx context.Context, appender *tessera.Appender, reader tessera.LogReader) (int, error) {
	size, err := reader.IntegratedSize(ctx)
	if err != nil {
		return 0, err
	}
	entries, err := s.cfg.Source.Entries(size, chunkSize)
	if err != nil {
		return 0, err
	}
	futures := make([]tessera.IndexFuture, len(entries))
	for i, e := range entries {
		if e.Seq != size+uint64(i)+1 {
			return 0, fmt.Errorf("%w: the store has entry %d where %d belongs", errDisorder, e.Seq, size+uint64(i)+1)
		}
		futures[i] = appender.Add(ctx, tessera.NewEntry(e.Body))
	}
	var failed error
	for i, future := range futures {
		index, err := future()
		if err == nil && index.Index != entries[i].Seq-1 {
			return 0, fmt.Errorf("%w: entry %d got index %d", errDisorder, entries[i].Seq, index.Index)
		}
		if failed == nil {
			failed = err // one of a batch says it all
		}
	}
	return len(entries), failed
}
