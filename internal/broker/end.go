// SPDX-License-Identifier: Apache-2.0

package broker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"remit"
)

// revokeTimeout bounds one attempt to end one lease at its target; recordTimeout one attempt to write that down.
const (
	revokeTimeout = 15 * time.Second
	recordTimeout = 5 * time.Second
	parallelEnds  = 16
)

// Revoke ends a grant: at the target first, on record after (S20). It returns when the target confirmed. Ending what has
// ended succeeds.
func (b *Broker) Revoke(ctx context.Context, id remit.GrantID, why, by string) error {
	if _, ok := b.cfg.Store.Grant(id); !ok {
		return &remit.Error{Code: remit.CodeNotFound, Msg: fmt.Sprintf("there is no grant %s", id), Hint: "remit grant list shows them"}
	}
	return b.End(ctx, func(l *remit.Lease) bool { return l.Grant == id }, why, by)
}

// End ends every live lease that which selects, in parallel, and joins what failed; what failed is tried again by Run.
func (b *Broker) End(ctx context.Context, which func(*remit.Lease) bool, why, by string) error {
	due := b.cfg.Store.LiveLeases(which)
	for _, l := range due { // before any slow call: nothing is live for our own enforcement points from here on
		b.mark(l.ID, why)
	}
	return b.endAll(ctx, due, func(remit.Lease) string { return why }, by)
}

// endAll ends what is due, each target's leases beside the others': one that hangs holds up nobody else's end.
func (b *Broker) endAll(ctx context.Context, due []remit.Lease, why func(remit.Lease) string, by string) error {
	errs := make([]error, len(due))
	var wg sync.WaitGroup
	for _, at := range byTarget(due) {
		wg.Go(func() {
			var ends sync.WaitGroup
			slot := make(chan struct{}, parallelEnds)
			for _, i := range at {
				slot <- struct{}{}
				ends.Go(func() {
					defer func() { <-slot }()
					errs[i] = b.end(ctx, due[i], why(due[i]), by)
				})
			}
			ends.Wait()
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// byTarget groups the places of leases by their target.
func byTarget(leases []remit.Lease) map[string][]int {
	out := map[string][]int{}
	for i := range leases {
		out[leases[i].Target] = append(out[leases[i].Target], i)
	}
	return out
}

// mark makes the lease dead for our own enforcement points and moves its epoch, so that a mint in flight cannot activate it.
func (b *Broker) mark(id remit.LeaseID, why string) {
	b.mu.Lock()
	_, already := b.ending[id]
	b.ending[id] = why
	b.mu.Unlock()
	if !already {
		//remit:guard S20 TestRevokedDuringMint
		b.cfg.Store.Tighten(remit.LeaseKey(id))
	}
}

// Live reports whether the lease is active now; webhook authorizers ask it for every request. Memory only.
func (b *Broker) Live(id remit.LeaseID) (remit.Lease, bool) {
	l, ok := b.cfg.Store.Lease(id)
	//remit:guard S20 TestMintAndRevoke
	if !ok || l.State != remit.GrantActive || b.over(&l, b.cfg.Now()) {
		return l, false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	_, ending := b.ending[id]
	return l, !ending
}

// end removes authority at the target, then writes down what is known. A lease whose mint may still be under way is written
// as revoking, and ended for good when nothing can arrive any more (S18).
func (b *Broker) end(ctx context.Context, l remit.Lease, why, by string) error {
	b.mark(l.ID, why)
	defer b.enter(l.ID)()
	began := b.cfg.Now()
	//remit:guard S20 TestExpiryAndFailingRevoke
	if err := b.revoke(ctx, l); err != nil {
		return err
	}
	seen := b.cfg.Store.Epoch(remit.LeaseKey(l.ID)) // read before the state: whoever ends it after this moves it
	if b.ended(l.ID) {
		b.forget(l.ID)
		return nil // somebody else ended it meanwhile, and wrote it down
	}
	settled, err := b.settled(ctx, l)
	if err != nil {
		return err
	}
	next := l
	next.State, next.Why, next.Ended = remit.GrantEnded, why, b.cfg.Now()
	kind := remit.EventLeaseEnded
	switch {
	case !settled && l.State == remit.GrantRevoking:
		return nil // already on record as revoking
	//remit:guard S18 TestLateCreate
	case !settled:
		next.State, next.Ended, kind = remit.GrantRevoking, time.Time{}, remit.EventLeaseRevoking
	case l.State != remit.GrantActive && len(l.Credentials) == 0:
		next.State, kind = remit.GrantFailed, remit.EventLeaseFailed
	}
	return b.recordEnd(ctx, next, seen, kind, by, endData{why, b.cfg.Now().Sub(began).Seconds() * 1e3})
}

func (b *Broker) revoke(ctx context.Context, l remit.Lease) error {
	target, ok := b.cfg.Targets(l.Target)
	if !ok {
		return fmt.Errorf("revoke lease %s: its target %s is not configured any more: restore it and apply", l.ID, l.Target)
	}
	if err := driverRevoke(ctx, target, l); err != nil {
		return fmt.Errorf("revoke lease %s at %s: %w", l.ID, l.Target, err)
	}
	return nil
}

// driverRevoke and driverList bound a driver's call, and take its panic for an error: they run in goroutines of ours, where a
// panic ends the server, and again at the next start, since the lease is still due.
func driverRevoke(ctx context.Context, t Target, l remit.Lease) (err error) {
	ctx, cancel := context.WithTimeout(ctx, revokeTimeout)
	defer cancel()
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("the driver panicked: %v", p)
		}
	}()
	return t.Driver.Revoke(ctx, l)
}

func driverList(ctx context.Context, t Target) (ids []remit.LeaseID, err error) {
	ctx, cancel := context.WithTimeout(ctx, revokeTimeout)
	defer cancel()
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("the driver panicked: %v", p)
		}
	}()
	return t.Lister.List(ctx)
}

// settled reports whether nothing that was sent for l can arrive at the target any more, and nothing is there. A lease that
// became active has answered all its creates.
func (b *Broker) settled(ctx context.Context, l remit.Lease) (bool, error) {
	if l.State == remit.GrantActive {
		return true, nil
	}
	//remit:guard S18 TestLateCreate
	if b.cfg.Now().Before(l.MintBefore.Add(b.cfg.Settle)) {
		return false, nil
	}
	target, _ := b.cfg.Targets(l.Target)
	if target.Lister == nil {
		return true, nil
	}
	ids, err := driverList(ctx, target)
	if err != nil {
		return false, fmt.Errorf("list what is left at %s: %w", l.Target, err)
	}
	for _, id := range ids {
		//remit:guard S18 TestListingDecides
		if id == l.ID {
			return false, nil
		}
	}
	return true, nil
}

func (b *Broker) recordEnd(ctx context.Context, l remit.Lease, seen uint64, kind remit.EventKind, by string, data endData) error {
	rows := []remit.Row{l}
	if g, ok := b.cfg.Store.Grant(l.Grant); ok {
		g.State, g.Why, g.Ended = l.State, l.Why, l.Ended
		rows = append(rows, g)
	}
	rctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordTimeout)
	defer cancel()
	_, err := b.cfg.Store.Commit(rctx, remit.Change{Rows: rows, Events: []remit.Event{b.endEvent(kind, &l, by, data)},
		Require: []remit.Precondition{{Key: remit.LeaseKey(l.ID), Epoch: seen}}})
	if remit.CodeOf(err) == remit.CodeConflict && b.ended(l.ID) {
		b.forget(l.ID)
		return nil // somebody else was faster
	}
	if err != nil {
		// The authority is gone. What is missing is the record: Run ends the lease again, which changes nothing, and records.
		b.cfg.Log.Error("lease ended at its target but not on record", "lease", l.ID, "err", err)
		return nil
	}
	if l.State != remit.GrantRevoking {
		b.forget(l.ID)
	}
	return nil
}

// ended reports whether the lease's end is on record.
func (b *Broker) ended(id remit.LeaseID) bool {
	l, ok := b.cfg.Store.Lease(id)
	return ok && (l.State == remit.GrantEnded || l.State == remit.GrantFailed)
}

func (b *Broker) forget(id remit.LeaseID) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.ending, id)
	delete(b.until, id)
}

// enter keeps Run from ending the lease a second time beside this call; leave lets it try again.
func (b *Broker) enter(id remit.LeaseID) (leave func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.inside[id]++
	return func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.inside[id]--; b.inside[id] == 0 {
			delete(b.inside, id)
		}
	}
}

type activeData struct {
	Credentials []string  `json:"credentials,omitempty"`
	Expires     time.Time `json:"expires"`
	Native      time.Time `json:"native_expires,omitzero"`
}

type endData struct {
	Why string
	MS  float64 // from the first call to the target's confirmation
}

// endEvent seals why: it may be a target's own words, or a person's.
func (b *Broker) endEvent(kind remit.EventKind, l *remit.Lease, by string, data endData) remit.Event {
	s := remit.SealOf(l.Scope, l.Sensitive)
	e := b.event(kind, l, by, struct {
		Why   json.RawMessage `json:"why,omitempty"`
		MS    float64         `json:"ms"`
		Early bool            `json:"early,omitempty"` // before it would have expired
	}{s.Text("why", data.Why), data.MS, b.cfg.Now().Before(l.Expires)})
	e.Payload, e.Private = s.Payload, s.Private
	return e
}

func (b *Broker) event(kind remit.EventKind, l *remit.Lease, by string, data any) remit.Event {
	body, err := json.Marshal(data)
	if err != nil {
		panic("broker: " + err.Error()) // plain structs of ours
	}
	g, _ := b.cfg.Store.Grant(l.Grant)
	return remit.Event{At: b.cfg.Now(), Kind: kind, Agent: l.Agent, Run: l.Run, Decision: g.Decision, Grant: l.Grant, Lease: l.ID,
		By: by, Data: body}
}
