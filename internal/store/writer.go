// SPDX-License-Identifier: Apache-2.0

package store

import (
	"errors"
	"os"
	"time"

	"zombiezen.com/go/sqlite"

	"remit"
)

const (
	idleAfter  = 20 * time.Millisecond
	purgeEvery = time.Minute
)

// writer is the state of the writer goroutine.
type writer struct {
	conn   *sqlite.Conn
	log    *os.File                  // SQLite's log of pages
	failed error                     // the disk did not keep a batch: nothing more is written
	moved  map[remit.EpochKey]uint64 // epochs that this batch moves, not yet visible
	text   []byte                    // the batch's entries, one after the other, each after its leaf prefix
	ends   []int                     // where each entry ends in text
	apart  []*draft                  // what is stored beside each entry
	refs   []ref
	erased bool // the log of pages still holds what was erased
	purged time.Time
	spent  bool   // idle work is done until the next batch
	count  uint64 // durable batches of this process

	sorting bool         // a segment of the index is being sorted
	sorted  chan *sorted // capacity 1: the segment
}

// write is the writer goroutine.
func (s *Store) write() {
	defer s.refuseQueued()
	idle := time.NewTimer(idleAfter)
	defer idle.Stop()
	for {
		select {
		case <-s.queue.wake:
			b := s.queue.gather()
			s.commitBatch(b)
			close(b.done)
			s.w.spent = false
			s.chores(false)
			idle.Reset(idleAfter)
		case <-idle.C:
			s.chores(true)
			if !s.w.spent {
				idle.Reset(idleAfter)
			} else {
				idle.Reset(purgeEvery)
			}
		case <-s.closing:
			return
		}
	}
}

func (s *Store) refuseQueued() {
	b := s.queue.close()
	for _, p := range b.changes {
		p.err = errClosed
	}
	close(b.done)
}

// commitBatch writes the batch and leaves each change its outcome.
func (s *Store) commitBatch(b *batch) {
	w := &s.w
	//remit:guard S34 TestDiskThatLosesWrites
	if w.failed != nil {
		refuse(b.changes, w.failed)
		return
	}
	clear(w.moved)
	if w.moved == nil {
		w.moved = map[remit.EpochKey]uint64{}
	}
	ready := b.changes[:0]
	for _, p := range b.changes {
		if p.err = s.admit(p); p.err == nil {
			ready = append(ready, p)
		}
	}
	if len(ready) == 0 {
		return
	}
	tree, err := s.transact(ready)
	if err != nil {
		refuse(ready, &remit.Error{Code: remit.CodeUnavailable, Msg: "the store could not write; nothing was recorded",
			Hint: "check the disk of the state directory", Cause: err})
		return
	}
	w.erased = w.erased || erases(ready)
	if w.count++; s.cfg.OnCommit != nil {
		s.cfg.OnCommit(w.count)
	}
	if tree != nil {
		s.tail.add(tree, w.text, w.ends)
		s.last.Add(uint64(tree.size()))
	}
	s.copying.wrote(b.bytes)
	s.index.add(w.refs)
	for _, p := range ready {
		p.tree = tree
		for i := range p.rows {
			s.publish(&p.rows[i])
		}
	}
	s.committed.signal()
}

func refuse(changes []*pending, err error) {
	for _, p := range changes {
		p.err = err
	}
}

// admit checks a change against the state as the changes before it leave it, and gives out epochs.
func (s *Store) admit(p *pending) error {
	for _, r := range p.require {
		now, err := s.epochInBatch(r.Key)
		if err != nil {
			return &remit.Error{Code: remit.CodeUnavailable, Msg: "the store could not check what the change rests on", Cause: err}
		}
		//remit:guard S11 TestMovedEpochWritesNothing,TestOneWinnerPerEpoch
		if now != r.Epoch {
			return &remit.Error{Code: remit.CodeConflict, Msg: "the state of " + string(r.Key) + " moved since it was read",
				Hint: "read it again and decide anew"}
		}
	}
	if err := s.roomFor(p.rows); err != nil {
		return err
	}
	for i := range p.rows {
		row := &p.rows[i]
		now, err := s.epochInBatch(row.key)
		if err != nil {
			return &remit.Error{Code: remit.CodeUnavailable, Msg: "the store could not read an epoch", Cause: err}
		}
		row.epoch = now + 1
		s.w.moved[row.key] = row.epoch
	}
	return nil
}

func (s *Store) epochInBatch(key remit.EpochKey) (uint64, error) {
	written, ok := s.w.moved[key]
	if !ok {
		return s.epoch(s.w.conn, key)
	}
	now, err := s.epoch(s.w.conn, key) // Tighten may act while the batch is put together
	return max(written, now), err
}

// transact writes rows and events of the batch in one transaction and returns the signed tree over its entries, nil when there are
// none. The entries are hashed and the tree is signed while the rows are written, and nothing is committed without it.
func (s *Store) transact(ready []*pending) (tree *batchTree, err error) {
	first := s.last.Load() + 1
	s.number(ready, first)
	signed := make(chan error, 1)
	if len(s.w.ends) > 0 {
		tree = &batchTree{first: first}
		go func() {
			tree.grow(s.w.text, s.w.ends)
			signed <- tree.sign(s.cfg.Sign)
		}()
	} else {
		signed <- nil
	}
	conn := s.w.conn
	//remit:guard S34 TestFailedSignatureWritesNothing
	if err := errors.Join(s.insert(ready, first), <-signed); err != nil {
		return nil, errors.Join(err, rollback(conn))
	}
	if err := exec(conn, "COMMIT"); err != nil {
		return nil, errors.Join(err, rollback(conn))
	}
	return tree, s.keep()
}

// insert begins the transaction and writes all of the batch.
func (s *Store) insert(ready []*pending, first uint64) error {
	if err := exec(s.w.conn, "BEGIN IMMEDIATE"); err != nil {
		return err
	}
	for _, p := range ready {
		for i := range p.rows {
			if err := putRow(s.w.conn, &p.rows[i]); err != nil {
				return err
			}
		}
	}
	return s.insertEvents(first)
}

// rollback ends a transaction that failed. After some errors SQLite has done so by itself.
func rollback(conn *sqlite.Conn) error {
	if conn.AutocommitEnabled() {
		return nil
	}
	return exec(conn, "ROLLBACK")
}

// chores does what may wait: joining the log of pages, indexing events, purging what expired.
func (s *Store) chores(idle bool) {
	if s.w.failed != nil {
		s.w.spent = true
		return
	}
	s.joinLog()
	if s.w.erased && !s.copying.busy {
		s.w.erased = !truncateLog(s.w.conn)
	}
	s.indexEvents()
	if idle && s.cfg.Now().Sub(s.w.purged) >= purgeEvery {
		s.w.purged = s.cfg.Now()
		s.purge()
	}
	s.w.spent = !s.w.sorting && !s.w.erased
}
