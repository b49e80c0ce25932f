// SPDX-License-Identifier: Apache-2.0

package store

import (
	"time"

	"zombiezen.com/go/sqlite"

	"remit"
)

const (
	putLaunchSQL = `INSERT INTO launches (id, epoch, ended, body) VALUES (?, ?, ?, ?)
		ON CONFLICT (id) DO UPDATE SET epoch = excluded.epoch, ended = excluded.ended, body = excluded.body`
	liveLaunchesSQL = `SELECT body, epoch FROM launches WHERE ended = 0`
	launchSQL       = `SELECT body FROM launches WHERE id = ?`
)

func putLaunch(conn *sqlite.Conn, l *remit.LaunchRecord, w *write) error {
	return exec(conn, putLaunchSQL, string(l.ID), w.epoch, millis(l.Ended), w.body)
}

// millis is 0 for the zero time.
func millis(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

func (s *Store) publishLaunch(l *remit.LaunchRecord, epoch uint64) {
	if l.Ended.IsZero() {
		s.launches.put(l.ID, l, epoch)
		return
	}
	s.launches.retire(l.ID, l, epoch)
}

func (s *Store) loadLaunches(conn *sqlite.Conn) error {
	return query1(conn, liveLaunchesSQL, func(st *sqlite.Stmt) error {
		l, err := decode[remit.LaunchRecord](st, 0)
		if err == nil {
			s.launches.put(l.ID, l, uint64(st.ColumnInt64(1)))
		}
		return err
	})
}

// Launch returns a launch: a running one from memory, one that ended from the database.
func (s *Store) Launch(id remit.LaunchID) (remit.LaunchRecord, bool) {
	if l := s.launches.row(id); l != nil {
		return *l, true
	}
	var found *remit.LaunchRecord
	err := s.read(func(conn *sqlite.Conn) error {
		return query1(conn, launchSQL, func(st *sqlite.Stmt) (err error) {
			found, err = decode[remit.LaunchRecord](st, 0)
			return err
		}, string(id))
	})
	if err != nil || found == nil {
		return remit.LaunchRecord{}, false
	}
	return *found, true
}

// LiveLaunches returns the launches that have not ended, from memory, in no order.
func (s *Store) LiveLaunches() []remit.LaunchRecord {
	var out []remit.LaunchRecord
	s.launches.each(func(_ remit.LaunchID, slot slot[remit.LaunchRecord]) bool {
		if slot.row.Ended.IsZero() {
			out = append(out, *slot.row)
		}
		return true
	})
	return out
}
