// SPDX-License-Identifier: Apache-2.0

package store

import (
	"cmp"
	"slices"

	"zombiezen.com/go/sqlite"

	"remit"
)

const (
	putLeaseSQL = `INSERT INTO leases (id, epoch, state, grant_id, body) VALUES (?, ?, ?, ?, ?)
		ON CONFLICT (id) DO UPDATE SET epoch = excluded.epoch, state = excluded.state, body = excluded.body`
	putCredentialSQL = `INSERT INTO lease_credentials (credential, lease) VALUES (?, ?)
		ON CONFLICT (credential) DO UPDATE SET lease = excluded.lease`
	liveLeasesSQL  = `SELECT body, epoch FROM leases WHERE state = 'pending' OR state = 'active' OR state = 'revoking'` // as its index has it
	leaseSQL       = `SELECT body FROM leases WHERE id = ?`
	leaseByCredSQL = `SELECT body FROM leases WHERE id = (SELECT lease FROM lease_credentials WHERE credential = ?)`
	leasesOfSQL    = `SELECT body FROM leases WHERE grant_id = ? ORDER BY n`
)

func putLease(conn *sqlite.Conn, l *remit.Lease, w *write) error {
	for _, c := range l.Credentials {
		if err := exec(conn, putCredentialSQL, c, string(l.ID)); err != nil {
			return err
		}
	}
	return exec(conn, putLeaseSQL, string(l.ID), w.epoch, string(l.State), string(l.Grant), w.body)
}

func (s *Store) publishLease(l *remit.Lease, epoch uint64) {
	if grantLives(l.State) {
		s.showLease(l, epoch)
		return
	}
	s.leases.retire(l.ID, l, epoch)
	for _, c := range l.Credentials {
		s.byCred.drop(c)
	}
}

func (s *Store) showLease(l *remit.Lease, epoch uint64) {
	s.leases.put(l.ID, l, epoch)
	for _, c := range l.Credentials {
		s.byCred.put(c, &l.ID, 1)
	}
}

func (s *Store) loadLeases(conn *sqlite.Conn) error {
	return query1(conn, liveLeasesSQL, func(st *sqlite.Stmt) error {
		l, err := decodeSealed[remit.Lease](s, st, 0)
		if err == nil {
			s.showLease(l, uint64(st.ColumnInt64(1)))
		}
		return err
	})
}

// Lease returns a lease: a live one from memory, one that ended from the database.
func (s *Store) Lease(id remit.LeaseID) (remit.Lease, bool) {
	if l := s.leases.row(id); l != nil {
		return *l, true
	}
	return s.selectLease(leaseSQL, string(id))
}

// LeaseByCredential returns the lease under which a credential was minted, by the credential's id in the target's audit log;
// also when it has ended.
func (s *Store) LeaseByCredential(id string) (remit.Lease, bool) {
	if lease := s.byCred.row(id); lease != nil {
		if l := s.leases.row(*lease); l != nil {
			return *l, true
		}
	}
	return s.selectLease(leaseByCredSQL, id)
}

func (s *Store) selectLease(query, id string) (remit.Lease, bool) {
	var found *remit.Lease
	err := s.read(func(conn *sqlite.Conn) error {
		return query1(conn, query, func(st *sqlite.Stmt) (err error) {
			found, err = decodeSealed[remit.Lease](s, st, 0)
			return err
		}, id)
	})
	if err != nil || found == nil {
		return remit.Lease{}, false
	}
	return *found, true
}

// LiveLeases returns the pending, active and revoking leases that which selects, all if it is nil, from memory, oldest first. It works with
// a full disk. Only what is selected is copied and sorted: with many live leases, the end of one costs a look at each.
func (s *Store) LiveLeases(which func(*remit.Lease) bool) []remit.Lease {
	var live []*remit.Lease
	s.leases.each(func(_ remit.LeaseID, slot slot[remit.Lease]) bool {
		if grantLives(slot.row.State) {
			live = append(live, slot.row)
		}
		return true
	})
	if which != nil { // without the table's lock
		live = slices.DeleteFunc(live, func(l *remit.Lease) bool { return !which(l) })
	}
	slices.SortFunc(live, func(a, b *remit.Lease) int {
		return cmp.Or(a.Issued.Compare(b.Issued), cmp.Compare(a.ID, b.ID))
	})
	var out []remit.Lease
	for _, l := range live {
		out = append(out, *l)
	}
	return out
}

// LeasesOf returns all leases that a grant ever had, also those that ended, oldest first.
func (s *Store) LeasesOf(grant remit.GrantID) ([]remit.Lease, error) {
	var out []remit.Lease
	err := s.read(func(conn *sqlite.Conn) error {
		return query1(conn, leasesOfSQL, func(st *sqlite.Stmt) error {
			l, err := decodeSealed[remit.Lease](s, st, 0)
			if err == nil {
				out = append(out, *l)
			}
			return err
		}, string(grant))
	})
	return out, err
}
