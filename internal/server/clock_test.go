// SPDX-License-Identifier: Apache-2.0

package server

import (
	"strings"
	"testing"
	"time"

	"remit"
	"remit/internal/api"
)

// TestClockJump: S13. The time of day jumps while a server runs: nothing more is granted, at once, until an operator says that the
// time is right; live grants go on to their end.
func TestClockJump(t *testing.T) {
	for name, by := range map[string]time.Duration{"ahead": time.Minute, "back": -20 * time.Second, "a little": 4 * time.Second} {
		t.Run(name, func(t *testing.T) {
			f := setUp(t)
			w := f.agent("agent/deploy", f.shared()).enter(f.startRun())
			if w.ask("write").Secret == "" {
				t.Fatal("no credential")
			}
			f.ahead.Store(int64(30 * time.Second)) // so that nothing that was issued lies in the future when the clock is set back
			f.jumped.Store(int64(by))
			g := w.ask("write") // before the janitor could look
			if name == "a little" {
				if g.Secret == "" {
					t.Errorf("%+v", g)
				}
				return
			}
			if g.Secret != "" || g.code() != string(remit.ReasonHalted) || f.backend.count() != 1 {
				t.Fatalf("%+v, %d at the target", g, f.backend.count())
			}
			f.jumped.Store(0) // that it jumped back is no confirmation
			if g := w.ask("write"); g.code() != string(remit.ReasonHalted) {
				t.Errorf("jumped back: %+v", g)
			}
			f.eventually("the jump is on record", func() bool { return f.events(remit.EventClockJumped) == 1 && f.srv.halted.Load() == 0 })
			if k := f.check("clock"); k.OK || !strings.Contains(k.Fix, "remit clock confirm") {
				t.Errorf("doctor: %+v", k)
			}
			f.must("/v1/clock/confirm", api.Reasoned{Reason: "the time server was wrong"}, nil)
			if g := w.ask("write"); g.Secret == "" || f.events(remit.EventClockConfirmed) != 1 || !f.check("clock").OK {
				t.Errorf("confirmed: %+v", g)
			}
			if code := f.post("/v1/clock/confirm", api.Reasoned{Reason: "again"}, nil); code != remit.CodeConflict {
				t.Errorf("confirmed twice: %q", code)
			}
		})
	}
}

func (f *fixture) check(name string) api.Check {
	f.t.Helper()
	var checks []api.Check
	if err := f.admin.Get(f.t.Context(), "/v1/doctor", nil, &checks); err != nil {
		f.t.Fatal(err)
	}
	for _, k := range checks {
		if k.Name == name {
			return k
		}
	}
	f.t.Fatalf("doctor has no line %q", name)
	return api.Check{}
}

// TestClockSetBackWhileDown: the last event on record lies in the future. A halt outlives a restart.
func TestClockSetBackWhileDown(t *testing.T) {
	f := setUp(t)
	f.jumped.Store(int64(-8 * time.Second))
	f.restart()
	w := f.agent("agent/deploy", f.shared()).enter(f.startRun())
	if g := w.ask("write"); g.code() != string(remit.ReasonHalted) {
		t.Errorf("set back: %+v", g)
	}
	f.eventually("the jump is on record", func() bool { return f.events(remit.EventClockJumped) == 1 && f.srv.halted.Load() == 0 })
	f.restart()
	if g := w.ask("write"); g.code() != string(remit.ReasonHalted) {
		t.Errorf("after another restart: %+v", g)
	}
	f.must("/v1/clock/confirm", api.Reasoned{Reason: "it was ahead before"}, nil)
	f.restart()
	if k := f.check("clock"); !k.OK {
		t.Errorf("what an operator has confirmed halts again: %+v", k)
	}
}

// TestClockSetBackBehindAFold: the entry that was written last tells of what was before. An agent can see to that: denials that repeat
// themselves are counted, and written down when the server ends, with the time of the last of them.
func TestClockSetBackBehindAFold(t *testing.T) {
	f := setUp(t)
	if err := f.srv.record(t.Context(), remit.Event{At: f.srv.now().Add(-30 * time.Second), Kind: remit.EventFolded, By: "agent/deploy"}); err != nil {
		t.Fatal(err)
	}
	f.jumped.Store(int64(-20 * time.Second))
	f.restart()
	if k := f.check("clock"); k.OK {
		t.Errorf("doctor: %+v", k)
	}
}

// TestClockOfOthersHaltsNothing: a target's audit log may have another time than this host.
func TestClockOfOthersHaltsNothing(t *testing.T) {
	f := setUp(t)
	for _, kind := range []remit.EventKind{remit.EventAction, remit.EventFinding} {
		if err := f.srv.record(t.Context(), remit.Event{At: f.srv.now().Add(time.Minute), Kind: kind, By: "kubernetes-audit"}); err != nil {
			t.Fatal(err)
		}
	}
	f.restart()
	if k := f.check("clock"); !k.OK {
		t.Errorf("doctor: %+v", k)
	}
}

// TestClockIsPatient: a goroutine that waits long between two readings sees no jump.
func TestClockIsPatient(t *testing.T) {
	wall, elapsed, slow := time.Unix(1e9, 0), time.Duration(0), time.Duration(0)
	c := newClock(apartFrom(func() time.Time { now := wall; wall, elapsed = wall.Add(slow), elapsed+slow; return now }, func() time.Duration { return elapsed }), nil)
	slow = time.Hour
	if by := c.jump(); by != 0 {
		t.Errorf("a jump of %v", by)
	}
}

// TestSleepIsNoJump: while the host slept, the cheap clock stood still.
func TestSleepIsNoJump(t *testing.T) {
	wall, elapsed, slept := time.Unix(1e9, 0), time.Duration(0), time.Duration(0)
	c := newClock(apartFrom(func() time.Time { return wall }, func() time.Duration { return elapsed }), func() { elapsed, slept = elapsed+slept, 0 })
	wall, slept = wall.Add(8*time.Hour), 8*time.Hour
	if by := c.jump(); by != 0 {
		t.Errorf("a jump of %v", by)
	}
	wall = wall.Add(time.Minute)
	if by := c.jump(); by != time.Minute {
		t.Errorf("after it a jump of %v", by)
	}
}
