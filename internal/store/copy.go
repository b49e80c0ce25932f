// SPDX-License-Identifier: Apache-2.0

package store

import (
	"zombiezen.com/go/sqlite"
)

// A checkpoint copies the write-ahead log (SQLite's, of pages) into the database. Copying everything at once would stall the
// writer, and copying beside it never reaches the end of a log that grows. So a goroutine copies nearly all beside the writer, then
// what came meanwhile, and then the writer copies the few pages that came since, after which the log starts from its beginning again.
const copyAfter = 16 << 20 // bytes written to the log, roughly, that start a copy

// copier is the state of the copying goroutine.
type copier struct {
	conn *sqlite.Conn
	wake chan struct{} // capacity 1
	done chan struct{} // capacity 1
	busy bool          // owned by the writer: a copy was asked for and not joined yet
	wal  int           // owned by the writer: bytes written to the log since the last copy, roughly
}

// copyLog is the copying goroutine.
func (s *Store) copyLog() {
	for {
		select {
		case <-s.copying.wake:
			checkpoint(s.copying.conn)
			checkpoint(s.copying.conn)
			s.copying.done <- struct{}{}
		case <-s.closing:
			return
		}
	}
}

// wrote counts what a transaction added to the log.
func (c *copier) wrote(bytes int) { c.wal += bytes + bytes/4 + 4*pageSize }

// joinLog runs in the writer goroutine between batches: it starts a copy, or finishes one.
func (s *Store) joinLog() {
	c := &s.copying
	if !c.busy {
		if c.wal > copyAfter {
			c.busy, c.wal = true, 0
			c.wake <- struct{}{}
		}
		return
	}
	select {
	case <-c.done:
		checkpoint(s.w.conn)
		c.busy = false
	default:
	}
}

// truncateLog empties the log of pages, which would hold the old content of pages for a while. It reports whether no reader was
// in the way.
func truncateLog(conn *sqlite.Conn) bool {
	busy := true
	err := query1(conn, "PRAGMA wal_checkpoint(TRUNCATE)", func(st *sqlite.Stmt) error {
		busy = st.ColumnBool(0)
		return nil
	})
	return err == nil && !busy
}

// checkpoint copies what no reader and no other checkpoint holds back. A failure leaves the pages in the log, where they are
// safe, for the next copy.
func checkpoint(conn *sqlite.Conn) {
	_ = query1(conn, "PRAGMA wal_checkpoint(PASSIVE)", nil)
}
