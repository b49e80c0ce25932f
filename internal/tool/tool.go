// SPDX-License-Identifier: Apache-2.0

// Package tool keeps the MCP servers that Remit starts: each in a sandbox of its own, which belongs to one run, stage and tool from the
// claim until nothing of it is left. It serves one call at a time, so that whatever the tool does is done for that call (S24).
//
// The package knows nothing of how sandboxes are made, and decides nothing: who may have which tool is the line's. Its files are
// pinned: what runs is a copy that has the digest which was reviewed (S27). Start and end of each sandbox are in the ledger.
//
// A Catalogue owns one goroutine per sandbox; Close ends and awaits them.
package tool

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"remit"
)

// Claim is to whom a sandbox belongs.
type Claim struct {
	Tool  remit.Name
	Run   remit.RunID
	Stage string
}

// Call is the call that a tool serves now: whatever it sends is decided under that.
type Call struct {
	ID   remit.DecisionID
	Done <-chan struct{} // closed when the call ends
}

// Order asks for a sandbox. Launch is what its identity is bound to; Call is asked whenever the tool sends something.
type Order struct {
	Claim  Claim
	Tool   *remit.Tool
	Launch remit.LaunchID
	Call   func() (Call, bool)
}

// Box is a sandbox that was made for one order: claimed, its sockets open, nothing of the tool run yet.
type Box interface {
	About() About
	// Start runs the tool. After an error only Destroy is left.
	Start(ctx context.Context) error
	Stdin() io.WriteCloser
	Stdout() io.Reader
	// Now is what the tool used and did so far; no Activity where its driver sees nothing.
	Now() (Usage, *Activity)
	// Done is closed when the tool has ended, for whatever cause.
	Done() <-chan struct{}
	// Destroy ends the tool, its identity and its way out at once, then removes everything of it. It may be called again.
	Destroy(ctx context.Context) (Report, error)
}

// About is what a sandbox is.
type About struct {
	Sandbox remit.SandboxID `json:"sandbox"`
	Tier    remit.Tier      `json:"tier"`
	Driver  string          `json:"driver"`
	Program string          `json:"program"`
	Files   remit.Digest    `json:"files,omitempty"` // of the copy that runs; empty: the tool has none
	Warm    bool            `json:"warm,omitempty"`  // it was prepared before it was claimed
	// Restored: it goes on from a checkpoint of the tool, taken when it had started.
	Restored bool `json:"restored,omitempty"`
}

// Report is how a sandbox ended and what was seen of it.
type Report struct {
	Cause    string        `json:"cause"` // exited, timeout, oom, pids, output, policy, killed, crash
	Code     int           `json:"code"`  // of the tool
	Detail   string        `json:"detail,omitempty"`
	Took     time.Duration `json:"took"`
	Usage    Usage         `json:"usage"`
	Activity *Activity     `json:"activity,omitempty"` // nil: its driver sees nothing
	// Frozen are the programs that it had when it was stopped, where it did not end by itself and its driver can tell.
	Frozen []string `json:"frozen,omitempty"`
	Stderr []byte   `json:"-"` // the last of it; never in the ledger
}

// Usage is what it used, as the host counts.
type Usage struct {
	Peak      int64         `json:"peak,omitempty"` // bytes of memory
	CPU       time.Duration `json:"cpu"`
	Throttled uint64        `json:"throttled,omitempty"`
	Output    int64         `json:"output"` // bytes
}

// Activity is what the tool executed, opened and connected to, as it was seen from outside it; the lists are bounded.
type Activity struct {
	Executed  uint64   `json:"executed"`
	Opened    uint64   `json:"opened"`
	Connected uint64   `json:"connected"`
	Programs  []string `json:"programs,omitempty"`
	Addresses []string `json:"addresses,omitempty"`
	More      uint64   `json:"more,omitempty"` // distinct ones beyond the lists
	Dropped   uint64   `json:"dropped"`        // events that were not seen: evidence that is lost
}

// Config is what a Catalogue needs; all but Log and Now are required.
type Config struct {
	// Make makes a sandbox, or leaves nothing behind.
	Make func(ctx context.Context, o Order) (Box, error)
	// Stands says, from memory, why the claim may not have a sandbox now; nil: it may. It is asked after the claim can be ended.
	Stands func(c Claim, t *remit.Tool) error
	// Commit makes a change durable.
	Commit func(ctx context.Context, c remit.Change) (remit.Receipt, error)
	Log    *slog.Logger
	Now    func() time.Time
}

// Bounds of all sandboxes together and of those of one tool: each has memory of the host.
const (
	maxAll     = 128
	maxPerTool = 32
)

// startWithin bounds the making and starting of a sandbox.
const startWithin = time.Minute

// Catalogue holds the claimed sandboxes. It is safe for concurrent use.
type Catalogue struct {
	cfg  Config
	work sync.WaitGroup

	mu       sync.Mutex // guards the rest
	closed   bool
	sessions map[Claim]*Session // those that were not ended
	ending   map[*Session]bool  // those that are being destroyed
	failures map[Claim]failure
}

// failure is when a claim's sandbox last came to an early end, and how often in a row: a tool that crashes at once must not keep the
// host busy.
type failure struct {
	until time.Time
	times int
}

// New checks cfg.
func New(cfg Config) (*Catalogue, error) {
	if cfg.Make == nil || cfg.Stands == nil || cfg.Commit == nil {
		return nil, errors.New("tool: a part is missing")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Catalogue{cfg: cfg, sessions: map[Claim]*Session{}, ending: map[*Session]bool{}, failures: map[Claim]failure{}}, nil
}

// Open returns the claim's sandbox, started if need be. Everybody who opens the same claim gets the same one.
func (c *Catalogue) Open(ctx context.Context, claim Claim, t *remit.Tool) (*Session, error) {
	s, err := c.session(claim, t)
	if err != nil {
		return nil, err
	}
	select {
	case <-s.ready:
		return s, s.failed
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for the sandbox of %s: %w", claim.Tool, ctx.Err())
	}
}

func (c *Catalogue) session(claim Claim, t *remit.Tool) (*Session, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s, ok := c.sessions[claim]; ok {
		return s, nil
	}
	if c.closed {
		return nil, &remit.Error{Code: remit.CodeUnavailable, Msg: "the server is stopping"}
	}
	//remit:guard S35 TestCrashesAreBraked
	if f, ok := c.failures[claim]; ok && c.cfg.Now().Before(f.until) {
		return nil, &remit.Error{Code: remit.CodeUnavailable, Msg: fmt.Sprintf("%s could not be started or ended by itself, %d times in a row", claim.Tool, f.times),
			Hint: "it is tried again after a pause"}
	}
	if err := c.room(claim.Tool); err != nil {
		return nil, err
	}
	s := newSession(c, claim, t)
	c.sessions[claim] = s
	c.work.Go(s.live)
	return s, nil
}

// room refuses more sandboxes than the host should carry; those that are not gone yet count. c.mu is held.
func (c *Catalogue) room(name remit.Name) error {
	own := 0
	for _, s := range c.sessions {
		if s.claim.Tool == name {
			own++
		}
	}
	for s := range c.ending {
		if s.claim.Tool == name {
			own++
		}
	}
	//remit:guard S35 TestSandboxesAreBounded
	if own >= maxPerTool || len(c.sessions)+len(c.ending) >= maxAll {
		return &remit.Error{Code: remit.CodeExhausted, Msg: fmt.Sprintf("there are %d sandboxes, %d of them of %s", len(c.sessions)+len(c.ending), own, name),
			Hint: "finish some runs"}
	}
	return nil
}

// End ends the sandboxes that match, for a reason, and waits until they are gone or ctx ends. Their identity and way out end first.
func (c *Catalogue) End(ctx context.Context, why string, match func(Claim, *remit.Tool) bool) {
	c.mu.Lock()
	var hit []*Session
	for claim, s := range c.sessions {
		if match(claim, s.tool) {
			hit = append(hit, s)
		}
	}
	c.mu.Unlock()
	for _, s := range hit {
		s.end(why)
	}
	for _, s := range hit {
		select {
		case <-s.gone:
		case <-ctx.Done():
			return
		}
	}
}

// Close ends all sandboxes and waits for them. Nothing is opened any more.
func (c *Catalogue) Close() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.End(context.Background(), "the server stopped", func(Claim, *remit.Tool) bool { return true })
	c.work.Wait()
}

// Claimed is a sandbox as it is now.
type Claimed struct {
	Claim   Claim
	About   About
	Launch  remit.LaunchID
	Started time.Time
	Calls   uint64
	Call    remit.DecisionID // the one that it serves now; empty: none
	// Now is what it used and did so far.
	Now func() (Usage, *Activity)
}

// List returns the started sandboxes, in no order.
func (c *Catalogue) List() []Claimed {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []Claimed
	for _, s := range c.sessions {
		select {
		case <-s.ready:
			if s.failed == nil {
				out = append(out, s.claimed())
			}
		default:
		}
	}
	return out
}

// leave takes an ended session out, so that the next call gets another one, until release says that it is gone.
func (c *Catalogue) leave(s *Session) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.sessions[s.claim] == s {
		delete(c.sessions, s.claim)
		c.ending[s] = true
	}
}

// release forgets a session of which nothing is left; crashed is that it came to an early end by itself.
func (c *Catalogue) release(s *Session, crashed bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.ending, s)
	if !crashed {
		delete(c.failures, s.claim)
		return
	}
	now := c.cfg.Now()
	for claim, f := range c.failures {
		if now.After(f.until.Add(maxBrake)) {
			delete(c.failures, claim)
		}
	}
	n := c.failures[s.claim].times + 1
	c.failures[s.claim] = failure{until: now.Add(min(maxBrake, firstBrake<<min(n-1, 10))), times: n}
}

const (
	firstBrake = 250 * time.Millisecond
	maxBrake   = time.Minute
)
