// SPDX-License-Identifier: Apache-2.0

package store

import (
	"time"

	"zombiezen.com/go/sqlite"

	"remit"
)

const (
	putUsedSQL = `INSERT INTO used (key, until, body) VALUES (?, ?, ?)
		ON CONFLICT (key) DO UPDATE SET until = excluded.until, body = excluded.body`
	liveUsedSQL  = `SELECT body FROM used WHERE until > ?`
	purgeUsedSQL = `DELETE FROM used WHERE until <= ?`
	putIssuedSQL = `INSERT INTO issued (credential, until, body) VALUES (?, ?, ?)
		ON CONFLICT (credential) DO UPDATE SET until = excluded.until, body = excluded.body`
	liveIssuedSQL  = `SELECT body FROM issued WHERE until > ?`
	purgeIssuedSQL = `DELETE FROM issued WHERE until <= ?`
)

// usedID is the part of UsedKey after its kind.
func usedID(u *remit.Used) string { return u.Issuer + "#" + u.JTI }

func putUsed(conn *sqlite.Conn, u *remit.Used, w *write) error {
	return exec(conn, putUsedSQL, usedID(u), u.Until, w.body)
}

func putIssued(conn *sqlite.Conn, i *remit.Issued, w *write) error {
	return exec(conn, putIssuedSQL, i.Credential, i.Until, w.body)
}

func (s *Store) loadUsed(conn *sqlite.Conn, now time.Time) error {
	return query1(conn, liveUsedSQL, func(st *sqlite.Stmt) error {
		u, err := decode[remit.Used](st, 0)
		if err == nil {
			s.used.put(usedID(u), u, 1)
		}
		return err
	}, now)
}

func (s *Store) loadIssued(conn *sqlite.Conn, now time.Time) error {
	return query1(conn, liveIssuedSQL, func(st *sqlite.Stmt) error {
		i, err := decode[remit.Issued](st, 0)
		if err == nil {
			s.issued.put(i.Credential, i, 1)
		}
		return err
	}, now)
}

// Used returns the use of something single-use, from memory, while it is remembered.
func (s *Store) Used(issuer, jti string) (remit.Used, bool) {
	u := s.used.row(usedID(&remit.Used{Issuer: issuer, JTI: jti}))
	if u == nil {
		return remit.Used{}, false
	}
	return *u, true
}

// Issued returns what was attested when an SVID was issued, from memory: by certificate serial in hex, or jti. It may be
// absent after the SVID's end.
func (s *Store) Issued(credential string) (remit.Issued, bool) {
	i := s.issued.row(credential)
	if i == nil {
		return remit.Issued{}, false
	}
	return *i, true
}

// IssuedTo returns the records of an agent's SVIDs that are not forgotten yet, from memory, in no order.
func (s *Store) IssuedTo(agent remit.Name) []remit.Issued {
	var out []remit.Issued
	s.issued.each(func(_ string, v slot[remit.Issued]) bool {
		if v.row.Agent == agent {
			out = append(out, *v.row)
		}
		return true
	})
	return out
}

// purge forgets what expired, in memory and in the database. It runs in the writer goroutine; a disk that is full is tried
// again at the next turn.
func (s *Store) purge() {
	now := s.cfg.Now()
	var used, issued []string
	s.used.each(func(k string, v slot[remit.Used]) bool {
		if !v.row.Until.After(now) {
			used = append(used, k)
		}
		return true
	})
	s.issued.each(func(k string, v slot[remit.Issued]) bool {
		if !v.row.Until.After(now) {
			issued = append(issued, k)
		}
		return true
	})
	for _, k := range used {
		s.used.drop(k)
	}
	for _, k := range issued {
		s.issued.drop(k)
	}
	s.purgeSessions(now)
	s.purgeHeld(now)
	if len(used) > 0 {
		_ = exec(s.w.conn, purgeUsedSQL, now) // what stays in the database expired and is not loaded again
	}
	if len(issued) > 0 {
		_ = exec(s.w.conn, purgeIssuedSQL, now)
	}
}
