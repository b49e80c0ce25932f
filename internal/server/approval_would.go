// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"maps"
	"strings"
	"time"

	"remit"
	"remit/internal/api"
	"remit/internal/policy"
)

// wouldAllow says what a held request would be given, if it was approved: the active plan judges it as it will when it is asked again,
// with approvals that exist in here only, and the broker says what it would plan. Nothing of it leaves but as text for people: a hold
// has no authority, and this gives it none. It rests on the facts of the decision, as old as they are by now; sources are not asked.
func (s *Server) wouldAllow(ctx context.Context, h *remit.Held) *api.WouldAllow {
	now := s.now()
	if !h.Open(now) && (h.State != remit.HeldApproved || !now.Before(h.Lapses())) {
		return nil
	}
	run, ok := s.store.Run(h.Run)
	if !ok || !run.Live(now) {
		return nil
	}
	not := func(why string) *api.WouldAllow { return &api.WouldAllow{Not: printable(remit.Clip(why, maxShown))} }
	e, ok, err := s.store.Decision(h.Decision)
	if err != nil || !ok {
		return not("what was asked cannot be read")
	}
	opened := e.Open()
	if len(opened.Erased) > 0 {
		return not("what was asked cannot be shown any more")
	}
	d, err := decisionOf(e.Reveal())
	if err != nil {
		return not("what was asked cannot be read")
	}
	req, err := s.requestOf(&d, &remit.Grant{Permission: h.Permission})
	if err != nil {
		return not(err.Error())
	}
	req.Sandbox = d.Sandbox // as it was: whoever asks again does so from there
	if why := judgeApproved(ctx, s.rev.Load().plan, req, &run, h, &d); why != "" {
		return not(why)
	}
	return s.outlook(&d, req, &run, len(opened.Private) > 0)
}

// judgeApproved puts into d what the plan says to it once all that it waits for is approved, or returns why it is denied even then.
func judgeApproved(ctx context.Context, plan *policy.Plan, req *remit.Request, run *remit.Run, h *remit.Held, d *remit.Decision) string {
	m := plan.Match(req, run)
	if m.Permission == nil {
		return codes(m.Reasons)
	}
	found, ok := factsApproved(d, h, m.Needs, req.At)
	if !ok {
		return "the permission asks for other facts than were found"
	}
	j := plan.Judge(ctx, req, run, &m, found)
	if j.Effect == remit.Hold && len(j.Asks) > 0 { // as the line does: a rule's approvals are needs beside the permission's
		m.Needs = append(m.Needs[:len(m.Needs):len(m.Needs)], j.Asks...)
		for i := range j.Asks {
			found = append(found, remit.Found{Need: j.Asks[i], Evidence: approvedNow(h, &j.Asks[i], req.At)})
		}
		j = plan.Judge(ctx, req, run, &m, found)
	}
	if j.Effect != remit.Allow {
		return codes(j.Reasons)
	}
	d.Args, d.TTL, d.Until, d.Limits, d.Obligations, d.Evidence = m.Args, j.TTL, j.Until, j.Limits, j.Obligations, nil
	for i := range found {
		d.Evidence = append(d.Evidence, *found[i].Evidence)
	}
	return ""
}

// factsApproved are the facts that the decision rests on, in the places of their needs, with people's answers where they are missing.
// false: these are not its needs.
func factsApproved(d *remit.Decision, h *remit.Held, needs []remit.Need, at time.Time) ([]remit.Found, bool) {
	lacking := map[int]bool{}
	for _, l := range d.Lacking {
		lacking[l.Need] = true
	}
	var out []remit.Found
	facts := d.Evidence
	for i := range needs {
		f := remit.Found{Need: needs[i]}
		switch {
		case lacking[i] && needs[i].Kind == remit.EvidenceApproval:
			f.Evidence = approvedNow(h, &needs[i], at)
		case lacking[i] || len(facts) == 0:
			return nil, false
		default:
			f.Evidence, facts = &facts[0], facts[1:]
		}
		out = append(out, f)
	}
	return out, true
}

// approvedNow is people's answer as a fact: theirs, if they have given it, or one as if they gave it now.
func approvedNow(h *remit.Held, n *remit.Need, at time.Time) *remit.Evidence {
	if e := h.Fact(n, at); e != nil {
		return e
	}
	return &remit.Evidence{Kind: remit.EvidenceApproval, Source: n.Source, Made: at, Verified: at, Fields: maps.Clone(n.Match)}
}

// outlook is an allowed decision as people see it. What the target is bound to names values of arguments: with sensitive ones it is
// not shown.
func (s *Server) outlook(d *remit.Decision, req *remit.Request, run *remit.Run, private bool) *api.WouldAllow {
	out := &api.WouldAllow{Seconds: int64(d.TTL.Seconds()), Until: d.Until, Limits: d.Limits}
	for _, o := range d.Obligations {
		if tier, ok := strings.CutPrefix(o, "sandbox="); ok {
			out.Tier = tier
			continue
		}
		out.Obligations = append(out.Obligations, printable(remit.Clip(o, maxShown)))
	}
	if d.Via != "token" {
		out.Seconds = 0 // it is for one decision
		return out
	}
	plan, err := s.broker.Outlook(d, req, run)
	if err != nil && !private {
		return &api.WouldAllow{Not: printable(remit.Clip("target "+d.Target+": "+err.Error(), maxShown))}
	}
	if err != nil {
		return &api.WouldAllow{Not: "target " + d.Target + " does not take it"}
	}
	out.Credential, out.Until, out.WorstCase = true, plan.Expires, int64(plan.WorstCase.Seconds())
	//remit:guard S33 TestSensitiveBoundsAreNotShown
	if private {
		out.Hidden = true
		return out
	}
	out.Bounds, out.NotBounded = printables(plan.Bounds), printables(plan.NotBounded)
	return out
}

func printables(of []string) (out []string) {
	for _, x := range of {
		out = append(out, remit.Clip(printable(x), 2*maxShown))
	}
	return out
}
