// SPDX-License-Identifier: Apache-2.0

package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"zombiezen.com/go/sqlite"
	"zombiezen.com/go/sqlite/sqlitex"

	"remit"
)

const (
	readerCount = 3
	pageSize    = 4096
)

// openWriter opens a connection that may write. FULL makes every commit wait for the disk. Checkpoints are ours (copy.go).
func openWriter(path string, maxBytes int64) (*sqlite.Conn, error) {
	conn, err := sqlite.OpenConn(path, sqlite.OpenReadWrite|sqlite.OpenCreate)
	if err != nil {
		return nil, err
	}
	conn.SetBusyTimeout(5 * time.Second)
	pragmas := []string{
		fmt.Sprintf("PRAGMA page_size = %d", pageSize), "PRAGMA journal_mode = wal", "PRAGMA synchronous = full",
		"PRAGMA wal_autocheckpoint = 0", "PRAGMA foreign_keys = off", "PRAGMA cache_size = -16384",
		"PRAGMA temp_store = memory", "PRAGMA trusted_schema = off", "PRAGMA secure_delete = on",
	}
	if maxBytes > 0 {
		pragmas = append(pragmas, fmt.Sprintf("PRAGMA max_page_count = %d", max(1, maxBytes/pageSize)))
	}
	for _, p := range pragmas {
		if err := sqlitex.ExecuteTransient(conn, p, nil); err != nil {
			return nil, errors.Join(fmt.Errorf("%s: %w", p, err), conn.Close())
		}
	}
	return conn, nil
}

func openReader(path string) (*sqlite.Conn, error) {
	conn, err := sqlite.OpenConn(path, sqlite.OpenReadOnly)
	if err != nil {
		return nil, err
	}
	conn.SetBusyTimeout(5 * time.Second)
	for _, p := range []string{"PRAGMA cache_size = -4096", "PRAGMA trusted_schema = off"} {
		if err := sqlitex.ExecuteTransient(conn, p, nil); err != nil {
			return nil, errors.Join(err, conn.Close())
		}
	}
	return conn, nil
}

// errClosed answers reads after Close.
var errClosed = &remit.Error{Code: remit.CodeUnavailable, Msg: "the store is closed"}

// read lends one of the reading connections to f.
func (s *Store) read(f func(*sqlite.Conn) error) error {
	select {
	case <-s.closing:
		return errClosed
	default:
	}
	select {
	case conn := <-s.readers:
		defer func() { s.readers <- conn }()
		return f(conn)
	case <-s.closing:
		return errClosed
	}
}

// exec runs a prepared statement to its end. Arguments are string, []byte, int64, uint64, int, bool or time.Time.
func exec(conn *sqlite.Conn, query string, args ...any) error {
	return query1(conn, query, nil, args...)
}

// query1 runs a prepared statement and calls each, if any, for every row.
func query1(conn *sqlite.Conn, query string, each func(*sqlite.Stmt) error, args ...any) (err error) {
	st, err := conn.Prepare(query)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, st.Reset(), st.ClearBindings()) }()
	for i, a := range args {
		if err := bind(st, i+1, a); err != nil {
			return err
		}
	}
	for {
		more, err := st.Step()
		if err != nil || !more {
			return err
		}
		if each == nil {
			continue
		}
		if err := each(st); err != nil {
			return err
		}
	}
}

func bind(st *sqlite.Stmt, i int, a any) error {
	switch v := a.(type) {
	case string:
		st.BindText(i, v)
	case []byte:
		st.BindBytes(i, v)
	case int64:
		st.BindInt64(i, v)
	case uint64:
		st.BindInt64(i, int64(v))
	case int:
		st.BindInt64(i, int64(v))
	case bool:
		st.BindBool(i, v)
	case time.Time:
		st.BindInt64(i, v.UnixMilli())
	default:
		return fmt.Errorf("bind %T", a)
	}
	return nil
}

// columnBytes copies a blob out of SQLite's memory.
func columnBytes(st *sqlite.Stmt, col int) []byte {
	b := make([]byte, st.ColumnLen(col))
	st.ColumnBytes(col, b)
	return b
}

// decode reads the JSON body in a column.
func decode[T any](st *sqlite.Stmt, col int) (*T, error) {
	row := new(T)
	if err := json.Unmarshal(columnBytes(st, col), row); err != nil {
		return nil, fmt.Errorf("stored %T is damaged: %w", *row, err)
	}
	return row, nil
}

func vacuumInto(conn *sqlite.Conn, path string) error {
	return query1(conn, "VACUUM INTO ?", nil, path)
}

// page is a list of the rows of one table, newest first. Only the conditions that are set stand in the query, so that an
// index serves it; the handful of different texts are prepared once each.
type page struct {
	table, columns string
	conditions     string
	args           []any
}

// where adds column = value, unless value is empty. Column is one of ours, never a caller's.
func (p *page) where(column, value string) {
	if value != "" {
		p.conditions += " AND " + column + " = ?"
		p.args = append(p.args, value)
	}
}

func (p *page) run(conn *sqlite.Conn, after string, limit int, each func(*sqlite.Stmt) error) error {
	args := p.args
	if after != "" {
		p.conditions += " AND n < (SELECT n FROM " + p.table + " WHERE id = ?)"
		args = append(args, after)
	}
	query := "SELECT " + p.columns + " FROM " + p.table + " WHERE true" + p.conditions + " ORDER BY n DESC LIMIT ?"
	return query1(conn, query, each, append(args, clampLimit(limit))...)
}

// clampLimit keeps a page between 1 and 1000 rows.
func clampLimit(n int) int { return min(max(n, 1), 1000) }
