// SPDX-License-Identifier: Apache-2.0

package behaviour

import "math"

// counts are numbers under hashed keys that halve with time, in bounded memory: buckets of eight places. In a full table the smallest
// of a bucket makes way, so that what came once gives way before what comes every day. A stranger that looks like a known key is one
// of some hundred thousand, and nobody can choose it: keys are hashed with the ledger's own seed.
type counts struct {
	slots []slot
	most  int // slots
}

type slot struct {
	key  uint32 // 0: free
	hour uint32 // of the last change
	n    float32
}

const (
	ways     = 8
	halfLife = 30 * 24 // hours
	forgot   = 1.0 / 64
)

// worth is what a count is worth now.
func (s *slot) worth(hour uint32) float64 {
	if hour <= s.hour {
		return float64(s.n)
	}
	return float64(s.n) * math.Exp2(-float64(hour-s.hour)/halfLife)
}

func (c *counts) bucket(tag uint32) []slot {
	i := int(tag) & (len(c.slots)/ways - 1) * ways
	return c.slots[i : i+ways]
}

// tagOf leaves no key free.
func tagOf(key uint64) uint32 { return uint32(key>>32) | 1<<31 } //nolint:gosec // the upper half

// get returns the count of a key.
func (c *counts) get(key uint64, hour uint32) float64 {
	if len(c.slots) == 0 {
		return 0
	}
	tag := tagOf(key)
	b := c.bucket(tag)
	for i := range b {
		if b[i].key == tag {
			return b[i].worth(hour)
		}
	}
	return 0
}

// add adds to the count of a key.
func (c *counts) add(key uint64, n float64, hour uint32) {
	if len(c.slots) == 0 {
		c.slots = make([]slot, ways)
	}
	tag := tagOf(key)
	for {
		b := c.bucket(tag)
		least := 0
		for i := range b {
			if b[i].key == tag {
				b[i].n, b[i].hour = float32(b[i].worth(hour)+n), max(hour, b[i].hour)
				return
			}
			if b[i].key == 0 || b[i].worth(hour) < forgot {
				b[i] = slot{}
			}
			if b[i].worth(hour) < b[least].worth(hour) {
				least = i
			}
		}
		if b[least].key == 0 || len(c.slots) >= c.most {
			b[least] = slot{tag, hour, float32(n)}
			return
		}
		c.grow()
	}
}

// grow doubles the places. A bucket's keys go to it or to its twin, so that all of them find one.
func (c *counts) grow() {
	old := c.slots
	c.slots = make([]slot, 2*len(old))
	for _, s := range old {
		if s.key == 0 {
			continue
		}
		b := c.bucket(s.key)
		for i := range b {
			if b[i].key == 0 {
				b[i] = s
				break
			}
		}
	}
}

// mix makes one key of two, by the finaliser of SplitMix64.
func mix(a, b uint64) uint64 {
	z := a*0x9e3779b97f4a7c15 ^ b
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}
