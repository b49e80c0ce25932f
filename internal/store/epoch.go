// SPDX-License-Identifier: Apache-2.0

package store

import (
	"strings"

	"zombiezen.com/go/sqlite"

	"remit"
)

// keyspace is where the epochs of one kind of key live. Rows that ended for good are not in memory; cold then names the
// table that holds their epoch.
type keyspace struct {
	epochs interface {
		epochOf(k string) (uint64, bool)
		moveTo(k string, epoch uint64)
	}
	id   string // the key within epochs
	cold string // SQL that reads the epoch by id; empty when memory holds all
}

func (s *Store) keyspace(key remit.EpochKey) keyspace {
	kind, id, _ := strings.Cut(string(key), "/")
	switch kind {
	case "run":
		return keyspace{&s.runs, id, `SELECT epoch FROM runs WHERE id = ?`}
	case "grant":
		return keyspace{&s.grants, id, `SELECT epoch FROM grants WHERE id = ?`}
	case "lease":
		return keyspace{&s.leases, id, `SELECT epoch FROM leases WHERE id = ?`}
	case "launch":
		return keyspace{&s.launches, id, `SELECT epoch FROM launches WHERE id = ?`}
	case "used":
		return keyspace{&s.used, id, ""}
	case "issued":
		return keyspace{&s.issued, id, ""}
	case "session":
		return keyspace{&s.sessions, id, ""}
	case "person":
		return keyspace{&s.people, id, ""}
	case "seen":
		return keyspace{&s.tools, id, ""}
	case "hold":
		return keyspace{&s.held, id, ""}
	case "finding":
		return keyspace{&s.findings, id, `SELECT epoch FROM findings WHERE id = ?`}
	case "evidence":
		return keyspace{&s.sources, id, ""}
	}
	if key == remit.PolicyKey {
		return keyspace{&s.policy, activeRevision, ""}
	}
	return keyspace{&s.agents, string(key), ""}
}

// epoch reads the present epoch of a key. conn is used only for what is not in memory.
func (s *Store) epoch(conn *sqlite.Conn, key remit.EpochKey) (uint64, error) {
	ks := s.keyspace(key)
	if e, ok := ks.epochs.epochOf(ks.id); ok || ks.cold == "" {
		return e, nil
	}
	return selectEpoch(conn, ks.cold, ks.id)
}

// Epoch returns the present epoch of a key; 0 when nothing was ever written under it.
func (s *Store) Epoch(key remit.EpochKey) uint64 {
	ks := s.keyspace(key)
	if e, ok := ks.epochs.epochOf(ks.id); ok || ks.cold == "" {
		return e
	}
	var epoch uint64
	err := s.read(func(conn *sqlite.Conn) (err error) {
		epoch, err = selectEpoch(conn, ks.cold, ks.id)
		return err
	})
	if err != nil {
		return ^uint64(0) // no precondition holds on what cannot be read
	}
	return epoch
}

// EvidenceEpoch returns the epoch of an evidence source.
func (s *Store) EvidenceEpoch(source string) uint64 {
	e, _ := s.sources.epochOf(source)
	return e
}

// Tighten moves an epoch at once, before anything is written: whatever was read before it can no longer be committed (S20).
// It needs no disk for what is live.
func (s *Store) Tighten(key remit.EpochKey) {
	ks := s.keyspace(key)
	//remit:guard S11 TestEndedRowsKeepTheirEpoch
	if _, ok := ks.epochs.epochOf(ks.id); !ok && ks.cold != "" {
		// Not in memory: it ended. The epoch in memory must lie beyond the stored one.
		if e := s.Epoch(key); e != ^uint64(0) {
			ks.epochs.moveTo(ks.id, e+1)
			return
		}
	}
	//remit:guard S20 TestTightenActsBeforeAnyWrite
	ks.epochs.moveTo(ks.id, 0)
}

func selectEpoch(conn *sqlite.Conn, query, id string) (uint64, error) {
	var epoch uint64
	err := query1(conn, query, func(st *sqlite.Stmt) error {
		epoch = uint64(st.ColumnInt64(0))
		return nil
	}, id)
	return epoch, err
}
