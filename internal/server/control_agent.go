// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"remit"
	"remit/internal/api"
	"remit/internal/gateway/admin"
	"remit/internal/run"
	"remit/internal/store"
	"remit/internal/tool"
)

func (s *Server) agentView(a remit.Agent) api.Agent {
	p := s.store.Posture(a.Name)
	return api.Agent{Name: a.Name, ID: a.ID.String(), Owner: a.Owner, Suspended: p.Suspended, Reason: p.Reason,
		Live: len(s.store.LiveGrants(store.GrantFilter{Agent: a.Name}))}
}

func (s *Server) opAgents(_ context.Context, c admin.Call) (any, error) {
	limit, after, err := page(c.Query)
	if err != nil {
		return nil, err
	}
	out := []api.Agent{}
	for _, a := range s.rev.Load().set.Agents {
		if string(a.Name) > after {
			out = append(out, s.agentView(a))
		}
	}
	slices.SortFunc(out, func(a, b api.Agent) int { return strings.Compare(string(a.Name), string(b.Name)) })
	return listed(out[:min(limit, len(out))], limit, func(a api.Agent) string { return string(a.Name) }), nil
}

func (s *Server) agentOf(c admin.Call) (remit.Agent, error) {
	name := remit.Name(c.Path("kind") + "/" + c.Path("name"))
	a, ok := s.rev.Load().set.Agents[name]
	if !ok {
		return a, notFound("agent", string(name))
	}
	return a, nil
}

func (s *Server) opAgent(_ context.Context, c admin.Call) (any, error) {
	a, err := s.agentOf(c)
	if err != nil {
		return nil, err
	}
	return s.agentView(a), nil
}

// opSuspend ends an agent's powers in this order (S20, S23): posture in memory, so that nothing new is decided; every lease
// of the agent, and of every run that it started or acts in, at the targets; then the record, which freezes those runs; then
// once more what others were given in them while the targets were busy.
func (s *Server) opSuspend(ctx context.Context, c admin.Call) (any, error) {
	a, err := s.agentOf(c)
	if err != nil {
		return nil, err
	}
	why, err := reasonOf(c)
	if err != nil {
		return nil, err
	}
	began := s.now()
	//remit:guard S20 TestGrantDuringSuspension
	s.store.SetSuspended(a.Name, why)
	s.registry.Notify()
	out := api.Suspended{Runs: s.runsOf(a.Name)}
	for _, id := range out.Runs {
		s.store.Tighten(remit.RunKey(id)) // others' grants that are being decided in them
	}
	hit := func(l *remit.Lease) bool { return l.Agent == a.Name || slices.Contains(out.Runs, l.Run) }
	claimed := func(c tool.Claim, _ *remit.Tool) bool { return c.Tool == a.Name || slices.Contains(out.Runs, c.Run) }
	s.endClaims(ctx, "agent suspended", claimed)
	boxes := func(b *boxed) bool { return b.record.Agent == a.Name || slices.Contains(out.Runs, b.record.Run) }
	s.endBoxed(ctx, "agent suspended", boxes)
	before := s.store.Leases(store.LeaseFilter{})
	endErr := s.endOf(ctx, hit, "agent suspended", c.Who.String())
	out.MS = float64(s.now().Sub(began).Microseconds()) / 1e3
	for _, l := range before {
		if hit(&l) {
			g, _ := s.store.Grant(l.Grant)
			out.Ended = append(out.Ended, g.Shown())
		}
	}
	if err := s.recordSuspension(ctx, a.Name, why, c.Who, &out); err != nil {
		s.log.Error("suspension is in force but not on record; it is tried again", "agent", a.Name, "err", err)
		out.Failed = append(out.Failed, "the suspension is in force but not on record: "+err.Error())
		s.unrecorded.Store(a.Name, &suspension{why, c.Who, out})
	}
	s.endClaims(ctx, "agent suspended", claimed)
	s.endBoxed(ctx, "agent suspended", boxes)
	//remit:guard S23 TestGrantDuringSuspension
	endErr = errors.Join(endErr, s.endOf(ctx, hit, "agent suspended", c.Who.String()))
	if endErr != nil {
		out.Failed = append(out.Failed, strings.Split(endErr.Error(), "\n")...)
	}
	out.Agent, out.Remaining = s.agentView(a), s.remaining(&a, hit)
	return out, nil
}

// suspension is one that is in force and not on record.
type suspension struct {
	why string
	by  remit.Principal
	out api.Suspended
}

// recordSuspensions writes down what could not be before: only what is on record outlives this process.
func (s *Server) recordSuspensions(ctx context.Context) {
	s.unrecorded.Range(func(agent, what any) bool {
		name, todo := agent.(remit.Name), what.(*suspension)
		if s.recordSuspension(ctx, name, todo.why, todo.by, &todo.out) == nil {
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
	Reason string        `json:"reason"`
	Runs   []remit.RunID `json:"frozen_runs,omitempty"`
	Grants int           `json:"ended_grants"`
	MS     float64       `json:"ms,omitempty"`
}

func (s *Server) recordSuspension(ctx context.Context, agent remit.Name, why string, by remit.Principal, out *api.Suspended) error {
	now := s.now()
	change := remit.Change{
		Rows:   []remit.Row{remit.AgentStatus{Agent: agent, Suspended: true, Reason: why, By: by.Person, At: now}},
		Events: []remit.Event{s.agentEvent(remit.EventSuspended, agent, now, by, suspensionData{why, out.Runs, len(out.Ended), out.MS})},
	}
	for _, id := range out.Runs {
		r, ok := s.store.Run(id)
		if !ok {
			continue
		}
		frozen, events, err := run.Freeze(r, by.String(), why, now)
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

func (s *Server) agentEvent(kind remit.EventKind, agent remit.Name, at time.Time, by remit.Principal, data any) remit.Event {
	body, _ := json.Marshal(data) // plain structs of ours
	return remit.Event{At: at, Kind: kind, Agent: agent, By: by.String(), Data: body}
}

func (s *Server) opReinstate(ctx context.Context, c admin.Call) (any, error) {
	a, err := s.agentOf(c)
	if err != nil {
		return nil, err
	}
	why, err := reasonOf(c)
	if err != nil {
		return nil, err
	}
	now, posture := s.now(), s.store.Posture(a.Name)
	if _, waiting := s.unrecorded.Load(a.Name); waiting {
		return nil, &remit.Error{Code: remit.CodeConflict, Msg: fmt.Sprintf("the suspension of %s is not on record yet", a.Name),
			Hint: "see the server's log, and try again"}
	}
	_, err = s.store.Commit(ctx, remit.Change{
		Rows:    []remit.Row{remit.AgentStatus{Agent: a.Name, Reason: why, By: c.Who.Person, At: now}},
		Events:  []remit.Event{s.agentEvent(remit.EventReinstated, a.Name, now, c.Who, suspensionData{Reason: why})},
		Require: []remit.Precondition{{Key: remit.AgentKey(a.Name), Epoch: posture.Epoch}}, // no later suspension is lifted by this
	})
	if err != nil {
		return nil, err
	}
	s.registry.Notify()
	return s.agentView(a), nil
}
