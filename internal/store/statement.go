// SPDX-License-Identifier: Apache-2.0

package store

import (
	"sync"

	"zombiezen.com/go/sqlite"

	"remit"
)

const (
	putStatementSQL = `INSERT INTO statements (id, epoch, source, kind, name, added, body) VALUES (?, ?, ?, ?, ?, ?, ?)
		ON CONFLICT (id) DO NOTHING`
	putSubjectSQL = `INSERT OR IGNORE INTO statement_subjects (subject, source, kind, added, n)
		SELECT ?, source, kind, added, n FROM statements WHERE id = ?`
	sourcesSQL       = `SELECT source, max(epoch) FROM statements GROUP BY source`
	statementSQL     = `SELECT body FROM statements WHERE id = ?`
	findStatementSQL = `SELECT body FROM statements WHERE n IN (
			SELECT n FROM statement_subjects WHERE ?1 <> '' AND subject = ?1 AND source = ?3 AND kind = ?4
			UNION SELECT n FROM statements WHERE ?2 <> '' AND name = ?2 AND source = ?3 AND kind = ?4
			UNION SELECT n FROM statements WHERE ?1 = '' AND ?2 = '' AND source = ?3 AND kind = ?4)
		ORDER BY added DESC, n DESC LIMIT ?5`
)

// putStatement adds a statement. An envelope, once stored under an ID, is never replaced.
func putStatement(conn *sqlite.Conn, e *remit.Statement, w *write) error {
	err := exec(conn, putStatementSQL, string(e.ID), w.epoch, e.Source, string(e.Kind), e.Name, e.Added, w.body)
	if err != nil || conn.Changes() == 0 {
		return err
	}
	for _, d := range e.Subjects {
		if err := exec(conn, putSubjectSQL, string(d), string(e.ID)); err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) loadSources(conn *sqlite.Conn) error {
	return query1(conn, sourcesSQL, func(st *sqlite.Stmt) error {
		s.sources.moveTo(st.ColumnText(0), uint64(st.ColumnInt64(1)))
		return nil
	})
}

// statementQuery is one question to Statements.
type statementQuery struct {
	source  string
	kind    remit.EvidenceKind
	subject remit.Digest
	name    string
	limit   int
}

// statementCache keeps answers for as long as the epoch of their source stands.
type statementCache struct {
	mu      sync.Mutex // guards all
	answers map[statementQuery]statementAnswer
	bytes   int
}

type statementAnswer struct {
	epoch uint64
	rows  []remit.Statement
}

// maxCachedStatements bounds the envelopes that the cache holds, in bytes; beyond it the cache starts anew.
const maxCachedStatements = 32 << 20

func (c *statementCache) init() { c.answers = map[statementQuery]statementAnswer{} }

func (c *statementCache) get(q statementQuery, epoch uint64) ([]remit.Statement, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	a, ok := c.answers[q]
	return a.rows, ok && a.epoch == epoch
}

func (c *statementCache) put(q statementQuery, epoch uint64, rows []remit.Statement) {
	size := 256
	for i := range rows {
		size += len(rows[i].Envelope) + 512
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.bytes += size; c.bytes > maxCachedStatements {
		clear(c.answers)
		c.bytes = size
	}
	if size <= maxCachedStatements {
		c.answers[q] = statementAnswer{epoch: epoch, rows: rows}
	}
}

// Statements returns the stored envelopes of a source and kind whose subjects include subject, or whose name is name; either
// may be empty, and with both empty all match. Newest first by Added, at most limit (1 to 1000). Answers are kept in memory
// until the source gets another statement. A database that does not answer means no statements. The result is not to be
// changed.
func (s *Store) Statements(source string, kind remit.EvidenceKind, subject remit.Digest, name string, limit int) []remit.Statement {
	q := statementQuery{source, kind, subject, name, clampLimit(limit)}
	epoch := s.EvidenceEpoch(source) // before reading: a later statement makes the answer stale, never the reverse
	if rows, ok := s.statements.get(q, epoch); ok {
		return rows
	}
	rows, err := s.selectStatements(findStatementSQL, string(subject), name, source, string(kind), q.limit)
	if err != nil {
		return nil
	}
	s.statements.put(q, epoch, rows)
	return rows
}

// Statement returns one statement by its ID.
func (s *Store) Statement(id remit.EvidenceID) (remit.Statement, bool) {
	rows, err := s.selectStatements(statementSQL, string(id))
	if err != nil || len(rows) == 0 {
		return remit.Statement{}, false
	}
	return rows[0], true
}

// ListStatements lists statements of a source (empty: of all), newest first, after the one named by after (empty: from the
// newest), at most limit (1 to 1000).
func (s *Store) ListStatements(source string, limit int, after remit.EvidenceID) ([]remit.Statement, error) {
	q := page{table: "statements", columns: "body"}
	q.where("source", source)
	var out []remit.Statement
	err := s.read(func(conn *sqlite.Conn) error {
		return q.run(conn, string(after), limit, func(st *sqlite.Stmt) error {
			e, err := decode[remit.Statement](st, 0)
			if err == nil {
				out = append(out, *e)
			}
			return err
		})
	})
	return out, err
}

func (s *Store) selectStatements(query string, args ...any) ([]remit.Statement, error) {
	var out []remit.Statement
	err := s.read(func(conn *sqlite.Conn) error {
		return query1(conn, query, func(st *sqlite.Stmt) error {
			e, err := decode[remit.Statement](st, 0)
			if err == nil {
				out = append(out, *e)
			}
			return err
		}, args...)
	})
	return out, err
}
