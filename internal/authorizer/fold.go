// SPDX-License-Identifier: Apache-2.0

package authorizer

import (
	"context"
	"crypto/sha256"
	"errors"
	"strconv"
	"sync"
	"time"

	"remit"
)

// Bounds of a Fold. Beyond them denials are recorded one by one, as without it.
const (
	maxWindows  = 4096
	maxDistinct = 64 // different requests of one window that are recorded in full
)

// Fold keeps a caller that is denied the same thing over and over from filling the ledger (S35). The first denial of a window
// is recorded before it is answered, as every decision is. What is the same again is answered with that recorded denial, its
// id and its receipt, and counted; when the window ends, Flush records the count as one event. A window is of one caller,
// agent, run, permission and reason codes: what a flooder can vary without end does not open new ones. Requests in it that
// differ otherwise are recorded each, up to 64; what comes beyond is answered with the window's first denial, and the event
// says how many of those there were.
//
// Nothing that is allowed or held is ever folded. A count that was not flushed when the process died is lost; the denial that
// it counts is not. The zero Fold with a Window is ready; it is safe for concurrent use.
type Fold struct {
	// Window is how long denials are folded into their first; 0 folds none.
	Window time.Duration

	mu      sync.Mutex // guards the rest
	windows map[[sha256.Size]byte]*window
	ended   []*window // replaced by a newer one and not flushed yet
}

// window is one first denial with what was folded into it.
type window struct {
	first  remit.Decision
	until  time.Time
	calls  map[[sha256.Size]byte]*call // by what was asked
	origin *call                       // the first of them
	total  uint64                      // folded so far
	others uint64                      // of these, requests that are not recorded themselves
	last   time.Time
}

// call is a denial that is recorded in full. done is closed when it is on record, or failed.
type call struct {
	done     chan struct{}
	decision remit.Decision
	err      error
	folded   uint64
}

// errUnrecorded makes those who waited for a record that failed try their own.
var errUnrecorded = errors.New("the denial to fold into is not on record")

// enter returns the call to fold d into, or, with own set, the one that the caller records and must settle. Both nil and false:
// record it alone.
func (f *Fold) enter(d *remit.Decision) (into *call, own bool) {
	if f == nil || f.Window <= 0 {
		return nil, false
	}
	//remit:guard S35 TestOnlyTheSameFolds
	if d.Effect != remit.Deny {
		return nil, false
	}
	same, asked := foldKey(d)
	f.mu.Lock()
	defer f.mu.Unlock()
	w := f.windows[same]
	//remit:guard S35 TestNewWindowFlushesTheOld
	if w != nil && !d.At.Before(w.until) {
		f.ended, w = append(f.ended, w), nil
		delete(f.windows, same)
	}
	if w == nil {
		if len(f.windows)+len(f.ended) >= maxWindows {
			return nil, false
		}
		if f.windows == nil {
			f.windows = map[[sha256.Size]byte]*window{}
		}
		w = &window{first: light(d), until: d.At.Add(f.Window), calls: map[[sha256.Size]byte]*call{}}
		f.windows[same] = w
	}
	c := w.calls[asked]
	//remit:guard S35 TestRepeatedDenialsFold
	if c == nil && len(w.calls) < maxDistinct {
		c = &call{done: make(chan struct{})}
		if w.calls[asked] = c; w.origin == nil {
			w.origin = c
		}
		return c, true
	}
	if c == nil {
		c = w.origin
		w.others++
	} else {
		c.folded++
	}
	w.total++
	w.last = d.At
	return c, false
}

// light is what an answer and the event need of a denial; arguments and evidence would keep a caller's 64 KiB in memory.
func light(d *remit.Decision) remit.Decision {
	out := remit.Decision{ID: d.ID, At: d.At, Effect: d.Effect, Caller: d.Caller, Agent: d.Agent, Run: d.Run, Permission: d.Permission,
		Action: clip(d.Action), Target: clip(d.Target), Policy: d.Policy, Via: d.Via, Receipt: d.Receipt, Folded: true}
	for _, r := range d.Reasons {
		out.Reasons = append(out.Reasons, remit.Reason{Code: r.Code, Of: clip(r.Of)})
	}
	return out
}

// settle says what came of recording c. One that failed is forgotten, so that the next denial is recorded.
func (f *Fold) settle(c *call, d *remit.Decision, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	c.decision, c.err = light(d), err
	close(c.done)
	if err == nil {
		return
	}
	for key, w := range f.windows {
		if w.origin == c {
			delete(f.windows, key)
			return
		}
		for asked, other := range w.calls {
			if other == c {
				w.total -= c.folded
				delete(w.calls, asked)
				return
			}
		}
	}
}

// answer waits until the denial that c is about is on record and returns it.
func (c *call) answer(ctx context.Context) (remit.Decision, error) {
	select {
	case <-c.done:
	case <-ctx.Done():
		return remit.Decision{}, &remit.Error{Code: remit.CodeUnavailable, Msg: "the denial to answer with is not on record in time", Hint: "try again",
			Cause: context.Cause(ctx)}
	}
	//remit:guard S35 TestFoldOfAFailedRecord
	if c.err != nil {
		return remit.Decision{}, errUnrecorded
	}
	return c.decision, nil
}

// foldKey digests what a window's denials have in common, and everything else that was asked.
func foldKey(d *remit.Decision) (same, asked [sha256.Size]byte) {
	b, more := make([]byte, 0, 512), make([]byte, 0, 512)
	for _, s := range [...]string{d.Caller, string(d.Agent), string(d.Run), d.Permission.Workflow, d.Permission.Stage, d.Permission.Name,
		string(d.Policy), d.Via} {
		b = strconv.AppendQuote(b, s)
	}
	for _, s := range [...]string{d.Credential, d.Level, string(d.Under), d.Action, d.Target, d.Asked} {
		more = strconv.AppendQuote(more, s)
	}
	for _, r := range d.Reasons {
		b, more = strconv.AppendQuote(b, string(r.Code)), strconv.AppendQuote(more, r.Of)
		more = strconv.AppendQuote(more, r.Got) // which check refused a token: a forgery must not hide behind an earlier mistake
	}
	return sha256.Sum256(b), sha256.Sum256(d.Args.AppendJSON(more))
}

// foldedData is what the event says: into which recorded denials how many more of the same went.
type foldedData struct {
	Into    []foldedInto       `json:"into"`
	Reasons []remit.ReasonCode `json:"reasons"`
	Action  string             `json:"action"`
	Target  string             `json:"target"`
	First   time.Time          `json:"first"`
	Last    time.Time          `json:"last"`
	Count   uint64             `json:"count"`            // all that were answered with a denial that was on record
	Others  uint64             `json:"others,omitempty"` // of these, requests that are not on record themselves
}

type foldedInto struct {
	Decision remit.DecisionID `json:"decision"`
	Count    uint64           `json:"count"`
}

// due takes the windows that ended before at, or all; what was counted comes back as events.
func (f *Fold) due(at time.Time, all bool) (events []remit.Event) {
	f.mu.Lock()
	defer f.mu.Unlock()
	over := f.ended
	f.ended = nil
	for key, w := range f.windows {
		if all || !at.Before(w.until) {
			over = append(over, w)
			delete(f.windows, key)
		}
	}
	for _, w := range over {
		if w.total == 0 {
			continue
		}
		data := foldedData{Action: clip(w.first.Action), Target: clip(w.first.Target), First: w.first.At, Last: w.last, Count: w.total, Others: w.others}
		for _, r := range w.first.Reasons {
			data.Reasons = append(data.Reasons, r.Code)
		}
		for _, c := range w.calls {
			if c.folded > 0 && !c.decision.At.IsZero() {
				data.Into = append(data.Into, foldedInto{c.decision.ID, c.folded})
			}
		}
		events = append(events, remit.Event{At: w.last, Kind: remit.EventFolded, Agent: w.first.Agent, Run: w.first.Run, Decision: w.first.ID,
			By: w.first.Caller, Data: mustJSON(data)})
	}
	return events
}

// Flush records the counts of windows that ended before at, or of all. Counts that cannot be recorded are lost with the error;
// the denials that they count are on record.
func (a *Authorizer) Flush(ctx context.Context, at time.Time, all bool) error {
	f := a.cfg.Fold
	if f == nil {
		return nil
	}
	var errs []error
	for events := f.due(at, all); len(events) > 0; {
		n := min(len(events), 256)
		_, err := a.cfg.Record.Commit(ctx, remit.Change{Events: events[:n]})
		errs = append(errs, err)
		events = events[n:]
	}
	return errors.Join(errs...)
}
