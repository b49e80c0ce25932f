// SPDX-License-Identifier: Apache-2.0

package broker_test

import (
	"log/slog"
	"testing"
	"time"

	"remit"
	"remit/internal/broker"
)

// TestLeaseEndsByEitherClock: S13. A clock that is set back prolongs nothing, one that is set ahead ends at once, also after a
// restart in between.
func TestLeaseEndsByEitherClock(t *testing.T) {
	for name, c := range map[string]struct {
		wall, elapsed time.Duration
		restart       bool
		live          bool
	}{
		"both at 4 minutes":        {4 * time.Minute, 4 * time.Minute, false, true},
		"set back":                 {-time.Hour, 6 * time.Minute, false, false},
		"set back, too early":      {-time.Hour, 4 * time.Minute, false, true},
		"set ahead":                {6 * time.Minute, time.Second, false, false},
		"set back before the next": {-time.Hour, 6 * time.Minute, true, false},
	} {
		t.Run(name, func(t *testing.T) {
			f := setUp(t)
			elapsed := &clock{t: f.clock.now()}
			start := elapsed.now()
			next := func() *broker.Broker {
				b, err := broker.New(broker.Config{Store: f.store, Log: slog.New(slog.DiscardHandler), Now: f.clock.now, Tick: time.Millisecond,
					Elapsed: func() time.Duration { return elapsed.now().Sub(start) },
					Targets: func(string) (broker.Target, bool) { return broker.Target{Driver: f.target, Lister: f.target}, true },
					Names:   func() []string { return nil }, AgentID: func(remit.Name) string { return "" }})
				if err != nil {
					t.Fatal(err)
				}
				return b
			}
			f.broker = next()
			_, l, _ := f.mint(t)
			f.clock.add(c.wall)
			if c.restart {
				f.broker = next()
			}
			elapsed.add(c.elapsed)
			if _, live := f.broker.Live(l.ID); live != c.live {
				t.Errorf("live: %v", live)
			}
			if c.live {
				return
			}
			f.running(t, f.broker, func() {
				eventually(t, "it ended at the target and on record", func() bool { return f.target.count() == 0 && f.state(t, l.ID) == remit.GrantEnded })
			})
		})
	}
}

// TestLeaseEndsAtTheEarliest: S12. Whatever ends first ends the lease.
func TestLeaseEndsAtTheEarliest(t *testing.T) {
	f := setUp(t)
	now := f.clock.now()
	hour, minute := now.Add(time.Hour), now.Add(time.Minute)
	for name, bring := range map[string]func(*remit.Decision, *remit.Request, *remit.Run){
		"ttl":                   func(d *remit.Decision, _ *remit.Request, _ *remit.Run) { d.TTL = time.Minute },
		"run":                   func(_ *remit.Decision, _ *remit.Request, r *remit.Run) { r.Expires = minute },
		"stage":                 func(_ *remit.Decision, _ *remit.Request, r *remit.Run) { r.StageExpires = minute },
		"window or age of fact": func(d *remit.Decision, _ *remit.Request, _ *remit.Run) { d.Until = minute },
		"evidence": func(d *remit.Decision, _ *remit.Request, _ *remit.Run) {
			d.Evidence = []remit.Evidence{{Until: hour}, {Until: minute}, {}}
		},
		"the caller's identity": func(_ *remit.Decision, r *remit.Request, _ *remit.Run) { r.Caller.Expires = minute },
	} {
		d := &remit.Decision{ID: remit.NewDecisionID(), At: now, Agent: "agent/deploy", Run: remit.NewRunID(), Target: "cluster", TTL: 30 * time.Minute}
		req, run := &remit.Request{At: now}, &remit.Run{ID: d.Run, State: remit.RunActive, Expires: hour, StageExpires: hour}
		bring(d, req, run)
		if _, l, err := f.broker.Prepare(t.Context(), d, req, run); err != nil || !l.Expires.Equal(minute) {
			t.Errorf("%s: until %v, %v", name, l.Expires.Sub(now), err)
		}
	}
}
