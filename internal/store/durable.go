// SPDX-License-Identifier: Apache-2.0

package store

import (
	"os"

	"golang.org/x/sys/unix"
	"zombiezen.com/go/sqlite"

	"remit"
)

// openLog leaves the syncing of commits to keep: SQLite as it is built here syncs with fsync, which also waits for the file's times,
// twice as long as fdatasync for the data. NORMAL still syncs log and database wherever a log begins anew (sqlite.org/pragma.html#pragma_synchronous).
func openLog(conn *sqlite.Conn, path string) (*os.File, error) {
	if err := exec(conn, "PRAGMA synchronous = normal"); err != nil {
		return nil, err
	}
	return os.Open(path + "-wal") // it has no locks that closing would drop, and stays as long as the connection
}

// keep makes what was committed durable. Where the disk fails at that, nobody knows what it holds, and asking again may say that
// all is well (fsync(2)): the batch is committed but not acknowledged, and nothing more is written until the store is opened anew.
func (s *Store) keep() error {
	err := unix.Fdatasync(int(s.w.log.Fd()))
	if err != nil {
		s.w.failed = &remit.Error{Code: remit.CodeUnavailable, Msg: "the disk failed to keep what was written; the store writes no more",
			Hint: "check the disk of the state directory, then start remit serve again", Cause: err}
	}
	return err
}
