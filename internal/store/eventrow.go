// SPDX-License-Identifier: Apache-2.0

package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"zombiezen.com/go/sqlite"

	"remit"
)

// schema6 changes no table: since it, a row of events may hold several entries, which earlier programs cannot read.
const schema6 = `-- rows of several entries`

const (
	insertRowSQL = `INSERT INTO events (seq, body, payload, private) VALUES (?, ?, ?, ?)`
	rowsSQL      = `SELECT seq, body FROM events WHERE seq > ? ORDER BY seq`
	openRowsSQL  = `SELECT seq, body, payload, private FROM events WHERE seq > ? ORDER BY seq`
	openRowSQL   = `SELECT seq, body, payload, private FROM events WHERE seq >= ? ORDER BY seq LIMIT 1`
	eraseRowSQL  = `UPDATE events SET payload = ?, private = ? WHERE seq = ?`
)

const (
	leafPrefix = 0    // of an entry in a batch's text, RFC 6962 section 2.1
	entryEnd   = 0    // between entries of a row; no JSON has it
	rowBytes   = 8100 // entries share a row up to here, two pages: most of what a row costs is not its bytes, and one of them is read with all
)

// eventRow is a row of events: entries of one batch that follow each other, under the number of the last. What is stored beside them
// is as it is for one entry; for several it is one after the other, each after its length.
type eventRow struct {
	last             uint64
	body             []byte
	payload, private []byte
}

func (r *eventRow) insert(conn *sqlite.Conn) error {
	st, err := conn.Prepare(insertRowSQL)
	if err != nil {
		return err
	}
	st.BindInt64(1, int64(r.last))
	st.BindBytes(2, r.body)
	bindSome(st, 3, r.payload)
	bindSome(st, 4, r.private)
	_, err = st.Step()
	return errors.Join(err, st.Reset())
}

// insertEvents writes what number prepared.
func (s *Store) insertEvents(c *committed, first uint64) error {
	w := &s.w
	var row eventRow
	for from, start := 0, 0; from < len(c.ends); {
		to, apart := from, 0
		for to == from || (to < len(c.ends) && c.ends[to]-start+apart < rowBytes) {
			apart += len(w.apart[to].payload) + len(w.apart[to].private)
			to++
		}
		end := c.ends[to-1]
		row.last, row.body = first+uint64(to)-1, c.text[start+1:end] // without the first leaf prefix: the others are entryEnd
		row.setApart(w.apart[from:to])
		if err := row.insert(w.conn); err != nil {
			return err
		}
		from, start = to, end
	}
	return nil
}

// setApart puts what is stored beside the entries into the row.
func (r *eventRow) setApart(ds []*draft) {
	if len(ds) == 1 {
		r.payload, r.private = ds[0].payload, ds[0].private
		return
	}
	payload, private := make([][]byte, len(ds)), make([][]byte, len(ds))
	for i, d := range ds {
		payload[i], private[i] = d.payload, d.private
	}
	r.payload, r.private = frame(payload), frame(private)
}

// frame joins parts, each after its length; nil when all are empty.
func frame(parts [][]byte) []byte {
	size := 0
	for _, p := range parts {
		size += len(p)
	}
	if size == 0 {
		return nil
	}
	out := make([]byte, 0, size+len(parts)*binary.MaxVarintLen32)
	for _, p := range parts {
		out = append(binary.AppendUvarint(out, uint64(len(p))), p...)
	}
	return out
}

// unframe is the reverse for n parts; nothing is nothing for each.
func unframe(b []byte, n int) ([][]byte, error) {
	out := make([][]byte, n)
	if len(b) == 0 {
		return out, nil
	}
	if n == 1 {
		out[0] = b
		return out, nil
	}
	for i := range out {
		size, head := binary.Uvarint(b)
		if head <= 0 || size > uint64(len(b)-head) {
			return nil, errors.New("what is stored beside entries is damaged")
		}
		out[i], b = b[head:head+int(size):head+int(size)], b[head+int(size):]
	}
	return out, nil
}

// scanEntries reads a row's entries; with what is kept apart from them, private still encrypted, if open.
func scanEntries(st *sqlite.Stmt, open bool) ([]remit.Entry, error) {
	bodies := bytes.Split(columnBytes(st, 1), []byte{entryEnd})
	n := len(bodies)
	out := make([]remit.Entry, n)
	for i, b := range bodies {
		out[i] = remit.Entry{Seq: uint64(st.ColumnInt64(0)) - uint64(n-1-i), Body: b[:len(b):len(b)]}
	}
	if !open {
		return out, nil
	}
	payload, err := unframe(columnBytes(st, 2), n)
	private, err2 := unframe(columnBytes(st, 3), n)
	if err := errors.Join(err, err2); err != nil {
		return nil, fmt.Errorf("entries up to %d: %w", out[n-1].Seq, err)
	}
	for i := range out {
		out[i].Payload, out[i].Private = payload[i], private[i]
	}
	return out, nil
}

// eachEntry calls each with the entries after a number, up to another, in order, until it returns an error, which it returns.
func eachEntry(conn *sqlite.Conn, after, upTo uint64, open bool, each func(remit.Entry) error) error {
	query := rowsSQL
	if open {
		query = openRowsSQL
	}
	return query1(conn, query, func(st *sqlite.Stmt) error {
		found, err := scanEntries(st, open)
		if err != nil {
			return err
		}
		for _, e := range found {
			if e.Seq > upTo {
				return errEnough
			}
			if e.Seq <= after {
				continue
			}
			if err := each(e); err != nil {
				return err
			}
		}
		return nil
	}, after)
}

// entries returns the entries after a number, up to another, at most limit; if open, with what is kept apart from them, but for what is
// sensitive.
func entries(conn *sqlite.Conn, after, upTo uint64, limit int, open bool) (out []remit.Entry, err error) {
	err = eachEntry(conn, after, upTo, open, func(e remit.Entry) error {
		e.Private = nil
		if out = append(out, e); len(out) == limit {
			return errEnough
		}
		return nil
	})
	if errors.Is(err, errEnough) {
		err = nil
	}
	return out, err
}

// OpenEntries returns the entries after a number, in order, at most limit (1 to 4096), with the sealed values that are not erased and not
// sensitive.
func (s *Store) OpenEntries(after uint64, limit int) (out []remit.Entry, err error) {
	limit = min(max(limit, 1), 4096)
	err = s.read(func(conn *sqlite.Conn) error {
		out, err = entries(conn, after, s.last.Load(), limit, true)
		return err
	})
	return out, err
}

// openEntry reads an entry with what is kept apart from it.
func (s *Store) openEntry(conn *sqlite.Conn, seq uint64) (e remit.Entry, found bool, err error) {
	err = query1(conn, openRowSQL, func(st *sqlite.Stmt) error {
		row, err := scanEntries(st, true)
		if err != nil || row[0].Seq > seq {
			return err
		}
		e, found = row[seq-row[0].Seq], true
		e.Private, err = s.decryptEntry(&e)
		return err
	}, seq)
	return e, found, err
}

func (s *Store) decryptEntry(e *remit.Entry) ([]byte, error) {
	private, err := s.decrypt(e.Private, privateUse)
	if err != nil {
		return nil, fmt.Errorf("read the sensitive values of entry %d: %w", e.Seq, err)
	}
	return private, nil
}

// eraseEntry forgets what is stored beside an entry; the others of its row keep theirs.
func eraseEntry(conn *sqlite.Conn, seq uint64) error {
	var row []remit.Entry
	err := query1(conn, openRowSQL, func(st *sqlite.Stmt) (err error) {
		row, err = scanEntries(st, true)
		return err
	}, seq)
	if err != nil || len(row) == 0 || row[0].Seq > seq {
		return err
	}
	payload, private := make([][]byte, len(row)), make([][]byte, len(row))
	for i, e := range row {
		if e.Seq != seq {
			payload[i], private[i] = e.Payload, e.Private
		}
	}
	return exec(conn, eraseRowSQL, frame(payload), frame(private), row[len(row)-1].Seq)
}
