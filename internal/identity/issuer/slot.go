// SPDX-License-Identifier: Apache-2.0

package issuer

import (
	"crypto/ecdsa"
	"crypto/x509"
	"slices"
	"time"
)

// State says what a key is used for.
type State string

// The states.
const (
	Next    State = "next"    // published, does not sign yet
	Current State = "current" // signs
	Old     State = "old"     // published until all that it signed has ended
)

// slot is one key of a ring. It never changes after it is in a ring's state.
type slot struct {
	id       string
	state    State
	created  time.Time
	activate time.Time // when a next key takes over
	notAfter time.Time // what it signs ends before
	key      *ecdsa.PrivateKey
	chain    []*x509.Certificate // of a certificate authority: its own first, without the root unless it is one
	header   string              // base64url of the JWS header
}

// step is one move of a ring.
type step string

// The steps, as OnEvent reports them.
const (
	stepPrepare  step = "prepare"  // a next key is made and published
	stepActivate step = "activate" // the next key signs
	stepRetire   step = "retire"   // the current key signs no more
	stepPrune    step = "prune"    // an old key is forgotten
)

// policy is the timing of a ring.
type policy struct {
	life   time.Duration // of a key
	spare  time.Duration // before its end a current key stops to sign: the longest life of what it signs
	notice time.Duration // a key is published at least this long before it signs
	keep   time.Duration // an old key stays published this long after its end
}

// switchAt is when a key hands over: at 5/6 of its life, or earlier so that what it signs can live out.
func (p policy) switchAt(s *slot) time.Time { return s.notAfter.Add(-max(p.life/6, p.spare)) }

// due returns the one step that is due, and the slot that it is about. It is pure; the caller applies the step and asks again.
func (p policy) due(slots []slot, now time.Time) (st step, about string, ok bool) {
	for _, s := range slots {
		if ended := !now.Before(s.notAfter); ended && (s.state == Next || !now.Before(s.notAfter.Add(p.keep))) {
			return stepPrune, s.id, true
		}
	}
	next, cur := find(slots, Next), find(slots, Current)
	working := cur != nil && now.Before(cur.notAfter)
	switch {
	case next == nil && (!working || !now.Before(cur.created.Add(p.life/2))):
		return stepPrepare, "", true
	case next != nil && (!working || !now.Before(next.activate)):
		return stepActivate, next.id, true
	}
	return "", "", false
}

func find(slots []slot, state State) *slot {
	i := slices.IndexFunc(slots, func(s slot) bool { return s.state == state })
	if i < 0 {
		return nil
	}
	return &slots[i]
}

// activated returns the slots with id as the current key and the former current key as an old one.
func activated(slots []slot, id string) (out []slot, retired string) {
	out = slices.Clone(slots)
	for i := range out {
		switch {
		case out[i].id == id:
			out[i].state, out[i].activate = Current, time.Time{}
		case out[i].state == Current:
			out[i].state, retired = Old, out[i].id
		}
	}
	return out, retired
}

func without(slots []slot, id string) []slot {
	return slices.DeleteFunc(slices.Clone(slots), func(s slot) bool { return s.id == id })
}
