// SPDX-License-Identifier: Apache-2.0

package store

import (
	"errors"
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
	last   uint64                    // number of the last event that is committed
	moved  map[remit.EpochKey]uint64 // epochs that this batch moves, not yet visible
	before map[remit.EpochKey]uint64 // epochs that the batch moves that is committed and may not be durable
	apart  []*draft                  // what is stored beside each entry of this batch
	erased bool                      // the log of pages still holds what was erased
	purged time.Time
	spent  bool // idle work is done until the next batch

	sorting bool         // a segment of the index is being sorted
	sorted  chan *sorted // capacity 1: the segment
}

// write is the writer goroutine.
func (s *Store) write() {
	defer close(s.keeping.batches)
	defer s.refuseQueued()
	idle := time.NewTimer(idleAfter)
	defer idle.Stop()
	for {
		select {
		case <-s.queue.wake:
			select {
			case <-s.keeping.idle:
				s.keeping.idle <- struct{}{}
				clear(s.w.before)
			case <-s.queue.worth:
			}
			s.commitBatch(s.queue.gather())
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
	s.queue.close().refuse(errClosed)
}

// commitBatch commits the batch and sees to it that it becomes durable and each change has its outcome.
func (s *Store) commitBatch(b *batch) {
	w := &s.w
	//remit:guard S34 TestDiskThatLosesWrites
	if err := s.keeping.failure(); err != nil {
		b.refuse(err)
		return
	}
	clear(w.moved)
	ready := make([]*pending, 0, len(b.changes))
	for _, p := range b.changes {
		if p.err = s.admit(p); p.err == nil {
			ready = append(ready, p)
		}
	}
	if len(ready) == 0 {
		close(b.done)
		return
	}
	c, err := s.transact(ready)
	if err != nil {
		err = &remit.Error{Code: remit.CodeUnavailable, Msg: "the store could not write; nothing was recorded",
			Hint: "check the disk of the state directory", Cause: err}
		for _, p := range ready {
			p.err = err
		}
		close(b.done)
		return
	}
	w.erased = w.erased || erases(ready)
	w.last += uint64(len(c.ends))
	s.copying.wrote(b.bytes)
	c.batch, c.ready = b, ready
	s.keepOrPass(c)
	w.before, w.moved = w.moved, w.before // the keeper has published the one before
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
		written = s.w.before[key]
	}
	now, err := s.epoch(s.w.conn, key) // Tighten may act while the batch is put together
	return max(written, now), err
}

// transact commits rows and events of the batch, with the signed tree over its entries if there are any; nothing is written without it.
// The tree is not made beside the writing of the rows: to wake another thread for it takes as long and more processor.
func (s *Store) transact(ready []*pending) (c *committed, err error) {
	c = &committed{}
	first := s.w.last + 1
	s.number(c, ready, first)
	if len(c.ends) > 0 {
		c.tree = &batchTree{first: first}
		c.tree.grow(c.text, c.ends)
		//remit:guard S34 TestFailedSignatureWritesNothing
		if err := c.tree.sign(s.cfg.Sign); err != nil {
			return nil, err
		}
	}
	conn := s.w.conn
	if err := s.insert(c, ready, first); err != nil {
		return nil, errors.Join(err, rollback(conn))
	}
	if err := exec(conn, "COMMIT"); err != nil {
		return nil, errors.Join(err, rollback(conn))
	}
	return c, nil
}

// insert begins the transaction and writes all of the batch.
func (s *Store) insert(c *committed, ready []*pending, first uint64) error {
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
	return s.insertEvents(c, first)
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
	if s.keeping.failure() != nil {
		s.w.spent = true
		return
	}
	s.joinLog()
	if s.w.erased && !s.copying.busy {
		s.w.erased = !truncateLog(s.w.conn)
		s.copying.room = firstRoom
	}
	s.makeRoom()
	s.indexEvents()
	if idle && s.cfg.Now().Sub(s.w.purged) >= purgeEvery {
		s.w.purged = s.cfg.Now()
		s.purge()
	}
	s.w.spent = !s.w.sorting && !s.w.erased
}
