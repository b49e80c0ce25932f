// SPDX-License-Identifier: Apache-2.0

package server

import (
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"remit"
)

// parents keeps calls that are open: each request of a tool asks for the one that it is under, and reading it from the ledger costs as much
// as the rest of the decision. A recorded decision never changes; whether it is still open is asked each time. The zero value is empty.
type parents struct {
	mu   sync.Mutex
	open map[remit.DecisionID]remit.Decision
}

const maxParents = 1024

func (p *parents) get(id remit.DecisionID) (remit.Decision, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	d, ok := p.open[id]
	return d, ok
}

// put keeps d if it is open now. Where there are too many, all are forgotten: they are in the ledger.
func (p *parents) put(d remit.Decision, now time.Time) {
	if !carries(&d, now) {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.open == nil || len(p.open) >= maxParents {
		p.open = map[remit.DecisionID]remit.Decision{}
	}
	for id, old := range p.open {
		if !carries(&old, now) {
			delete(p.open, id)
		}
	}
	p.open[d.ID] = d
}

// forget drops everything: what they hold was erased.
func (p *parents) forget() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.open = nil
}

// carries reports whether requests may be under d at the time given.
func carries(d *remit.Decision, at time.Time) bool {
	return d.Effect == remit.Allow && at.Before(d.At.Add(d.TTL))
}

// parent reads a recorded decision, because a decision is nowhere else than in the ledger: what `under` asks about.
func (s *Server) parent(id remit.DecisionID) (remit.Decision, bool) { return s.parentAt(id, s.now()) }

// parentAt returns a call that was open at the time given: for as long as its own decision holds, so that an old one does not carry
// new requests (S24).
func (s *Server) parentAt(id remit.DecisionID, at time.Time) (remit.Decision, bool) {
	d, ok := s.parents.get(id)
	if !ok {
		e, found, err := s.store.Decision(id)
		if err != nil || !found {
			return remit.Decision{}, false
		}
		if d, err = decisionOf(e.Reveal()); err != nil {
			return remit.Decision{}, false
		}
		s.parents.put(d, s.now())
	}
	//remit:guard S24 TestParentMustBeOpen
	if !carries(&d, at) {
		return d, false
	}
	return d, true
}

func decisionOf(e remit.Entry) (remit.Decision, error) {
	var event struct {
		Data remit.Decision `json:"data"`
	}
	if err := json.Unmarshal(e.Open().Body, &event); err != nil {
		return remit.Decision{}, fmt.Errorf("read the decision of entry %d: %w", e.Seq, err)
	}
	return event.Data, nil
}
