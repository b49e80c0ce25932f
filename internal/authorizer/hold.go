// SPDX-License-Identifier: Apache-2.0

package authorizer

import (
	"sync"
	"time"

	"remit"
)

// How long a held question stays open when its approval states no shorter time, and how many may be open at once.
const (
	heldFor  = 15 * time.Minute
	maxHolds = 10_000
)

// holds remembers when each question that waits for a person was first asked. Asked again it stands under the same deadline, and
// after it there is a denial: a hold can end, not renew itself. It lives in memory; a restart opens the questions anew, at most
// until their run ends.
type holds struct {
	mu    sync.Mutex // guards until
	until map[heldQuestion]held
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
	deadline, ok := h.deadline(w)
	//remit:guard S39 TestHoldEndsInDenial
	if !ok || !d.At.Before(deadline) {
		w.deny(remit.Reason{Code: remit.ReasonHoldExpired, Of: "approval", Want: "an answer before " + deadline.UTC().Format(time.RFC3339)})
		return
	}
	d.Until = deadline
}

// deadline returns the end of the question's time; false when too many questions are open to remember this one.
func (h *holds) deadline(w *weighed) (time.Time, bool) {
	q := heldQuestion{w.run.ID, w.match.Ref.Name, remit.DigestOf(mustJSON(w.match.Args))}
	at := w.decision.At
	h.mu.Lock()
	defer h.mu.Unlock()
	if known, ok := h.until[q]; ok {
		return known.deadline, true
	}
	if len(h.until) >= maxHolds {
		h.sweep(at)
	}
	if len(h.until) >= maxHolds {
		return at, false
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
	h.until[q] = held{at.Add(wait), w.run.Expires}
	return at.Add(wait), true
}

// sweep forgets the questions of runs that are over.
func (h *holds) sweep(now time.Time) {
	for q, one := range h.until {
		if now.After(one.forget) {
			delete(h.until, q)
		}
	}
}
