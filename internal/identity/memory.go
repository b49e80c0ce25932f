// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"sync"

	"remit"
)

// memory remembers verified certificates by the hash of the leaf. It holds at most 2*size of them in two generations: what is
// used moves to the young one; when that is full, it becomes the old one and the old one is forgotten.
type memory struct {
	size int

	mu         sync.Mutex // guards the rest
	young, old map[[32]byte]remembered
}

type remembered struct {
	principal remit.Principal
	bundles   <-chan struct{} // the generation of the bundles that it was verified with
}

func newMemory(size int) *memory {
	return &memory{size: size, young: map[[32]byte]remembered{}, old: map[[32]byte]remembered{}}
}

func (m *memory) get(sum [32]byte, bundles <-chan struct{}) (remit.Principal, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r, ok := m.young[sum]
	if !ok {
		if r, ok = m.old[sum]; ok {
			m.store(sum, r)
		}
	}
	return r.principal, ok && r.bundles == bundles
}

func (m *memory) put(sum [32]byte, bundles <-chan struct{}, p remit.Principal) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.store(sum, remembered{p, bundles})
}

func (m *memory) store(sum [32]byte, r remembered) {
	if len(m.young) >= m.size {
		m.young, m.old = make(map[[32]byte]remembered, m.size), m.young
	}
	m.young[sum] = r
}
