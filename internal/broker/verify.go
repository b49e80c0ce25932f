// SPDX-License-Identifier: Apache-2.0

package broker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"remit"
)

const (
	twinLife  = 2 * time.Minute  // at most, of a twin
	tryFor    = time.Minute      // bounds all trials of one verification
	deadAfter = 10 * time.Second // how long a revoked twin is tried
)

// Verify tries the limits of a live grant (S17, S21) with a twin: a lease of equal scope under a grant of its own, recorded
// and minted as every other, whose credential leaves this call only for the driver's trials, and which is ended before the
// result is recorded. The live lease itself is not touched.
func (b *Broker) Verify(ctx context.Context, id remit.GrantID, by string) (remit.Verification, error) {
	v := remit.Verification{Grant: id}
	g, l, seen, err := b.verifiable(id)
	if err != nil {
		return v, err
	}
	target, ok := b.cfg.Targets(g.Target)
	if !ok || target.Prober == nil {
		return v, &remit.Error{Code: remit.CodeInvalid, Msg: fmt.Sprintf("the driver of target %s cannot try the limits of a grant", g.Target),
			Hint: "remit grant show GRANT lists its bounds as they are claimed", ID: string(id)}
	}
	twin, lease := b.twin(g, l)
	s := remit.SealOf(twin.Scope, twin.Sensitive)
	body := twin.SealedJSON(s)
	event := remit.Event{At: b.cfg.Now(), Kind: remit.EventGrant, Agent: twin.Agent, Run: twin.Run, Decision: twin.Decision, Grant: twin.ID,
		Lease: lease.ID, By: by, Data: body, Payload: s.Payload, Private: s.Private}
	if _, err := b.cfg.Store.Commit(ctx, remit.Change{Rows: []remit.Row{twin, lease}, Events: []remit.Event{event}, Require: seen}); err != nil {
		return v, fmt.Errorf("record the twin of grant %s: %w", id, err)
	}
	v.Twin = twin.ID
	twin, cred, err := b.Mint(ctx, twin, lease, seen)
	if err != nil {
		return v, err
	}
	trials, tryErr := try(ctx, target, lease, cred)
	ended := context.WithoutCancel(ctx) // the caller may be gone; the twin must not stay
	endErr := b.Revoke(ended, twin.ID, "verified", by)
	if endErr == nil && tryErr == nil {
		dctx, cancel := context.WithTimeout(ended, deadAfter)
		trials = append(trials, target.Prober.TryEnded(dctx, lease, cred))
		cancel()
	}
	if err := errors.Join(tryErr, endErr); err != nil {
		return v, fmt.Errorf("verify grant %s with its twin %s: %w", id, twin.ID, err)
	}
	v.Trials, v.At = trials, b.cfg.Now()
	v.Conclude()
	return v, b.recordVerified(ended, g, l, v, by)
}

// verifiable returns a live grant with its lease, and the epochs that keep a twin from being minted or used under authority
// that ended meanwhile.
func (b *Broker) verifiable(id remit.GrantID) (g remit.Grant, l remit.Lease, seen []remit.Precondition, err error) {
	g, ok := b.cfg.Store.Grant(id)
	if !ok {
		return g, l, nil, &remit.Error{Code: remit.CodeNotFound, Msg: fmt.Sprintf("there is no grant %s", id), Hint: "remit grant list shows them"}
	}
	if of := b.cfg.Store.LiveLeases(func(c *remit.Lease) bool { return c.Grant == id }); len(of) > 0 {
		l = of[len(of)-1]
	}
	rests := []remit.EpochKey{remit.AgentKey(remit.Installation), remit.AgentKey(g.Agent), remit.RunKey(g.Run), remit.LeaseKey(l.ID), remit.PolicyKey}
	if l.Launch != "" {
		rests = append(rests, remit.LaunchKey(l.Launch))
	}
	for _, k := range rests {
		seen = append(seen, remit.Precondition{Key: k, Epoch: b.cfg.Store.Epoch(k)})
	}
	_, live := b.Live(l.ID) // after the epochs were read: an end from here on moves one
	//remit:guard S21 TestVerifyNeedsALiveGrant
	if !live || g.TwinOf != "" || l.Expires.Sub(b.cfg.Now()) < leastLife {
		return g, l, nil, &remit.Error{Code: remit.CodeConflict, Msg: fmt.Sprintf("grant %s is not live", id),
			Hint: "a grant can be verified from its minting until some seconds before its end", ID: string(id)}
	}
	for _, who := range []remit.Name{remit.Installation, g.Agent} {
		//remit:guard S13 TestNoTwinDuringAHalt
		if b.cfg.Store.Posture(who).Suspended {
			return g, l, nil, &remit.Error{Code: remit.CodeConflict, Msg: fmt.Sprintf("nothing is minted while %s is suspended", who),
				Hint: "remit clock confirm ends a halt, remit agent reinstate a suspension", ID: string(id)}
		}
	}
	return g, l, seen, nil
}

// twin is a grant and a lease of the same scope, with ids of their own, that lives no longer than the trials need.
func (b *Broker) twin(g remit.Grant, l remit.Lease) (remit.Grant, remit.Lease) {
	now := b.cfg.Now()
	g.TwinOf, g.ID, g.State, g.Issued = g.ID, remit.NewGrantID(), remit.GrantPending, now
	if end := now.Add(twinLife); end.Before(l.Expires) {
		l.Expires = end
	}
	g.Expires = l.Expires
	l.ID, l.Grant, l.State, l.Credentials, l.Issued = remit.NewLeaseID(), g.ID, remit.GrantPending, nil, now
	l.MintBefore = now.Add(b.cfg.MintTimeout)
	return g, l
}

// try bounds the driver's trials, and takes its panic for an error: the twin must be ended all the same.
func try(ctx context.Context, t Target, l remit.Lease, c remit.Credential) (trials []remit.Trial, err error) {
	ctx, cancel := context.WithTimeout(ctx, tryFor)
	defer cancel()
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("the driver panicked: %v", p)
		}
	}()
	return t.Prober.Try(ctx, l, c)
}

func (b *Broker) recordVerified(ctx context.Context, g remit.Grant, l remit.Lease, v remit.Verification, by string) error {
	s := remit.SealOf(g.Scope, g.Sensitive)
	body, err := json.Marshal(struct {
		remit.Verification
		Trials json.RawMessage `json:"trials"` // they quote the scope
	}{v, s.Value("trials", v.Trials)})
	if err != nil {
		return fmt.Errorf("encode the verification of grant %s: %w", g.ID, err)
	}
	rctx, cancel := context.WithTimeout(ctx, recordTimeout)
	defer cancel()
	_, err = b.cfg.Store.Commit(rctx, remit.Change{Events: []remit.Event{{At: v.At, Kind: remit.EventVerified, Agent: g.Agent, Run: g.Run,
		Decision: g.Decision, Grant: g.ID, Lease: l.ID, By: by, Data: body, Payload: s.Payload, Private: s.Private}}})
	if err != nil {
		return fmt.Errorf("record the verification of grant %s: %w", g.ID, err)
	}
	return nil
}
