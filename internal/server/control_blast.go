// SPDX-License-Identifier: Apache-2.0

package server

import (
	"cmp"
	"context"
	"slices"
	"strings"

	"remit"
	"remit/internal/api"
	"remit/internal/config"
	"remit/internal/gateway/admin"
	"remit/internal/run"
	"remit/internal/store"
)

// opBlastRadius answers what an agent could do if somebody else had it now: the grants that live, what the stages of its live runs let
// it ask for and what they would want to see, what it can reach by itself from there, and what of all that a suspension would not end.
func (s *Server) opBlastRadius(_ context.Context, c admin.Call) (any, error) {
	a, err := s.agentOf(c)
	if err != nil {
		return nil, err
	}
	now := s.now()
	out := api.BlastRadius{Agent: s.agentView(a), At: now, Grants: []api.HeldGrant{}, Now: []api.Power{}, Later: []api.Power{}, Starts: []string{}}
	runs := s.runsOf(a.Name)
	for _, g := range s.store.LiveGrants(store.GrantFilter{}) {
		if g.Agent == a.Name || slices.Contains(runs, g.Run) {
			out.Grants = append(out.Grants, api.HeldGrant{Grant: g.Shown(), Minutes: max(0, g.Expires.Add(g.WorstCase).Sub(now).Minutes())})
		}
	}
	slices.SortFunc(out.Grants, func(x, y api.HeldGrant) int { return strings.Compare(string(x.ID), string(y.ID)) })
	s.powers(&a, &out)
	if group := s.store.Posture(a.Name).StepUp; group != "" {
		stepUp(out.Now, a.Name, group)
		stepUp(out.Later, a.Name, group)
	}
	slices.SortFunc(out.Now, byPlace)
	slices.SortFunc(out.Later, byPlace)
	hit := func(l *remit.Lease) bool { return l.Agent == a.Name || slices.Contains(runs, l.Run) }
	for _, r := range s.remaining(&a, hit) {
		if !strings.HasPrefix(r.What, "lease ") { // those a suspension would end
			out.Remaining = append(out.Remaining, r)
		}
	}
	return out, nil
}

// stepUp adds whose approval an agent needs after a finding. What tools ask for inside its calls needs none: the call did.
func stepUp(list []api.Power, agent remit.Name, group string) {
	for i := range list {
		if list[i].Who == agent {
			list[i].Needs = append(list[i].Needs, "approval of "+group+", after a finding")
		}
	}
}

func byPlace(x, y api.Power) int {
	return cmp.Or(strings.Compare(x.Workflow, y.Workflow), strings.Compare(string(x.Run), string(y.Run)), strings.Compare(x.Stage, y.Stage), strings.Compare(x.Permission, y.Permission))
}

// powers lists what the agent could obtain. A suspended agent obtains nothing, nor does anybody while the installation is halted.
func (s *Server) powers(a *remit.Agent, out *api.BlastRadius) {
	rev := s.rev.Load()
	if s.store.Posture(a.Name).Suspended || s.store.Posture(remit.Installation).Suspended {
		return
	}
	for _, r := range s.store.LiveRuns() {
		w, ok := rev.workflow(r.Workflow)
		if !ok || !r.Live(s.now()) || !run.Active(&r, w, a.Name) {
			continue
		}
		at := slices.IndexFunc(w.Stages, func(st remit.Stage) bool { return st.Name == r.Stage })
		out.Now = append(out.Now, powersOf(w, at, a.Name, &r)...)
		for i := at; i+1 < len(w.Stages) && slices.Contains(w.Stages[i].End, a.Name); i++ { // it goes on by itself
			out.Later = append(out.Later, powersOf(w, i+1, a.Name, &r)...)
		}
	}
	for _, w := range rev.workflows {
		if !slices.Contains(w.Start.By, a.Name) {
			continue
		}
		out.Starts = append(out.Starts, w.Name)
		for i := 0; i < len(w.Stages) && (i == 0 || slices.Contains(w.Stages[i-1].End, a.Name)); i++ {
			out.Later = append(out.Later, powersOf(w, i, a.Name, nil)...)
		}
	}
	slices.Sort(out.Starts)
}

// powersOf lists what a stage lets an agent do, and what tools may do in the calls that it may make.
func powersOf(w *remit.Workflow, stage int, agent remit.Name, r *remit.Run) (out []api.Power) {
	may := w.Stages[stage].May
	for i := range may {
		p, through := &may[i], ""
		if p.Who != agent {
			by := slices.IndexFunc(may, func(q remit.Permission) bool { return q.Name == p.Under && q.Who == agent })
			if p.Under == "" || by < 0 {
				continue
			}
			through = may[by].Name
		}
		power := api.Power{Workflow: w.Name, Stage: w.Stages[stage].Name, Permission: p.Name, Who: p.Who, Through: through, Action: p.Action, Target: p.Target,
			Where: map[string]string{}, Limits: p.Limits, Minutes: p.TTL.Minutes(), Hours: p.Hours != nil}
		for name, is := range p.Where {
			power.Where[name] = config.DescribePredicate(is)
		}
		for _, e := range p.Evidence {
			of := e.Source
			if e.Approval != nil {
				of = "of " + e.Approval.Group
			}
			power.Needs = append(power.Needs, string(e.Kind)+" "+of)
		}
		if r != nil {
			power.Run, power.Params, power.Until = r.ID, r.Shown().Params, r.Expires
			if at := slices.IndexFunc(w.Stages, func(st remit.Stage) bool { return st.Name == r.Stage }); at == stage && r.StageExpires.Before(r.Expires) {
				power.Until = r.StageExpires
			}
		}
		out = append(out, power)
	}
	return out
}
