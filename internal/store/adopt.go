// SPDX-License-Identifier: Apache-2.0

package store

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
	"zombiezen.com/go/sqlite"

	"remit"
)

// Lock keeps every store at path closed until it is closed itself; a store that is open is remit.CodeUnavailable.
func Lock(path string) (io.Closer, error) {
	f, err := os.OpenFile(path+".lock", os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(&remit.Error{Code: remit.CodeUnavailable, Msg: "another process has the store open",
			Hint: "stop the other remit serve, or use another state directory", Cause: err}, f.Close())
	}
	return f, nil
}

// Adopt appends entries, which stand in the ledger's log already, to the events of a closed store that was restored from a backup:
// from its last event up to the given number. Their payloads are not in the log, so they read as erased; no row changes. It is all
// or nothing. read has the contract of Store.Entries.
func Adopt(path string, upTo uint64, read func(after uint64, limit int) ([]remit.Entry, error)) (err error) {
	lock, err := Lock(path)
	if err != nil {
		return err
	}
	defer lock.Close() //nolint:errcheck // releases the lock in any case
	conn, err := openWriter(path, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	if err := migrate(conn); err != nil {
		return err
	}
	var last uint64
	if err := query1(conn, lastEventSQL, func(st *sqlite.Stmt) error { last = uint64(st.ColumnInt64(0)); return nil }); err != nil {
		return err
	}
	if err := exec(conn, "BEGIN IMMEDIATE"); err != nil {
		return err
	}
	for last < upTo {
		entries, err := read(last, int(min(1000, upTo-last)))
		if err == nil && len(entries) == 0 {
			err = fmt.Errorf("the log ends at entry %d", last)
		}
		for _, e := range entries {
			if err == nil && e.Seq != last+1 {
				err = fmt.Errorf("the log has entry %d where %d belongs", e.Seq, last+1)
			}
			if err == nil {
				err = (&eventRow{last: e.Seq, body: e.Body}).insert(conn)
			}
			last = e.Seq
		}
		if err != nil {
			return errors.Join(fmt.Errorf("take over entries of the log: %w", err), rollback(conn))
		}
	}
	return exec(conn, "COMMIT")
}
