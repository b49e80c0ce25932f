// SPDX-License-Identifier: Apache-2.0

package store

import (
	"hash/maphash"
	"sync"
	"sync/atomic"
)

const shardCount = 32

// table is a map of rows with their epochs. A slot without a row holds only an epoch.
type table[K ~string, V any] struct {
	seed   maphash.Seed
	count  atomic.Int64 // of rows
	shards [shardCount]shard[K, V]
}

type shard[K ~string, V any] struct {
	mu sync.RWMutex // guards m
	m  map[K]slot[V]
	_  [64]byte // two shards do not share a cache line
}

type slot[V any] struct {
	row   *V // never changed once it is here
	epoch uint64
}

func (t *table[K, V]) init() {
	t.seed = maphash.MakeSeed()
	for i := range t.shards {
		t.shards[i].m = map[K]slot[V]{}
	}
}

func (t *table[K, V]) shard(k K) *shard[K, V] {
	return &t.shards[maphash.String(t.seed, string(k))%shardCount]
}

// get returns the slot; ok is false when there is none, not even an epoch.
func (t *table[K, V]) get(k K) (slot[V], bool) {
	s := t.shard(k)
	s.mu.RLock()
	v, ok := s.m[k]
	s.mu.RUnlock()
	return v, ok
}

// row returns the row, or nil.
func (t *table[K, V]) row(k K) *V {
	s, _ := t.get(k)
	return s.row
}

// put stores a row that was written with the given epoch. An epoch that moved meanwhile (Tighten) is moved once more: who
// saw it saw a state before this row.
func (t *table[K, V]) put(k K, row *V, epoch uint64) (moved bool) {
	s := t.shard(k)
	s.mu.Lock()
	defer s.mu.Unlock()
	if old := s.m[k].epoch; old >= epoch {
		epoch, moved = old+1, true
	}
	if s.m[k].row == nil {
		t.count.Add(1)
	}
	s.m[k] = slot[V]{row: row, epoch: epoch}
	return moved
}

// retire takes a row out of memory that ended for good: its epoch stands in the database. When the epoch in memory moved
// beyond the written one, the row stays, or the older epoch would seem current again.
func (t *table[K, V]) retire(k K, row *V, epoch uint64) {
	if !t.put(k, row, epoch) {
		t.drop(k)
	}
}

func (t *table[K, V]) drop(k K) {
	s := t.shard(k)
	s.mu.Lock()
	if s.m[k].row != nil {
		t.count.Add(-1)
	}
	delete(s.m, k)
	s.mu.Unlock()
}

// update changes a slot under its lock.
func (t *table[K, V]) update(k K, change func(slot[V]) slot[V]) {
	s := t.shard(k)
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.m[k]
	s.m[k] = change(old)
	if old.row == nil && s.m[k].row != nil {
		t.count.Add(1)
	}
}

// each visits all rows, shard by shard; f must not use the table. It ends when f returns false.
func (t *table[K, V]) each(f func(K, slot[V]) bool) {
	for i := range t.shards {
		if !t.shards[i].each(f) {
			return
		}
	}
}

func (s *shard[K, V]) each(f func(K, slot[V]) bool) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for k, v := range s.m {
		if v.row != nil && !f(k, v) {
			return false
		}
	}
	return true
}

// The epochs interface, by plain text of the key.

func (t *table[K, V]) epochOf(k string) (uint64, bool) {
	s, ok := t.get(K(k))
	return s.epoch, ok
}

func (t *table[K, V]) moveTo(k string, epoch uint64) {
	t.update(K(k), func(s slot[V]) slot[V] {
		s.epoch = max(s.epoch+1, epoch)
		return s
	})
}
