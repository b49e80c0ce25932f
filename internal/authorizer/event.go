// SPDX-License-Identifier: Apache-2.0

package authorizer

import (
	"encoding/json"

	"remit"
)

func newDecision(req *remit.Request) remit.Decision {
	return remit.Decision{
		ID: remit.NewDecisionID(), At: req.At,
		Caller: req.Caller.String(), Credential: req.Caller.Credential, Level: req.Caller.Level.String(),
		Agent: req.Agent, Action: req.Action, Target: req.Target, Args: req.Args,
		Run: req.Run, Under: req.Under, Sandbox: req.Sandbox, Asked: req.Permission, AskedTTL: req.TTL, Via: req.Via,
	}
}

func decisionEvent(d *remit.Decision, s *remit.Seal) remit.Event {
	s.Payload = make([]byte, 0, 1024)
	data := d.AppendSealed(make([]byte, 0, 1024), s)
	return remit.Event{At: d.At, Kind: remit.EventDecision, Agent: d.Agent, Run: d.Run, Decision: d.ID, By: d.Caller,
		Data: data, Payload: s.Payload, Private: s.Private}
}

func grantEvent(d *remit.Decision, g *remit.Grant, l *remit.Lease, s *remit.Seal) remit.Event {
	data := g.SealedJSON(s)
	return remit.Event{At: d.At, Kind: remit.EventGrant, Agent: g.Agent, Run: g.Run, Decision: d.ID, Grant: g.ID, Lease: l.ID,
		By: d.Caller, Data: data, Payload: s.Payload, Private: s.Private}
}

// mustJSON encodes our own plain structs, which cannot fail to encode.
func mustJSON(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic("authorizer: " + err.Error())
	}
	return b
}
