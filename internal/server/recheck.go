// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"remit"
	"remit/internal/store"
)

// Live grants are held to what is true now (S12): all of them when a configuration is activated, those that rest on a source when a
// statement of it arrives, and those that rest on a ticket every few seconds. What is not allowed any more ends at its target;
// then the decision that says why is recorded.
const (
	rereadEvery    = 10 * time.Second // how often grants that rest on a ticket are judged; one ticket is read once in 30 s at most
	silentFor      = time.Minute      // how long a source may not answer before grants that rest on it end
	parallelJudges = 16
)

// rechecks is what waits to be judged again. The zero value is ready and safe for concurrent use.
type rechecks struct {
	mu      sync.Mutex // guards all but wake
	all     bool
	sources map[string]bool
	silent  map[remit.GrantID]time.Duration // since when a grant could not be judged, by Elapsed
	told    map[remit.GrantID]bool          // whose end somebody writes down

	once sync.Once
	wake chan struct{}
}

func (r *rechecks) waiting() chan struct{} {
	r.once.Do(func() { r.wake = make(chan struct{}, 1) })
	return r.wake
}

// ask has all live grants judged soon, or those that rest on one source.
func (r *rechecks) ask(source string) {
	r.mu.Lock()
	if r.all = r.all || source == ""; !r.all {
		if r.sources == nil {
			r.sources = map[string]bool{}
		}
		r.sources[source] = true
	}
	r.mu.Unlock()
	select {
	case r.waiting() <- struct{}{}:
	default:
	}
}

func (r *rechecks) take() (all bool, sources map[string]bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	all, sources = r.all, r.sources
	r.all, r.sources = false, nil
	return all, sources
}

// patience reports whether a grant that could not be judged may go on; now is the time by Elapsed.
func (r *rechecks) patience(id remit.GrantID, now time.Duration) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.silent == nil {
		r.silent = map[remit.GrantID]time.Duration{}
	}
	since, ok := r.silent[id]
	if !ok {
		since, r.silent[id] = now, now
	}
	return now-since < silentFor
}

func (r *rechecks) judged(id remit.GrantID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.silent, id)
}

// first reports whether nobody yet writes down why the grant ends. An activation, a statement and the tick may judge one grant at
// the same time; one of them tells.
func (r *rechecks) first(id remit.GrantID) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.told == nil {
		r.told = map[remit.GrantID]bool{}
	}
	before := r.told[id]
	r.told[id] = true
	return !before
}

// forget drops grants that have ended.
func (r *rechecks) forget(live []remit.Grant) {
	r.mu.Lock()
	defer r.mu.Unlock()
	over := func(id remit.GrantID) bool {
		return !slices.ContainsFunc(live, func(g remit.Grant) bool { return g.ID == id })
	}
	maps.DeleteFunc(r.silent, func(id remit.GrantID, _ time.Duration) bool { return over(id) })
	maps.DeleteFunc(r.told, func(id remit.GrantID, _ bool) bool { return over(id) })
}

func (r *rechecks) isSilent(id remit.GrantID) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, ok := r.silent[id]
	return ok
}

// recheckAsked judges what was asked for until ctx ends.
func (s *Server) recheckAsked(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.rechecks.waiting():
		}
		all, sources := s.rechecks.take()
		s.recheck(ctx, "remit", func(g *remit.Grant) bool {
			return all || s.restsOn(g, func(r *remit.Requirement) bool { return sources[r.Source] })
		})
	}
}

// rereadTickets judges grants whose facts can change without anything arriving here, and those that could not be judged.
func (s *Server) rereadTickets(ctx context.Context) error {
	tick := time.NewTicker(s.reread)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		s.rechecks.forget(s.store.LiveGrants(store.GrantFilter{}))
		s.recheck(ctx, "remit", func(g *remit.Grant) bool {
			return s.rechecks.isSilent(g.ID) || s.restsOn(g, func(r *remit.Requirement) bool { return r.Kind == remit.EvidenceTicket })
		})
	}
}

// restsOn reports whether the grant's permission has such a requirement. A grant whose permission is gone was judged when that
// happened.
func (s *Server) restsOn(g *remit.Grant, is func(*remit.Requirement) bool) bool {
	w, ok := s.rev.Load().workflow(g.Permission.Workflow)
	if !ok {
		return false
	}
	for i := range w.Stages {
		for j := range w.Stages[i].May {
			if p := &w.Stages[i].May[j]; p.Name == g.Permission.Name {
				return slices.ContainsFunc(p.Evidence, func(r remit.Requirement) bool { return is(&r) })
			}
		}
	}
	return false
}

// recheck judges active grants that which selects, a few at a time, ends those that are not allowed any more, and returns how
// many. What ctx did not leave time for is asked for again. A grant that is still pending the line itself holds to what moves.
func (s *Server) recheck(ctx context.Context, by string, which func(*remit.Grant) bool) int {
	var wg sync.WaitGroup
	var mu sync.Mutex // guards ended
	ended := 0
	slot := make(chan struct{}, parallelJudges)
	for _, g := range s.store.LiveGrants(store.GrantFilter{}) {
		if g.State != remit.GrantActive || !which(&g) {
			continue
		}
		if ctx.Err() != nil {
			s.rechecks.ask("")
			break
		}
		slot <- struct{}{}
		wg.Go(func() {
			defer func() { <-slot }()
			if s.recheckGrant(ctx, &g, by) {
				mu.Lock()
				ended++
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return ended
}

// recheckGrant ends a grant that is not allowed any more, and reports whether it did.
func (s *Server) recheckGrant(ctx context.Context, g *remit.Grant, by string) bool {
	d := s.judgeAgain(ctx, g)
	if d.Effect == remit.Allow {
		s.rechecks.judged(g.ID)
		return false
	}
	if ctx.Err() != nil { // that is why: nobody was asked
		s.rechecks.ask("")
		return false
	}
	if transient(&d) && s.rechecks.patience(g.ID, s.elapsed()) {
		return false
	}
	s.rechecks.judged(g.ID)
	first := s.rechecks.first(g.ID) // before the state is read: a judge who comes later finds the grant ended
	if now, ok := s.store.Grant(g.ID); first && (!ok || now.State != remit.GrantActive) {
		return true // another one ended it, and wrote down why
	}
	why := "no longer allowed: " + codes(d.Reasons) + " (" + string(d.ID) + ")"
	//remit:guard S12 TestPolicyChangeEndsGrants,TestEvidenceEndsGrants,TestClosedTicketEndsGrants
	s.endOf(ctx, func(l *remit.Lease) bool { return l.Grant == g.ID }, why, by)
	if !first {
		return true // it waited, as we did, until the target confirmed
	}
	s.recordRecheck(ctx, g, &d, why, by)
	return true
}

// recordRecheck writes down the decision that ended a grant.
func (s *Server) recordRecheck(ctx context.Context, g *remit.Grant, d *remit.Decision, why, by string) {
	seal := remit.SealOf(g.Scope, g.Sensitive) // whatever the present revision says of it
	if g.Sensitive {
		seal.Sensitive = remit.AllOf(d.Args, d.Params)
	}
	seal.Hide(d.Args)
	seal.Hide(d.Params)
	data := d.AppendSealed(nil, seal)
	e := remit.Event{At: d.At, Kind: remit.EventDecision, Agent: g.Agent, Run: g.Run, Decision: d.ID, Grant: g.ID, By: by, Data: data,
		Payload: seal.Payload, Private: seal.Private}
	rctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	if err := s.record(rctx, e); err != nil {
		s.log.Error("a grant ended because it is not allowed any more; that decision is not on record", "grant", g.ID, "why", why, "err", err)
	}
}

// judgeAgain asks the line what it would say now to the request that the grant came from, for the same permission.
func (s *Server) judgeAgain(ctx context.Context, g *remit.Grant) remit.Decision {
	fault := func(err error) remit.Decision {
		return remit.Decision{ID: remit.NewDecisionID(), At: s.now(), Agent: g.Agent, Run: g.Run, Permission: g.Permission, Action: g.Action,
			Target: g.Target, Reasons: []remit.Reason{{Code: remit.ReasonFault, Of: "decision", Got: err.Error()}}}
	}
	e, ok, err := s.store.Decision(g.Decision)
	if err == nil && !ok {
		err = fmt.Errorf("decision %s is not in the ledger", g.Decision)
	}
	if err != nil {
		return fault(err)
	}
	old, err := decisionOf(e.Reveal())
	if err != nil {
		return fault(err)
	}
	req, err := s.requestOf(&old, g)
	if err != nil {
		return fault(err)
	}
	now := s.authorizer.Again(ctx, req)
	if now.Effect == remit.Allow && narrower(&now, &old) {
		now.Effect, now.Reasons = remit.Deny, []remit.Reason{{Code: remit.ReasonLimit, Of: "limits", Want: "what is given now", Got: "more"}}
	}
	return now
}

// requestOf restores the request behind a recorded decision, as of now.
func (s *Server) requestOf(d *remit.Decision, g *remit.Grant) (*remit.Request, error) {
	req := &remit.Request{At: s.now(), Agent: d.Agent, Run: d.Run, Permission: g.Permission.Name, Action: d.Action, Target: d.Target, Args: d.Args,
		Under: d.Under, TTL: d.AskedTTL, Via: "recheck"}
	req.Caller.Credential = d.Credential
	for level := remit.LevelNone; level <= remit.LevelNode; level++ {
		if level.String() == d.Level {
			req.Caller.Level = level
		}
	}
	leases, err := s.store.LeasesOf(g.ID)
	if err != nil {
		return nil, err
	}
	for _, l := range leases {
		req.Caller.Launch = l.Launch
	}
	for _, e := range d.Evidence {
		if e.Kind == remit.EvidenceApproval { // it was used up for this grant
			req.Approved = append(req.Approved, e)
		}
	}
	for _, o := range d.Obligations { // whoever has the grant keeps them; narrower tells of more
		kind, _, _ := strings.Cut(o, "=")
		req.Keeps = append(req.Keeps, kind)
	}
	for name := range d.Limits {
		req.Keeps = append(req.Keeps, "limits."+name)
	}
	req.Sandbox = s.tierOf(req)
	if name, err := remit.ParseName(d.Caller); err == nil {
		req.Caller.Person = name
		return req, nil
	}
	req.Caller.ID, err = spiffeid.FromString(d.Caller)
	return req, err
}

// narrower reports whether a decision gives less than an older one did: the credential was bound by the older.
func narrower(now, old *remit.Decision) bool {
	for name, n := range now.Limits {
		if was, ok := old.Limits[name]; !ok || n < was {
			return true
		}
	}
	return slices.ContainsFunc(now.Obligations, func(o string) bool { return !slices.Contains(old.Obligations, o) })
}

// transient reports whether a denial says only that nobody could judge: a source that does not answer, a fault of ours, a halt,
// which is about new grants.
func transient(d *remit.Decision) bool {
	return !slices.ContainsFunc(d.Reasons, func(r remit.Reason) bool {
		return r.Code != remit.ReasonEvidenceSource && r.Code != remit.ReasonFault && r.Code != remit.ReasonHalted
	})
}

func codes(reasons []remit.Reason) string {
	var out []string
	for _, r := range reasons {
		text := string(r.Code)
		if r.Of != "" {
			text += " of " + r.Of
		}
		out = append(out, text)
	}
	return strings.Join(out, ", ")
}
