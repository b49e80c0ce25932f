// SPDX-License-Identifier: Apache-2.0

package store

import (
	"bytes"
	"encoding/json"

	"remit"
)

// ref says that an event mentions something: a hash of kind and name. Readers compare the event itself, so that two names with
// one hash do no harm.
type ref struct{ hash, seq uint64 }

func refsOf(e *remit.Event) []uint64 {
	out := make([]uint64, 0, 5)
	for _, m := range [...]struct {
		kind byte
		name string
	}{{'a', string(e.Agent)}, {'r', string(e.Run)}, {'d', string(e.Decision)}, {'g', string(e.Grant)}, {'l', string(e.Lease)}} {
		if m.name != "" {
			out = append(out, refHash(m.kind, m.name))
		}
	}
	return out
}

// refHash is FNV-1a, 64 bits.
func refHash(kind byte, name string) uint64 {
	const prime = 1099511628211
	h := (uint64(14695981039346656037) ^ uint64(kind)) * prime
	for i := range len(name) {
		h = (h ^ uint64(name[i])) * prime
	}
	return h
}

// head is what lists filter by.
type head struct {
	Kind     remit.EventKind  `json:"kind"`
	Agent    remit.Name       `json:"agent"`
	Run      remit.RunID      `json:"run"`
	Decision remit.DecisionID `json:"decision"`
	Grant    remit.GrantID    `json:"grant"`
	Lease    remit.LeaseID    `json:"lease"`
}

func parseHead(body []byte) (head, error) {
	if h, ok := quickHead(body); ok {
		return h, nil
	}
	var h head
	err := json.Unmarshal(body, &h)
	return h, err
}

// quickHead reads the head of an entry as Event.AppendJSON writes it, without looking at its data, which is most of it: lists read every
// entry. ok is false where it is written otherwise, or has escapes.
func quickHead(body []byte) (h head, ok bool) {
	rest, ok := bytes.CutPrefix(body, []byte(remit.EntryHead))
	if !ok {
		return h, false
	}
	rest = bytes.TrimLeft(rest, "0123456789")
	for !bytes.HasPrefix(rest, []byte(`,"data":`)) && string(rest) != "}" {
		member, after, found := bytes.Cut(rest, []byte(`":"`))
		value, end, closed := bytes.Cut(after, []byte{'"'})
		if !found || !closed || bytes.IndexByte(value, '\\') >= 0 {
			return h, false
		}
		switch string(member) {
		case `,"at`, `,"by`:
		case `,"kind`:
			h.Kind = remit.EventKind(value)
		case `,"agent`:
			h.Agent = remit.Name(value)
		case `,"run`:
			h.Run = remit.RunID(value)
		case `,"decision`:
			h.Decision = remit.DecisionID(value)
		case `,"grant`:
			h.Grant = remit.GrantID(value)
		case `,"lease`:
			h.Lease = remit.LeaseID(value)
		default:
			return h, false
		}
		rest = end
	}
	return h, true
}

// EventFilter narrows a list of events; empty fields match all.
type EventFilter struct {
	Kind     remit.EventKind
	Agent    remit.Name
	Run      remit.RunID
	Decision remit.DecisionID
	Grant    remit.GrantID
	Lease    remit.LeaseID
}

func (f *EventFilter) matches(body []byte) bool {
	h, err := parseHead(body)
	return err == nil && matches(f.Kind, h.Kind) && matches(f.Agent, h.Agent) && matches(f.Run, h.Run) &&
		matches(f.Decision, h.Decision) && matches(f.Grant, h.Grant) && matches(f.Lease, h.Lease)
}

// hash returns the ref of the most selective field that is set.
func (f *EventFilter) hash() (uint64, bool) {
	switch {
	case f.Decision != "":
		return refHash('d', string(f.Decision)), true
	case f.Lease != "":
		return refHash('l', string(f.Lease)), true
	case f.Grant != "":
		return refHash('g', string(f.Grant)), true
	case f.Run != "":
		return refHash('r', string(f.Run)), true
	case f.Agent != "":
		return refHash('a', string(f.Agent)), true
	}
	return 0, false
}
