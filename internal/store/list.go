// SPDX-License-Identifier: Apache-2.0

package store

import (
	"errors"

	"zombiezen.com/go/sqlite"

	"remit"
)

// maxScanned bounds the events that one list looks at; next then says where to go on.
const maxScanned = 50_000

// Events lists the entries after a number that match, in order, at most limit (1 to 1000). next is the number to pass as after
// for the following page, 0 when there is none. A filter by nothing but Kind looks at every event, at most 50,000 of them in
// one call: then a page may be short, or empty, and still have a next.
func (s *Store) Events(f EventFilter, after uint64, limit int) (entries []remit.Entry, next uint64, err error) {
	limit = clampLimit(limit)
	hash, indexed := f.hash()
	err = s.read(func(conn *sqlite.Conn) error {
		if indexed {
			entries, next, err = s.listByRef(conn, &f, hash, after, limit)
		} else {
			entries, next, err = s.listAll(conn, &f, after, limit)
		}
		return err
	})
	return entries, next, err
}

// Decision returns the event that recorded a decision.
func (s *Store) Decision(id remit.DecisionID) (remit.Entry, bool, error) {
	entries, _, err := s.Events(EventFilter{Kind: remit.EventDecision, Decision: id}, 0, 1)
	if err != nil || len(entries) == 0 {
		return remit.Entry{}, false, err
	}
	return entries[0], true, nil
}

// errEnough ends a scan early.
var errEnough = errors.New("enough")

func (s *Store) listByRef(conn *sqlite.Conn, f *EventFilter, hash, after uint64, limit int) (out []remit.Entry, next uint64, err error) {
	scanned, last := 0, uint64(0)
	err = s.mentions(conn, hash, after, func(seq uint64) error {
		if len(out) == limit || scanned == maxScanned {
			next = last
			return errEnough
		}
		scanned, last = scanned+1, seq
		e, found, err := s.openEntry(conn, seq)
		if found && f.matches(e.Body) {
			out = append(out, e)
		}
		return err
	})
	if errors.Is(err, errEnough) {
		err = nil
	}
	return out, next, err
}

func (s *Store) listAll(conn *sqlite.Conn, f *EventFilter, after uint64, limit int) (out []remit.Entry, next uint64, err error) {
	scanned := 0
	err = eachEntry(conn, after, s.last.Load(), true, func(e remit.Entry) error {
		if scanned++; f.matches(e.Body) {
			if e.Private, err = s.decryptEntry(&e); err != nil {
				return err
			}
			out = append(out, e)
		}
		if len(out) == limit || scanned == maxScanned {
			next = e.Seq
			return errEnough
		}
		return nil
	})
	if errors.Is(err, errEnough) {
		err = nil
	}
	return out, next, err
}
