// SPDX-License-Identifier: Apache-2.0

package store

import (
	"time"

	"zombiezen.com/go/sqlite"

	"remit"
)

// schema4 holds logins of people, and whose name is whose.
const schema4 = `
CREATE TABLE sessions (id TEXT PRIMARY KEY, epoch INTEGER NOT NULL, until INTEGER NOT NULL, body BLOB NOT NULL) WITHOUT ROWID;
CREATE INDEX sessions_until ON sessions (until);
CREATE TABLE people (name TEXT PRIMARY KEY, epoch INTEGER NOT NULL, body BLOB NOT NULL) WITHOUT ROWID;
`

const (
	putSessionSQL = `INSERT INTO sessions (id, epoch, until, body) VALUES (?, ?, ?, ?)
		ON CONFLICT (id) DO UPDATE SET epoch = excluded.epoch, until = excluded.until, body = excluded.body`
	liveSessionsSQL  = `SELECT body, epoch FROM sessions WHERE until > ?`
	purgeSessionsSQL = `DELETE FROM sessions WHERE until <= ?`
	putPersonSQL     = `INSERT INTO people (name, epoch, body) VALUES (?, ?, ?)
		ON CONFLICT (name) DO UPDATE SET epoch = excluded.epoch, body = excluded.body`
	peopleSQL = `SELECT body, epoch FROM people`
)

func putSession(conn *sqlite.Conn, r *remit.Session, w *write) error {
	return exec(conn, putSessionSQL, string(r.ID), w.epoch, r.Expires, w.body)
}

func putPerson(conn *sqlite.Conn, p *remit.PersonRecord, w *write) error {
	return exec(conn, putPersonSQL, string(p.Name), w.epoch, w.body)
}

func (s *Store) loadPeople(conn *sqlite.Conn, now time.Time) error {
	err := query1(conn, liveSessionsSQL, func(st *sqlite.Stmt) error {
		r, err := decode[remit.Session](st, 0)
		if err == nil {
			s.sessions.put(r.ID, r, uint64(st.ColumnInt64(1)))
		}
		return err
	}, now)
	if err != nil {
		return err
	}
	return query1(conn, peopleSQL, func(st *sqlite.Stmt) error {
		p, err := decode[remit.PersonRecord](st, 0)
		if err == nil {
			s.people.put(p.Name, p, uint64(st.ColumnInt64(1)))
		}
		return err
	})
}

// Session returns a login, from memory, until it has expired. It may have been ended.
func (s *Store) Session(id remit.SessionID) (remit.Session, bool) {
	r := s.sessions.row(id)
	if r == nil {
		return remit.Session{}, false
	}
	return *r, true
}

// Sessions returns the logins that have not expired, from memory, in no order.
func (s *Store) Sessions() []remit.Session {
	var out []remit.Session
	s.sessions.each(func(_ remit.SessionID, v slot[remit.Session]) bool {
		out = append(out, *v.row)
		return true
	})
	return out
}

// Person returns whose a name is, and the epoch to require when that is changed.
func (s *Store) Person(n remit.Name) (p remit.PersonRecord, epoch uint64) {
	v, _ := s.people.get(n)
	if v.row != nil {
		p = *v.row
	}
	return p, v.epoch
}

// purgeSessions forgets logins that expired.
func (s *Store) purgeSessions(now time.Time) {
	var gone []remit.SessionID
	s.sessions.each(func(k remit.SessionID, v slot[remit.Session]) bool {
		if !v.row.Expires.After(now) {
			gone = append(gone, k)
		}
		return true
	})
	for _, k := range gone {
		s.sessions.drop(k)
	}
	if len(gone) > 0 {
		_ = exec(s.w.conn, purgeSessionsSQL, now) // what stays expired and is not loaded again
	}
}
