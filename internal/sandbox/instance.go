// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"syscall"
	"time"

	"remit"
)

// Guest is what a driver gives: one prepared sandbox, nothing of whose tool has run.
type Guest interface {
	// Start lets the tool run, or continue from Spec.Image. It is called once.
	Start(ctx context.Context) error
	// Wait blocks until nothing of the sandbox runs any more. An error means that the sandbox failed, not the tool.
	Wait() (Status, error)
	// Freeze stops everything in it where it stands, and returns the programs that it had, where the driver can tell. It is called after
	// Start, and bounded to some hundred milliseconds; only Kill follows, even after an error.
	Freeze() (programs []string, err error)
	// Kill ends everything in it at once, started or not, frozen or not. It may be called at any time and again.
	Kill() error
	// Release removes what is left on the host: files, mounts, groups. It is called after Wait returned, or before Start after Kill.
	Release() error
	// Events and Usage are what the host's limits did, and what was used. Zero where the host has no limits.
	Events() (Events, error)
	Usage() (Usage, error)
	// Full reports whether the tool has as many processes as it may have.
	Full() bool
	// Activity is what was seen of the tool; nil where Spec.Observe was not asked.
	Activity() *Activity
	// Checkpoint writes the running tool to a folder and lets it go on, or returns ErrUnsupported.
	Checkpoint(ctx context.Context, folder string) error
}

// Instance is one sandbox: prepared, started at most once, destroyed. Its methods are safe for concurrent use.
type Instance struct {
	spec   Spec
	guest  Guest
	pipes  *Pipes
	stdout *metered
	errors tail
	begun  time.Time

	mu        sync.Mutex
	started   bool // guarded by mu, as the next ones
	claimed   bool
	cause     Cause // set by the first who ends it
	exit      Exit
	destroyed bool

	done    chan struct{} // closed when nothing runs any more and exit is set
	workers sync.WaitGroup
	release sync.Mutex // one Destroy at a time
}

// NewInstance puts together what a driver prepared. The instance owns guest and pipes from here on.
func NewInstance(s Spec, guest Guest, pipes *Pipes) *Instance {
	i := &Instance{spec: s, guest: guest, pipes: pipes, done: make(chan struct{})}
	i.stdout = &metered{file: pipes.stdout, meter: &meter{limit: s.Limits.Output, over: func() { i.End(CauseOutput) }}}
	return i
}

// ID names the sandbox.
func (i *Instance) ID() remit.SandboxID { return i.spec.ID }

// Listener accepts what the sandbox's processes, and nobody else, dial at Spec.Listen; nil: that is empty. It ends with the sandbox.
func (i *Instance) Listener() net.Listener {
	if g, ok := i.guest.(interface{ Listener() net.Listener }); ok {
		return g.Listener()
	}
	return nil
}

// Stdin is the tool's standard input.
func (i *Instance) Stdin() io.WriteCloser { return i.pipes.stdin }

// Stdout is the tool's standard output. Reads end with ErrOutput once the tool wrote more than it may.
func (i *Instance) Stdout() io.ReadCloser { return i.stdout }

// Stderr returns the last 16 KiB that the tool wrote to standard error. It is read even if nobody asks.
func (i *Instance) Stderr() []byte { return i.errors.bytes() }

// Claim says that the sandbox belongs to somebody from here on: credentials may come near it. The second claim fails (a sandbox
// serves one identity), and so does every later Checkpoint.
func (i *Instance) Claim() error {
	i.mu.Lock()
	defer i.mu.Unlock()
	//remit:guard S24 TestClaimedOnce
	if i.claimed {
		return &remit.Error{Code: remit.CodeConflict, Msg: "the sandbox " + string(i.spec.ID) + " belongs to somebody: a sandbox serves one run, stage and tool"}
	}
	i.claimed = true
	return nil
}

// Start lets the tool run. After an error only Destroy is left.
func (i *Instance) Start(ctx context.Context) error {
	i.mu.Lock()
	if i.started || i.destroyed {
		i.mu.Unlock()
		return fmt.Errorf("start the sandbox %s: it was started or destroyed before", i.spec.ID)
	}
	i.started = true
	i.begun = time.Now()
	i.mu.Unlock()
	if err := i.guest.Start(ctx); err != nil {
		i.End(CauseCrash)
		i.workers.Go(i.watch)
		return fmt.Errorf("start the sandbox %s: %w", i.spec.ID, err)
	}
	i.workers.Go(i.watch)
	i.workers.Go(i.readErrors)
	i.workers.Go(i.enforce)
	return nil
}

// watch waits for the end and says why.
func (i *Instance) watch() {
	status, err := i.guest.Wait()
	events, _ := i.guest.Events()
	i.mu.Lock()
	defer i.mu.Unlock()
	i.exit = Exit{Cause: i.cause, Code: status.Code, Took: time.Since(i.begun)}
	switch {
	case i.cause != "":
	case events.Kills > 0:
		i.exit.Cause = CauseMemory
	case events.Forks > 0 && (err != nil || status.Code != 0):
		i.exit.Cause = CausePIDs
	case err != nil:
		i.exit.Cause, i.exit.Detail = CauseCrash, err.Error()
	case status.Signal == int(syscall.SIGSYS):
		i.exit.Cause = CausePolicy
	default:
		i.exit.Cause = CauseExited
	}
	close(i.done)
}

// readErrors keeps standard error flowing: a tool that fills an unread pipe would stand still.
func (i *Instance) readErrors() {
	b := make([]byte, 8<<10)
	for {
		n, err := i.pipes.stderr.Read(b)
		within, ok := i.stdout.meter.add(n)
		i.errors.write(b[:within])
		if err != nil || !ok {
			return
		}
	}
}

const enforceEvery = 250 * time.Millisecond

// enforce ends the sandbox at its limits of time, memory and processes. Memory and processes end the whole of it: what is left of a
// tool after the host killed some of its processes is in no state to trust.
func (i *Instance) enforce() {
	wall := time.NewTimer(i.spec.Limits.Wall)
	defer wall.Stop()
	tick := time.NewTicker(enforceEvery)
	defer tick.Stop()
	for {
		select {
		case <-i.done:
			return
		case <-wall.C:
			//remit:guard S24 TestWall
			i.End(CauseTimeout)
		case <-tick.C:
			events, err := i.guest.Events()
			switch {
			case err != nil: // it is ending
			case events.Kills > 0:
				i.End(CauseMemory)
			case events.Forks > 0, i.guest.Full():
				i.End(CausePIDs)
			}
		}
	}
}

// Freeze stops the tool where it stands, so that nothing of it sees how its ways out close, and returns the programs that it had, at most
// MostSeen; none where it does not run any more or the driver cannot tell. Only End and Destroy follow: nothing thaws it.
func (i *Instance) Freeze() []string {
	i.mu.Lock()
	runs := i.started && !i.destroyed && i.exit.Cause == ""
	if runs && i.cause == "" {
		i.cause = CauseKilled
	}
	i.mu.Unlock()
	if !runs {
		return nil
	}
	programs, _ := i.guest.Freeze() // what could not be frozen is killed all the same
	slices.Sort(programs)
	return programs[:min(len(programs), MostSeen)]
}

// End kills the sandbox for a cause; the first cause counts. Wait then says it.
func (i *Instance) End(c Cause) {
	i.mu.Lock()
	if i.cause == "" {
		i.cause = c
	}
	i.mu.Unlock()
	_ = i.guest.Kill() // Destroy kills again, and reports
}

// Done is closed when the tool has ended.
func (i *Instance) Done() <-chan struct{} { return i.done }

// Wait waits for the end of a started sandbox.
func (i *Instance) Wait(ctx context.Context) (Exit, error) {
	select {
	case <-i.done:
		i.mu.Lock()
		defer i.mu.Unlock()
		return i.exit, nil
	case <-ctx.Done():
		return Exit{}, fmt.Errorf("wait for the sandbox %s: %w", i.spec.ID, ctx.Err())
	}
}

// Usage is what the sandbox used so far.
func (i *Instance) Usage() (Usage, error) {
	u, err := i.guest.Usage()
	u.Output = i.stdout.meter.total()
	return u, err
}

// Activity is what was seen of the tool so far; nil where Spec.Observe was not asked or the driver cannot.
func (i *Instance) Activity() *Activity { return i.guest.Activity() }

// Checkpoint writes the running tool to a new folder, from which others are started (Spec.Image). It is refused once the sandbox is
// claimed: the image holds whatever the process knew.
func (i *Instance) Checkpoint(ctx context.Context, folder string) error {
	i.mu.Lock()
	claimed, started := i.claimed, i.started
	i.mu.Unlock()
	//remit:guard S28 TestNoCheckpointAfterClaim
	if claimed {
		return &remit.Error{Code: remit.CodeConflict, Msg: "no checkpoint of a sandbox that was claimed: it may hold a credential",
			Hint: "take the image of a fresh one, before anybody claims it"}
	}
	if !started {
		return fmt.Errorf("checkpoint the sandbox %s: it was not started", i.spec.ID)
	}
	return i.guest.Checkpoint(ctx, folder)
}

// destroyWithin bounds Destroy, whatever its context says: nothing may keep a sandbox alive.
const destroyWithin = 20 * time.Second

// Destroy ends the sandbox and removes everything of it. It may be called again; after an error that tries the rest again.
func (i *Instance) Destroy(ctx context.Context) error {
	i.release.Lock()
	defer i.release.Unlock()
	i.mu.Lock()
	if i.destroyed && i.exit.Cause != "" {
		i.mu.Unlock()
		return nil
	}
	i.destroyed = true
	if i.cause == "" && i.exit.Cause == "" {
		i.cause = CauseKilled
	}
	started := i.started
	i.mu.Unlock()
	ctx, stop := context.WithTimeout(context.WithoutCancel(ctx), destroyWithin)
	defer stop()

	kill := i.guest.Kill()
	if !started {
		return i.gone(kill, i.pipes.Close(), i.guest.Release())
	}
	select {
	case <-i.done:
	case <-ctx.Done():
		return errors.Join(kill, fmt.Errorf("destroy the sandbox %s: it did not end within %s", i.spec.ID, destroyWithin))
	}
	err := i.pipes.Close()
	i.workers.Wait()
	return i.gone(nil, err, i.guest.Release())
}

// gone closes the life of an instance if nothing went wrong.
func (i *Instance) gone(errs ...error) error {
	if err := errors.Join(errs...); err != nil {
		i.mu.Lock()
		i.destroyed = false
		i.mu.Unlock()
		return fmt.Errorf("destroy the sandbox %s: %w", i.spec.ID, err)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if !i.started {
		i.exit = Exit{Cause: CauseKilled}
		close(i.done)
	}
	return nil
}
