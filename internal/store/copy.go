// SPDX-License-Identifier: Apache-2.0

package store

import (
	"io"

	"zombiezen.com/go/sqlite"
)

// A checkpoint copies the write-ahead log (SQLite's, of pages) into the database. Copying everything at once would stall the
// writer, and copying beside it never reaches the end of a log that grows. So a goroutine copies nearly all beside the writer, then
// what came meanwhile, and then the writer copies the few pages that came since, after which the log starts from its beginning again.
const (
	copyAfter = 16 << 20 // bytes written to the log, roughly, that start a copy
	firstRoom = 256 << 10
	mostRoom  = copyAfter + copyAfter/2
)

// copier is the state of the copying goroutine.
type copier struct {
	conn *sqlite.Conn
	wake chan struct{} // capacity 1
	done chan struct{} // capacity 1
	busy bool          // owned by the writer: a copy was asked for and not joined yet
	wal  int           // owned by the writer: bytes written to the log since the last copy, roughly
	room int64         // owned by the writer: bytes that the log's file has, at least, or had to begin with
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

// makeRoom runs in the writer goroutine between batches. It makes the log's file longer, with zeros, before it is full: the sync of a
// file that grows waits for its new length, too, and takes twice as long. To SQLite a frame of zeros is the end of the log, as a frame
// of an earlier round is (sqlite.org/fileformat2.html#walformat). A failure leaves the log to grow by itself.
func (s *Store) makeRoom() {
	c := &s.copying
	if c.room >= mostRoom || int64(c.wal) < c.room/4*3 {
		return
	}
	c.room = min(4*c.room, mostRoom)
	end, err := s.keeping.log.Seek(0, io.SeekEnd)
	for zeros := make([]byte, firstRoom); err == nil && end < c.room; end += firstRoom {
		_, err = s.keeping.log.WriteAt(zeros, end)
	}
}

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
