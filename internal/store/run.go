// SPDX-License-Identifier: Apache-2.0

package store

import (
	"zombiezen.com/go/sqlite"

	"remit"
)

const (
	putRunSQL = `INSERT INTO runs (id, epoch, state, workflow, body) VALUES (?, ?, ?, ?, ?)
		ON CONFLICT (id) DO UPDATE SET epoch = excluded.epoch, state = excluded.state, body = excluded.body`
	liveRunsSQL = `SELECT body, epoch FROM runs WHERE state IN ('active', 'frozen')`
	runSQL      = `SELECT body, epoch FROM runs WHERE id = ?`
)

func putRun(conn *sqlite.Conn, r *remit.Run, w *write) error {
	return exec(conn, putRunSQL, string(r.ID), w.epoch, string(r.State), r.Workflow, w.body)
}

func (s *Store) publishRun(r *remit.Run, epoch uint64) {
	if !r.Over() {
		s.runs.put(r.ID, r, epoch)
		return
	}
	s.runs.retire(r.ID, r, epoch)
}

func (s *Store) loadRuns(conn *sqlite.Conn) error {
	return query1(conn, liveRunsSQL, func(st *sqlite.Stmt) error {
		r, err := s.scanRun(st)
		if err == nil {
			s.runs.put(r.ID, r, r.Epoch)
		}
		return err
	})
}

func (s *Store) scanRun(st *sqlite.Stmt) (*remit.Run, error) {
	r, err := decodeSealed[remit.Run](s, st, 0)
	if err != nil {
		return nil, err
	}
	r.Epoch = uint64(st.ColumnInt64(1))
	return r, nil
}

// Run returns a run with its present epoch. A live one comes from memory; one that ended is read from the database, and a
// database that does not answer makes it absent. The maps in it are not to be changed.
func (s *Store) Run(id remit.RunID) (remit.Run, bool) {
	if slot, ok := s.runs.get(id); ok && slot.row != nil {
		r := *slot.row
		r.Epoch = slot.epoch
		return r, true
	}
	var found *remit.Run
	err := s.read(func(conn *sqlite.Conn) error {
		return query1(conn, runSQL, func(st *sqlite.Stmt) (err error) {
			found, err = s.scanRun(st)
			return err
		}, string(id))
	})
	if err != nil || found == nil {
		return remit.Run{}, false
	}
	found.Epoch = max(found.Epoch, s.Epoch(remit.RunKey(id))) // a Tighten of an ended run
	return *found, true
}

// RunFilter narrows a list of runs; empty fields match all.
type RunFilter struct {
	State    remit.RunState
	Workflow string
}

// Runs lists runs, newest first, after the run named by after (empty: from the newest), at most limit (1 to 1000).
func (s *Store) Runs(f RunFilter, limit int, after remit.RunID) ([]remit.Run, error) {
	q := page{table: "runs", columns: "body, epoch"}
	q.where("state", string(f.State))
	q.where("workflow", f.Workflow)
	var out []remit.Run
	err := s.read(func(conn *sqlite.Conn) error {
		return q.run(conn, string(after), limit, func(st *sqlite.Stmt) error {
			r, err := s.scanRun(st)
			if err == nil {
				out = append(out, *r)
			}
			return err
		})
	})
	return out, err
}

// LiveRuns returns all active and frozen runs, from memory, in no order.
func (s *Store) LiveRuns() []remit.Run {
	var out []remit.Run
	s.runs.each(func(_ remit.RunID, slot slot[remit.Run]) bool {
		if !slot.row.Over() {
			r := *slot.row
			r.Epoch = slot.epoch
			out = append(out, r)
		}
		return true
	})
	return out
}
