// SPDX-License-Identifier: Apache-2.0

package gvisor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/state/statefile"
	"gvisor.dev/gvisor/runsc/container"
	rt "gvisor.dev/gvisor/runsc/sandbox"

	"remit/internal/sandbox"
	"remit/internal/sandbox/cgroup"
	"remit/internal/sandbox/gvisor/trace"
)

// guest is one gVisor sandbox.
type guest struct {
	driver    *Driver
	id        string
	folder    string
	limits    sandbox.Limits
	image     string
	group     *cgroup.Group // nil: none on this host
	container *container.Container
	trace     *trace.Trace // nil: not asked

	freezing sync.WaitGroup

	mu        sync.Mutex
	processes []process // guarded by mu, as the next ones: the kernel and the file server
	ended     unix.WaitStatus
	hasEnded  bool
}

// process is one of ours on the host, held so that its number cannot become another's.
type process struct {
	pid  int
	file int // a pidfd
}

var _ sandbox.Guest = (*guest)(nil)

// find reads what gVisor wrote and takes hold of the processes.
func (g *guest) find() error {
	c, err := g.driver.load(g.id)
	if err != nil {
		return fmt.Errorf("read the state of a sandbox: %w", err)
	}
	if c.Sandbox == nil {
		return fmt.Errorf("the sandbox %s has no kernel", g.id)
	}
	g.container = c
	for _, pid := range []int{c.SandboxPid(), c.GoferPid.Load()} {
		if pid <= 0 {
			continue
		}
		file, err := unix.PidfdOpen(pid, 0)
		if errors.Is(err, unix.ESRCH) {
			continue
		}
		if err != nil {
			return fmt.Errorf("hold the process of a sandbox: %w", err)
		}
		if !belongs(pid, g.id) { // the number is another's by now
			_ = unix.Close(file)
			continue
		}
		g.processes = append(g.processes, process{pid, file})
	}
	return nil
}

// Start lets the tool run.
func (g *guest) Start(context.Context) error {
	if g.image != "" {
		return g.container.Restore(g.driver.config, g.image, false, false, nil)
	}
	return g.container.Start(g.driver.config)
}

// Wait waits for the tool's end, and then of all that ran for it.
func (g *guest) Wait() (sandbox.Status, error) {
	status, err := g.container.Sandbox.Wait(g.id)
	kill := g.Kill() // a file server may outlive the kernel
	dead := g.waitDead(waitWithin)
	if g.trace != nil && dead == nil {
		g.trace.Ended()
	}
	if err != nil {
		// A tool may be gone before anybody asked for its status. The kernel then left it as its own.
		if kernel, ok := g.reap(); ok && kernel.Exited() {
			status, err = kernel, nil
		} else if ok {
			err = fmt.Errorf("the sandbox's kernel ended by signal %d", kernel.Signal())
		}
	}
	s := sandbox.Status{Code: status.ExitStatus()}
	if status.Signaled() {
		s = sandbox.Status{Code: 128 + int(status.Signal()), Signal: int(status.Signal())}
	}
	return s, errors.Join(err, kill, dead)
}

// reap collects the dead processes, which are our children since the one that made them ended (New), and returns how the kernel did.
func (g *guest) reap() (kernel unix.WaitStatus, ok bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for i, p := range g.processes {
		var status unix.WaitStatus
		if pid, err := unix.Wait4(p.pid, &status, unix.WNOHANG, nil); err == nil && pid == p.pid && i == 0 {
			g.ended, g.hasEnded = status, true
		}
	}
	return g.ended, g.hasEnded
}

const waitWithin = 30 * time.Second

// freezeWithin is how long the sandbox's kernel has to stop the tool and to say what ran, before its processes are stopped from outside.
const freezeWithin = 100 * time.Millisecond

// Freeze lets the sandbox's kernel stop the tool, and asks it what runs.
func (g *guest) Freeze() ([]string, error) {
	programs := make(chan []string, 1)
	g.freezing.Go(func() { // it ends with the kernel, at the latest
		if g.container.Sandbox.Pause(g.id) != nil {
			return
		}
		list, err := g.container.Sandbox.Processes(g.id)
		if err != nil {
			return
		}
		names := []string{}
		for _, p := range list {
			names = append(names, p.Cmd)
		}
		programs <- names
	})
	select {
	case names := <-programs:
		return names, nil
	case <-time.After(freezeWithin):
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	var errs []error
	for _, p := range g.processes {
		if err := unix.PidfdSendSignal(p.file, unix.SIGSTOP, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, fmt.Errorf("stop the process %d of a sandbox: %w", p.pid, err))
		}
	}
	return nil, errors.Join(errs...)
}

// Kill ends all processes of the sandbox.
func (g *guest) Kill() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	var errs []error
	for _, p := range g.processes {
		if err := unix.PidfdSendSignal(p.file, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, fmt.Errorf("kill the process %d of a sandbox: %w", p.pid, err))
		}
	}
	if g.group != nil {
		errs = append(errs, g.group.Kill())
	}
	return errors.Join(errs...)
}

// waitDead waits until the processes have ended.
func (g *guest) waitDead(within time.Duration) error {
	g.mu.Lock()
	processes := g.processes
	g.mu.Unlock()
	for until := time.Now().Add(within); len(processes) > 0; {
		poll := []unix.PollFd{{Fd: int32(processes[0].file), Events: unix.POLLIN}}
		n, err := unix.Poll(poll, int(max(0, time.Until(until).Milliseconds())))
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return fmt.Errorf("wait for the process %d of a sandbox: %w", processes[0].pid, err)
		case n == 0:
			return fmt.Errorf("the process %d of a sandbox did not end within %s", processes[0].pid, within)
		default:
			processes = processes[1:]
		}
	}
	return nil
}

// Release removes the files, the sockets and the control group.
func (g *guest) Release() error {
	g.freezing.Wait() // the kernel is gone
	g.reap()
	g.mu.Lock()
	for _, p := range g.processes {
		_ = unix.Close(p.file)
	}
	g.processes = nil
	g.mu.Unlock()
	var errs []error
	if g.trace != nil {
		g.trace.Close()
	}
	if g.group != nil {
		errs = append(errs, g.group.Remove())
	}
	files := []string{}
	if g.container != nil && g.container.Sandbox != nil {
		files = append(files, g.container.Sandbox.GetControlSocketPath())
	}
	for _, kind := range []string{"state", "lock"} {
		files = append(files, filepath.Join(g.driver.root(), fmt.Sprintf("%s_sandbox:%s.%s", g.id, g.id, kind)))
	}
	for _, f := range files {
		if err := os.Remove(f); err != nil && f != "" && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(append(errs, os.RemoveAll(g.folder))...)
}

// Events is what the host's limits did.
func (g *guest) Events() (sandbox.Events, error) {
	if g.group == nil {
		return sandbox.Events{}, nil
	}
	return g.group.Events()
}

// Usage is what the host counted.
func (g *guest) Usage() (sandbox.Usage, error) {
	if g.group == nil {
		return sandbox.Usage{}, nil
	}
	return g.group.Usage()
}

// Full asks the sandbox's kernel for its processes, if the host counts at least as many tasks.
func (g *guest) Full() bool {
	if g.group != nil && g.group.Tasks() < g.limits.Processes {
		return false
	}
	list, err := g.container.Sandbox.Processes(g.id)
	if err != nil {
		return false
	}
	n := 0
	for _, p := range list {
		n += len(p.Threads)
	}
	return n >= g.limits.Processes
}

// Activity is what the sandbox's kernel told.
func (g *guest) Activity() *sandbox.Activity {
	if g.trace == nil {
		return nil
	}
	return g.trace.Activity()
}

// Checkpoint writes the running tool to a new folder; the tool goes on.
func (g *guest) Checkpoint(_ context.Context, folder string) error {
	if err := os.Mkdir(folder, 0o700); err != nil {
		return fmt.Errorf("make the folder of a checkpoint: %w", err)
	}
	err := g.container.Checkpoint(g.driver.config, folder, rt.CheckpointOpts{Resume: true, Compression: statefile.CompressionLevelNone})
	if err != nil {
		return errors.Join(fmt.Errorf("checkpoint the sandbox %s: %w", g.id, err), os.RemoveAll(folder))
	}
	return nil
}

// belongs reports whether the process was started for the sandbox: its arguments name it.
func belongs(pid int, id string) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return err == nil && bytes.Contains(b, []byte(id))
}
