// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"encoding/json"
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"remit"
	"remit/internal/api"
	"remit/internal/gateway/admin"
)

// maxJump is how far the time of day may move beside the time that went by: more, and nobody is given anything until an operator
// has looked (S13). Windows, ages of facts and ends of runs are all read off that clock.
const maxJump = 5 * time.Second

// clock compares the time of day with a clock that nobody sets. It is safe for concurrent use.
type clock struct {
	// read returns the time of day, and between which times by the other clock it was read.
	read   func() (wall time.Time, least, most time.Duration)
	resync func() // nil: the other clock is always up to date
	base   atomic.Pointer[moment]
}

// moment is one instant by both clocks.
type moment struct {
	wall    time.Time
	elapsed time.Duration
}

func newClock(read func() (wall time.Time, least, most time.Duration), resync func()) *clock {
	c := &clock{read: read, resync: resync}
	c.believe()
	return c
}

// apartFrom reads two clocks that know nothing of each other.
func apartFrom(now func() time.Time, elapsed func() time.Duration) func() (wall time.Time, least, most time.Duration) {
	return func() (wall time.Time, least, most time.Duration) {
		least = elapsed()
		wall = now()
		return wall, least, elapsed()
	}
}

// believe takes the time of day as it is now.
func (c *clock) believe() {
	wall, _, most := c.read()
	c.base.Store(&moment{wall.Round(0), most})
}

// jump returns by how much the time of day moved beside the other clock since it was last believed; 0 within maxJump. What looks
// like one is looked at again: the host may have slept.
func (c *clock) jump() time.Duration {
	by := c.apart()
	if by != 0 && c.resync != nil {
		c.resync()
		by = c.apart()
	}
	return by
}

// apart reads both clocks once. However long this goroutine waits between two readings, that is no jump.
func (c *clock) apart() time.Duration {
	base := c.base.Load()
	wall, least, most := c.read()
	went, least, most := wall.Round(0).Sub(base.wall), least-base.elapsed, most-base.elapsed
	if went > most+maxJump {
		return went - most
	}
	if went < least-maxJump {
		return went - least
	}
	return 0
}

// bootClock is the time since the host was started, asleep or not (Linux's CLOCK_BOOTTIME), which nobody can set. Between two calls
// of resync it goes on by the monotonic clock, which costs no call of the kernel and stops while the host sleeps. It is safe for
// concurrent use.
type bootClock struct {
	start time.Time
	ahead atomic.Int64 // of the time since start
}

func newBootClock() *bootClock {
	b := &bootClock{start: time.Now()}
	b.resync()
	return b
}

func (b *bootClock) elapsed() time.Duration {
	return time.Since(b.start) + time.Duration(b.ahead.Load())
}

// read reads both clocks at one instant.
func (b *bootClock) read() (wall time.Time, least, most time.Duration) {
	now := time.Now()
	at := now.Sub(b.start) + time.Duration(b.ahead.Load())
	return now, at, at
}

func (b *bootClock) resync() {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic("server: the kernel has no CLOCK_BOOTTIME: " + err.Error())
	}
	b.ahead.Store(ts.Nano() - int64(time.Since(b.start)))
}

type clockData struct {
	Jump   string `json:"jump,omitempty"`
	Reason string `json:"reason,omitempty"`
}

// watchClock halts the installation at once when the time of day jumped; recordHalt writes it down.
func (s *Server) watchClock() {
	by := s.clock.jump()
	//remit:guard S13 TestClockJump
	if by != 0 {
		s.halt(by)
	}
}

func (s *Server) halt(by time.Duration) {
	if s.store.Posture(remit.Installation).Suspended {
		return
	}
	s.store.SetSuspended(remit.Installation, haltReason(by))
	s.halted.Store(int64(by))
	s.log.Error("the clock jumped: nothing is granted until an operator confirms it", "jump", by)
}

func haltReason(by time.Duration) string {
	return fmt.Sprintf("the clock jumped by %s", by.Round(time.Millisecond))
}

// recordHalt writes a halt down, and tries again when that fails: only what is on record outlives this process.
func (s *Server) recordHalt(ctx context.Context) {
	by := s.halted.Load()
	if by == 0 {
		return
	}
	body, _ := json.Marshal(clockData{Jump: time.Duration(by).String()}) // plain structs of ours
	_, err := s.store.Commit(ctx, remit.Change{
		Rows:   []remit.Row{remit.AgentStatus{Agent: remit.Installation, Suspended: true, Reason: haltReason(time.Duration(by)), By: remit.Installation, At: s.now()}},
		Events: []remit.Event{{At: s.now(), Kind: remit.EventClockJumped, By: "remit", Data: body}},
	})
	if err == nil {
		s.halted.CompareAndSwap(by, 0)
	}
}

// lastEntries is how many of the newest entries checkLastEvents reads.
const lastEntries = 4096

// checkLastEvents halts when the clock stands before what is already on record: it was set back while no server ran. The last entry
// alone does not say when it was written: a count of repeated denials, which agents can cause, has the time of the last of them, and
// acts that others report have theirs.
func (s *Server) checkLastEvents() error {
	last := s.store.LastSeq()
	entries, err := s.store.Entries(last-min(last, lastEntries), lastEntries)
	if err != nil {
		return err
	}
	var newest time.Time
	for _, e := range entries {
		var event struct {
			At   time.Time       `json:"at"`
			Kind remit.EventKind `json:"kind"`
		}
		if err := json.Unmarshal(e.Body, &event); err != nil {
			return fmt.Errorf("read the time of entry %d: %w", e.Seq, err)
		}
		//remit:guard S13 TestClockOfOthersHaltsNothing
		if event.Kind == remit.EventAction || event.Kind == remit.EventFinding {
			continue
		}
		if event.Kind == remit.EventClockConfirmed { // an operator has looked at what was before
			newest = event.At
		}
		//remit:guard S13 TestClockSetBackBehindAFold
		if event.At.After(newest) {
			newest = event.At
		}
	}
	behind := s.now().Sub(newest)
	//remit:guard S13 TestClockSetBackWhileDown
	if behind < -maxJump {
		s.halt(behind)
	}
	return nil
}

// opClockConfirm is an operator's word that the time of day is right.
func (s *Server) opClockConfirm(ctx context.Context, c admin.Call) (any, error) {
	why, err := reasonOf(c)
	if err != nil {
		return nil, err
	}
	posture := s.store.Posture(remit.Installation)
	if !posture.Suspended || s.halted.Load() != 0 {
		return nil, &remit.Error{Code: remit.CodeConflict, Msg: "no jump of the clock waits for a confirmation, or it is not on record yet", Hint: "remit doctor"}
	}
	s.clock.believe()
	body, _ := json.Marshal(clockData{Reason: why})
	_, err = s.store.Commit(ctx, remit.Change{
		Rows:    []remit.Row{remit.AgentStatus{Agent: remit.Installation, Reason: why, By: c.Who.Person, At: s.now()}},
		Events:  []remit.Event{{At: s.now(), Kind: remit.EventClockConfirmed, By: c.Who.String(), Data: body}},
		Require: []remit.Precondition{{Key: remit.AgentKey(remit.Installation), Epoch: posture.Epoch}}, // no later jump is confirmed by this
	})
	if err != nil {
		return nil, err
	}
	return s.checkClock(), nil
}

// checkClock is doctor's line about S13.
func (s *Server) checkClock() api.Check {
	out := api.Check{Name: "clock", OK: true, Text: s.now().UTC().Format(time.RFC3339) + "; no jump"}
	if p := s.store.Posture(remit.Installation); p.Suspended {
		out.OK, out.Text = false, p.Reason+": nothing is granted until an operator confirms the time, now "+s.now().UTC().Format(time.RFC3339)
		out.Fix = "check the time of this host, then: remit clock confirm --reason TEXT"
	}
	return out
}
