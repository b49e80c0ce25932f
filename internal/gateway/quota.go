// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

// Limits are what one principal may ask: requests a second, at once after a pause, and under way at a time; and bytes of
// bodies a second, of which two seconds' worth may come at once, and always one largest body. Bytes 0 does not bound them.
type Limits struct {
	Rate, Burst float64
	Concurrent  int
	Bytes       float64
}

// Quota bounds what one principal may ask before the line (S35). It is safe for concurrent use. The nil Quota bounds nothing.
//
// Its memory is bounded by its keys, which callers take from configuration: names of agents and enforcement points, and one
// key for all unknown workloads of a trust domain.
type Quota struct {
	limits Limits
	braked atomic.Int64 // refused requests that wait in Brake

	mu   sync.Mutex // guards keys
	keys map[string]*Account
}

// NewQuota returns a Quota of the limits; rate, burst and concurrent must be positive, else nil is returned, which bounds
// nothing.
func NewQuota(l Limits) *Quota {
	if l.Rate <= 0 || l.Burst < 1 || l.Concurrent < 1 {
		return nil
	}
	return &Quota{limits: l, keys: map[string]*Account{}}
}

// How long a refused request is kept waiting on average, and how many at a time.
const (
	brakeFor  = 100 * time.Millisecond
	maxBraked = 1024
)

// Brake keeps a request that was refused waiting for a moment: whoever floods a connection spends his time on it, and not the
// time of others. The wait differs from half of brakeFor to one and a half, so that many connections do not come back as one wave,
// which others would meet. It holds nothing but the request's goroutine.
func (q *Quota) Brake(ctx context.Context) {
	if q == nil {
		return
	}
	defer q.braked.Add(-1)
	if q.braked.Add(1) > maxBraked {
		return
	}
	select {
	case <-ctx.Done():
	case <-time.After(brakeFor/2 + rand.N(brakeFor)):
	}
}

// Account is one principal's place in a Quota.
type Account struct {
	quota *Quota

	mu     sync.Mutex // guards the rest
	tokens float64
	bytes  float64
	last   time.Time
	inside int
}

// Enter admits one request of the given body size, or refuses. An admitted one must Leave; Leave of a nil Account is fine.
func (q *Quota) Enter(key string, bytes int, at time.Time) (*Account, bool) {
	if q == nil {
		return nil, true
	}
	q.mu.Lock()
	a := q.keys[key]
	if a == nil {
		a = &Account{quota: q, tokens: q.limits.Burst, bytes: q.limits.mostBytes(), last: at}
		q.keys[key] = a
	}
	q.mu.Unlock()

	a.mu.Lock()
	defer a.mu.Unlock()
	//remit:guard S35 TestQuota
	if a.inside >= q.limits.Concurrent {
		return nil, false
	}
	//remit:guard S35 TestByteQuota
	if !a.holds(bytes, at) {
		return nil, false
	}
	//remit:guard S35 TestQuota
	if !a.take(1, at) {
		return nil, false
	}
	a.bytes -= float64(bytes)
	a.inside++
	return a, true
}

// More charges n further requests, for a batch; false means that the quota does not hold them.
func (a *Account) More(n int, at time.Time) bool {
	if a == nil || n <= 0 {
		return true
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.take(float64(n), at)
}

// Leave ends what Enter admitted.
func (a *Account) Leave() {
	if a == nil {
		return
	}
	a.mu.Lock()
	a.inside--
	a.mu.Unlock()
}

func (l *Limits) mostBytes() float64 { return max(2*l.Bytes, MaxBody) }

// fill adds what has become free since the last time.
func (a *Account) fill(at time.Time) {
	if d := at.Sub(a.last); d > 0 { // requests that stand side by side may arrive here out of order
		l := &a.quota.limits
		a.tokens = min(l.Burst, a.tokens+d.Seconds()*l.Rate)
		a.bytes = min(l.mostBytes(), a.bytes+d.Seconds()*l.Bytes)
		a.last = at
	}
}

// holds reports whether the bytes of a body are left.
func (a *Account) holds(bytes int, at time.Time) bool {
	a.fill(at)
	return a.quota.limits.Bytes <= 0 || a.bytes >= float64(bytes)
}

func (a *Account) take(n float64, at time.Time) bool {
	a.fill(at)
	if a.tokens < n {
		return false
	}
	a.tokens -= n
	return true
}
