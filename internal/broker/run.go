// SPDX-License-Identifier: Apache-2.0

package broker

import (
	"context"
	"time"

	"remit"
)

// Timing of Run's two rounds beside the tick.
const (
	retryEvery     = time.Second // how often one lease that would not end, or has not settled, is tried again
	reconcileEvery = time.Minute // how often targets are asked for what stands there without a lease
)

// Run ends what is due until ctx ends: expired leases, leases whose end could not be completed or recorded, and everything
// that a previous process left pending. It reconciles every target at start and every minute.
func (b *Broker) Run(ctx context.Context) error {
	started := b.cfg.Now()
	tick := time.NewTicker(b.cfg.Tick)
	defer tick.Stop()
	tried := map[remit.LeaseID]time.Time{}
	var reconciled time.Time
	for {
		now := b.cfg.Now()
		b.endDue(ctx, b.due(now, started, tried), now, tried)
		if now.Sub(reconciled) >= reconcileEvery {
			b.reconcile(ctx)
			reconciled = now
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// due lists the leases to end now, each at most once a retryEvery.
func (b *Broker) due(now, started time.Time, tried map[remit.LeaseID]time.Time) []remit.Lease {
	var due []remit.Lease
	for _, l := range b.cfg.Store.LiveLeases() {
		if now.Sub(tried[l.ID]) >= retryEvery && b.isDue(&l, now, started) {
			due = append(due, l)
		}
	}
	return due
}

func (b *Broker) isDue(l *remit.Lease, now, started time.Time) bool {
	b.mu.Lock()
	_, ending := b.ending[l.ID]
	b.mu.Unlock()
	switch l.State {
	case remit.GrantActive:
		return ending || !now.Before(l.Expires)
	case remit.GrantRevoking:
		return true
	default: // pending: ours while its mint may run; left by a crash when older than this process
		return ending || !now.Before(l.MintBefore) || l.Issued.Before(started)
	}
}

func (b *Broker) endDue(ctx context.Context, due []remit.Lease, now time.Time, tried map[remit.LeaseID]time.Time) {
	if len(due) == 0 {
		clear(tried)
		return
	}
	for _, l := range due {
		tried[l.ID] = now
	}
	if err := b.endAll(ctx, due, b.why, "remit"); err != nil && ctx.Err() == nil {
		b.cfg.Log.Warn("ending leases; what failed is tried again", "err", err)
	}
}

func (b *Broker) why(l remit.Lease) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	if why, ok := b.ending[l.ID]; ok {
		return why
	}
	switch {
	case l.Why != "":
		return l.Why
	case l.State == remit.GrantPending:
		return "outcome of the mint unknown"
	}
	return "expired"
}

// Reconcile revokes everything that stands at a target for a lease that is not live, whoever left it there.
func (b *Broker) reconcile(ctx context.Context) {
	for _, name := range b.cfg.Names() {
		target, ok := b.cfg.Targets(name)
		if !ok || target.Lister == nil {
			continue
		}
		lctx, cancel := context.WithTimeout(ctx, revokeTimeout)
		ids, err := target.Lister.List(lctx)
		cancel()
		if err != nil {
			b.cfg.Log.Warn("cannot list what stands at a target; it is tried again in a minute", "target", name, "err", err)
			continue
		}
		for _, id := range ids {
			b.sweep(ctx, name, target, id)
		}
	}
}

func (b *Broker) sweep(ctx context.Context, name string, target Target, id remit.LeaseID) {
	l, ok := b.cfg.Store.Lease(id)
	if ok && l.State != remit.GrantEnded && l.State != remit.GrantFailed {
		return // live, or being ended above
	}
	if !ok {
		l = remit.Lease{ID: id, Target: name}
	}
	rctx, cancel := context.WithTimeout(ctx, revokeTimeout)
	defer cancel()
	if err := target.Driver.Revoke(rctx, l); err != nil {
		b.cfg.Log.Warn("cannot remove what an ended lease left", "target", name, "lease", id, "err", err)
		return
	}
	b.cfg.Log.Info("removed what an ended lease left", "target", name, "lease", id)
}
