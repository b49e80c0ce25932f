// SPDX-License-Identifier: Apache-2.0

package store

import (
	"zombiezen.com/go/sqlite"

	"remit"
)

// schema7 holds findings. How far the ledger was followed stands in meta.
const schema7 = `
CREATE TABLE findings (n INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, epoch INTEGER NOT NULL, state TEXT NOT NULL, agent TEXT NOT NULL,
	kind TEXT NOT NULL, body BLOB NOT NULL);
CREATE INDEX findings_state ON findings (state, n);
CREATE INDEX findings_agent ON findings (agent, n);
`

const (
	putFindingSQL = `INSERT INTO findings (id, epoch, state, agent, kind, body) VALUES (?, ?, ?, ?, ?, ?)
		ON CONFLICT (id) DO UPDATE SET epoch = excluded.epoch, state = excluded.state, body = excluded.body`
	openFindingsSQL = `SELECT body, epoch FROM findings WHERE state = 'open'`
	findingSQL      = `SELECT body FROM findings WHERE id = ?`
	putFollowedSQL  = `INSERT INTO meta (name, value) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value`
	followedSQL     = `SELECT value FROM meta WHERE name = ?`
)

func putFinding(conn *sqlite.Conn, f *remit.Finding, w *write) error {
	return exec(conn, putFindingSQL, string(f.ID), w.epoch, string(f.State), string(f.Agent), string(f.Kind), w.body)
}

func putFollowed(conn *sqlite.Conn, f *remit.Followed) error {
	return exec(conn, putFollowedSQL, "followed/"+f.Name, f.Seq)
}

func (s *Store) publishFinding(f *remit.Finding, epoch uint64) {
	if f.State == remit.FindingOpen {
		s.findings.put(f.ID, f, epoch)
		return
	}
	s.findings.retire(f.ID, f, epoch)
}

func (s *Store) loadFindings(conn *sqlite.Conn) error {
	return query1(conn, openFindingsSQL, func(st *sqlite.Stmt) error {
		f, err := decode[remit.Finding](st, 0)
		if err == nil {
			s.findings.put(f.ID, f, uint64(st.ColumnInt64(1)))
		}
		return err
	})
}

// Followed returns up to which entry a reader of the ledger acted on what it found; ok is false when it never said.
func (s *Store) Followed(name string) (seq uint64, ok bool, err error) {
	err = s.read(func(conn *sqlite.Conn) error {
		return query1(conn, followedSQL, func(st *sqlite.Stmt) error {
			seq, ok = uint64(st.ColumnInt64(0)), true
			return nil
		}, "followed/"+name)
	})
	return seq, ok, err
}

// Finding returns one finding.
func (s *Store) Finding(id remit.FindingID) (f remit.Finding, ok bool, err error) {
	err = s.read(func(conn *sqlite.Conn) error {
		return query1(conn, findingSQL, func(st *sqlite.Stmt) error {
			row, err := decode[remit.Finding](st, 0)
			if err == nil {
				f, ok = *row, true
			}
			return err
		}, string(id))
	})
	return f, ok, err
}

// FindingFilter narrows a list of findings; empty fields match all.
type FindingFilter struct {
	State remit.FindingState
	Agent remit.Name
	Kind  remit.FindingKind
}

// Findings lists findings, newest first, after the one named by after (empty: from the newest), at most limit (1 to 1000).
func (s *Store) Findings(f FindingFilter, limit int, after remit.FindingID) ([]remit.Finding, error) {
	q := page{table: "findings", columns: "body"}
	q.where("state", string(f.State))
	q.where("agent", string(f.Agent))
	q.where("kind", string(f.Kind))
	var out []remit.Finding
	err := s.read(func(conn *sqlite.Conn) error {
		return q.run(conn, string(after), limit, func(st *sqlite.Stmt) error {
			f, err := decode[remit.Finding](st, 0)
			if err == nil {
				out = append(out, *f)
			}
			return err
		})
	})
	return out, err
}
