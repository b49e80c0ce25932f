// SPDX-License-Identifier: Apache-2.0

package store

import (
	"zombiezen.com/go/sqlite"

	"remit"
)

// activeRevision is the one key of the policy table.
const activeRevision = "active"

const (
	putRevisionSQL = `INSERT INTO revisions (digest, epoch, body) VALUES (?, ?, ?)
		ON CONFLICT (digest) DO UPDATE SET epoch = excluded.epoch, body = excluded.body`
	activeRevisionSQL = `SELECT body, epoch FROM revisions ORDER BY epoch DESC LIMIT 1`
	revisionSQL       = `SELECT body FROM revisions WHERE digest = ?`
)

func putRevision(conn *sqlite.Conn, r *remit.Revision, w *write) error {
	return exec(conn, putRevisionSQL, string(r.Digest), w.epoch, w.body)
}

func (s *Store) loadRevision(conn *sqlite.Conn) error {
	return query1(conn, activeRevisionSQL, func(st *sqlite.Stmt) error {
		r, err := decode[remit.Revision](st, 0)
		if err == nil {
			s.policy.put(activeRevision, r, uint64(st.ColumnInt64(1)))
		}
		return err
	})
}

// ActiveRevision returns the revision that was activated last, from memory; ok is false before the first.
func (s *Store) ActiveRevision() (r remit.Revision, ok bool) {
	if active := s.policy.row(activeRevision); active != nil {
		return *active, true
	}
	return remit.Revision{}, false
}

// Revision returns any revision that was ever active.
func (s *Store) Revision(digest remit.Digest) (remit.Revision, bool) {
	if active := s.policy.row(activeRevision); active != nil && active.Digest == digest {
		return *active, true
	}
	var found *remit.Revision
	err := s.read(func(conn *sqlite.Conn) error {
		return query1(conn, revisionSQL, func(st *sqlite.Stmt) (err error) {
			found, err = decode[remit.Revision](st, 0)
			return err
		}, string(digest))
	})
	if err != nil || found == nil {
		return remit.Revision{}, false
	}
	return *found, true
}
