// SPDX-License-Identifier: Apache-2.0

package store

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sort"
	"sync"

	"zombiezen.com/go/sqlite"

	"remit"
)

const (
	insertBlockSQL   = `INSERT INTO ref_blocks (n, refs) VALUES (?, ?)`
	insertSegmentSQL = `INSERT INTO ref_segments (last, first, block, fences) VALUES (?, ?, ?, ?)`
	segmentsSQL      = `SELECT last, first, block, fences FROM ref_segments ORDER BY last`
	blockSQL         = `SELECT refs FROM ref_blocks WHERE n = ?`
)

// The index of events follows behind the writes. Refs wait in memory until there are enough for a segment: some thousand events'
// refs, sorted, in blocks of one page. Segments never change and follow each other in the numbers of their events, so a list reads
// them in order, one or two blocks of each, and writing one costs a hundred pages in sequence. After a crash what waited is read
// from the events again.
const (
	segmentRefs = 1 << 15 // refs that make a segment
	blockRefs   = 336     // a row of them fills a page
	refBytes    = 12      // hash, and the event's number from the segment's first on
)

// index finds events by what they mention.
type index struct {
	mu       sync.RWMutex // guards all
	segments []segment    // by number of event
	waiting  []ref        // of later events, in order of seq
}

// segment is what memory keeps of one.
type segment struct {
	first, last uint64
	block       int64    // row of its first block
	fences      []uint64 // the first hash of each block
}

// sorted is a segment on its way to the database.
type sorted struct {
	segment
	refs   int // how many of those that wait
	blocks [][]byte
}

func (x *index) add(rs []ref) {
	x.mu.Lock()
	x.waiting = append(x.waiting, rs...)
	x.mu.Unlock()
}

// indexed is the number of the last event that is in a segment.
func (x *index) indexed() uint64 {
	x.mu.RLock()
	defer x.mu.RUnlock()
	if len(x.segments) == 0 {
		return 0
	}
	return x.segments[len(x.segments)-1].last
}

// next returns a copy of the refs for the next segment, with all of an event or nothing of it; nil when too few wait.
func (x *index) next() []ref {
	x.mu.RLock()
	defer x.mu.RUnlock()
	n := segmentRefs
	if len(x.waiting) < n {
		return nil
	}
	for n < len(x.waiting) && x.waiting[n].seq == x.waiting[n-1].seq {
		n++
	}
	return slices.Clone(x.waiting[:n])
}

// written moves a segment from those that wait to those that can be read.
func (x *index) written(s *sorted) {
	x.mu.Lock()
	x.segments = append(x.segments, s.segment)
	x.waiting = append(x.waiting[:0], x.waiting[s.refs:]...)
	x.mu.Unlock()
}

// find returns the segments that may know of events after a number, and those that wait and mention the hash.
func (x *index) find(hash, after uint64) (segments []segment, waiting []uint64) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	from := sort.Search(len(x.segments), func(i int) bool { return x.segments[i].last > after })
	for _, r := range x.waiting {
		if r.hash == hash && r.seq > after {
			waiting = append(waiting, r.seq)
		}
	}
	return x.segments[from:], waiting // appended to, never changed
}

// sortRefs makes a segment of refs, which are in order of seq.
func sortRefs(refs []ref) *sorted {
	s := &sorted{refs: len(refs), segment: segment{first: refs[0].seq, last: refs[len(refs)-1].seq}}
	slices.SortFunc(refs, func(a, b ref) int {
		if c := cmp.Compare(a.hash, b.hash); c != 0 {
			return c
		}
		return cmp.Compare(a.seq, b.seq)
	})
	for block := range slices.Chunk(refs, blockRefs) {
		b := make([]byte, 0, len(block)*refBytes)
		for _, r := range block {
			b = binary.BigEndian.AppendUint64(b, r.hash)
			b = binary.BigEndian.AppendUint32(b, uint32(r.seq-s.first))
		}
		s.blocks, s.fences = append(s.blocks, b), append(s.fences, block[0].hash)
	}
	return s
}

// indexEvents runs in the writer goroutine between batches. Sorting is done beside it; then the segment is written.
func (s *Store) indexEvents() {
	select {
	case ready := <-s.w.sorted:
		s.w.sorting = false
		if err := s.insertSegment(ready); err != nil {
			return // they wait on, and are sorted again
		}
	default:
	}
	if s.w.sorting {
		return
	}
	if refs := s.index.next(); refs != nil {
		s.w.sorting = true
		s.wg.Go(func() { s.w.sorted <- sortRefs(refs) })
	}
}

// insertSegment writes a segment in a transaction of its own.
func (s *Store) insertSegment(x *sorted) (err error) {
	conn := s.w.conn
	if err := exec(conn, "BEGIN IMMEDIATE"); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, rollback(conn))
		}
	}()
	segments := s.index.segments // only the writer appends
	x.block = 1
	if n := len(segments); n > 0 {
		x.block = segments[n-1].block + int64(len(segments[n-1].fences))
	}
	var fences []byte
	for i, b := range x.blocks {
		if err := exec(conn, insertBlockSQL, x.block+int64(i), b); err != nil {
			return err
		}
		fences = binary.BigEndian.AppendUint64(fences, x.fences[i])
	}
	if err := exec(conn, insertSegmentSQL, x.last, x.first, x.block, fences); err != nil {
		return err
	}
	if err := exec(conn, "COMMIT"); err != nil {
		return err
	}
	s.copying.wrote((len(x.blocks) + 2) * pageSize)
	s.index.written(x)
	return nil
}

// loadIndex reads the fences, and then the refs of events that are in no segment.
func (s *Store) loadIndex(conn *sqlite.Conn) error {
	x := &s.index
	err := query1(conn, segmentsSQL, func(st *sqlite.Stmt) error {
		g := segment{last: uint64(st.ColumnInt64(0)), first: uint64(st.ColumnInt64(1)), block: st.ColumnInt64(2)}
		for b := columnBytes(st, 3); len(b) >= 8; b = b[8:] {
			g.fences = append(g.fences, binary.BigEndian.Uint64(b))
		}
		x.segments = append(x.segments, g)
		return nil
	})
	if err != nil {
		return err
	}
	const chunk = 4096
	for after, n := x.indexed(), chunk; n == chunk; {
		if n, after, err = s.loadRefs(conn, after, chunk); err != nil {
			return err
		}
		if refs := x.next(); refs != nil {
			if err := s.insertSegment(sortRefs(refs)); err != nil {
				return err
			}
		}
	}
	return nil
}

// loadRefs reads the refs of the next events, at most limit.
func (s *Store) loadRefs(conn *sqlite.Conn, after uint64, limit int) (n int, last uint64, err error) {
	found, err := entries(conn, after, s.last.Load(), limit, false)
	last = after
	for _, entry := range found {
		h, err := parseHead(entry.Body)
		if err != nil {
			return 0, last, fmt.Errorf("event %d: %w", entry.Seq, err)
		}
		for _, r := range refsOf(&remit.Event{Agent: h.Agent, Run: h.Run, Decision: h.Decision, Grant: h.Grant, Lease: h.Lease}) {
			s.index.waiting = append(s.index.waiting, ref{r, entry.Seq})
		}
		last = entry.Seq
	}
	return len(found), last, err
}

// mentions calls each with the numbers of events after a number that mention the hash, in order, until it returns an error.
func (s *Store) mentions(conn *sqlite.Conn, hash, after uint64, each func(seq uint64) error) error {
	segments, waiting := s.index.find(hash, after)
	for i := range segments {
		if err := segments[i].mentions(conn, hash, after, each); err != nil {
			return err
		}
	}
	for _, seq := range waiting {
		if err := each(seq); err != nil {
			return err
		}
	}
	return nil
}

func (g *segment) mentions(conn *sqlite.Conn, hash, after uint64, each func(seq uint64) error) error {
	at := sort.Search(len(g.fences), func(i int) bool { return g.fences[i] >= hash })
	for at = max(0, at-1); at < len(g.fences) && g.fences[at] <= hash; at++ { // the block before may end with the hash
		var block []byte
		err := query1(conn, blockSQL, func(st *sqlite.Stmt) error {
			block = columnBytes(st, 0)
			return nil
		}, g.block+int64(at))
		if err != nil {
			return err
		}
		n := len(block) / refBytes
		hashAt := func(i int) uint64 { return binary.BigEndian.Uint64(block[i*refBytes:]) }
		for i := sort.Search(n, func(i int) bool { return hashAt(i) >= hash }); i < n && hashAt(i) == hash; i++ {
			seq := g.first + uint64(binary.BigEndian.Uint32(block[i*refBytes+8:]))
			if seq <= after {
				continue
			}
			if err := each(seq); err != nil {
				return err
			}
		}
	}
	return nil
}
