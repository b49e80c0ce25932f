// SPDX-License-Identifier: Apache-2.0

package store

import (
	"zombiezen.com/go/sqlite"

	"remit"
)

const (
	putGrantSQL = `INSERT INTO grants (id, epoch, state, agent, run, body) VALUES (?, ?, ?, ?, ?, ?)
		ON CONFLICT (id) DO UPDATE SET epoch = excluded.epoch, state = excluded.state, body = excluded.body`
	liveGrantsSQL = `SELECT body, epoch FROM grants WHERE state IN ('pending', 'active', 'revoking')`
	grantSQL      = `SELECT body FROM grants WHERE id = ?`
)

func putGrant(conn *sqlite.Conn, g *remit.Grant, w *write) error {
	return exec(conn, putGrantSQL, string(g.ID), w.epoch, string(g.State), string(g.Agent), string(g.Run), w.body)
}

func grantLives(state remit.GrantState) bool {
	return state == remit.GrantPending || state == remit.GrantActive || state == remit.GrantRevoking
}

func (s *Store) publishGrant(g *remit.Grant, epoch uint64) {
	if grantLives(g.State) {
		s.grants.put(g.ID, g, epoch)
		return
	}
	s.grants.retire(g.ID, g, epoch)
}

func (s *Store) loadGrants(conn *sqlite.Conn) error {
	return query1(conn, liveGrantsSQL, func(st *sqlite.Stmt) error {
		g, err := decodeSealed[remit.Grant](s, st, 0)
		if err == nil {
			s.grants.put(g.ID, g, uint64(st.ColumnInt64(1)))
		}
		return err
	})
}

// Grant returns a grant: a live one from memory, one that ended from the database.
func (s *Store) Grant(id remit.GrantID) (remit.Grant, bool) {
	if g := s.grants.row(id); g != nil {
		return *g, true
	}
	var found *remit.Grant
	err := s.read(func(conn *sqlite.Conn) error {
		return query1(conn, grantSQL, func(st *sqlite.Stmt) (err error) {
			found, err = decodeSealed[remit.Grant](s, st, 0)
			return err
		}, string(id))
	})
	if err != nil || found == nil {
		return remit.Grant{}, false
	}
	return *found, true
}

// GrantFilter narrows a list of grants; empty fields match all.
type GrantFilter struct {
	State remit.GrantState
	Agent remit.Name
	Run   remit.RunID
}

// Grants lists grants, newest first, after the grant named by after (empty: from the newest), at most limit (1 to 1000).
func (s *Store) Grants(f GrantFilter, limit int, after remit.GrantID) ([]remit.Grant, error) {
	q := page{table: "grants", columns: "body"}
	q.where("state", string(f.State))
	q.where("agent", string(f.Agent))
	q.where("run", string(f.Run))
	var out []remit.Grant
	err := s.read(func(conn *sqlite.Conn) error {
		return q.run(conn, string(after), limit, func(st *sqlite.Stmt) error {
			g, err := decodeSealed[remit.Grant](s, st, 0)
			if err == nil {
				out = append(out, *g)
			}
			return err
		})
	})
	return out, err
}

// LiveGrants returns the pending, active and revoking grants that match, from memory, in no order.
func (s *Store) LiveGrants(f GrantFilter) []remit.Grant {
	var out []remit.Grant
	s.grants.each(func(_ remit.GrantID, slot slot[remit.Grant]) bool {
		g := slot.row
		if grantLives(g.State) && matches(f.State, g.State) && matches(f.Agent, g.Agent) && matches(f.Run, g.Run) {
			out = append(out, *g)
		}
		return true
	})
	return out
}

// matches reports whether a filter's field is empty or equal.
func matches[T ~string](want, got T) bool { return want == "" || want == got }
