// SPDX-License-Identifier: Apache-2.0

package broker

import (
	"context"
	"sync"
	"time"

	"remit"
)

// Timing of Run's two rounds beside the tick.
const (
	retryEvery     = time.Second // how often one lease that would not end, or has not settled, is tried again
	reconcileEvery = time.Minute // how often targets are asked for what stands there without a lease
)

// Run ends what is due until ctx ends: expired leases, leases whose end could not be completed or recorded, and everything
// that a previous process left pending. It reconciles every target at start and every minute. Each target is worked on by a
// goroutine of its own, at most one at a time, so that a target that hangs delays nobody else's ends.
func (b *Broker) Run(ctx context.Context) error {
	started := b.cfg.Now()
	tick := time.NewTicker(b.cfg.Tick)
	defer tick.Stop()
	lanes := lanes{busy: map[string]bool{}}
	defer lanes.wg.Wait()
	tried := map[remit.LeaseID]time.Duration{} // by Elapsed: no change of the time of day keeps an end from being tried again
	var reconciled time.Duration
	for first := true; ; first = false {
		b.endDue(ctx, started, tried, &lanes)
		if now := b.cfg.Elapsed(); first || now-reconciled >= reconcileEvery {
			for _, name := range b.cfg.Names() {
				lanes.start("list "+name, func() { b.reconcile(ctx, name) })
			}
			reconciled = now
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// lanes runs at most one goroutine for each key.
type lanes struct {
	wg   sync.WaitGroup
	mu   sync.Mutex // guards busy
	busy map[string]bool
}

// start runs f unless the key's last one still runs.
func (l *lanes) start(key string, f func()) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.busy[key] {
		return false
	}
	l.busy[key] = true
	l.wg.Go(func() {
		defer func() { l.mu.Lock(); delete(l.busy, key); l.mu.Unlock() }()
		f()
	})
	return true
}

func (b *Broker) isDue(l *remit.Lease, now, started time.Time) bool {
	b.mu.Lock()
	_, ending := b.ending[l.ID]
	inside := b.inside[l.ID] > 0
	b.mu.Unlock()
	if inside {
		return false
	}
	switch l.State {
	case remit.GrantActive:
		return ending || b.over(l, now)
	case remit.GrantRevoking:
		return true
	default: // pending: ours while its mint may run; left by a crash when older than this process
		return ending || !now.Before(l.MintBefore) || l.Issued.Before(started)
	}
}

// endDue begins the end of what is due now, each lease at most once a retryEvery.
func (b *Broker) endDue(ctx context.Context, started time.Time, tried map[remit.LeaseID]time.Duration, lanes *lanes) {
	now := b.cfg.Elapsed()
	due := b.cfg.Store.LiveLeases(func(l *remit.Lease) bool {
		at, again := tried[l.ID]
		return (!again || now-at >= retryEvery) && b.isDue(l, b.cfg.Now(), started)
	})
	for target, at := range byTarget(due) {
		leases := make([]remit.Lease, 0, len(at))
		for _, i := range at {
			leases = append(leases, due[i])
		}
		end := func() {
			if err := b.endAll(ctx, leases, b.why, "remit"); err != nil && ctx.Err() == nil {
				b.cfg.Log.Warn("ending leases; what failed is tried again", "target", target, "err", err)
			}
		}
		if !lanes.start("end "+target, end) {
			continue // the last round of this target still runs; these are taken up after it
		}
		for _, l := range leases {
			tried[l.ID] = now
		}
	}
	for id, at := range tried {
		if now-at >= retryEvery {
			delete(tried, id)
		}
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

// reconcile revokes everything that stands at a target for a lease that is not live, whoever left it there.
func (b *Broker) reconcile(ctx context.Context, name string) {
	target, ok := b.cfg.Targets(name)
	if !ok || target.Lister == nil {
		return
	}
	ids, err := driverList(ctx, target)
	if err != nil {
		b.cfg.Log.Warn("cannot list what stands at a target; it is tried again in a minute", "target", name, "err", err)
		return
	}
	for _, id := range ids {
		if ctx.Err() != nil {
			return
		}
		b.sweep(ctx, name, target, id)
	}
}

func (b *Broker) sweep(ctx context.Context, name string, target Target, id remit.LeaseID) {
	l, ok := b.cfg.Store.Lease(id)
	//remit:guard S12 TestReconcileRemovesOrphans
	if ok && l.State != remit.GrantEnded && l.State != remit.GrantFailed {
		return // live, or being ended above
	}
	if !ok {
		l = remit.Lease{ID: id, Target: name}
	}
	if err := driverRevoke(ctx, target, l); err != nil {
		b.cfg.Log.Warn("cannot remove what an ended lease left", "target", name, "lease", id, "err", err)
		return
	}
	b.cfg.Log.Info("removed what an ended lease left", "target", name, "lease", id)
}
