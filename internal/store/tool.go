// SPDX-License-Identifier: Apache-2.0

package store

import (
	"zombiezen.com/go/sqlite"

	"remit"
)

// schema8 holds what servers of tools said first.
const schema8 = `
CREATE TABLE tools (name TEXT PRIMARY KEY, epoch INTEGER NOT NULL, body BLOB NOT NULL) WITHOUT ROWID;
`

const (
	putToolSQL = `INSERT INTO tools (name, epoch, body) VALUES (?, ?, ?)
		ON CONFLICT (name) DO UPDATE SET epoch = excluded.epoch, body = excluded.body`
	toolsSQL = `SELECT body, epoch FROM tools`
)

func putTool(conn *sqlite.Conn, t *remit.ToolRecord, w *write) error {
	return exec(conn, putToolSQL, string(t.Tool), w.epoch, w.body)
}

func (s *Store) loadTools(conn *sqlite.Conn) error {
	return query1(conn, toolsSQL, func(st *sqlite.Stmt) error {
		t, err := decode[remit.ToolRecord](st, 0)
		if err == nil {
			s.tools.put(t.Tool, t, uint64(st.ColumnInt64(1)))
		}
		return err
	})
}

// Tool returns what a tool's server said first, from memory, and the epoch to require when that is changed; nil: nothing yet. It is
// not to be changed.
func (s *Store) Tool(n remit.Name) (*remit.ToolRecord, uint64) {
	v, _ := s.tools.get(n)
	return v.row, v.epoch
}
