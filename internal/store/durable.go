// SPDX-License-Identifier: Apache-2.0

package store

import (
	"os"
	"sync"

	"golang.org/x/sys/unix"
	"zombiezen.com/go/sqlite"

	"remit"
)

// committed is a batch that SQLite has committed, and of which nobody knows yet.
type committed struct {
	batch *batch
	ready []*pending // those of its changes that were written
	tree  *batchTree // nil when there are no events
	text  []byte     // the entries, one after the other, each after its leaf prefix
	ends  []int      // where each entry ends in text
	refs  []ref
}

// keeper makes batches durable, in order, while the writer is at the next. There is never more than one that is not, and whoever has it
// owns idle's token.
type keeper struct {
	log     *os.File // SQLite's log of pages
	batches chan *committed
	idle    chan struct{} // capacity 1: full when every batch is durable; only the writer takes from it
	count   uint64        // owned as the token is: durable batches of this process

	mu     sync.Mutex // guards failed
	failed error      // the disk did not keep a batch: nothing more is written
}

// openLog leaves the syncing of commits to the keeper: SQLite as it is built here syncs with fsync, which also waits for the file's
// times, twice as long as fdatasync for the data. NORMAL still syncs log and database wherever a log begins anew
// (sqlite.org/pragma.html#pragma_synchronous).
//
// What an earlier process left in the log was perhaps never synced, or its sync failed and the kernel now calls it clean: it is copied into
// the database, with SQLite's own syncs, before anything rests on it. Where that fails, as on a full disk, ends of authority still have to
// be written, so it is synced where it stands.
func openLog(conn *sqlite.Conn, path string) (*os.File, error) {
	copied := truncateLog(conn)
	if err := exec(conn, "PRAGMA synchronous = normal"); err != nil {
		return nil, err
	}
	log, err := os.OpenFile(path+"-wal", os.O_RDWR, 0) // it has no locks that closing would drop, and stays as long as the connection
	if err == nil && !copied {
		err = unix.Fdatasync(int(log.Fd()))
	}
	return log, err
}

// keepOrPass is for the writer, when the keeper has told of the batch before: it gives it this one, or, where so few commit that nothing
// will be begun meanwhile, makes it durable itself. Passing it on costs two hand-overs, each of which may have to wake a thread.
func (s *Store) keepOrPass(c *committed) {
	k := &s.keeping
	<-k.idle
	if len(c.ready) < worthwhile && s.queue.waiting() < worthwhile {
		s.keep(c)
		k.idle <- struct{}{}
		return
	}
	k.batches <- c
}

func (k *keeper) failure() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.failed
}

// sync makes what was committed durable. Where the disk fails at that, nobody knows what it holds, and asking again may say that all
// is well (fsync(2)): nothing more is written until the store is opened anew.
func (k *keeper) sync() error {
	//remit:guard S34 TestDiskThatLosesWrites
	if err := k.failure(); err != nil {
		return err
	}
	err := unix.Fdatasync(int(k.log.Fd()))
	if err == nil {
		return nil
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.failed = &remit.Error{Code: remit.CodeUnavailable, Msg: "the disk failed to keep what was written; the store writes no more",
		Hint: "check the disk of the state directory, then start remit serve again", Cause: err}
	return k.failed
}

// keepAll is the keeper goroutine.
func (s *Store) keepAll() {
	for c := range s.keeping.batches {
		s.keep(c)
		s.keeping.idle <- struct{}{}
	}
}

// keep makes a batch durable, shows what it changed and wakes who waits for it.
func (s *Store) keep(c *committed) {
	defer close(c.batch.done)
	if err := s.keeping.sync(); err != nil {
		for _, p := range c.ready {
			p.err = err
		}
		return
	}
	if s.keeping.count++; s.cfg.OnCommit != nil {
		s.cfg.OnCommit(s.keeping.count)
	}
	if c.tree != nil {
		s.tail.add(c.tree, c.text, c.ends)
		s.last.Add(uint64(c.tree.size()))
	}
	s.index.add(c.refs)
	for _, p := range c.ready {
		p.tree = c.tree
		for i := range p.rows {
			s.publish(&p.rows[i])
		}
	}
	s.committed.signal()
}
