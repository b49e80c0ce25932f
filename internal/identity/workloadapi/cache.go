// SPDX-License-Identifier: Apache-2.0

package workloadapi

import (
	"sync"
	"time"
)

// maxCached bounds each cache.
const maxCached = 8192

// cache keeps one SVID per identity, launch and workload, which all calls and streams share until half of its life is over. Calls
// for one key wait for each other, calls for different keys do not.
type cache[T any] struct {
	mu    sync.Mutex // guards slots
	slots map[string]*cached[T]
}

type cached[T any] struct {
	mu    sync.Mutex // held while a value is made; guards the rest
	value T
	renew time.Time
	full  bool
}

// get returns the value under key while it is before its renewal and good, else what mint makes.
func (c *cache[T]) get(key string, now time.Time, good func(T) bool, mint func() (T, time.Time, error)) (T, error) {
	s := c.slot(key, now)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.full && now.Before(s.renew) && good(s.value) {
		return s.value, nil
	}
	v, renew, err := mint()
	if err != nil {
		return v, err
	}
	s.value, s.renew, s.full = v, renew, true
	return v, nil
}

func (c *cache[T]) slot(key string, now time.Time) *cached[T] {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s, ok := c.slots[key]; ok {
		return s
	}
	if len(c.slots) >= maxCached {
		c.sweep(now)
	}
	if c.slots == nil || len(c.slots) >= maxCached {
		c.slots = map[string]*cached[T]{}
	}
	s := &cached[T]{}
	c.slots[key] = s
	return s
}

// sweep forgets what is past its renewal. What is being made now is skipped. c.mu is held.
func (c *cache[T]) sweep(now time.Time) {
	for k, s := range c.slots {
		if !s.mu.TryLock() {
			continue
		}
		stale := !now.Before(s.renew)
		s.mu.Unlock()
		if stale {
			delete(c.slots, k)
		}
	}
}
