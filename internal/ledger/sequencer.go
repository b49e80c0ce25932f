// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/transparency-dev/tessera/client"
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
	// Interval is between checkpoints, at least; 0 is 250 ms. An entry is provable a moment after the next.
	Interval time.Duration
	// Cosign adds the cosignatures of witnesses to a checkpoint before it is published; an error keeps it unpublished, and is
	// tried again. prove gives the consistency proof from a smaller size. nil asks nobody.
	Cosign func(ctx context.Context, checkpoint []byte, prove func(ctx context.Context, from uint64) ([][]byte, error)) ([]byte, error)
	// Log hears of failed attempts, which are repeated; nil is slog.Default().
	Log *slog.Logger
}

const (
	gather     = 20 * time.Millisecond  // between looking for entries that do not fill a bundle
	breath     = 250 * time.Microsecond // after each full bundle, so that a backlog is no burden to who appends
	retryAfter = time.Second
	stopWithin = 10 * time.Second // what waits is sequenced for so long after the end
)

// Sequencer moves entries from the store to the log, where the entry with number N has index N-1. It works in pieces of one
// bundle, so that nobody waits long for processor or disk. It keeps no state of its own: after a crash the published checkpoint
// says where to go on, and what was written beyond it is written again, byte for byte.
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
// log, is not the log's, or the newest files do not match their checkpoint.
func (s *Sequencer) Run(ctx context.Context) error {
	lock, err := s.acquire()
	if err != nil {
		return err
	}
	defer lock.Close() //nolint:errcheck // releases the lock in any case
	for {
		err := s.follow(ctx)
		if errors.Is(err, errDisorder) || ctx.Err() != nil {
			return err
		}
		s.cfg.Log.Warn("sequencing entries into the ledger; trying again", "error", err)
		pause(ctx, nil, retryAfter)
		if ctx.Err() != nil {
			return fmt.Errorf("sequence entries into the ledger: %w", err)
		}
	}
}

// follow takes up the log and sequences until something fails or the context ends.
func (s *Sequencer) follow(ctx context.Context) error {
	w, err := s.take(context.WithoutCancel(ctx))
	if err != nil {
		return fmt.Errorf("open the log in %s: %w", s.cfg.Dir, err)
	}
	defer w.discard()
	for ctx.Err() == nil {
		committed := s.cfg.Source.Committed() // before reading, so that no commit is missed
		more, err := s.step(w)
		if err != nil {
			return err
		}
		wait := s.cfg.Interval - time.Since(w.at)
		if w.size > w.published && wait <= 0 {
			if err := w.publish(); errors.Is(err, errUnwitnessed) {
				s.unwitnessed(err)
				w.at = time.Now().Add(retryAfter - s.cfg.Interval)
			} else if err != nil {
				return err
			}
			wait = s.cfg.Interval - time.Since(w.at)
		}
		switch {
		case more:
			pause(ctx, nil, breath)
		case w.size > w.published:
			pause(ctx, nil, min(gather, wait))
		default:
			pause(ctx, committed, retryAfter)
		}
	}
	for more, end := true, time.Now().Add(stopWithin); more && time.Now().Before(end); { // what was acknowledged before the end
		if more, err = s.step(w); err != nil {
			return err
		}
	}
	if w.size == w.published {
		return nil
	}
	if err = w.publish(); !errors.Is(err, errUnwitnessed) {
		return err
	}
	s.unwitnessed(err)
	return nil
}

// errUnwitnessed keeps a checkpoint unpublished. What it would vouch for stays durable and receipted, and is tried again with
// whatever came meanwhile.
var errUnwitnessed = errors.New("the checkpoint lacks cosignatures")

func (s *Sequencer) unwitnessed(err error) {
	s.cfg.Log.Warn("a checkpoint is not published; trying again", "error", err)
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

// errDisorder means that going on would damage the log.
var errDisorder = errors.New("log and store disagree")

// take begins the log, or takes it up where its checkpoint says.
func (s *Sequencer) take(ctx context.Context) (*writer, error) {
	log, err := OpenLog(s.cfg.Dir, s.cfg.Key.Public())
	if err != nil {
		return nil, err
	}
	w := &writer{edge: &edge{}, files: files{dir: s.cfg.Dir, changed: map[string]bool{}}, key: s.cfg.Key, cosign: s.cfg.Cosign}
	cp, err := log.Checkpoint()
	if errors.Is(err, fs.ErrNotExist) {
		return w, w.publish()
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errDisorder, err)
	}
	if w.edge, err = log.loadEdge(ctx, cp); err != nil {
		return nil, err
	}
	w.published = cp.Size
	return w, s.check(ctx, log, cp)
}

// check compares the log's last entry with the store's entry of that number.
func (s *Sequencer) check(ctx context.Context, log *Log, cp Checkpoint) error {
	if cp.Size == 0 {
		return nil
	}
	stored, err := s.cfg.Source.Entries(cp.Size-1, 1)
	if err != nil {
		return err
	}
	//remit:guard S34 TestSequencerRefusesAnOlderStore
	if len(stored) == 0 {
		return fmt.Errorf("%w: the log has %d entries, the store fewer; the store was restored from an older backup", errDisorder, cp.Size)
	}
	last := cp.Size - 1
	bundle, err := client.GetEntryBundle(ctx, log.files.ReadEntryBundle, last/bundleWidth, cp.Size)
	if err != nil {
		return err
	}
	//remit:guard S34 TestSequencerRefusesAnOlderStore
	if n := len(bundle.Entries); n <= int(last%bundleWidth) || !bytes.Equal(bundle.Entries[last%bundleWidth], stored[0].Body) {
		return fmt.Errorf("%w: entry %d differs; the store does not belong to this log", errDisorder, cp.Size)
	}
	return nil
}

// step adds what waits, up to the end of one bundle; more says that it came to that end.
func (s *Sequencer) step(w *writer) (more bool, err error) {
	entries, err := s.cfg.Source.Entries(w.size, bundleWidth-int(w.size%bundleWidth))
	if err != nil {
		return false, err
	}
	for _, e := range entries {
		//remit:guard S34 TestSequencerRefusesAGap
		if e.Seq != w.size+1 {
			return false, fmt.Errorf("%w: the store has entry %d where %d belongs", errDisorder, e.Seq, w.size+1)
		}
		w.add(e)
	}
	return w.size%bundleWidth == 0 && len(entries) > 0, w.fill()
}
