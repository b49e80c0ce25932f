// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"remit"
)

// Recorder writes down what was done, many acts at a time, so that nobody who did one waits for it. What it cannot write it tries again,
// and its queue is short: while nothing can be written, nothing more is done. It is safe for concurrent use.
type Recorder struct {
	ctx      context.Context
	executed func(ctx context.Context, acts []remit.Outcome) error
	log      *slog.Logger
	queue    chan remit.Outcome
	done     chan struct{}

	mu    sync.RWMutex // guards ended; held while something is queued
	ended bool
}

const (
	recordQueue   = 256
	recordTimeout = 10 * time.Second
)

// NewRecorder starts the one goroutine of a recorder, which ends with End. All acts that executed is given are durable when it returns,
// or none is; after ctx ends, it is tried once more and not again.
func NewRecorder(ctx context.Context, executed func(ctx context.Context, acts []remit.Outcome) error, log *slog.Logger) *Recorder {
	r := &Recorder{ctx: ctx, executed: executed, log: log, queue: make(chan remit.Outcome, recordQueue), done: make(chan struct{})}
	go r.run()
	return r
}

// Note queues an act. It waits while the queue is full, and after End until the act is written.
func (r *Recorder) Note(o remit.Outcome) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if r.ended {
		r.last([]remit.Outcome{o})
		return
	}
	r.queue <- o
}

// End waits until what is queued is written. It may be called again.
func (r *Recorder) End() {
	r.mu.Lock()
	if !r.ended {
		r.ended = true
		close(r.queue)
	}
	r.mu.Unlock()
	<-r.done
}

// run writes until End.
func (r *Recorder) run() {
	defer close(r.done)
	for o := range r.queue {
		r.write(r.more([]remit.Outcome{o}))
	}
}

func (r *Recorder) more(list []remit.Outcome) []remit.Outcome {
	for len(list) < recordQueue {
		select {
		case o, ok := <-r.queue:
			if !ok {
				return list
			}
			list = append(list, o)
		default:
			return list
		}
	}
	return list
}

func (r *Recorder) write(list []remit.Outcome) {
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		err := r.try(list)
		if err == nil {
			return
		}
		r.log.Error("what was done is not on record yet", "first", list[0].Decision, "acts", len(list), "err", err)
		select {
		case <-r.ctx.Done():
			r.last(list)
			return
		case <-time.After(wait):
		}
	}
}

// last tries once more at the end.
func (r *Recorder) last(list []remit.Outcome) {
	if err := r.try(list); err != nil {
		r.log.Error("what was done is not on record", "first", list[0].Decision, "acts", len(list), "err", err)
	}
}

func (r *Recorder) try(list []remit.Outcome) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.ctx), recordTimeout)
	defer cancel()
	return r.executed(ctx, list)
}
