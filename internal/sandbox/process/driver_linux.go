// SPDX-License-Identifier: Apache-2.0

// Package process is the sandbox driver of tier process: namespaces, a root of its own, no capabilities, landlock and an allow list of
// system calls. The tool runs on the host's kernel, and a fault of that kernel is a way out: nothing here is called isolated, and a
// workflow gets it only by saying so.
//
// The child is this program, started again under another name (Dispatch): it waits for its order, builds the root, waits for the word to
// go, gives up what it may and becomes the tool, which is process 1 of its namespace and dies with this process. After the first sandbox
// one child for the next is started ahead.
package process

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"remit"
	"remit/internal/sandbox"
	"remit/internal/sandbox/cgroup"
)

// Config of the driver.
type Config struct {
	State      string // a folder of this driver alone
	Executable string // this program on disk; main calls Dispatch first. Left out: the running one
}

// Driver makes sandboxes of processes.
type Driver struct {
	state, executable string
	groups            *cgroup.Parent // nil: the host has none that we can use
	groupsErr         error
	spare             *sandbox.Spare[*child]
}

var _ sandbox.Driver = (*Driver)(nil)

// New makes the folder. It starts nothing.
func New(c Config) (*Driver, error) {
	if c.Executable == "" {
		self, err := os.Executable()
		if err != nil {
			return nil, fmt.Errorf("find this program: %w", err)
		}
		c.Executable = self
	}
	state, err := filepath.Abs(c.State)
	if err != nil {
		return nil, fmt.Errorf("find the folder of sandboxes: %w", err)
	}
	if err := os.MkdirAll(state, 0o700); err != nil {
		return nil, fmt.Errorf("make the folder of sandboxes: %w", err)
	}
	d := &Driver{state: state, executable: c.Executable}
	d.groups, d.groupsErr = cgroup.Open(fmt.Sprintf("remit-%x", sha256.Sum256([]byte(state)))[:14])
	d.spare = sandbox.NewSpare(d.spawn, (*child).end)
	return d, nil
}

// Name is "process".
func (d *Driver) Name() string { return "process" }

// Tier is process.
func (d *Driver) Tier() remit.Tier { return remit.TierProcess }

// Prepare makes a sandbox; its child has built the root and waits.
func (d *Driver) Prepare(ctx context.Context, s sandbox.Spec) (*sandbox.Instance, error) {
	s, err := s.Check()
	if err != nil {
		return nil, err
	}
	if s.Image != "" {
		return nil, fmt.Errorf("start a process from a checkpoint: %w", sandbox.ErrUnsupported)
	}
	g := &guest{folder: filepath.Join(d.state, string(s.ID))}
	if err := os.Mkdir(g.folder, 0o700); err != nil {
		return nil, fmt.Errorf("make the folder of a sandbox: %w", err)
	}
	pipes, err := d.create(ctx, g, s)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make a process sandbox: %w", err), g.abandon())
	}
	return sandbox.NewInstance(s, g, pipes), nil
}

func (d *Driver) create(ctx context.Context, g *guest, s sandbox.Spec) (*sandbox.Pipes, error) {
	if d.groups != nil {
		group, err := d.groups.Make(string(s.ID), cgroup.Limits{Memory: s.Limits.Memory, CPU: s.Limits.CPU, Tasks: s.Limits.Processes})
		if err != nil {
			return nil, err
		}
		g.group = group
	}
	order := order{Spec: s, Root: g.folder, Switch: os.Geteuid() == 0, Count: g.group == nil}
	if g.group != nil {
		order.Join = g.group.Join()
	}
	for {
		c, waited, err := d.spare.Take()
		if err != nil {
			return nil, err
		}
		g.child = c
		err = g.become(ctx, order)
		if err == nil {
			d.spare.Refill()
			return c.pipes, nil
		}
		err = errors.Join(fmt.Errorf("%w: %s", err, strings.TrimSpace(string(c.pipes.Complaint()))), c.end())
		if !waited || ctx.Err() != nil { // else somebody may have ended it while it waited
			return nil, err
		}
	}
}

// become tells the child what to build, and under which limits, and waits until it has.
func (g *guest) become(ctx context.Context, o order) error {
	if err := json.NewEncoder(g.orders).Encode(o); err != nil {
		return fmt.Errorf("tell a process what to build: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = g.Kill() })
	defer stop()
	defer g.answers.Close()
	var err error
	if g.listener, err = g.built(); err != nil {
		return errors.Join(err, ctx.Err())
	}
	return nil
}

// mapping lets root inside be us, and nobody be nobody if we may say so.
func mapping(id int) []syscall.SysProcIDMap {
	m := []syscall.SysProcIDMap{{ContainerID: 0, HostID: id, Size: 1}}
	if os.Geteuid() == 0 {
		m = append(m, syscall.SysProcIDMap{ContainerID: nobody, HostID: nobody, Size: 1})
	}
	return m
}

// Sweep removes what processes that are gone left behind. Their children died with them.
func (d *Driver) Sweep(context.Context) error {
	var errs []error
	if d.groups != nil {
		ids, err := d.groups.List()
		errs = append(errs, err)
		for _, id := range ids {
			errs = append(errs, d.groups.Find(id).Remove())
		}
	}
	left, err := os.ReadDir(d.state)
	errs = append(errs, err)
	for _, e := range left {
		errs = append(errs, os.RemoveAll(filepath.Join(d.state, e.Name())))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("sweep process sandboxes: %w", err)
	}
	return nil
}

// Close sweeps, and removes the driver's control group: for a folder that is used no more.
func (d *Driver) Close() error {
	err := errors.Join(d.spare.Close(), d.Sweep(context.Background()))
	if d.groups != nil {
		err = errors.Join(err, d.groups.Close())
	}
	return err
}

// Probe runs a sandbox.
func (d *Driver) Probe(ctx context.Context) sandbox.Report {
	r := sandbox.Report{Driver: d.Name(), Tier: d.Tier(), Limits: []string{"processes", "wall", "output"}}
	if d.groups != nil {
		r.Limits = append(r.Limits, "memory", "cpu")
	} else {
		r.Problems = append(r.Problems, sandbox.Problem{What: "no limits of memory and processor: " + d.groupsErr.Error(),
			Fix: sandbox.ThisHost().GroupFix()})
	}
	said, took, err := sandbox.TryOut(ctx, d, d.executable)
	if err != nil {
		r.Problems = append(r.Problems, sandbox.Problem{What: err.Error(), Fix: sandbox.ThisHost().NamespaceFix()})
		return r
	}
	r.Works, r.Evidence, r.Took = true, said, took
	return r
}

// guest is one process sandbox.
type guest struct {
	*child
	folder   string
	group    *cgroup.Group // nil: none on this host
	listener net.Listener  // in its namespace; nil: nobody asked
}

var (
	_ sandbox.Guest     = (*guest)(nil)
	_ sandbox.Answering = (*Driver)(nil)
)

// Answers says that Spec.Listen is made: a socket of the sandbox's network is a socket of this host's kernel.
func (d *Driver) Answers() {}

// Listener is bound in the namespace of the sandbox.
func (g *guest) Listener() net.Listener { return g.listener }

// Start lets the child become the tool.
func (g *guest) Start(context.Context) error {
	if _, err := g.orders.Write([]byte{goByte}); err != nil {
		return fmt.Errorf("let a process go: %w", err)
	}
	return g.orders.Close()
}

// Wait waits for the tool, with which everything in its namespace ends.
func (g *guest) Wait() (sandbox.Status, error) {
	err := g.reap()
	return g.status, err
}

// Freeze stops all processes. Without a control group it stops the first one and those that did not leave its process group.
func (g *guest) Freeze() ([]string, error) {
	if g.group != nil {
		return g.group.Stop()
	}
	if err := g.cmd.Process.Signal(unix.SIGSTOP); err != nil {
		return nil, fmt.Errorf("stop the process %d of a sandbox: %w", g.cmd.Process.Pid, err)
	}
	return nil, unix.Kill(-g.cmd.Process.Pid, unix.SIGSTOP) // it is stopped: its number is nobody else's
}

// Kill ends process 1, and so the namespace.
func (g *guest) Kill() error {
	if g.child == nil {
		return nil
	}
	return g.kill()
}

// Release removes the folder and the group. The mounts went with the namespace.
func (g *guest) Release() error {
	if g.child != nil {
		_ = g.end()
	}
	var errs []error
	if g.listener != nil {
		_ = g.listener.Close() // whoever answered may have closed it
	}
	if g.group != nil {
		errs = append(errs, g.group.Remove())
	}
	return errors.Join(append(errs, os.RemoveAll(g.folder))...)
}

func (g *guest) abandon() error { return errors.Join(g.Kill(), g.Release()) }

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

// Full is never said: the host refuses, and Events counts.
func (g *guest) Full() bool { return false }

// Activity is not observed.
func (g *guest) Activity() *sandbox.Activity { return nil }

// Checkpoint is not possible.
func (g *guest) Checkpoint(context.Context, string) error { return sandbox.ErrUnsupported }
