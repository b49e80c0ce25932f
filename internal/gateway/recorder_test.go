// SPDX-License-Identifier: Apache-2.0

package gateway_test

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"testing"

	"remit"
	"remit/internal/gateway"
)

// Every act that was noted is on record after End, in order, also when writing failed at first, and one that comes later is, too.
func TestRecorder(t *testing.T) {
	var mu sync.Mutex
	var got []int
	failed := false
	executed := func(_ context.Context, acts []remit.Outcome) error {
		mu.Lock()
		defer mu.Unlock()
		if !failed {
			failed = true
			return errors.New("the disk is full")
		}
		for _, a := range acts {
			got = append(got, a.Status)
		}
		return nil
	}
	r := gateway.NewRecorder(t.Context(), executed, slog.New(slog.DiscardHandler))
	var want []int
	for i := range 1000 {
		want = append(want, i)
		r.Note(remit.Outcome{Status: i})
	}
	r.End()
	r.End()
	r.Note(remit.Outcome{Status: 1000})
	if !slices.Equal(got, append(want, 1000)) {
		t.Fatalf("%d acts are on record", len(got))
	}
}
