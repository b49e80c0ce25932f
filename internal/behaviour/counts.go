// SPDX-License-Identifier: Apache-2.0

package behaviour

import (
	"math"
	"sync"
)

// counts are numbers under hashed keys that halve with time, in bounded memory: buckets of eight places. In a full table the smallest
// of a bucket makes way, so that what came once gives way before what comes every day. A stranger that looks like a known key is one
// of some hundred thousand, and nobody can choose it: keys are hashed with the ledger's own seed.
type counts struct {
	buckets []bucket // their number is a power of two
	most    int      // buckets
	pool    *pool    // nil: they are its own
}

// bucket is eight counts as of one hour.
type bucket struct {
	tags [ways]uint32 // 0: free
	n    [ways]float32
	hour uint32
}

const (
	ways     = 8
	halfLife = 30 * 24 // hours
	forgot   = 1.0 / 64
)

// faded is what is left of one after so many hours; after 24 half lives nothing is.
var faded = sync.OnceValue(func() *[24 * halfLife]float64 {
	var of [24 * halfLife]float64
	for h := range of {
		of[h] = math.Exp2(-float64(h) / halfLife)
	}
	of[len(of)-1] = 0
	return &of
})

// left is what is left of one of the bucket's counts.
func (b *bucket) left(hour uint32) float64 {
	if hour <= b.hour {
		return 1
	}
	of := faded()
	return of[min(int(hour-b.hour), len(of)-1)]
}

// age brings the bucket to an hour, and forgets what is worth nothing by then.
func (b *bucket) age(hour uint32) {
	if hour <= b.hour {
		return
	}
	left := b.left(hour)
	for i := range b.n {
		if b.n[i] = float32(float64(b.n[i]) * left); b.n[i] < forgot {
			b.tags[i], b.n[i] = 0, 0
		}
	}
	b.hour = hour
}

// tag is what of a key is kept: 31 bits, and one that leaves none free.
type tag = uint32

const taken tag = 1 << 31

func tagOf(key uint64) tag { return uint32(key>>32) | taken } //nolint:gosec // the upper half

func (c *counts) bucket(t tag) *bucket { return &c.buckets[int(t)&(len(c.buckets)-1)] }

// get returns the count of a key.
func (c *counts) get(key uint64, hour uint32) float64 { return c.of(tagOf(key), hour) }

func (c *counts) of(t tag, hour uint32) float64 {
	if len(c.buckets) == 0 {
		return 0
	}
	b := c.bucket(t)
	for i := range b.tags {
		if b.tags[i] == t {
			return float64(b.n[i]) * b.left(hour)
		}
	}
	return 0
}

// add adds to the count of a key.
func (c *counts) add(key uint64, n float64, hour uint32) { c.addTo(tagOf(key), n, hour) }

func (c *counts) addTo(t tag, n float64, hour uint32) {
	if len(c.buckets) == 0 {
		c.buckets = make([]bucket, 1)
	}
	for {
		b := c.bucket(t)
		b.age(hour)
		least := 0
		for i := range b.tags {
			if b.tags[i] == t {
				b.n[i] = float32(float64(b.n[i]) + n)
				return
			}
			if b.n[i] < b.n[least] {
				least = i
			}
		}
		if b.tags[least] == 0 || len(c.buckets) >= c.most || !c.mayGrow() {
			b.tags[least], b.n[least] = t, float32(n)
			return
		}
		c.grow()
	}
}

// mayGrow takes what doubling needs from the pool.
func (c *counts) mayGrow() bool {
	n := len(c.buckets)
	return c.pool == nil || c.pool.takes(&c.pool.buckets, beyond(2*n)-beyond(n))
}

// grow doubles the buckets. A bucket's counts go to it or to its twin, so that all of them find a place.
func (c *counts) grow() {
	old := c.buckets
	c.buckets = make([]bucket, 2*len(old))
	for i := range old {
		for j, t := range old[i].tags {
			if t == 0 {
				continue
			}
			b := c.bucket(t)
			b.hour = old[i].hour
			for k := range b.tags {
				if b.tags[k] == 0 {
					b.tags[k], b.n[k] = t, old[i].n[j]
					break
				}
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
