// SPDX-License-Identifier: Apache-2.0

package store

import (
	"slices"
	"sort"
	"sync"

	"remit"
)

// maxTailBytes bounds the entries that are kept in memory: what the sequencer, which runs close behind, still wants to read.
const maxTailBytes = 8 << 20

// eventTail holds the newest durable entries, so that who follows the writes reads them from memory.
type eventTail struct {
	mu      sync.RWMutex // guards all
	batches []tailBatch  // without gaps, up to the last durable event
	bytes   int
}

// tailBatch is one batch; it never changes.
type tailBatch struct {
	first  uint64
	text   []byte // the entries, each after its leaf prefix
	ends   []int  // where each ends
	leaves [][32]byte
}

// add keeps a batch that has just become durable, and lets go of the oldest.
func (t *eventTail) add(tree *batchTree, text []byte, ends []int) {
	b := tailBatch{first: tree.first, text: text, ends: ends, leaves: tree.levels[0]}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.batches = append(t.batches, b)
	t.bytes += len(text)
	old := 0
	for ; t.bytes > maxTailBytes && old < len(t.batches)-1; old++ {
		t.bytes -= len(t.batches[old].text)
		t.batches[old] = tailBatch{}
	}
	t.batches = t.batches[old:] // append moves them when it has to, and not at every batch
}

// entries returns what Store.Entries does, if all of it is here.
func (t *eventTail) entries(after uint64, limit int) (out []remit.Entry, ok bool) {
	t.mu.RLock()
	batches := t.batches
	if len(batches) == 0 || after+1 < batches[0].first {
		t.mu.RUnlock()
		return nil, false
	}
	i := sort.Search(len(batches), func(i int) bool { return batches[i].first > after+1 }) - 1
	batches = slices.Clone(batches[i:min(i+limit, len(batches))]) // each has one entry at least
	t.mu.RUnlock()
	for _, b := range batches {
		start := 0
		for j, end := range b.ends {
			if seq := b.first + uint64(j); seq > after {
				if len(out) == limit {
					return out, true
				}
				out = append(out, remit.Entry{Seq: seq, Body: b.text[start+1 : end : end], Leaf: &b.leaves[j]})
			}
			start = end
		}
	}
	return out, true
}
