// SPDX-License-Identifier: Apache-2.0

package authzen

import (
	"fmt"
	"runtime/debug"
	"strconv"
	"sync"

	"remit"
)

// Bounds of a batch. Its evaluations run side by side, so that their records become durable together.
const (
	maxItems = 256
	parallel = 16
)

// batch is an evaluations request: defaults, and the text of each item.
type batch struct {
	defaults space
	semantic string
	items    []string
}

func (q *batch) member(d *remit.Decoder, name string) error {
	if name != "evaluations" && name != "options" {
		return q.defaults.member(d, name)
	}
	if d.Null() {
		return nil
	}
	if name == "evaluations" {
		return d.List(func() error { return q.item(d) })
	}
	return d.Object(func(name string) error {
		if name == "evaluations_semantic" {
			return text(d, &q.semantic)
		}
		return d.Skip()
	})
}

func (q *batch) item(d *remit.Decoder) error {
	raw, err := d.Raw()
	//remit:guard S35 TestBadBatches
	if q.items = append(q.items, raw); len(q.items) > maxItems {
		return invalid("more than " + strconv.Itoa(maxItems) + " evaluations")
	}
	return err
}

// batch answers /access/v1/evaluations. What is wrong with one item is that item's; what is wrong with the JSON, the
// defaults or the options is the request's. Without items it is a single evaluation of the defaults.
func (h *Handler) batch(a *asking, b []byte) ([]byte, error) {
	var q batch
	d := remit.NewDecoder(a.text)
	if err := d.Object(func(name string) error { return q.member(&d, name) }); err != nil {
		return b, err
	}
	if err := d.End(); err != nil {
		return b, err
	}
	if len(q.items) == 0 {
		decision, err := h.decide(a, &q.defaults.evaluation)
		if err != nil {
			return b, err
		}
		return h.appendDecision(b, &decision, q.defaults.approval()), nil
	}
	//remit:guard S35 TestQuota
	if !a.account.More(len(q.items)-1, a.at) {
		return b, errQuota()
	}
	switch q.semantic {
	case "", "execute_all":
		return h.all(a, &q, b), nil
	case "deny_on_first_deny":
		return h.until(a, &q, false, b), nil
	case "permit_on_first_permit":
		return h.until(a, &q, true, b), nil
	}
	return b, invalid("options.evaluations_semantic is not one of execute_all, deny_on_first_deny, permit_on_first_permit")
}

// outcome is one item's answer: a decision or what was wrong.
type outcome struct {
	decision remit.Decision
	approval string
	err      error
}

func (o *outcome) allows() bool { return o.err == nil && o.decision.Effect == remit.Allow }

func (h *Handler) item(a *asking, q *batch, i int) (o outcome) {
	var e space
	d := remit.NewDecoder(q.items[i])
	if o.err = d.Object(func(name string) error { return e.member(&d, name) }); o.err != nil {
		return o
	}
	merged := e.over(&q.defaults.evaluation)
	o.approval = merged.approval()
	o.decision, o.err = h.decide(a, &merged)
	return o
}

// all decides every item, at most parallel of them at a time, and waits for all.
func (h *Handler) all(a *asking, q *batch, b []byte) []byte {
	out := make([]outcome, len(q.items))
	slots := make(chan struct{}, parallel)
	var wg sync.WaitGroup
	for i := range out {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			defer func() { // net/http catches a panic only in its own goroutine; here one would end the server
				if v := recover(); v != nil {
					out[i] = outcome{err: fmt.Errorf("evaluate item %d: %v", i, v)}
					h.cfg.Log.Error("authzen batch", "panic", v, "stack", string(debug.Stack()))
				}
			}()
			out[i] = h.item(a, q, i)
		})
	}
	wg.Wait()
	return h.appendOutcomes(b, out)
}

// until decides in order and stops after the first item that is allowed, or after the first that is not.
func (h *Handler) until(a *asking, q *batch, allowed bool, b []byte) []byte {
	var out []outcome
	for i := range q.items {
		out = append(out, h.item(a, q, i))
		if out[i].allows() == allowed {
			break
		}
	}
	return h.appendOutcomes(b, out)
}

func (h *Handler) appendOutcomes(b []byte, out []outcome) []byte {
	b = append(b, `{"evaluations":[`...)
	for i := range out {
		if i > 0 {
			b = append(b, ',')
		}
		if err := out[i].err; err != nil {
			b = appendProblem(b, err)
			continue
		}
		b = h.appendDecision(b, &out[i].decision, out[i].approval)
	}
	return append(b, "]}"...)
}
