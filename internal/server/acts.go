// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"remit"
	"remit/internal/api"
	"remit/internal/store"
)

// How the acts under a grant come to be known (S37).
const (
	actsObserved     = "observed"     // the target's own audit log tells them
	actsReported     = "reported"     // an enforcement point told them; nobody else saw
	actsUnobservable = "unobservable" // nobody tells them: that none are known says nothing
)

// observe fills in what is known of the acts under a grant, and how.
func (s *Server) observe(g remit.Grant) (api.Grant, error) {
	out := api.Grant{Grant: g.Shown(), Observation: actsObserved}
	var err error
	if out.Acts, err = s.acts(store.EventFilter{Kind: remit.EventAction, Grant: g.ID}); err != nil {
		return out, err
	}
	if out.Gaps, err = s.acts(store.EventFilter{Kind: remit.EventAuditGap, Grant: g.ID}); err != nil {
		return out, err
	}
	rev := s.rev.Load()
	_, watched := rev.webhooks[g.Target]
	watched = watched || rev.logs[g.Target] != nil
	//remit:guard S37 TestActsOfAGrant
	if !watched {
		out.Observation = actsUnobservable
		if len(out.Acts) > 0 {
			out.Observation = actsReported
		}
	}
	return out, nil
}

type gapData struct {
	Target string    `json:"target"`
	From   time.Time `json:"from"`
	Until  time.Time `json:"until"`
	Why    string    `json:"why"`
}

// recordGaps writes down, for each lease that lived while no server ran, that what its target's audit log told in that time may be
// lost: an API server tries again for a while, and then drops what it has.
func (s *Server) recordGaps(ctx context.Context) error {
	last, ok, err := s.store.Entry(s.before)
	if err != nil || !ok {
		return err
	}
	var h struct {
		At time.Time `json:"at"`
	}
	if err := json.Unmarshal(last.Body, &h); err != nil {
		return fmt.Errorf("read entry %d: %w", s.before, err)
	}
	change := remit.Change{}
	for _, l := range s.store.LiveLeases(nil) {
		if _, watched := s.rev.Load().webhooks[l.Target]; !watched {
			continue
		}
		body, err := json.Marshal(gapData{l.Target, h.At, s.now(), "the server did not run"})
		if err != nil {
			return err
		}
		g, _ := s.store.Grant(l.Grant)
		change.Events = append(change.Events, remit.Event{At: s.now(), Kind: remit.EventAuditGap, Agent: l.Agent, Run: l.Run, Decision: g.Decision,
			Grant: l.Grant, Lease: l.ID, By: "remit", Data: body})
		if len(change.Events) == 1000 {
			break // a change has bounds; so many live leases are named by the first of them
		}
	}
	if len(change.Events) == 0 {
		return nil
	}
	_, err = s.store.Commit(ctx, change)
	return err
}
