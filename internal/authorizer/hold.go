// SPDX-License-Identifier: Apache-2.0

package authorizer

import (
	"context"
	"slices"
	"time"

	"remit"
)

// How long a held request stays open when its approvals state no shorter time, and how many of one run are remembered: asked again
// it stands under the same deadline, and after it there is a denial for as long as the run lives. A hold can end, not renew itself.
const (
	heldFor    = 15 * time.Minute
	maxRunHeld = 100
)

// approvals finds people's answers to exactly this request: what they are bound to is its digest, with the facts as they were found
// now. So it is looked up last, and not at all when a fact is missing, because then nobody is asked.
func (a *Authorizer) approvals(req *remit.Request, w *weighed, found []remit.Found) {
	missing := func(f remit.Found) bool { return f.Evidence == nil && f.Need.Kind != remit.EvidenceApproval }
	if !slices.ContainsFunc(w.match.Needs, ofPeople) || slices.ContainsFunc(found, missing) {
		return
	}
	if len(req.Approved) > 0 { // decided again for a live grant
		again(found, req.Approved)
		return
	}
	w.asked = remit.RequestDigest(&w.decision, &w.run, found)
	h, epoch, ok := a.cfg.State.HeldAs(w.asked)
	//remit:guard S39 TestApprovalRaces
	w.rests(remit.HeldKey(w.asked), epoch)
	if !ok || h.State != remit.HeldApproved {
		return
	}
	for i := range found {
		if e := h.Fact(&w.match.Needs[i], req.At); e != nil && ofPeople(found[i].Need) {
			found[i].Evidence, found[i].Reason = e, nil
			w.uses = &h
		}
	}
}

// askMore judges again with the approvals that a rule of the organisation asks for, as needs beside those of the permission: people are
// asked about all of them in one, and one answer counts for all. What was found of the question without them does not count.
func (a *Authorizer) askMore(ctx context.Context, req *remit.Request, w *weighed) {
	found := slices.Clone(w.found)
	for i := range found {
		if ofPeople(found[i].Need) {
			found[i].Evidence, found[i].Reason = nil, nil
		}
	}
	w.uses = nil
	w.match.Needs = slices.Concat(w.match.Needs, w.asks)
	for _, n := range w.asks {
		found = append(found, remit.Found{Need: n, Reason: &remit.Reason{Code: remit.ReasonApproval, Of: "rules.approvers"}})
	}
	a.approvals(req, w, found)
	w.judge(ctx, req, found)
	//remit:guard S39 TestRuleThatAsksOthersEachTime
	if len(w.asks) > 0 {
		w.deny(remit.Reason{Code: remit.ReasonRule, Of: "rules.approvers", Got: "the rules ask for others each time"})
	}
}

// watch denies what is more than a throttled agent is given, and holds what an agent would be given for the group that its posture names,
// as if a rule of the organisation did. Live grants that are judged again are left alone: they were given before, or with that approval.
func (a *Authorizer) watch(ctx context.Context, req *remit.Request, w *weighed) {
	//remit:guard S36 TestThrottle internal/server
	if w.throttled && w.decision.Effect != remit.Deny && (a.cfg.Pace == nil || !a.cfg.Pace(req.Agent, req.At)) {
		w.deny(remit.Reason{Code: remit.ReasonThrottled})
		keep(req, w)
	}
	need := remit.Need{Kind: remit.EvidenceApproval, Source: remit.SourceRule, Within: heldFor, Match: map[string]string{"group": w.stepUp, "people": "1"}}
	asked := func(n remit.Need) bool { return n.Source == need.Source && n.Match["group"] == w.stepUp }
	if w.stepUp == "" || w.decision.Effect == remit.Deny || slices.ContainsFunc(w.match.Needs, asked) {
		return
	}
	w.asks = []remit.Need{need}
	a.askMore(ctx, req, w)
	//remit:guard S12 TestStepUp internal/server
	if w.decision.Effect == remit.Allow && w.found[len(w.found)-1].Evidence == nil {
		d := &w.decision
		d.Effect, d.Reasons, d.TTL, d.Limits, d.Obligations = remit.Hold, []remit.Reason{{Code: remit.ReasonApproval, Of: remit.OfStepUp}}, 0, nil, nil
	}
	keep(req, w)
}

func ofPeople(n remit.Need) bool { return n.Kind == remit.EvidenceApproval }

// again puts approvals that were used up in their places: those that say what the need asks for.
func again(found []remit.Found, given []remit.Evidence) {
	for i := range found {
		for j := range given {
			if e := &given[j]; ofPeople(found[i].Need) && e.Source == found[i].Need.Source && e.Fields["group"] == found[i].Need.Match["group"] {
				found[i].Evidence, found[i].Reason = e, nil
			}
		}
	}
}

// hold says how long a held request stands, and opens it when it is asked for the first time. One whose time is over, or that
// somebody denied, is a Deny.
func (a *Authorizer) hold(req *remit.Request, w *weighed) {
	d := &w.decision
	if w.opens = nil; d.Effect != remit.Hold {
		return
	}
	if w.asked == "" {
		w.asked = remit.RequestDigest(d, &w.run, w.found)
	}
	h, epoch, ok := a.cfg.State.HeldAs(w.asked)
	switch {
	case !ok || h.State == remit.HeldUsed: // what was approved before counted once
		a.open(req, w, epoch)
		return
	//remit:guard S39 TestDeniedStaysDenied
	case h.State == remit.HeldDenied:
		w.deny(remit.Reason{Code: remit.ReasonApprovalDenied, Of: "approval", Got: string(h.ID)})
		return
	}
	end := h.Until
	if h.State == remit.HeldApproved { // and more is needed: a rule holds, too
		end = h.Lapses()
	}
	//remit:guard S39 TestHoldEndsInDenial
	if h.State == remit.HeldExpired || !d.At.Before(end) {
		w.deny(remit.Reason{Code: remit.ReasonHoldExpired, Of: "approval", Want: "an answer before " + end.UTC().Format(time.RFC3339)})
		return
	}
	d.Hold, d.Until = h.ID, end
}

// open asks people. What is asked is written down with the decision.
func (a *Authorizer) open(req *remit.Request, w *weighed, epoch uint64) {
	//remit:guard S39 TestHoldsOfOneRun
	if a.cfg.State.HeldOf(w.run.ID) >= maxRunHeld {
		w.deny(remit.Reason{Code: remit.ReasonLimit, Of: "holds of the run", Want: "at most 100", Got: "more"})
		return
	}
	var needs []remit.Need
	wait := heldFor
	for _, n := range w.match.Needs {
		if ofPeople(n) {
			needs = append(needs, n)
			if n.Within > 0 {
				wait = min(wait, n.Within)
			}
		}
	}
	until := w.decision.At.Add(wait)
	if w.run.StageExpires.Before(until) {
		until = w.run.StageExpires
	}
	h := remit.NewHeld(&w.decision, w.asked, needs, &w.run, until)
	if l, ok := a.cfg.State.Launch(req.Caller.Launch); ok && req.Caller.Launch != "" {
		h.Requester = l.By
	}
	w.opens, w.held = &h, remit.Precondition{Key: h.EpochKey(), Epoch: epoch}
	w.decision.Hold, w.decision.Until = h.ID, until
}

// rows are what a decision writes beside its event: the request that it holds for the first time, or the approval that it uses up.
func (w *weighed) rows() []remit.Row {
	switch {
	case w.decision.Effect == remit.Hold && w.opens != nil:
		return []remit.Row{*w.opens}
	//remit:guard S39 TestApprovalCountsOnce
	case w.decision.Effect == remit.Allow && w.uses != nil:
		h := *w.uses
		h.State, h.Used, h.Ended = remit.HeldUsed, w.decision.ID, w.decision.At
		return []remit.Row{h}
	}
	return nil
}

// used moves on what the mint rests on: that the approval was used is this decision's own doing.
func (w *weighed) used() {
	for i := range w.seen {
		if w.uses != nil && w.seen[i].Key == w.uses.EpochKey() {
			w.seen[i].Epoch++
		}
	}
}
