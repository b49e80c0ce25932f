// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"remit"
)

// Set chooses among drivers by what their probes found. It never takes less than what was asked.
type Set struct {
	drivers []Driver

	mu     sync.Mutex
	probed map[string]probed // guarded by mu, by driver name
}

type probed struct {
	report Report
	at     time.Time
}

// probeAgain is how long a driver that did not work is left alone. One that worked is believed for the life of the process: what it
// makes later either runs or is an error.
const probeAgain = 30 * time.Second

// NewSet orders the drivers by tier, weakest first.
func NewSet(drivers ...Driver) *Set {
	drivers = slices.Clone(drivers)
	slices.SortStableFunc(drivers, func(a, b Driver) int {
		return slices.Index(remit.Tiers(), a.Tier()) - slices.Index(remit.Tiers(), b.Tier())
	})
	return &Set{drivers: drivers, probed: map[string]probed{}}
}

// For returns the weakest driver that is good enough and works here, with its probe. The error says of each why not.
func (s *Set) For(ctx context.Context, least remit.Tier) (Driver, Report, error) {
	var why []string
	for _, d := range s.drivers {
		//remit:guard S27 TestNeverLess
		if !slices.Contains(remit.Tiers(), least) || !d.Tier().AtLeast(least) {
			continue
		}
		r := s.probe(ctx, d)
		if r.Works {
			return d, r, nil
		}
		for _, p := range r.Problems {
			why = append(why, fmt.Sprintf("%s: %.200s", d.Name(), p.What))
		}
	}
	if len(why) == 0 {
		why = []string{"no driver of that tier"}
	}
	return nil, Report{}, &remit.Error{Code: remit.CodeUnavailable, Msg: fmt.Sprintf("no sandbox of tier %s or better on this host: %s", least, strings.Join(why, "; ")),
		Hint: "remit sandbox doctor says what the host lacks, and the fix"}
}

// Reports probes all drivers afresh.
func (s *Set) Reports(ctx context.Context) []Report {
	var out []Report
	for _, d := range s.drivers {
		out = append(out, d.Probe(ctx))
	}
	return out
}

func (s *Set) probe(ctx context.Context, d Driver) Report {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p, ok := s.probed[d.Name()]; ok && (p.report.Works || time.Since(p.at) < probeAgain) {
		return p.report
	}
	p := probed{d.Probe(ctx), time.Now()}
	s.probed[d.Name()] = p
	return p.report
}

// Close closes the drivers that keep something on the host between sandboxes: for folders that are used no more.
func (s *Set) Close() error {
	var errs []error
	for _, d := range s.drivers {
		if c, ok := d.(io.Closer); ok {
			errs = append(errs, c.Close())
		}
	}
	return errors.Join(errs...)
}
