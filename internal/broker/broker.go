// SPDX-License-Identifier: Apache-2.0

// Package broker turns allowed decisions into live credentials and sees to it that every one of them ends: by expiry, with
// its stage or run, by revocation, by suspension, and after a crash. It writes a lease as pending before a driver is called,
// so that from the record alone everything can be undone; it never holds a credential longer than the call that hands it
// over. Run ends what is due, with one goroutine for each target, and waits for all of them.
package broker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"remit"
	"remit/internal/credential"
)

// Store is what the broker reads and writes. Reads are from memory.
type Store interface {
	Commit(ctx context.Context, c remit.Change) (remit.Receipt, error)
	Lease(id remit.LeaseID) (remit.Lease, bool)
	Grant(id remit.GrantID) (remit.Grant, bool)
	// LiveLeases returns the leases that are pending, active or revoking and that which selects; all if it is nil.
	LiveLeases(which func(*remit.Lease) bool) []remit.Lease
	Epoch(key remit.EpochKey) uint64
	Posture(agent remit.Name) remit.Posture
	Tighten(key remit.EpochKey)
}

// Target is one configured backend with its driver; the optional parts were looked up when it was configured.
type Target struct {
	Driver     credential.Driver
	Lister     credential.Lister  // nil: cannot list, so unknown outcomes end by time alone
	Checker    credential.Checker // nil: nothing to check
	Planner    credential.Planner // nil: states no bounds
	Prober     credential.Prober  // nil: its grants cannot be verified
	Production bool               // requires a launched workload or better (S3)
	Keeps      []string           // the kinds of obligations that its driver carries out, and limits.NAME for limits
}

// Config of a Broker; Store, Targets and Log are required.
type Config struct {
	Store   Store
	Targets func(name string) (Target, bool) // the active revision's; also those removed while leases live
	Names   func() []string                  // of the targets to reconcile
	AgentID func(remit.Name) string          // SPIFFE ID of an agent
	Log     *slog.Logger
	Now     func() time.Time
	// Elapsed is a clock that nobody sets: leases end by it, too, should Now be set back (S13). Default: from Now.
	Elapsed func() time.Duration
	// MintTimeout bounds one mint; default 10 s.
	MintTimeout time.Duration
	// Settle is how long after MintBefore a create that was sent may still arrive at a target: its API's own timeout.
	// Default 60 s, the Kubernetes API server's. Until then an unknown outcome is revoked again and again (S18).
	Settle time.Duration
	// Tick is how often due leases are looked for; default 100 ms.
	Tick time.Duration
}

// Broker mints and ends. It is safe for concurrent use.
type Broker struct {
	cfg Config

	mu     sync.Mutex                      // guards the rest
	ending map[remit.LeaseID]string        // leases whose end began and is not on record yet, with why
	inside map[remit.LeaseID]int           // how many calls are ending a lease right now
	until  map[remit.LeaseID]time.Duration // when live leases end by Elapsed
	fit    map[string]credential.Checker   // of targets whose last mint went well, as they were then
}

// leastLife is the shortest grant worth minting: less would be dead on arrival.
const leastLife = 5 * time.Second

// New checks cfg and sets defaults.
func New(cfg Config) (*Broker, error) {
	if cfg.Store == nil || cfg.Targets == nil || cfg.Names == nil || cfg.AgentID == nil || cfg.Log == nil {
		return nil, errors.New("broker: Store, Targets, Names, AgentID and Log are required")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	for _, d := range []struct {
		field *time.Duration
		value time.Duration
	}{{&cfg.MintTimeout, 10 * time.Second}, {&cfg.Settle, time.Minute}, {&cfg.Tick, 100 * time.Millisecond}} {
		if *d.field <= 0 {
			*d.field = d.value
		}
	}
	if cfg.Elapsed == nil {
		start := cfg.Now()
		cfg.Elapsed = func() time.Duration { return cfg.Now().Sub(start) }
	}
	b := &Broker{cfg: cfg, ending: map[remit.LeaseID]string{}, inside: map[remit.LeaseID]int{}, until: map[remit.LeaseID]time.Duration{},
		fit: map[string]credential.Checker{}}
	for _, l := range cfg.Store.LiveLeases(nil) { // of an earlier process
		b.lives(&l)
	}
	return b, nil
}

// lives sets when a lease ends by the clock that nobody sets: never later than the time that it was given.
func (b *Broker) lives(l *remit.Lease) {
	left := min(l.Expires.Sub(b.cfg.Now()), l.Expires.Sub(l.Issued))
	b.mu.Lock()
	defer b.mu.Unlock()
	b.until[l.ID] = b.cfg.Elapsed() + left
}

// over reports whether a lease's time is over, by either clock (S13). Round drops what a Time knows of the other one.
func (b *Broker) over(l *remit.Lease, now time.Time) bool {
	//remit:guard S13 TestLeaseEndsByEitherClock
	if !now.Round(0).Before(l.Expires.Round(0)) {
		return true
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	end, ok := b.until[l.ID]
	//remit:guard S13 TestLeaseEndsByEitherClock
	if ok && b.cfg.Elapsed() >= end {
		return true
	}
	return false
}

// Prepare plans grant and lease for an allowed decision without touching more of the target than its guard objects. A target
// whose last mint went well is not asked: the mint that follows checks it, too, and costs a round trip less so. One that was
// found unfit is asked first until it is fit again, so that the denial says why and nothing is begun there.
func (b *Broker) Prepare(ctx context.Context, d *remit.Decision, req *remit.Request, run *remit.Run) (remit.Grant, remit.Lease, error) {
	none := func(err error) (remit.Grant, remit.Lease, error) { return remit.Grant{}, remit.Lease{}, err }
	target, expires, err := b.takes(d, req, run)
	if err != nil {
		return none(err)
	}
	if target.Checker != nil && !b.believed(d.Target, &target) {
		cctx, cancel := context.WithTimeout(ctx, b.cfg.MintTimeout)
		defer cancel()
		//remit:guard S19 TestUnfitTarget
		if err := target.Checker.Check(cctx); err != nil {
			return none(fmt.Errorf("target %s is not fit for grants: %w", d.Target, err))
		}
	}
	g, l, err := b.planned(&target, d, req, expires)
	if err != nil {
		return none(err)
	}
	return g, l, nil
}

// Outlook is what a grant would be: no more than words and a time, nothing that can be minted from.
type Outlook struct {
	Expires            time.Time
	Bounds, NotBounded []string
	WorstCase          time.Duration
}

// Outlook says what Prepare would plan for a decision, for people who are asked about it. It asks no target.
func (b *Broker) Outlook(d *remit.Decision, req *remit.Request, run *remit.Run) (Outlook, error) {
	target, expires, err := b.takes(d, req, run)
	if err != nil {
		return Outlook{}, err
	}
	g, _, err := b.planned(&target, d, req, expires)
	if err != nil {
		return Outlook{}, err
	}
	return Outlook{g.Expires, g.Bounds, g.NotBounded, g.WorstCase}, nil
}

// takes returns the target of a decision, if it takes whoever asks, and when a grant would end, if that is far enough.
func (b *Broker) takes(d *remit.Decision, req *remit.Request, run *remit.Run) (Target, time.Time, error) {
	target, ok := b.cfg.Targets(d.Target)
	if !ok {
		return target, time.Time{}, fmt.Errorf("target %s is not configured", d.Target)
	}
	//remit:guard S3 TestProductionNeedsLaunch
	if target.Production && req.Caller.Level < remit.LevelLaunched { // the target may be marked since the request was let in
		return target, time.Time{}, fmt.Errorf("target %s takes only launched workloads", d.Target)
	}
	expires := earliest(d, req, run)
	//remit:guard S12 TestShortestEndCounts
	if expires.Sub(req.At) < leastLife {
		return target, expires, fmt.Errorf("only %s would be left", expires.Sub(req.At).Round(time.Second))
	}
	return target, expires, nil
}

func (b *Broker) planned(target *Target, d *remit.Decision, req *remit.Request, expires time.Time) (remit.Grant, remit.Lease, error) {
	l := remit.Lease{
		ID: remit.NewLeaseID(), Grant: remit.NewGrantID(), Agent: d.Agent, AgentID: b.cfg.AgentID(d.Agent), Run: d.Run,
		Launch: req.Caller.Launch, Target: d.Target, Action: d.Action, Scope: d.Args, Masks: masks(d), Rows: d.Limits["rows"], Issued: req.At, Expires: expires,
		MintBefore: b.cfg.Now().Add(b.cfg.MintTimeout), State: remit.GrantPending,
	}
	g := remit.Grant{
		ID: l.Grant, Decision: d.ID, Agent: d.Agent, Run: d.Run, Permission: d.Permission, Action: d.Action,
		Target: d.Target, Scope: d.Args, Issued: req.At, Expires: expires, State: remit.GrantPending,
	}
	var err error
	if target.Planner != nil {
		g.Bounds, g.NotBounded, g.WorstCase, err = target.Planner.Plan(l)
	}
	return g, l, err
}

// masks are the columns that the decision obliges the target to mask.
func masks(d *remit.Decision) (columns []string) {
	for _, o := range d.Obligations {
		if c, ok := strings.CutPrefix(o, "mask="); ok {
			columns = append(columns, c)
		}
	}
	return columns
}

// earliest is S12: ttl, stage, run, evidence and approval, window, and the caller's own SVID.
func earliest(d *remit.Decision, req *remit.Request, run *remit.Run) time.Time {
	end := req.At.Add(d.TTL)
	ends := []time.Time{run.Expires, run.StageExpires, d.Until, req.Caller.Expires}
	for _, e := range d.Evidence {
		ends = append(ends, e.Until)
	}
	for _, t := range ends {
		//remit:guard S12 TestShortestEndCounts
		if !t.IsZero() && t.Before(end) {
			end = t
		}
	}
	return end
}

// Mint calls the driver for a pending lease that is on record, and commits the lease active. The credential is returned
// only after that commit; whatever goes wrong before leaves the lease revoking, and Run ends it.
func (b *Broker) Mint(ctx context.Context, g remit.Grant, l remit.Lease, require []remit.Precondition) (remit.Grant, remit.Credential, error) {
	target, ok := b.cfg.Targets(l.Target)
	if !ok {
		b.abandon(ctx, g, l, "target removed")
		return g, remit.Credential{}, fmt.Errorf("target %s was removed", l.Target)
	}
	b.lives(&l)
	mctx, cancel := context.WithDeadline(ctx, l.MintBefore)
	defer cancel()
	cred, err := target.Driver.Mint(mctx, l)
	b.believe(l.Target, &target, err == nil)
	if err != nil {
		b.abandon(ctx, g, l, "mint failed")
		return g, remit.Credential{}, &remit.Error{Code: remit.CodeUnavailable, Msg: "target " + l.Target + " did not mint a credential",
			Hint: "try again; remit doctor " + l.Target + " says what is wrong there", ID: string(g.ID), Cause: err}
	}
	g, l = activated(g, l, &cred)
	change := remit.Change{
		Rows:   []remit.Row{g, l},
		Events: []remit.Event{b.event(remit.EventLeaseActive, &l, "remit", activeData{cred.IDs, l.Expires, cred.Native})},
		// The pending lease was its first write; a revocation in between moved it on.
		Require: append([]remit.Precondition{{Key: l.EpochKey(), Epoch: 1}}, require...),
	}
	//remit:guard S11 TestStateMovedDuringMint
	if _, err := b.cfg.Store.Commit(ctx, change); err != nil {
		b.abandon(ctx, g, l, "state changed before hand-over")
		return g, remit.Credential{}, fmt.Errorf("record credential of %s: %w", l.Target, err)
	}
	return g, cred, nil
}

// believe remembers that a target was fit, until a mint fails there or it is configured otherwise.
func (b *Broker) believe(name string, target *Target, fit bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if delete(b.fit, name); fit {
		b.fit[name] = target.Checker
	}
}

func (b *Broker) believed(name string, target *Target) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.fit[name] == target.Checker
}

func activated(g remit.Grant, l remit.Lease, cred *remit.Credential) (remit.Grant, remit.Lease) {
	//remit:guard S12 TestShortCredential
	if !cred.Expires.IsZero() && cred.Expires.Before(l.Expires) {
		l.Expires = cred.Expires
	}
	cred.Expires = l.Expires
	cred.Bounds, cred.NotBounded, cred.WorstCase = g.Bounds, g.NotBounded, g.WorstCase
	l.State, l.Credentials = remit.GrantActive, cred.IDs
	g.State, g.Expires = remit.GrantActive, l.Expires
	return g, l
}

// Abandon ends a grant whose pending lease is on record and whose mint will not be tried: nothing stands at the target.
func (b *Broker) Abandon(ctx context.Context, g remit.Grant, l remit.Lease, why string) {
	b.mark(l.ID, why)
	defer b.enter(l.ID)()
	seen := b.cfg.Store.Epoch(remit.LeaseKey(l.ID))
	l.State, l.Why, l.Ended = remit.GrantFailed, why, b.cfg.Now()
	if err := b.recordEnd(ctx, l, seen, remit.EventLeaseFailed, "remit", endData{Why: why}); err != nil {
		b.cfg.Log.Warn("an abandoned grant is not on record; it will be tried again", "lease", l.ID, "grant", g.ID, "err", err)
	}
}

// abandon begins the end of a lease whose mint did not succeed as far as we know. The caller may be gone; cleaning up is not.
func (b *Broker) abandon(ctx context.Context, g remit.Grant, l remit.Lease, why string) {
	l.State = remit.GrantPending // nothing was handed over, whatever was made
	if err := b.end(context.WithoutCancel(ctx), l, why, "remit"); err != nil {
		b.cfg.Log.Warn("ending an abandoned lease; it will be tried again", "lease", l.ID, "grant", g.ID, "err", err)
	}
}
