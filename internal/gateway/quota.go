// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"sync"
	"time"
)

// Quota bounds what one principal may ask before the line (S35): a rate with a burst, and how much at once. A request costs
// one, and one more per 4 KiB of its body. It is safe for concurrent use. The nil Quota bounds nothing.
//
// Its memory is bounded by its keys, which callers take from configuration: names of agents and enforcement points, and one
// key for all unknown workloads of a trust domain.
type Quota struct {
	rate, burst float64
	concurrent  int

	mu   sync.Mutex // guards keys
	keys map[string]*Account
}

// NewQuota returns a Quota of rate per second, burst at once, and concurrent requests in flight; all must be positive, else
// nil is returned, which bounds nothing.
func NewQuota(rate, burst float64, concurrent int) *Quota {
	if rate <= 0 || burst < 1 || concurrent < 1 {
		return nil
	}
	return &Quota{rate: rate, burst: burst, concurrent: concurrent, keys: map[string]*Account{}}
}

// Account is one principal's place in a Quota.
type Account struct {
	quota *Quota

	mu     sync.Mutex // guards the rest
	tokens float64
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
		a = &Account{quota: q, tokens: q.burst, last: at}
		q.keys[key] = a
	}
	q.mu.Unlock()

	a.mu.Lock()
	defer a.mu.Unlock()
	//remit:guard S35 TestQuota
	if a.inside >= q.concurrent || !a.take(1+float64(bytes/4096), at) {
		return nil, false
	}
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

func (a *Account) take(n float64, at time.Time) bool {
	if d := at.Sub(a.last); d > 0 { // requests that stand side by side may arrive here out of order
		a.tokens = min(a.quota.burst, a.tokens+d.Seconds()*a.quota.rate)
		a.last = at
	}
	if a.tokens < n {
		return false
	}
	a.tokens -= n
	return true
}
