// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"fmt"
	"sync/atomic"

	"remit"
)

// pending is one change on its way to the writer and back. The caller owns it until the writer takes it.
type pending struct {
	require []remit.Precondition
	rows    []write
	events  []draft
	bytes   int
	patient bool // the writer is not woken for it alone

	taken atomic.Bool // set once, by the writer or by a caller who gives up
	batch *batch      // set when it joins the queue

	err   error      // set by the writer, as all below, before batch.done
	tree  *batchTree // when the change has events
	first uint64     // number of the first event
}

// write is one row, encoded.
type write struct {
	row   remit.Row
	key   remit.EpochKey
	body  []byte
	epoch uint64 // the new one, set by the writer
}

// Commit makes a change durable and returns the receipt of its first event (the zero Receipt when it has none). Rows and
// events are written together or not at all, and reads show them before Commit returns.
//
// Preconditions are checked by the writer, one change after the other; a moved epoch fails this change with
// remit.CodeConflict and writes nothing. Each row moves the epoch of its key. A context that ends while the change is queued
// is remit.CodeUnavailable with nothing written; once the writer has it, Commit waits for the outcome. A disk that is full
// or fails is remit.CodeUnavailable for all changes of the batch, none of which is then acknowledged; the store goes on and
// works again when the disk does.
func (s *Store) Commit(ctx context.Context, c remit.Change) (remit.Receipt, error) {
	p, err := s.prepare(c)
	if err != nil {
		return remit.Receipt{}, err
	}
	if err := s.queue.join(ctx, p); err != nil {
		return remit.Receipt{}, err
	}
	if err := await(ctx, p); err != nil {
		return remit.Receipt{}, err
	}
	if len(p.events) == 0 {
		return remit.Receipt{}, nil
	}
	return p.tree.receipt(p.first), nil
}

func await(ctx context.Context, p *pending) error {
	select {
	case <-p.batch.done:
	case <-ctx.Done():
		if p.taken.CompareAndSwap(false, true) {
			return gaveUp(ctx)
		}
		<-p.batch.done // the writer has it: the outcome is what happened
	}
	return p.err
}

func gaveUp(ctx context.Context) error {
	return &remit.Error{Code: remit.CodeUnavailable, Msg: "the store did not get to this change in time; nothing was written",
		Hint: "try again", Cause: context.Cause(ctx)}
}

// prepare checks and encodes a change in the caller's goroutine, so that the writer has little left to do.
func (s *Store) prepare(c remit.Change) (*pending, error) {
	//remit:guard S35 TestBounds
	if len(c.Rows)+len(c.Events)+len(c.Require) > maxChangeItems {
		return nil, tooLarge("a change has more than %d items", maxChangeItems)
	}
	p := &pending{require: c.Require, patient: c.Unhurried}
	for _, r := range c.Rows {
		body, err := s.encode(r, c.Require)
		if err != nil {
			return nil, err
		}
		p.rows = append(p.rows, write{row: r, key: r.EpochKey(), body: body})
		p.bytes += len(body)
	}
	p.events = make([]draft, len(c.Events))
	for i := range c.Events {
		d, err := s.newDraft(&c.Events[i])
		if err != nil {
			return nil, err
		}
		p.events[i] = d
		p.bytes += len(d.rest) + len(d.payload) + len(d.private)
	}
	return p, nil
}

func tooLarge(format string, args ...any) error {
	return &remit.Error{Code: remit.CodeExhausted, Msg: fmt.Sprintf(format, args...)}
}
