// SPDX-License-Identifier: Apache-2.0

package egress

import (
	"context"
	"time"

	"remit"
)

// recorder writes down what was done, many at a time. What it cannot write it tries again, and its queue is short: while nothing can
// be written, nothing more is done.
type recorder struct {
	gate  *Gate
	queue chan remit.Outcome
	done  chan struct{}
}

const (
	recordQueue   = 256
	recordTimeout = 10 * time.Second
)

func newRecorder(g *Gate) *recorder {
	return &recorder{gate: g, queue: make(chan remit.Outcome, recordQueue), done: make(chan struct{})}
}

// note queues an outcome under a decision.
func (g *Gate) note(d *remit.Decision, o remit.Outcome) {
	o.At, o.Target, o.Decision, o.Permission, o.Agent, o.Run, o.Source = g.proxy.cfg.Now(), d.Target, d.ID, d.Permission, g.box.Tool, g.box.Run, "egress"
	if o.Verb == "" {
		o.Verb = d.Action
	}
	g.recorder.queue <- o
}

// run writes until end.
func (r *recorder) run() {
	defer close(r.done)
	for o := range r.queue {
		r.write(r.more([]remit.Outcome{o}))
	}
}

// end waits until what is queued is written. Nobody queues any more.
func (r *recorder) end() {
	close(r.queue)
	<-r.done
}

func (r *recorder) more(list []remit.Outcome) []remit.Outcome {
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

func (r *recorder) write(list []remit.Outcome) {
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		err := r.try(list)
		if err == nil {
			return
		}
		r.gate.proxy.cfg.Log.Error("what a tool sent is not on record yet", "tool", r.gate.box.Tool, "acts", len(list), "err", err)
		select {
		case <-r.gate.ctx.Done():
			r.last(list)
			return
		case <-time.After(wait):
		}
	}
}

// last tries once more when the gate is closing.
func (r *recorder) last(list []remit.Outcome) {
	if err := r.try(list); err != nil {
		r.gate.proxy.cfg.Log.Error("what a tool sent is not on record", "tool", r.gate.box.Tool, "first", list[0].Decision, "acts", len(list), "err", err)
	}
}

func (r *recorder) try(list []remit.Outcome) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.gate.ctx), recordTimeout)
	defer cancel()
	return r.gate.proxy.cfg.Acts.Executed(ctx, list)
}
