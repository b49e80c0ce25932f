// SPDX-License-Identifier: Apache-2.0

package sandbox_test

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"remit/internal/sandbox"
)

// TestSpare: what waits is taken once, one is started ahead at most, and none is left.
func TestSpare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, fail, ended := 0, error(nil), []int(nil)
		s := sandbox.NewSpare(func() (int, error) { n++; return n, fail }, func(i int) error { ended = append(ended, i); return nil })
		take := func(want int, ahead bool) {
			t.Helper()
			if got, waited, err := s.Take(); got != want || waited != ahead || err != nil {
				t.Errorf("took %d, %v, %v; want %d, %v", got, waited, err, want, ahead)
			}
		}
		take(1, false)
		s.Refill()
		s.Refill()
		time.Sleep(time.Second)
		s.Refill()
		take(2, true)
		take(3, false)
		fail = errors.New("no more processes")
		s.Refill()
		time.Sleep(time.Second)
		if _, _, err := s.Take(); !errors.Is(err, fail) {
			t.Errorf("started although it cannot: %v", err)
		}
		fail = nil
		s.Refill()
		time.Sleep(time.Second)
		if err := s.Close(); err != nil || len(ended) != 1 || ended[0] != 6 {
			t.Errorf("closed: %v, ended %v", err, ended)
		}
		s.Refill()
		time.Sleep(time.Second)
		take(7, false)
	})
}
