// SPDX-License-Identifier: Apache-2.0

package tool

import (
	"context"
	"fmt"
	"io"
	"sync"
	"time"

	"remit"
)

// Session is one claimed sandbox. It is safe for concurrent use.
type Session struct {
	catalogue *Catalogue
	claim     Claim
	tool      *remit.Tool
	launch    remit.LaunchID

	ctx    context.Context // ends with the session
	cancel context.CancelFunc
	ready  chan struct{} // closed when the next four are settled
	box    Box
	about  About
	begun  time.Time
	failed error
	gone   chan struct{} // closed when nothing is left and the end is on record

	turn chan struct{} // held by the call that is under way

	mu    sync.Mutex // guards the rest
	why   string     // why it was ended, by the first who ended it
	call  *call      // nil: none
	calls uint64
}

type call struct {
	id   remit.DecisionID
	done chan struct{}
}

func newSession(c *Catalogue, claim Claim, t *remit.Tool) *Session {
	s := &Session{catalogue: c, claim: claim, tool: t, launch: remit.NewLaunchID(), ready: make(chan struct{}), gone: make(chan struct{}),
		turn: make(chan struct{}, 1)}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s
}

// ID is of this very sandbox.
func (s *Session) ID() remit.SandboxID { return s.about.Sandbox }

// Turn waits until no other call is under way; from then on the sandbox's requests are decided under d's, until leave. A call that was
// given up before its answer ends the sandbox: what the tool still does for it could not be told from the next call's.
func (s *Session) Turn(ctx context.Context, d *remit.Decision) (leave func(), err error) {
	select {
	case s.turn <- struct{}{}:
	case <-s.ctx.Done():
		return nil, s.over()
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for the tool: %w", ctx.Err())
	}
	now := &call{d.ID, make(chan struct{})}
	s.mu.Lock()
	s.call = now
	s.calls++
	s.mu.Unlock()
	if s.ctx.Err() != nil { // both were so: a turn was free, and the sandbox is over
		s.cut(now)
		<-s.turn
		return nil, s.over()
	}
	return sync.OnceFunc(func() {
		s.cut(now)
		//remit:guard S24 TestGivenUpCallEndsTheSandbox
		if ctx.Err() != nil {
			s.end("a call was given up")
		}
		<-s.turn
	}), nil
}

// Call is the call that is under way.
func (s *Session) Call() (Call, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	//remit:guard S24 TestOutsideACallNothingIsSent
	if s.call == nil {
		return Call{}, false
	}
	return Call{s.call.id, s.call.done}, true
}

// cut ends a call, if it is the present one.
func (s *Session) cut(c *call) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c != nil && s.call == c {
		s.call = nil
		close(c.done)
	}
}

// Read reads from the tool.
func (s *Session) Read(b []byte) (int, error) { return s.box.Stdout().Read(b) }

// Write writes to the tool.
func (s *Session) Write(b []byte) (int, error) { return s.box.Stdin().Write(b) }

// connectionClosed is why a session ends whose client is gone, or saw the tool end.
const connectionClosed = "its connection was closed"

// Close ends the session: whoever speaks to the tool speaks to it alone, and nobody can after that.
func (s *Session) Close() error {
	s.end(connectionClosed)
	return nil
}

var _ io.ReadWriteCloser = (*Session)(nil)

// end is the beginning of the end: from here on nobody gets this sandbox, and its call is over.
func (s *Session) end(why string) {
	s.mu.Lock()
	if s.why == "" {
		s.why = why
	}
	s.mu.Unlock()
	s.catalogue.leave(s)
	s.cancel() // before the call is cut: a call that begins from here on sees it
	s.mu.Lock()
	now := s.call
	s.mu.Unlock()
	s.cut(now)
}

func (s *Session) over() error {
	return &remit.Error{Code: remit.CodeUnavailable, Msg: "the sandbox of " + string(s.claim.Tool) + " has ended"}
}

// live is a session from its claim to its end.
func (s *Session) live() {
	defer close(s.gone)
	recorded, err := s.start()
	if err != nil {
		crashed := s.ctx.Err() == nil
		s.failed = err
		s.end(err.Error())
		close(s.ready)
		if s.box == nil {
			s.catalogue.release(s, crashed)
			return
		}
		s.finish(recorded, crashed)
		return
	}
	close(s.ready)
	select {
	case <-s.box.Done():
		s.end("")
	case <-s.ctx.Done():
		s.linger()
	}
	s.finish(recorded, false)
}

// lingers is how long a tool whose connection is closed has to end by itself: that the connection is closed mostly is because it did,
// and how it did is worth knowing.
const lingers = 300 * time.Millisecond

func (s *Session) linger() {
	s.mu.Lock()
	closed := s.why == connectionClosed
	s.mu.Unlock()
	if !closed {
		return
	}
	_ = s.box.Stdin().Close()
	select {
	case <-s.box.Done():
	case <-time.After(lingers):
	}
}

// start makes and starts the sandbox; the ledger knows of it before anything of the tool runs.
func (s *Session) start() (recorded bool, err error) {
	c := &s.catalogue.cfg
	ctx, cancel := context.WithTimeout(s.ctx, startWithin)
	defer cancel()
	//remit:guard S11 TestEndedWhileStarting
	if err := c.Stands(s.claim, s.tool); err != nil {
		return false, err
	}
	box, err := c.Make(ctx, Order{Claim: s.claim, Tool: s.tool, Launch: s.launch, Call: s.Call})
	if err != nil {
		return false, err
	}
	s.box, s.about, s.begun = box, box.About(), c.Now()
	//remit:guard S20 TestStartIsOnRecordFirst
	if _, err := c.Commit(ctx, s.started()); err != nil {
		return false, fmt.Errorf("record the start of a sandbox: %w", err)
	}
	if err := box.Start(ctx); err != nil {
		return true, err
	}
	if s.ctx.Err() != nil {
		return true, s.over()
	}
	return true, nil
}

// destroyTries and recordTries are how often the end is tried before the next start of the server has to see to it.
const (
	destroyTries = 5
	recordTries  = 8
)

// finish destroys the sandbox and records its end: the identity and the way out first, the record last (S20).
func (s *Session) finish(recorded, crashed bool) {
	c := &s.catalogue.cfg
	var report Report
	var err error
	for try := range destroyTries {
		if report, err = s.box.Destroy(context.Background()); err == nil {
			break
		}
		c.Log.Error("a sandbox is not gone yet", "tool", s.claim.Tool, "sandbox", s.about.Sandbox, "err", err)
		time.Sleep(100 * time.Millisecond << try)
	}
	if err != nil {
		report.Detail = remit.Clip("not all of it could be removed: "+err.Error(), 200)
	}
	if len(report.Stderr) > 0 {
		c.Log.Info("a tool's last words", "tool", s.claim.Tool, "sandbox", s.about.Sandbox, "cause", report.Cause, "stderr", string(report.Stderr))
	}
	// One that ended by itself, before its time was over, did so against anybody's wish.
	s.catalogue.release(s, crashed || report.Cause != "killed" && report.Cause != "timeout")
	if !recorded {
		return
	}
	for try := range recordTries {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		_, err = c.Commit(ctx, s.ended(&report))
		cancel()
		if err == nil {
			return
		}
		c.Log.Error("the end of a sandbox is not on record yet", "tool", s.claim.Tool, "sandbox", s.about.Sandbox, "err", err)
		time.Sleep(50 * time.Millisecond << try)
	}
}

func (s *Session) claimed() Claimed {
	out := Claimed{Claim: s.claim, About: s.about, Launch: s.launch, Started: s.begun, Now: s.box.Now}
	s.mu.Lock()
	defer s.mu.Unlock()
	out.Calls = s.calls
	if s.call != nil {
		out.Call = s.call.id
	}
	return out
}
