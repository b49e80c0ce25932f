// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"runtime"
	"sync"
	"time"
)

// Bounds of one batch: what waits is written together up to here.
const (
	maxBatch      = 1024
	maxBatchBytes = 4 << 20
	// worthwhile is how many changes are begun while the disk still syncs those before. Fewer wait for it, and for company: what a
	// batch costs beside its changes is as much as some ten of them.
	worthwhile = 64
	// patience is how long an unhurried change waits for others.
	patience = 5 * time.Millisecond
)

// batch is the changes that are written together, in the order of their coming. Who waits for one of them waits for all, so that
// one channel wakes everybody.
type batch struct {
	changes []*pending
	bytes   int
	called  bool          // the writer was woken for it
	done    chan struct{} // closed when every change has its outcome
}

func newBatch(capacity int) *batch {
	return &batch{changes: make([]*pending, 0, capacity), done: make(chan struct{})}
}

// refuse tells all changes the same.
func (b *batch) refuse(err error) {
	for _, p := range b.changes {
		p.err = err
	}
	close(b.done)
}

// queue is where changes gather while the writer writes the batch before.
type queue struct {
	most  int           // changes that may wait
	wake  chan struct{} // capacity 1: there is something for the writer
	worth chan struct{} // capacity 1: the next batch is worthwhile

	mu     sync.Mutex // guards what follows
	next   *batch
	room   chan struct{} // closed when the next batch is not full any more; nil when nobody waits for that
	closed bool
}

func newQueue(most int) *queue {
	return &queue{most: min(most, maxBatch), wake: make(chan struct{}, 1), worth: make(chan struct{}, 1), next: newBatch(1)}
}

// join puts the change into the next batch, and waits until there is room for it.
func (q *queue) join(ctx context.Context, p *pending) error {
	for {
		full, err := q.tryJoin(p)
		if full == nil {
			return err
		}
		select {
		case <-full:
		case <-ctx.Done():
			return gaveUp(ctx)
		}
	}
}

// tryJoin returns a channel to wait for when the next batch is full.
func (q *queue) tryJoin(p *pending) (full <-chan struct{}, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	b := q.next
	if q.closed {
		return nil, errClosed
	}
	if len(b.changes) >= q.most || b.bytes >= maxBatchBytes {
		if q.room == nil {
			q.room = make(chan struct{})
		}
		return q.room, nil
	}
	b.changes = append(b.changes, p)
	b.bytes += p.bytes
	p.batch = b
	n := len(b.changes)
	switch {
	case !b.called && (!p.patient || n == worthwhile):
		b.called = true
		call(q.wake)
	case n == 1:
		time.AfterFunc(patience, func() { call(q.wake) }) // for a batch that is taken by then it wakes the writer for nothing
	}
	if n == worthwhile {
		call(q.worth)
	}
	return nil, nil
}

// call leaves the writer a call, unless it has not got to the last one yet.
func call(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// gather is for the writer: it lets committers that the last batch has just woken join the next, as long as some do, and takes it.
func (q *queue) gather() *batch {
	const tries = 4
	for range tries {
		before := q.waiting()
		runtime.Gosched()
		if q.waiting() == before {
			break
		}
	}
	return q.take()
}

func (q *queue) waiting() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.next.changes)
}

// take returns the next batch, from which those who gave up are missing, and begins another.
func (q *queue) take() *batch {
	q.mu.Lock()
	b := q.next
	q.next = newBatch(len(b.changes))
	select {
	case <-q.worth: // it was for this batch
	default:
	}
	q.vacate()
	q.mu.Unlock()
	kept := b.changes[:0]
	for _, p := range b.changes {
		if p.taken.CompareAndSwap(false, true) {
			kept = append(kept, p)
		}
	}
	b.changes = kept
	return b
}

// close lets nobody in any more and returns what still waits.
func (q *queue) close() *batch {
	q.mu.Lock()
	q.closed = true
	q.vacate()
	q.mu.Unlock()
	return q.take()
}

// vacate wakes who waits for room. The caller holds mu.
func (q *queue) vacate() {
	if q.room != nil {
		close(q.room)
		q.room = nil
	}
}
