// SPDX-License-Identifier: Apache-2.0

// Package store holds Remit's state: all SQL, one file per noun, and a read model in memory that is loaded at Open and
// follows every durable write. The only write is Commit; rows and the events that describe them become durable together.
//
// One writer goroutine, started by Open and awaited by Close, owns the writing connection and groups what waits into one
// transaction. Each is made durable with one sync of the disk and then told of: by the writer itself, or, where enough waits to begin the
// next meanwhile, by a second goroutine, the keeper. A third copies the write-ahead log into the database so that the writer does not stall. Reads on the hot path (Run, Posture, Lease, epochs) touch memory only.
//
// The store never calls out, never keeps a credential, and never changes an event's bytes once they are written.
package store

import (
	"context"
	"crypto/cipher"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"zombiezen.com/go/sqlite"

	"remit"
)

// Config says where the store is and how its batches are signed.
type Config struct {
	// Path is the database file; it and its companions (-wal, -shm, .lock) are made with mode 0600. Required.
	Path string
	// Sign signs the root of the Merkle tree over one batch's entries, numbers first to first+size-1, and returns the name of
	// the key with the signature. It is called once a batch, by one goroutine at a time. Required: events without receipts
	// are not written.
	Sign func(first, size uint64, root [32]byte) (key string, signature []byte, err error)
	// Cipher encrypts rows and payloads that hold sensitive values. nil: such changes are refused.
	Cipher cipher.AEAD
	// Now is the clock for purging what expired; nil is time.Now.
	Now func() time.Time
	// Queue bounds the changes that wait for the writer; beyond it Commit blocks until its context ends. 0 is 1024, which is also the most.
	Queue int
	// MaxBytes bounds the database file; writing beyond it fails as on a full disk. 0 is no bound.
	MaxBytes int64
	// OnCommit is called, once at a time, when the n-th batch of this process, counted from 1, is durable and nobody has learned
	// of it. It is for tests of crashes; nil is nothing.
	OnCommit func(n uint64)
}

// Bounds of one change, checked before it is queued, so that no change can spoil the batch that it lands in.
const (
	maxEventBytes = 64<<10 - 1 // an entry of the log holds no more
	maxRowBytes   = 16 << 20
	// what is stored beside an entry
	maxPayloadBytes = 256 << 10
	maxChangeItems  = 4096
	maxSingleUse    = 1 << 20 // live Used rows, and live Issued rows
	maxSessions     = 1 << 14 // of people
	maxFindings     = 100_000 // open
	maxHeld         = 10_000  // requests of live runs that wait for people, or waited
)

// Store is open state. It is safe for concurrent use.
type Store struct {
	cfg  Config
	lock *os.File

	queue   *queue
	closing chan struct{} // closed by Close: nothing more is accepted
	once    sync.Once
	wg      sync.WaitGroup

	w       writer // owned by the writer goroutine
	keeping keeper
	copying copier
	readers chan *sqlite.Conn

	last      atomic.Uint64 // number of the last durable event
	index     index
	tail      eventTail
	committed broadcast
	memory
}

// memory is the read model. Each table holds rows and epochs under one lock per shard, so that a row is never seen with an
// epoch that is newer than it.
type memory struct {
	runs       table[remit.RunID, remit.Run]     // not ended
	agents     table[remit.Name, remit.Posture]  // all that ever had a status or a Tighten
	grants     table[remit.GrantID, remit.Grant] // not ended
	leases     table[remit.LeaseID, remit.Lease] // not ended
	launches   table[remit.LaunchID, remit.LaunchRecord]
	used       table[string, remit.Used]
	issued     table[string, remit.Issued]
	sessions   table[remit.SessionID, remit.Session]
	people     table[remit.Name, remit.PersonRecord]
	tools      table[remit.Name, remit.ToolRecord]
	held       table[remit.Digest, remit.Held]       // the newest about each request of a live run
	findings   table[remit.FindingID, remit.Finding] // open
	sources    table[string, struct{}]               // epochs of evidence sources
	policy     table[string, remit.Revision]         // one key: activeRevision
	byCred     table[string, remit.LeaseID]          // credential id to live lease
	statements statementCache
}

// Open opens or makes the store, migrates it forward and loads the read model. A second process on the same file, and a
// schema that is newer than this program, are errors.
func Open(cfg Config) (*Store, error) {
	if cfg.Path == "" || cfg.Sign == nil {
		return nil, errors.New("store: Path and Sign are required")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Queue <= 0 {
		cfg.Queue = maxBatch
	}
	s := &Store{cfg: cfg, queue: newQueue(cfg.Queue), closing: make(chan struct{}), readers: make(chan *sqlite.Conn, readerCount)}
	s.committed.ch = make(chan struct{})
	s.w.sorted = make(chan *sorted, 1)
	s.w.moved, s.w.before = map[remit.EpochKey]uint64{}, map[remit.EpochKey]uint64{}
	s.keeping.batches, s.keeping.idle = make(chan *committed), make(chan struct{}, 1)
	s.keeping.idle <- struct{}{}
	if err := s.open(); err != nil {
		return nil, errors.Join(fmt.Errorf("open store %s: %w", cfg.Path, err), s.release())
	}
	s.wg.Go(s.write)
	s.wg.Go(s.keepAll)
	s.wg.Go(s.copyLog)
	return s, nil
}

func (s *Store) open() error {
	if err := s.acquire(); err != nil {
		return err
	}
	conn, err := openWriter(s.cfg.Path, s.cfg.MaxBytes)
	if err != nil {
		return err
	}
	s.w.conn = conn
	if err := migrate(conn); err != nil {
		return err
	}
	if s.keeping.log, err = openLog(conn, s.cfg.Path); err != nil {
		return err
	}
	if s.copying.conn, err = openWriter(s.cfg.Path, s.cfg.MaxBytes); err != nil {
		return err
	}
	s.copying.wake, s.copying.done, s.copying.room = make(chan struct{}, 1), make(chan struct{}, 1), firstRoom
	for range readerCount {
		r, err := openReader(s.cfg.Path)
		if err != nil {
			return err
		}
		s.readers <- r
	}
	return s.load(conn)
}

// acquire makes the file private and takes the lock that keeps a second process out: its read model would be stale.
func (s *Store) acquire() error {
	for _, path := range []string{s.cfg.Path, s.cfg.Path + ".lock"} {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC, 0o600)
		if err != nil {
			return err
		}
		if path == s.cfg.Path {
			// SQLite has no locks on the file yet, so that closing it here drops none.
			if err := f.Close(); err != nil {
				return err
			}
			continue
		}
		s.lock = f
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			return &remit.Error{Code: remit.CodeUnavailable, Msg: "another process has the store open",
				Hint: "stop the other remit serve, or use another state directory", Cause: err}
		}
	}
	return nil
}

// load fills the read model. The writer goroutine does not run yet.
func (s *Store) load(conn *sqlite.Conn) error {
	s.memory.init()
	now := s.cfg.Now()
	for _, step := range []func() error{
		func() error { return s.loadRuns(conn) },
		func() error { return s.loadAgents(conn) },
		func() error { return s.loadGrants(conn) },
		func() error { return s.loadLeases(conn) },
		func() error { return s.loadLaunches(conn) },
		func() error { return s.loadUsed(conn, now) },
		func() error { return s.loadIssued(conn, now) },
		func() error { return s.loadPeople(conn, now) },
		func() error { return s.loadTools(conn) },
		func() error { return s.loadHeld(conn, now) },
		func() error { return s.loadFindings(conn) },
		func() error { return s.loadSources(conn) },
		func() error { return s.loadRevision(conn) },
		func() error { return s.loadEvents(conn) },
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

func (m *memory) init() {
	m.runs.init()
	m.agents.init()
	m.grants.init()
	m.leases.init()
	m.launches.init()
	m.used.init()
	m.issued.init()
	m.sessions.init()
	m.people.init()
	m.tools.init()
	m.held.init()
	m.findings.init()
	m.sources.init()
	m.policy.init()
	m.byCred.init()
	m.statements.init()
}

// Close refuses what is still queued, waits for the writer and closes the file. It may be called twice.
func (s *Store) Close() error {
	var err error
	s.once.Do(func() {
		close(s.closing)
		s.wg.Wait()
		err = s.release()
	})
	return err
}

func (s *Store) release() error {
	var errs []error
	for range cap(s.readers) {
		select {
		case c := <-s.readers:
			errs = append(errs, c.Close())
		default: // not opened
		}
	}
	for _, c := range []*sqlite.Conn{s.copying.conn, s.w.conn} {
		if c != nil {
			errs = append(errs, c.Close())
		}
	}
	if s.keeping.log != nil {
		errs = append(errs, s.keeping.log.Close())
	}
	if s.lock != nil {
		errs = append(errs, s.lock.Close())
	}
	return errors.Join(errs...)
}

// Backup writes a consistent copy of the whole store to path, which must not exist; it is made with mode 0600. Writing goes
// on meanwhile.
func (s *Store) Backup(ctx context.Context, path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("back up the store: %w", err)
	}
	if err := f.Close(); err != nil {
		return fmt.Errorf("back up the store: %w", err)
	}
	err = s.read(func(conn *sqlite.Conn) error {
		conn.SetInterrupt(ctx.Done())
		defer conn.SetInterrupt(nil)
		return vacuumInto(conn, path)
	})
	if err != nil {
		return errors.Join(fmt.Errorf("back up the store: %w", err), os.Remove(path))
	}
	return nil
}
