// SPDX-License-Identifier: Apache-2.0

package store

import (
	"bytes"
	"fmt"
	"strconv"
	"sync"

	"zombiezen.com/go/sqlite"

	"remit"
)

const lastEventSQL = `SELECT ifnull(max(seq), 0) FROM events`

// draft is an event encoded but for its number, which only the writer knows.
type draft struct {
	rest             []byte // what follows the number
	payload, private []byte // private is encrypted
	refs             []uint64
}

func (s *Store) newDraft(e *remit.Event) (draft, error) {
	private, err := s.encrypt(e.Private, privateUse)
	if err != nil {
		return draft{}, err
	}
	if len(e.Payload)+len(private) > maxPayloadBytes {
		return draft{}, tooLarge("the sealed values of an event of kind %s have more than %d bytes", e.Kind, maxPayloadBytes)
	}
	b := e.AppendJSON(make([]byte, 0, len(e.Data)+320), 0)
	rest, ok := bytes.CutPrefix(b, []byte(remit.EntryHead+"0"))
	if !ok {
		return draft{}, fmt.Errorf("event %s does not begin with %s0", e.Kind, remit.EntryHead)
	}
	if bytes.IndexByte(b, entryEnd) >= 0 {
		return draft{}, fmt.Errorf("event %s is not JSON: it has a byte 0", e.Kind)
	}
	if len(b)+20 > maxEventBytes {
		return draft{}, tooLarge("an event of kind %s has %d bytes, more than %d", e.Kind, len(b), maxEventBytes)
	}
	return draft{rest: rest, payload: e.Payload, private: private, refs: refsOf(e)}, nil
}

// number gives the batch's events their numbers.
func (s *Store) number(c *committed, ready []*pending, first uint64) {
	w := &s.w
	w.apart = w.apart[:0]
	size, events, refs := 0, 0, 0
	for _, p := range ready {
		for i := range p.events {
			size, refs = size+len(p.events[i].rest)+len(remit.EntryHead)+21, refs+len(p.events[i].refs)
		}
		events += len(p.events)
	}
	c.text, c.ends, c.refs = make([]byte, 0, size), make([]int, 0, events), make([]ref, 0, refs)
	seq := first
	for _, p := range ready {
		p.first = seq
		for i := range p.events {
			d := &p.events[i]
			c.text = append(c.text, leafPrefix) // the body follows
			c.text = append(c.text, remit.EntryHead...)
			c.text = strconv.AppendUint(c.text, seq, 10)
			c.text = append(c.text, d.rest...)
			c.ends = append(c.ends, len(c.text))
			w.apart = append(w.apart, d)
			for _, r := range d.refs {
				c.refs = append(c.refs, ref{r, seq})
			}
			seq++
		}
	}
}

// loadEvents finds the last number, and the refs of events that were not indexed yet.
func (s *Store) loadEvents(conn *sqlite.Conn) error {
	err := query1(conn, lastEventSQL, func(st *sqlite.Stmt) error {
		s.w.last = uint64(st.ColumnInt64(0))
		s.last.Store(s.w.last)
		return nil
	})
	if err != nil {
		return err
	}
	return s.loadIndex(conn)
}

// LastSeq returns the number of the last durable event; 0 when there is none.
func (s *Store) LastSeq() uint64 { return s.last.Load() }

// Committed returns a channel that is closed at the next durable change. Take it before reading, so that none is missed.
func (s *Store) Committed() <-chan struct{} { return s.committed.next() }

// Entries returns the entries after a number, in order, at most limit (1 to 4096). Their bodies are not to be changed.
func (s *Store) Entries(after uint64, limit int) ([]remit.Entry, error) {
	limit = min(max(limit, 1), 4096)
	select {
	case <-s.closing:
		return nil, errClosed
	default:
	}
	if newest, ok := s.tail.entries(after, limit); ok {
		return newest, nil
	}
	var out []remit.Entry
	err := s.read(func(conn *sqlite.Conn) error {
		var err error
		out, err = entries(conn, after, s.last.Load(), limit, false)
		return err
	})
	return out, err
}

// Entry returns one entry by its number, with its payload.
func (s *Store) Entry(seq uint64) (e remit.Entry, found bool, err error) {
	if seq == 0 || seq > s.last.Load() {
		return e, false, nil
	}
	err = s.read(func(conn *sqlite.Conn) error {
		e, found, err = s.openEntry(conn, seq)
		return err
	})
	return e, found, err
}

// bindSome binds NULL for nothing.
func bindSome(st *sqlite.Stmt, i int, b []byte) {
	if len(b) == 0 {
		st.BindNull(i)
		return
	}
	st.BindBytes(i, b)
}

// broadcast wakes all who wait.
type broadcast struct {
	mu sync.Mutex // guards ch
	ch chan struct{}
}

func (b *broadcast) next() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.ch
}

func (b *broadcast) signal() {
	b.mu.Lock()
	defer b.mu.Unlock()
	close(b.ch)
	b.ch = make(chan struct{})
}
