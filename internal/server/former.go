// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"errors"
	"sync"
	"time"

	"remit"
	"remit/internal/broker"
	"remit/internal/config"
	"remit/internal/credential"
)

// former keeps targets as earlier revisions had them: a lease ends where it was minted, whatever its target's file says now.
// The zero value is ready and safe for concurrent use.
type former struct {
	mu     sync.Mutex // guards byName
	byName map[string][]formerTarget
}

// formerTarget is a target that minted leases until a moment.
type formerTarget struct {
	target broker.Target
	until  time.Time
}

// keep adds a target, and forgets those of that name for which no lease is live.
func (f *former) keep(name string, t broker.Target, until time.Time, live []remit.Lease) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.byName == nil {
		f.byName = map[string][]formerTarget{}
	}
	var kept []formerTarget
	for _, old := range append(f.byName[name], formerTarget{t, until}) {
		for i := range live {
			if live[i].Target == name && live[i].Issued.Before(old.until) {
				kept = append(kept, old)
				break
			}
		}
	}
	f.byName[name] = kept
}

func (f *former) of(name string) []formerTarget {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.byName[name]
}

// layered ends a lease at every backend that may have minted it.
type layered struct {
	credential.Driver // the present one, which mints
	before            []formerTarget
}

// Revoke implements credential.Driver.
func (d layered) Revoke(ctx context.Context, l remit.Lease) error {
	errs := []error{d.Driver.Revoke(ctx, l)}
	for _, f := range d.before {
		if l.Issued.Before(f.until) {
			errs = append(errs, f.target.Driver.Revoke(ctx, l))
		}
	}
	return errors.Join(errs...)
}

// gone is the present driver of a target that no revision has any more.
type gone struct{}

// Mint implements credential.Driver: it refuses.
func (gone) Mint(context.Context, remit.Lease) (remit.Credential, error) {
	return remit.Credential{}, errors.New("the target was removed")
}

// Revoke implements credential.Driver: what there is, the former ones end.
func (gone) Revoke(context.Context, remit.Lease) error { return nil }

// target returns a target of the active revision, or a removed one for whose leases there is still somebody to ask. It ends
// leases also where earlier revisions had minted them.
func (s *Server) target(name string) (broker.Target, bool) {
	t, ok := s.rev.Load().targets[name]
	before := s.former.of(name)
	switch {
	case len(before) == 0:
		return t, ok
	case !ok:
		return broker.Target{Driver: layered{gone{}, before}, Production: true}, true
	}
	t.Driver = layered{t.Driver, before}
	return t, true
}

// retire keeps the drivers of targets that the next revision removes or changes.
func (s *Server) retire(old, next *revision) {
	if old == nil {
		s.retireStored(next)
		return
	}
	live, now := s.store.LiveLeases(nil), s.now()
	for name, t := range old.targets {
		if !old.set.Targets[name].Same(next.set.Targets[name]) {
			s.former.keep(name, t, now, live)
		}
	}
}

// retireStored does the same after a start, for leases that an earlier process minted under another revision: the lease's
// decision names it.
func (s *Server) retireStored(next *revision) {
	live := s.store.LiveLeases(nil)
	sets := map[remit.Digest]*config.Set{}
	done := map[string]bool{}
	for i := range live {
		digest := s.revisionOf(&live[i])
		if key := live[i].Target + " " + string(digest); digest == next.set.Digest || done[key] {
			continue
		} else {
			done[key] = true
		}
		set, ok := sets[digest]
		if !ok {
			if stored, known := s.store.Revision(digest); known {
				set, _ = config.Parse(stored.Files, s.td)
			}
			sets[digest] = set
		}
		if err := s.retireOf(live[i].Target, set, next, live); err != nil {
			s.log.Error("a lease's target is not what it was, and its former self cannot be asked to end it", "lease", live[i].ID,
				"target", live[i].Target, "err", err)
		}
	}
}

func (s *Server) retireOf(name string, set *config.Set, next *revision, live []remit.Lease) error {
	if set == nil {
		return errors.New("its revision cannot be read")
	}
	o, ok := set.Targets[name]
	if !ok {
		return errors.New("its revision has no such target")
	}
	if o.Same(next.set.Targets[name]) {
		return nil
	}
	b, err := newTarget(o, s.depsOf(set))
	if err != nil {
		return err
	}
	s.former.keep(name, b.target, s.now(), live)
	return nil
}

// revisionOf is the revision under which a lease was decided; empty when that is not known.
func (s *Server) revisionOf(l *remit.Lease) remit.Digest {
	g, ok := s.store.Grant(l.Grant)
	if !ok {
		return ""
	}
	e, ok, err := s.store.Decision(g.Decision)
	if err != nil || !ok {
		return ""
	}
	d, err := decisionOf(e)
	if err != nil {
		return ""
	}
	return d.Policy
}
