// SPDX-License-Identifier: Apache-2.0

package store

import (
	"time"

	"zombiezen.com/go/sqlite"

	"remit"
)

// schema5 holds requests that wait for people. The digest stands in the encrypted body alone.
const schema5 = `
CREATE TABLE held (n INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, epoch INTEGER NOT NULL, state TEXT NOT NULL, run TEXT NOT NULL,
	forget INTEGER NOT NULL, body BLOB NOT NULL);
CREATE INDEX held_state ON held (state, n);
CREATE INDEX held_run ON held (run, n);
CREATE INDEX held_forget ON held (forget);
`

const (
	putHeldSQL = `INSERT INTO held (id, epoch, state, run, forget, body) VALUES (?, ?, ?, ?, ?, ?)
		ON CONFLICT (id) DO UPDATE SET epoch = excluded.epoch, state = excluded.state, body = excluded.body`
	liveHeldSQL  = `SELECT body, epoch FROM held WHERE forget > ? OR state = 'pending' ORDER BY n`
	heldSQL      = `SELECT body FROM held WHERE id = ?`
	purgeHeldSQL = `DELETE FROM held WHERE forget <= ?`
	eraseHeldSQL = `DELETE FROM held WHERE run = ?`
)

// heldFor is how long a held request can be looked at after its run; the ledger keeps what happened to it.
const heldFor = 30 * 24 * time.Hour

func putHeld(conn *sqlite.Conn, h *remit.Held, w *write) error {
	return exec(conn, putHeldSQL, string(h.ID), w.epoch, string(h.State), string(h.Run), h.Forget, w.body)
}

// loadHeld reads the newest row about each request of a run whose time is not over, and what still has to be ended.
func (s *Store) loadHeld(conn *sqlite.Conn, now time.Time) error {
	return query1(conn, liveHeldSQL, func(st *sqlite.Stmt) error {
		h, err := decodeSealed[remit.Held](s, st, 0)
		if err == nil {
			s.held.put(h.Digest, h, uint64(st.ColumnInt64(1)))
		}
		return err
	}, now)
}

// HeldAs returns the newest row about a request, with its epoch, from memory; ok is false when it was never held.
func (s *Store) HeldAs(asked remit.Digest) (h remit.Held, epoch uint64, ok bool) {
	v, _ := s.held.get(asked)
	if v.row == nil {
		return h, v.epoch, false
	}
	return *v.row, v.epoch, true
}

// LiveHeld returns the newest row about each request of runs that are not over, from memory, in no order.
func (s *Store) LiveHeld() []remit.Held {
	var out []remit.Held
	s.held.each(func(_ remit.Digest, v slot[remit.Held]) bool {
		out = append(out, *v.row)
		return true
	})
	return out
}

// HeldOf counts the held requests of a run, from memory.
func (s *Store) HeldOf(run remit.RunID) (n int) {
	s.held.each(func(_ remit.Digest, v slot[remit.Held]) bool {
		if v.row.Run == run {
			n++
		}
		return true
	})
	return n
}

// Held returns a row by its id, from the database.
func (s *Store) Held(id remit.HoldID) (remit.Held, bool, error) {
	var found *remit.Held
	err := s.read(func(conn *sqlite.Conn) error {
		return query1(conn, heldSQL, func(st *sqlite.Stmt) (err error) {
			found, err = decodeSealed[remit.Held](s, st, 0)
			return err
		}, string(id))
	})
	if err != nil || found == nil {
		return remit.Held{}, false, err
	}
	return *found, true, nil
}

// HeldFilter narrows a list of held requests; empty fields match all.
type HeldFilter struct {
	State remit.HeldState
	Run   remit.RunID
}

// ListHeld lists held requests, newest first, after the one named by after (empty: from the newest), at most limit (1 to 1000).
func (s *Store) ListHeld(f HeldFilter, limit int, after remit.HoldID) ([]remit.Held, error) {
	q := page{table: "held", columns: "body"}
	q.where("state", string(f.State))
	q.where("run", string(f.Run))
	var out []remit.Held
	err := s.read(func(conn *sqlite.Conn) error {
		return q.run(conn, string(after), limit, func(st *sqlite.Stmt) error {
			h, err := decodeSealed[remit.Held](s, st, 0)
			if err == nil {
				out = append(out, *h)
			}
			return err
		})
	})
	return out, err
}

// purgeHeld forgets what was held in runs that are over: nothing that asks in them is decided any more.
func (s *Store) purgeHeld(now time.Time) {
	s.dropHeld(func(h *remit.Held) bool { return h.State != remit.HeldPending && h.Forget.Before(now) })
	_ = exec(s.w.conn, purgeHeldSQL, now.Add(-heldFor)) // what stays is tried again at the next turn
}

func (s *Store) dropHeld(which func(*remit.Held) bool) {
	var gone []remit.Digest
	s.held.each(func(k remit.Digest, v slot[remit.Held]) bool {
		if which(v.row) {
			gone = append(gone, k)
		}
		return true
	})
	for _, k := range gone {
		s.held.drop(k)
	}
}
