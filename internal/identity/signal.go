// SPDX-License-Identifier: Apache-2.0

package identity

import "sync"

// Signal tells any number of waiters that something changed. The zero Signal is ready. It is safe for concurrent use.
type Signal struct {
	mu sync.Mutex // guards ch
	ch chan struct{}
}

// Changed returns a channel that is closed at the next Notify. A waiter takes the channel first and reads the state after, so
// that it misses no change. Two calls return the same channel exactly if nothing changed in between.
func (s *Signal) Changed() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ch == nil {
		s.ch = make(chan struct{})
	}
	return s.ch
}

// Notify wakes every waiter.
func (s *Signal) Notify() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ch != nil {
		close(s.ch)
	}
	s.ch = make(chan struct{})
}
