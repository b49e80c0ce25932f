// SPDX-License-Identifier: Apache-2.0

package authorizer

import (
	"context"
	"encoding/json"
	"fmt"

	"remit"
)

// Acts finds what an executed act was done under, in memory or the store.
type Acts interface {
	Lease(id remit.LeaseID) (remit.Lease, bool)
	LeaseByCredential(id string) (remit.Lease, bool)
	Grant(id remit.GrantID) (remit.Grant, bool)
}

// Executed records acts that an enforcement point or a target's audit log reports, each joined to its decision, which only an
// enforcement point of our own states, or to its lease by the credential's id. An act under an identity of ours without a lease is recorded as a finding. All are durable, or none is.
func (a *Authorizer) Executed(ctx context.Context, acts []remit.Outcome) error {
	change := remit.Change{Unhurried: true}
	for i := range acts {
		change.Events = append(change.Events, a.actEvent(&acts[i]))
	}
	if len(change.Events) == 0 {
		return nil
	}
	if _, err := a.cfg.Record.Commit(ctx, change); err != nil {
		return fmt.Errorf("record %d executed acts: %w", len(acts), err)
	}
	return nil
}

func (a *Authorizer) actEvent(o *remit.Outcome) remit.Event {
	if o.Decision != "" {
		s := &remit.Seal{Sensitive: a.cfg.Policy().Sensitive()}
		data := mustJSON(sealOutcome(o, "", s))
		return remit.Event{At: o.At, Kind: remit.EventAction, Agent: o.Agent, Run: o.Run, Decision: o.Decision, By: o.Source,
			Data: data, Payload: s.Payload, Private: s.Private}
	}
	l, ok := a.cfg.Acts.Lease(o.Lease)
	if !ok && o.Credential != "" {
		l, ok = a.cfg.Acts.LeaseByCredential(o.Credential)
	}
	s := &remit.Seal{Sensitive: a.cfg.Policy().Sensitive()}
	if !ok || l.Target != o.Target {
		data := mustJSON(unjoined{"act_without_grant", sealOutcome(o, "act.", s)})
		return remit.Event{At: o.At, Kind: remit.EventFinding, By: o.Source, Data: data, Payload: s.Payload, Private: s.Private}
	}
	g, _ := a.cfg.Acts.Grant(l.Grant)
	o.Lease = l.ID
	s.Hide(l.Scope)
	data := mustJSON(sealOutcome(o, "", s))
	return remit.Event{At: o.At, Kind: remit.EventAction, Agent: l.Agent, Run: l.Run, Decision: g.Decision, Grant: l.Grant, Lease: l.ID,
		By: o.Source, Data: data, Payload: s.Payload, Private: s.Private}
}

type unjoined struct {
	Finding string        `json:"finding"`
	Act     sealedOutcome `json:"act"`
}

// sealedOutcome is an act as it stands in the ledger: what it was done to is a value like an argument.
type sealedOutcome struct {
	*remit.Outcome
	Resource json.RawMessage `json:"resource,omitempty"`
	Detail   json.RawMessage `json:"detail,omitempty"`
}

func sealOutcome(o *remit.Outcome, place string, s *remit.Seal) sealedOutcome {
	out := sealedOutcome{Outcome: o, Resource: s.Text(place+"resource", o.Resource)}
	if len(o.Detail) > 0 {
		out.Detail = s.Value(place+"detail", o.Detail)
	}
	return out
}
