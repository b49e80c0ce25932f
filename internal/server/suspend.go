// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"remit"
	"remit/internal/api"
	"remit/internal/gateway/admin"
	"remit/internal/run"
	"remit/internal/tool"
)

func (s *Server) opSuspend(ctx context.Context, c admin.Call) (any, error) {
	a, err := s.agentOf(c)
	if err != nil {
		return nil, err
	}
	why, err := reasonOf(c)
	if err != nil {
		return nil, err
	}
	return s.suspend(ctx, &suspension{agent: a, why: why, by: c.Who}), nil
}

// suspension is one that is to be, or that is in force and not on record.
type suspension struct {
	agent   remit.Agent
	why     string
	by      remit.Principal
	finding remit.FindingID // that it answers
	kill    bool            // the processes that were launched with its identity, too
	out     api.Suspended
}

// stop is one thing that a suspension ends; all of them begin at once, so that one that hangs keeps no other from ending.
type stop struct {
	name string
	do   func(context.Context) error
}

// suspend ends an agent's powers in this order (S20, S23): posture in memory, so that nothing new is decided; every lease of the
// agent, and of every run that it started or acts in, at the targets, and its sandboxes; then the record, which freezes those runs;
// then once more what others were given in them while the targets were busy.
func (s *Server) suspend(ctx context.Context, of *suspension) *api.Suspended {
	agent, began, out := of.agent.Name, s.now(), &of.out
	//remit:guard S20 TestGrantDuringSuspension
	s.store.SetSuspended(agent, of.why)
	s.registry.Notify()
	out.Runs = s.runsOf(agent)
	for _, id := range out.Runs {
		s.store.Tighten(remit.RunKey(id)) // others' grants that are being decided in them
	}
	s.mcp.Recheck()
	out.Steps = append(out.Steps, api.Step{What: "decisions", MS: s.since(began)})
	hit := func(l *remit.Lease) bool { return l.Agent == agent || slices.Contains(out.Runs, l.Run) }
	before := s.store.LiveLeases(hit)
	endErr := s.stopAll(ctx, s.stops(of, hit), began, out)
	out.MS = s.since(began)
	for _, l := range before {
		g, _ := s.store.Grant(l.Grant)
		out.Ended = append(out.Ended, g.Shown())
	}
	if err := s.recordSuspension(ctx, of); err != nil {
		s.log.Error("suspension is in force but not on record; it is tried again", "agent", agent, "err", err)
		out.Failed = append(out.Failed, "the suspension is in force but not on record: "+err.Error())
		s.unrecorded.Store(agent, of)
	}
	s.mcp.Recheck() // of others, in those runs
	for _, again := range s.stops(of, hit)[1:] {
		_ = again.do(ctx)
	}
	//remit:guard S23 TestGrantDuringSuspension
	endErr = errors.Join(endErr, s.endOf(ctx, hit, "agent suspended", of.by.String()))
	if endErr != nil {
		out.Failed = append(out.Failed, strings.Split(endErr.Error(), "\n")...)
	}
	out.Agent, out.Remaining = s.agentView(of.agent), s.remaining(&of.agent, hit)
	return out
}

// stops are what ends, the leases first.
func (s *Server) stops(of *suspension, hit func(*remit.Lease) bool) []stop {
	agent, runs := of.agent.Name, of.out.Runs
	claimed := func(c tool.Claim, _ *remit.Tool) bool { return c.Tool == agent || slices.Contains(runs, c.Run) }
	inside := func(b *boxed) bool { return b.record.Agent == agent || slices.Contains(runs, b.record.Run) }
	out := []stop{
		{"leases", func(ctx context.Context) error { return s.endOf(ctx, hit, "agent suspended", of.by.String()) }},
		{"sandboxes of tools", func(ctx context.Context) error { s.endClaims(ctx, "agent suspended", claimed); return nil }},
		{"sandboxes of agents", func(ctx context.Context) error { s.endBoxed(ctx, "agent suspended", inside); return nil }},
	}
	if of.kill {
		out = append(out, stop{"processes", func(context.Context) error { return s.killLaunched(agent) }})
	}
	return out
}

// stopAll ends all at once, and notes how long each took.
func (s *Server) stopAll(ctx context.Context, stops []stop, began time.Time, out *api.Suspended) error {
	var wg sync.WaitGroup
	errs, steps := make([]error, len(stops)), make([]api.Step, len(stops))
	for i, st := range stops {
		wg.Go(func() {
			errs[i] = st.do(ctx)
			steps[i] = api.Step{What: st.name, MS: s.since(began)}
		})
	}
	wg.Wait()
	out.Steps = append(out.Steps, steps...)
	return errors.Join(errs...)
}

// killLaunched ends the processes of this host that were launched with the agent's identity.
func (s *Server) killLaunched(agent remit.Name) error {
	var errs []error
	for _, l := range s.store.LiveLaunches() {
		if b := s.ids.get(l.ID); l.Agent == agent && b != nil {
			errs = append(errs, b.Kill())
		}
	}
	return errors.Join(errs...)
}

func (s *Server) since(began time.Time) float64 {
	return float64(s.now().Sub(began).Microseconds()) / 1e3
}

// recordSuspensions writes down what could not be before: only what is on record outlives this process.
func (s *Server) recordSuspensions(ctx context.Context) {
	s.unrecorded.Range(func(agent, what any) bool {
		todo := what.(*suspension)
		if s.recordSuspension(ctx, todo) == nil {
			s.unrecorded.CompareAndDelete(agent, what)
			s.endOf(ctx, func(l *remit.Lease) bool { return slices.Contains(todo.out.Runs, l.Run) }, "agent suspended", todo.by.String())
		}
		return ctx.Err() == nil
	})
}

// runsOf lists the live runs that the agent started or whose present stage it acts in.
func (s *Server) runsOf(agent remit.Name) []remit.RunID {
	rev := s.rev.Load()
	out := []remit.RunID{}
	for _, r := range s.store.LiveRuns() {
		w, ok := rev.workflow(r.Workflow)
		if r.Starter == agent || ok && run.Active(&r, w, agent) {
			out = append(out, r.ID)
		}
	}
	return out
}

type suspensionData struct {
	Reason  string          `json:"reason"`
	Finding remit.FindingID `json:"finding,omitempty"`
	Runs    []remit.RunID   `json:"frozen_runs,omitempty"`
	Grants  int             `json:"ended_grants"`
	MS      float64         `json:"ms,omitempty"`
	Steps   []api.Step      `json:"steps,omitempty"`
}

func (s *Server) recordSuspension(ctx context.Context, of *suspension) error {
	now, agent := s.now(), of.agent.Name
	data := suspensionData{of.why, of.finding, of.out.Runs, len(of.out.Ended), of.out.MS, of.out.Steps}
	change := remit.Change{
		Rows:   []remit.Row{remit.AgentStatus{Agent: agent, Suspended: true, Reason: of.why, By: of.by.Person, At: now}},
		Events: []remit.Event{s.agentEvent(remit.EventSuspended, agent, now, of.by, data)},
	}
	for _, id := range of.out.Runs {
		r, ok := s.store.Run(id)
		if !ok {
			continue
		}
		frozen, events, err := run.Freeze(r, of.by.String(), of.why, now)
		if err != nil {
			continue // it ended meanwhile
		}
		change.Rows, change.Events = append(change.Rows, frozen), append(change.Events, events...)
	}
	rctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	_, err := s.store.Commit(rctx, change)
	return err
}
