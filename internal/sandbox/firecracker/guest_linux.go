// SPDX-License-Identifier: Apache-2.0

package firecracker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"remit/internal/sandbox"
	"remit/internal/sandbox/cgroup"
)

// guest is one virtual machine.
type guest struct {
	driver    *Driver
	id        string
	spec      sandbox.Spec
	group     *cgroup.Group // nil: none on this host
	root      *os.File      // the jail
	machine   *exec.Cmd
	dead      chan struct{} // closed when the machine's process ended
	streams   [3]*os.File   // the tool's ends of the pipes
	listeners map[uint32]*net.UnixListener
	control   *lines
	workers   sync.WaitGroup

	drained sync.WaitGroup // standard output and error were read to their ends
	said    chan struct{}  // closed when the agent said how the tool ended, or went

	mu     sync.Mutex
	status *sandbox.Status // guarded by mu, as the next ones
	fault  string
	full   bool
	kills  uint64
	opened []net.Conn
	ended  bool
}

var _ sandbox.Guest = (*guest)(nil)

// meet waits for the agent and has it lay out the root.
func (g *guest) meet(ctx context.Context, b build) error {
	conn, err := g.accept(ctx, controlPort)
	if err != nil {
		return fmt.Errorf("wait for the agent in a virtual machine: %w", err)
	}
	g.control = newLines(conn, maxReport)
	deadline, _ := ctx.Deadline()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := conn.SetDeadline(deadline); err != nil {
		return err
	}
	var r report
	if err := g.control.receive(&r); err != nil {
		return fmt.Errorf("hear from the agent in a virtual machine: %w", err)
	}
	//remit:guard S24 TestAgentOfAnotherBuild
	if r.Hello != protocol {
		return fmt.Errorf("the agent in the root image speaks protocol %d, this program %d: make the image again with this build of remit", r.Hello, protocol)
	}
	r = report{}
	if err := errors.Join(g.control.send(order{Build: &b}), g.control.receive(&r)); err != nil {
		return fmt.Errorf("have the root laid out: %w", err)
	}
	if !r.Built {
		return fmt.Errorf("have the root laid out: %.500s", r.Fault)
	}
	return conn.SetDeadline(time.Time{})
}

// accept takes the one connection that a port is for, and closes the port.
func (g *guest) accept(ctx context.Context, port uint32) (stream, error) {
	ln := g.listeners[port]
	stop := context.AfterFunc(ctx, func() { _ = ln.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	go func() { // a machine that is gone connects no more
		select {
		case <-g.dead:
			_ = ln.SetDeadline(time.Unix(1, 0))
		case <-ctx.Done():
		}
	}()
	c, err := ln.AcceptUnix()
	//remit:guard S24 TestPortsAreTakenOnce
	err = errors.Join(err, ln.Close())
	if err != nil {
		return nil, err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.opened = append(g.opened, c)
	return c, nil
}

// Start lets the agent run the tool.
func (g *guest) Start(ctx context.Context) error {
	ctx, stop := context.WithTimeout(ctx, bootWithin)
	defer stop()
	g.said = make(chan struct{})
	names, files, err := shared(g.spec.Sockets)
	if err != nil {
		close(g.said)
		return err
	}
	for i := range uint32(maxSockets) {
		ln := g.listeners[socketPort+i]
		if int(i) >= len(names) {
			_ = ln.Close()
			continue
		}
		g.workers.Go(func() { g.serve(ln, filepath.Join(g.spec.Sockets, names[i])) })
	}
	o := order{Run: &run{Command: g.spec.Command, Env: g.spec.Environ(), Processes: g.spec.Limits.Processes, Sockets: names, Files: files}}
	if err := g.control.send(o); err != nil {
		close(g.said)
		return fmt.Errorf("have the tool run: %w", err)
	}
	g.workers.Go(g.listenTo)
	for i, port := range []uint32{stdinPort, stdoutPort, stderrPort} {
		conn, err := g.accept(ctx, port)
		if err != nil {
			return errors.Join(fmt.Errorf("connect the tool's streams: %w", err), g.faulted())
		}
		file := g.streams[i]
		if i == 0 {
			g.workers.Go(func() { carry(halfClosed{conn}, file) })
			continue
		}
		g.drained.Add(1)
		g.workers.Go(func() {
			defer g.drained.Done()
			carry(file, conn)
		})
	}
	return nil
}

// halfClosed ends one direction only: the machine is to see the end of its input, not lose the connection.
type halfClosed struct{ stream }

func (h halfClosed) Close() error { return h.CloseWrite() }

func (g *guest) faulted() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.fault == "" {
		return nil
	}
	return errors.New(g.fault)
}

// shared reads the folder of sockets: their names, and the files beside them.
func shared(folder string) (sockets []string, files []sharedFile, err error) {
	if folder == "" {
		return nil, nil, nil
	}
	entries, err := os.ReadDir(folder)
	if err != nil {
		return nil, nil, fmt.Errorf("read the folder of sockets: %w", err)
	}
	size := 0
	for _, e := range entries {
		switch {
		case e.Type()&os.ModeSocket != 0:
			sockets = append(sockets, e.Name())
		case e.Type().IsRegular():
			b, err := os.ReadFile(filepath.Join(folder, e.Name()))
			if err != nil {
				return nil, nil, fmt.Errorf("read the folder of sockets: %w", err)
			}
			size += len(b)
			files = append(files, sharedFile{e.Name(), b})
		}
	}
	if len(sockets) > maxSockets || size > maxOrder/2 {
		return nil, nil, fmt.Errorf("a virtual machine has at most %d sockets and %d MB of files beside them", maxSockets, maxOrder/2>>20)
	}
	return sockets, files, nil
}

const maxConnections = 128

// serve carries the connections of one port to the one socket that it stands for: which listener took it is whose it is.
func (g *guest) serve(ln *net.UnixListener, socket string) {
	slots := make(chan struct{}, maxConnections)
	for {
		c, err := ln.AcceptUnix()
		if err != nil {
			return
		}
		slots <- struct{}{}
		g.workers.Go(func() {
			defer func() { <-slots }()
			out, err := net.Dial("unix", socket)
			if err != nil || !g.keep(c, out) {
				_ = c.Close()
				return
			}
			splice(c, out.(stream))
			g.forget(c, out)
		})
	}
}

// keep remembers connections for the end, unless that was.
func (g *guest) keep(conns ...net.Conn) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.ended {
		for _, c := range conns {
			_ = c.Close()
		}
		return false
	}
	g.opened = append(g.opened, conns...)
	return true
}

func (g *guest) forget(conns ...net.Conn) {
	g.mu.Lock()
	defer g.mu.Unlock()
	kept := g.opened[:0]
	for _, c := range g.opened {
		if c != conns[0] && c != conns[1] {
			kept = append(kept, c)
		}
	}
	g.opened = kept
}

// listenTo hears what the agent says until it ends.
func (g *guest) listenTo() {
	defer close(g.said)
	for {
		var r report
		if err := g.control.receive(&r); err != nil {
			return
		}
		g.mu.Lock()
		g.full, g.kills = g.full || r.Full, max(g.kills, r.Kills)
		if r.Fault != "" {
			g.fault = fmt.Sprintf("%.500s", r.Fault)
		}
		if r.Exit != nil {
			g.status = r.Exit
		}
		over := r.Exit != nil || r.Fault != ""
		g.mu.Unlock()
		if over {
			return
		}
	}
}

// Wait waits until the tool ended and what it wrote was read, then for the machine.
func (g *guest) Wait() (sandbox.Status, error) {
	if g.machine == nil {
		return sandbox.Status{}, errors.New("the virtual machine did not start")
	}
	read := make(chan struct{})
	go func() {
		<-g.said
		g.drained.Wait()
		close(read)
	}()
	select {
	case <-read:
	case <-g.dead:
		select { // what it said before may still be under way
		case <-g.said:
		case <-time.After(time.Second):
		}
	}
	err := g.Kill()
	<-g.dead
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.status != nil {
		return *g.status, err
	}
	if g.fault != "" {
		return sandbox.Status{}, errors.Join(errors.New(g.fault), err)
	}
	return sandbox.Status{}, errors.Join(fmt.Errorf("the virtual machine ended: %s", g.machine.ProcessState), err)
}

// Freeze stops the machine's processors with its processes. What ran in it is not known.
func (g *guest) Freeze() ([]string, error) {
	var errs []error
	if g.machine != nil {
		if err := g.machine.Process.Signal(unix.SIGSTOP); err != nil {
			errs = append(errs, fmt.Errorf("stop the virtual machine %s: %w", g.id, err))
		}
	}
	if g.group != nil {
		_, err := g.group.Stop()
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

// Kill ends the machine, and with it everything in it.
func (g *guest) Kill() error {
	var errs []error
	if g.machine != nil {
		if err := g.machine.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
			errs = append(errs, fmt.Errorf("kill the virtual machine %s: %w", g.id, err))
		}
	}
	if g.group != nil {
		errs = append(errs, g.group.Kill())
	}
	return errors.Join(errs...)
}

// Release removes the jail, the folder and the group.
func (g *guest) Release() error {
	if g.dead != nil {
		<-g.dead
	}
	for _, ln := range g.listeners {
		_ = ln.Close()
	}
	g.mu.Lock()
	g.ended = true
	for _, c := range g.opened {
		_ = c.Close()
	}
	g.mu.Unlock()
	for _, f := range g.streams {
		if f != nil {
			_ = f.Close()
		}
	}
	g.workers.Wait()
	if g.root != nil {
		_ = g.root.Close()
	}
	var errs []error
	if g.group != nil {
		errs = append(errs, g.group.Remove())
	}
	return errors.Join(append(errs, removeAll(g.driver.jailOf(g.id)), removeAll(g.driver.boxOf(g.id)))...)
}

// Events is what the host's limits did, and the machine's kernel says that it did.
func (g *guest) Events() (sandbox.Events, error) {
	var e sandbox.Events
	var err error
	if g.group != nil {
		e, err = g.group.Events()
		e.Forks = 0 // of Firecracker's threads; the tool's processes are its kernel's
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	e.Kills += g.kills
	if g.full {
		e.Forks = 1
	}
	return e, err
}

// Usage is what the host counted.
func (g *guest) Usage() (sandbox.Usage, error) {
	if g.group == nil {
		return sandbox.Usage{}, nil
	}
	return g.group.Usage()
}

// Full is what the agent last said.
func (g *guest) Full() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.full
}

// Activity is not observed.
func (g *guest) Activity() *sandbox.Activity { return nil }

// Checkpoint is not possible.
func (g *guest) Checkpoint(context.Context, string) error { return sandbox.ErrUnsupported }

var _ io.Closer = halfClosed{}
