// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"encoding/json"
	"fmt"

	"remit"
	"remit/internal/gateway/admin"
	"remit/internal/store"
)

func (s *Server) opFindings(_ context.Context, c admin.Call) (any, error) {
	limit, after, err := page(c.Query)
	if err != nil {
		return nil, err
	}
	q := c.Query
	list, err := s.store.Findings(store.FindingFilter{State: remit.FindingState(q.Get("state")), Agent: remit.Name(q.Get("agent")), Kind: remit.FindingKind(q.Get("kind"))},
		limit, remit.FindingID(after))
	return listed(list, limit, func(f remit.Finding) string { return string(f.ID) }), err
}

func (s *Server) findingOf(c admin.Call) (f remit.Finding, err error) {
	id, err := remit.ParseFindingID(c.Path("id"))
	if err != nil {
		return f, err
	}
	f, ok, err := s.store.Finding(id)
	if err == nil && !ok {
		err = notFound("finding", string(id))
	}
	return f, err
}

func (s *Server) opFinding(_ context.Context, c admin.Call) (any, error) { return s.findingOf(c) }

type closedData struct {
	ID     remit.FindingID   `json:"id"`
	Kind   remit.FindingKind `json:"kind"`
	Target string            `json:"target,omitempty"`
	Reason string            `json:"reason"`
}

// opFindingClose notes that a person looked. It gives nobody any power back: that is remit agent reinstate.
func (s *Server) opFindingClose(ctx context.Context, c admin.Call) (any, error) {
	f, err := s.findingOf(c)
	if err != nil {
		return nil, err
	}
	why, err := reasonOf(c)
	if err != nil {
		return nil, err
	}
	if f.State != remit.FindingOpen {
		return nil, &remit.Error{Code: remit.CodeConflict, Msg: fmt.Sprintf("%s was closed by %s", f.ID, f.ClosedBy), ID: string(f.ID)}
	}
	epoch := s.store.Epoch(f.EpochKey())
	f.State, f.Closed, f.ClosedBy, f.Why = remit.FindingClosed, s.now(), c.Who.String(), why
	body, err := json.Marshal(closedData{f.ID, f.Kind, f.Target, why})
	if err != nil {
		return nil, err
	}
	_, err = s.store.Commit(ctx, remit.Change{Rows: []remit.Row{f}, Require: []remit.Precondition{{Key: f.EpochKey(), Epoch: epoch}},
		Events: []remit.Event{{At: f.Closed, Kind: remit.EventClosed, Agent: f.Agent, Run: f.Run, By: f.ClosedBy, Data: body}}})
	return f, err
}
