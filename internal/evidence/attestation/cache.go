// SPDX-License-Identifier: Apache-2.0

package attestation

import (
	"sync"

	"remit"
)

// cacheSize is how many verdicts one generation keeps; at most twice as many are in memory. Facts are small: the envelope
// itself is not kept.
const cacheSize = 2048

// verdict is what verifying one envelope gave.
type verdict struct {
	fact   fact
	reason *remit.Reason
}

// cache remembers verdicts by the digest of the envelope. It has two generations instead of a list in order of use: what
// was not asked for while one generation filled is forgotten. The zero cache is ready.
type cache struct {
	mu         sync.Mutex // guards both maps
	young, old map[remit.Digest]verdict
}

func (c *cache) get(key remit.Digest) (verdict, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if v, ok := c.young[key]; ok {
		return v, true
	}
	v, ok := c.old[key]
	if ok {
		c.add(key, v)
	}
	return v, ok
}

func (c *cache) put(key remit.Digest, v verdict) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.add(key, v)
}

// add needs mu.
func (c *cache) add(key remit.Digest, v verdict) {
	if c.young == nil || len(c.young) >= cacheSize {
		c.old, c.young = c.young, make(map[remit.Digest]verdict)
	}
	c.young[key] = v
}
