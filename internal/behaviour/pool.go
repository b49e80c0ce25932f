// SPDX-License-Identifier: Apache-2.0

package behaviour

import "remit"

// pool is the room that all agents share beyond what each is assured of. Where it is used up, tables do not grow, so that what an agent did
// once gives way earlier to what it does every day, and what is odd does not wait and so never trains. No agent is forgotten for it: one
// that begins anew would be in its shadow, where nothing is found. What is free follows from what is taken, and is not saved.
type pool struct {
	buckets int // that tables of agents may still take
	waiting int // bytes of events that may still wait
	refused bool
}

// Bounds of what all agents have together: 272 MB of counts beyond 109 MB that are assured, and 200 MB of events that wait.
const (
	assured     = 1 << 4 // buckets of each agent
	poolBuckets = 4_000_000
	poolWaiting = 200_000_000
)

// takes takes n of what is left, if there is as much.
func (p *pool) takes(of *int, n int) bool {
	if n > *of {
		p.refused = true
		return false
	}
	*of -= n
	return true
}

// beyond are the buckets of a table that are not assured.
func beyond(buckets int) int { return max(0, buckets-assured) }

// size is what an event takes in memory, about.
func (w *waiting) size() int {
	n := 112 + 4*len(w.keys) + 8*len(w.odd)
	for i := range w.of {
		n += 40 + len(w.of[i].About)
	}
	return n
}

// owes is what an agent has of the pool.
func (a *agent) owes() (buckets, bytes int) {
	for i := range a.waiting {
		bytes += a.waiting[i].size()
	}
	return beyond(len(a.counts.buckets)), bytes
}

// leaves gives back what an agent had that is forgotten, because there are too many.
func (b *Baselines) leaves(_ remit.Name, a *agent) {
	buckets, bytes := a.owes()
	b.pool.buckets, b.pool.waiting = b.pool.buckets+buckets, b.pool.waiting+bytes
	b.forgotten++
}

// Short reports whether memory was short since it was last asked: an agent got less than it would have, or was forgotten.
func (b *Baselines) Short() (refused bool, forgotten int) {
	refused, forgotten = b.pool.refused, b.forgotten
	b.pool.refused, b.forgotten = false, 0
	return refused, forgotten
}

// Short is that of the detector's baselines.
func (d *Detector) Short() (refused bool, forgotten int) {
	if d.base == nil {
		return false, 0
	}
	return d.base.Short()
}
