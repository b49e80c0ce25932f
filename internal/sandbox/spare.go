// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"errors"
	"sync"
	"time"
)

// Spare keeps one process of a driver that was started ahead, so that the next sandbox does not wait for that. The process knows nothing:
// not which sandbox it will be, nor whose; it waits for its order, is taken once, and never comes back. It is safe for concurrent use.
type Spare[T any] struct {
	start func() (T, error)
	end   func(T) error

	mu      sync.Mutex
	spare   []T           // guarded by mu, as the next ones: at most one
	coming  chan struct{} // closed when the one that is being started is there; nil: none is
	later   *time.Timer
	closed  bool
	workers sync.WaitGroup
}

// spareAfter is how long the tool of the last sandbox has the processors for itself.
const spareAfter = 100 * time.Millisecond

// NewSpare makes an empty one. Processes are started by start; one that nobody took is ended by end.
func NewSpare[T any](start func() (T, error), end func(T) error) *Spare[T] {
	return &Spare[T]{start: start, end: end}
}

// Take returns a process, and whether it waited: else it was started now.
func (s *Spare[T]) Take() (p T, waited bool, err error) {
	s.mu.Lock()
	if coming := s.coming; coming != nil { // further on than one that is started now
		s.mu.Unlock()
		<-coming
		s.mu.Lock()
	}
	if len(s.spare) > 0 {
		p, s.spare = s.spare[0], nil
		s.mu.Unlock()
		return p, true, nil
	}
	s.mu.Unlock()
	p, err = s.start()
	return p, false, err
}

// Refill starts the next one a moment later, if there is none then. Where that fails, Take tries again and says why.
func (s *Spare[T]) Refill() {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
	case s.later == nil:
		s.later = time.AfterFunc(spareAfter, s.fill)
	default:
		s.later.Reset(spareAfter)
	}
}

func (s *Spare[T]) fill() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.coming != nil || len(s.spare) > 0 {
		return
	}
	s.coming = make(chan struct{})
	s.workers.Go(func() {
		p, err := s.start()
		s.mu.Lock()
		defer s.mu.Unlock()
		if err == nil {
			s.spare = []T{p}
		}
		close(s.coming)
		s.coming = nil
	})
}

// Close ends what waits, and lets nothing more be started ahead.
func (s *Spare[T]) Close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.workers.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, p := range s.spare {
		errs = append(errs, s.end(p))
	}
	s.spare = nil
	return errors.Join(errs...)
}
