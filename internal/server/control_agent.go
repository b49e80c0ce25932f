// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"remit"
	"remit/internal/api"
	"remit/internal/gateway/admin"
	"remit/internal/store"
)

func (s *Server) agentView(a remit.Agent) api.Agent {
	p := s.store.Posture(a.Name)
	return api.Agent{Name: a.Name, ID: a.ID.String(), Owner: a.Owner, Suspended: p.Suspended, StepUp: p.StepUp, Throttled: p.Throttled, Reason: p.Reason,
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
