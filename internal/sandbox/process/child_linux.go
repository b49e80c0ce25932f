// SPDX-License-Identifier: Apache-2.0

package process

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"remit/internal/sandbox"
)

// child is a process in namespaces of its own that waits for what it is to build.
type child struct {
	cmd     *exec.Cmd
	pipes   *sandbox.Pipes
	orders  *os.File      // it reads its order, and a last byte: go
	answers *net.UnixConn // it says that it has built, and hands over what listens in it

	waited sync.Once
	status sandbox.Status
	err    error
}

// spawn starts a child.
func (d *Driver) spawn() (*child, error) {
	c := &child{cmd: exec.Command(d.executable)}
	var theirs, ready *os.File
	pipes, err := sandbox.NewPipes()
	if err != nil {
		return nil, err
	}
	c.pipes = pipes
	defer pipes.Given()
	if theirs, c.orders, err = os.Pipe(); err != nil {
		return nil, errors.Join(err, pipes.Close())
	}
	defer theirs.Close()
	if c.answers, ready, err = answering(); err != nil {
		return nil, errors.Join(err, pipes.Close(), c.orders.Close())
	}
	defer ready.Close()
	ends := pipes.Guest()
	c.cmd.Args, c.cmd.Env, c.cmd.Dir = []string{childName}, []string{"GOGC=off"}, "/" // it becomes the tool too soon to collect
	c.cmd.Stdin, c.cmd.Stdout, c.cmd.Stderr = ends[0], ends[1], ends[2]
	c.cmd.ExtraFiles = []*os.File{theirs, ready}
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setsid: true,
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWPID | syscall.CLONE_NEWNET | syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS,
		UidMappings: mapping(os.Geteuid()), GidMappings: mapping(os.Getegid()), GidMappingsEnableSetgroups: os.Geteuid() == 0}
	if err := c.start(); err != nil {
		return nil, errors.Join(fmt.Errorf("start a process in namespaces: %w", err), pipes.Close(), c.orders.Close(), c.answers.Close())
	}
	return c, nil
}

// answering returns the two ends of what a child answers through.
func answering() (ours *net.UnixConn, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	own := os.NewFile(uintptr(fds[0]), "answers")
	defer own.Close()
	theirs = os.NewFile(uintptr(fds[1]), "ready")
	c, err := net.FileConn(own)
	if err != nil {
		return nil, nil, errors.Join(err, theirs.Close())
	}
	return c.(*net.UnixConn), theirs, nil
}

// built waits until the child has built, and returns what listens in it, if it was to listen.
func (c *child) built() (net.Listener, error) {
	said, rights := make([]byte, len(readyWord)), make([]byte, unix.CmsgSpace(4))
	n, m, _, _, err := c.answers.ReadMsgUnix(said, rights)
	if err != nil || string(said[:n]) != readyWord {
		return nil, fmt.Errorf("build the root of a sandbox: it said %q: %w", said[:n], cmp.Or(err, io.ErrUnexpectedEOF))
	}
	if m == 0 {
		return nil, nil
	}
	messages, err := unix.ParseSocketControlMessage(rights[:m])
	if err != nil || len(messages) != 1 {
		return nil, fmt.Errorf("take what listens in a sandbox: %d messages, %w", len(messages), err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return nil, fmt.Errorf("take what listens in a sandbox: %d files, %w", len(fds), err)
	}
	f := os.NewFile(uintptr(fds[0]), "listens")
	defer f.Close()
	return net.FileListener(f)
}

// start starts the child on a thread that lasts: the child dies with the thread that made it.
func (c *child) start() error {
	made := make(chan error)
	go func() {
		runtime.LockOSThread()
		err := c.cmd.Start()
		made <- err
		if err == nil {
			_ = c.reap()
		}
	}()
	return <-made
}

func (c *child) reap() error {
	c.waited.Do(func() {
		err := c.cmd.Wait()
		exit := (*exec.ExitError)(nil)
		if err != nil && !errors.As(err, &exit) {
			c.err = fmt.Errorf("wait for a process: %w", err)
			return
		}
		status := c.cmd.ProcessState.Sys().(syscall.WaitStatus)
		c.status = sandbox.Status{Code: status.ExitStatus()}
		if status.Signaled() {
			c.status = sandbox.Status{Code: 128 + int(status.Signal()), Signal: int(status.Signal())}
		}
	})
	return c.err
}

// kill ends process 1, and so the namespace.
func (c *child) kill() error {
	if err := c.cmd.Process.Signal(unix.SIGKILL); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("kill the process %d of a sandbox: %w", c.cmd.Process.Pid, err)
	}
	return nil
}

// end kills the child, waits for that and closes what is open. It may be called again.
func (c *child) end() error {
	err := errors.Join(c.kill(), c.reap(), c.pipes.Close())
	_, _ = c.orders.Close(), c.answers.Close() // they may be closed already
	return err
}
