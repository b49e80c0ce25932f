// SPDX-License-Identifier: Apache-2.0

package authorizer

import (
	"sync"
	"time"

	"remit"
)

// How long a held question stays open when its approval states no shorter time, how many are remembered at once, how many of one
// run, and for how long after their time at most.
const (
	heldFor     = 15 * time.Minute
	maxHolds    = 10_000
	maxRunHolds = 100
	rememberFor = 24 * time.Hour
)

// holds remembers when each question that waits for a person was first asked. Asked again it stands under the same deadline, and
// after it there is a denial: a hold can end, not renew itself. It lives in memory; a restart opens the questions anew, at most
// until their run ends.
type holds struct {
	mu    sync.Mutex // guards the rest
	until map[heldQuestion]held
	swept time.Time
}

type heldQuestion struct {
	run        remit.RunID
	permission string
	args       remit.Digest
}

type held struct{ deadline, forget time.Time }

// expire turns a Hold whose time is over into a Deny, and tells the others how long they stand.
func (h *holds) expire(w *weighed) {
	d := &w.decision
	if d.Effect != remit.Hold {
		return
	}
	deadline, ok, full := h.deadline(w)
	//remit:guard S39 TestHoldsOfOneRun
	if full {
		w.deny(remit.Reason{Code: remit.ReasonLimit, Of: "holds of the run", Want: "at most 100", Got: "more"})
		return
	}
	//remit:guard S39 TestHoldEndsInDenial
	if !ok || !d.At.Before(deadline) {
		w.deny(remit.Reason{Code: remit.ReasonHoldExpired, Of: "approval", Want: "an answer before " + deadline.UTC().Format(time.RFC3339)})
		return
	}
	d.Until = deadline
}

// deadline returns the end of the question's time; ok is false when too many questions are open to remember this one, full is
// true when they are of its own run.
func (h *holds) deadline(w *weighed) (end time.Time, ok, full bool) {
	q := heldQuestion{w.run.ID, w.match.Ref.Name, remit.DigestOf(mustJSON(w.match.Args))}
	at := w.decision.At
	h.mu.Lock()
	defer h.mu.Unlock()
	if known, ok := h.until[q]; ok {
		return known.deadline, true, false
	}
	if (len(h.until) >= maxHolds || h.ofRun(q.run) >= maxRunHolds) && (at.Sub(h.swept) >= time.Second || at.Before(h.swept)) {
		h.sweep(at)
	}
	if h.ofRun(q.run) >= maxRunHolds {
		return at, false, true
	}
	if len(h.until) >= maxHolds {
		return at, false, false
	}
	wait := heldFor
	for _, n := range w.match.Needs {
		if n.Kind == remit.EvidenceApproval && n.Within > 0 {
			wait = min(wait, n.Within)
		}
	}
	if h.until == nil {
		h.until = map[heldQuestion]held{}
	}
	end = at.Add(wait)
	h.until[q] = held{end, end.Add(rememberFor)}
	if w.run.Expires.Before(h.until[q].forget) {
		h.until[q] = held{end, w.run.Expires}
	}
	return end, true, false
}

// ofRun counts the questions of a run.
func (h *holds) ofRun(id remit.RunID) int {
	n := 0
	for q := range h.until {
		if q.run == id {
			n++
		}
	}
	return n
}

// sweep forgets the questions of runs that are over, and those whose time was over a day ago.
func (h *holds) sweep(now time.Time) {
	h.swept = now
	for q, one := range h.until {
		if now.After(one.forget) {
			delete(h.until, q)
		}
	}
}
