// SPDX-License-Identifier: Apache-2.0

package store

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"

	"zombiezen.com/go/sqlite"

	"remit"
)

const (
	insertRefSQL  = `INSERT OR IGNORE INTO refs (ref, seq) VALUES (?, ?)`
	setIndexedSQL = `INSERT INTO meta (name, value) VALUES ('indexed', ?)
		ON CONFLICT (name) DO UPDATE SET value = excluded.value`
	indexedSQL   = `SELECT value FROM meta WHERE name = 'indexed'`
	seqsOfRefSQL = `SELECT seq FROM refs WHERE ref = ? AND seq > ? ORDER BY seq LIMIT ?`
)

// The index of events follows behind the writes: refs wait in memory and go to the database sorted, when the writer is idle or
// when many wait. So an append touches the end of one table only. After a crash the rest is read from the events again.
const (
	maxRefTail   = 1 << 18 // refs in memory at most, beyond which indexing does not wait for an idle moment
	refChunk     = 2048    // a step of idle indexing: a few milliseconds, which a commit may have to wait
	refBusyChunk = 1 << 14
)

// ref says that an event mentions something: a hash of kind and name. Readers compare the event itself, so that two names with
// one hash do no harm.
type ref struct{ hash, seq uint64 }

// refTail are the refs that are not in the database yet, in order of seq.
type refTail struct {
	mu      sync.RWMutex // guards all
	waiting []ref
	indexed uint64 // events up to here are in the database's index
}

func (t *refTail) add(rs []ref) {
	t.mu.Lock()
	t.waiting = append(t.waiting, rs...)
	t.mu.Unlock()
}

// find returns the numbers of waiting events after a number that have the hash.
func (t *refTail) find(hash, after uint64) []uint64 {
	t.mu.RLock()
	defer t.mu.RUnlock()
	var out []uint64
	for _, r := range t.waiting {
		if r.hash == hash && r.seq > after {
			out = append(out, r.seq)
		}
	}
	return out
}

func refsOf(e *remit.Event) []uint64 {
	out := make([]uint64, 0, 5)
	for _, m := range [...]struct {
		kind byte
		name string
	}{{'a', string(e.Agent)}, {'r', string(e.Run)}, {'d', string(e.Decision)}, {'g', string(e.Grant)}, {'l', string(e.Lease)}} {
		if m.name != "" {
			out = append(out, refHash(m.kind, m.name))
		}
	}
	return out
}

// refHash is FNV-1a, 64 bits.
func refHash(kind byte, name string) uint64 {
	const prime = 1099511628211
	h := (uint64(14695981039346656037) ^ uint64(kind)) * prime
	for i := range len(name) {
		h = (h ^ uint64(name[i])) * prime
	}
	return h
}

// indexEvents moves waiting refs to the database, one chunk; more says that others wait. A failure leaves them waiting.
func (s *Store) indexEvents(idle bool) (more bool) {
	t := &s.refs
	t.mu.RLock()
	n := len(t.waiting)
	if n == 0 || (!idle && n < maxRefTail) {
		t.mu.RUnlock()
		return n > 0
	}
	n = min(n, refChunk)
	if !idle {
		n = min(len(t.waiting), refBusyChunk)
	}
	for n < len(t.waiting) && t.waiting[n].seq == t.waiting[n-1].seq { // an event is indexed whole
		n++
	}
	chunk := slices.Clone(t.waiting[:n])
	t.mu.RUnlock()
	upTo := chunk[n-1].seq
	slices.SortFunc(chunk, func(a, b ref) int {
		return cmp.Or(cmp.Compare(int64(a.hash), int64(b.hash)), cmp.Compare(a.seq, b.seq))
	})
	if err := s.insertRefs(chunk, upTo); err != nil {
		return false // until the next commit, or the next turn
	}
	s.copying.wrote(n * 32)
	t.mu.Lock()
	t.waiting = append(t.waiting[:0], t.waiting[n:]...)
	t.indexed = upTo
	more = len(t.waiting) > 0
	t.mu.Unlock()
	return more
}

func (s *Store) insertRefs(chunk []ref, upTo uint64) (err error) {
	conn := s.w.conn
	if err := exec(conn, "BEGIN IMMEDIATE"); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, rollback(conn))
		}
	}()
	st, err := conn.Prepare(insertRefSQL)
	if err != nil {
		return err
	}
	for _, r := range chunk {
		st.BindInt64(1, int64(r.hash))
		st.BindInt64(2, int64(r.seq))
		if _, err := st.Step(); err != nil {
			return err
		}
		if err := st.Reset(); err != nil {
			return err
		}
	}
	if err := exec(conn, setIndexedSQL, upTo); err != nil {
		return err
	}
	return exec(conn, "COMMIT")
}

// loadRefs reads the refs of events that were written but not indexed.
func (s *Store) loadRefs(conn *sqlite.Conn) error {
	t := &s.refs
	err := query1(conn, indexedSQL, func(st *sqlite.Stmt) error {
		t.indexed = uint64(st.ColumnInt64(0))
		return nil
	})
	if err != nil {
		return err
	}
	return query1(conn, entriesSQL, func(st *sqlite.Stmt) error {
		entry := scanEntry(st)
		h, err := parseHead(entry.Body)
		if err != nil {
			return fmt.Errorf("event %d: %w", entry.Seq, err)
		}
		for _, r := range refsOf(&remit.Event{Agent: h.Agent, Run: h.Run, Decision: h.Decision, Grant: h.Grant, Lease: h.Lease}) {
			t.waiting = append(t.waiting, ref{r, entry.Seq})
		}
		return nil
	}, t.indexed, -1)
}

// head is what lists filter by.
type head struct {
	Kind     remit.EventKind  `json:"kind"`
	Agent    remit.Name       `json:"agent"`
	Run      remit.RunID      `json:"run"`
	Decision remit.DecisionID `json:"decision"`
	Grant    remit.GrantID    `json:"grant"`
	Lease    remit.LeaseID    `json:"lease"`
}

func parseHead(body []byte) (head, error) {
	var h head
	err := json.Unmarshal(body, &h)
	return h, err
}

// EventFilter narrows a list of events; empty fields match all.
type EventFilter struct {
	Kind     remit.EventKind
	Agent    remit.Name
	Run      remit.RunID
	Decision remit.DecisionID
	Grant    remit.GrantID
	Lease    remit.LeaseID
}

func (f *EventFilter) matches(body []byte) bool {
	h, err := parseHead(body)
	return err == nil && matches(f.Kind, h.Kind) && matches(f.Agent, h.Agent) && matches(f.Run, h.Run) &&
		matches(f.Decision, h.Decision) && matches(f.Grant, h.Grant) && matches(f.Lease, h.Lease)
}

// hash returns the ref of the most selective field that is set.
func (f *EventFilter) hash() (uint64, bool) {
	switch {
	case f.Decision != "":
		return refHash('d', string(f.Decision)), true
	case f.Lease != "":
		return refHash('l', string(f.Lease)), true
	case f.Grant != "":
		return refHash('g', string(f.Grant)), true
	case f.Run != "":
		return refHash('r', string(f.Run)), true
	case f.Agent != "":
		return refHash('a', string(f.Agent)), true
	}
	return 0, false
}
