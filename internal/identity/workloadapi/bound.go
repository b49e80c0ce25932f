// SPDX-License-Identifier: Apache-2.0

package workloadapi

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"remit"
	"remit/internal/identity"
)

// Binding says for whom a private socket is.
type Binding struct {
	Launch  remit.LaunchID // required
	Agent   remit.Name     // required; the only identity that the socket serves
	Inherit bool           // whether descendants of the launched process are served, too
	// Path of the socket: absolute, at most 103 bytes. Its folder is made with mode 0711 if absent: the name is no secret, the
	// process is checked.
	Path string
	// Owner of the socket, which then has mode 0600; -1: mode 0666, where the child keeps the launcher's user.
	Owner int
	// Sandbox, when set, makes it the socket of a sandbox: whoever reaches it is the tool in it (S27). Path's folder must be one that
	// only the sandbox has in it, below one that nobody else may enter. No process is attached.
	Sandbox *Sandbox
}

// Sandbox is what is known of the sandbox that a socket is in.
type Sandbox struct {
	// Admit checks, as well, that a process that connected is one of the sandbox's; nil: the host has no means to tell.
	Admit func(pid int) error
	// Workload is recorded with each of its SVIDs (S8).
	Workload map[string]string
}

// maxInSandbox bounds the connections of one sandbox; all of them have one user on the host.
const maxInSandbox = 16

// Bound is a private socket. It serves nobody before Attach named the process. It is safe for concurrent use. Close it when the
// process ends.
type Bound struct {
	Binding
	listener *net.UnixListener
	attestor *identity.Attestor
	done     chan struct{} // closed by Close

	mu    sync.Mutex // guards the rest
	root  *identity.Peer
	file  identity.Executable // what the process will run, as it was measured while it waited
	ran   bool                // it was seen running that, unchanged
	conns map[*connection]struct{}
	ended bool
}

// Bind makes the socket and serves it.
func (s *Server) Bind(b Binding) (*Bound, error) {
	if b.Launch == "" || b.Agent == "" {
		return nil, errors.New("workloadapi: a bound socket needs a launch and an agent")
	}
	if err := os.MkdirAll(filepath.Dir(b.Path), 0o711); err != nil { //nolint:gosec // others must reach their own socket in it
		return nil, fmt.Errorf("make folder of the launch's socket: %w", err)
	}
	mode := os.FileMode(0o600)
	if b.Owner < 0 {
		mode = 0o666
	}
	l, err := listen(b.Path, mode, b.Owner)
	if err != nil {
		return nil, err
	}
	bound := &Bound{Binding: b, listener: l, attestor: &s.attestor, done: make(chan struct{}), conns: map[*connection]struct{}{}}
	s.serve(l, b.Path, bound)
	return bound, nil
}

// Attach names the launched process, once, and measures what it runs (fd 0), or the file that it holds open at fd and is about to
// run. The process must be waiting then, so that the number is still its own: from here on it is held by a pidfd, and no other
// process can come into its place. Every later use of the socket measures again.
func (b *Bound) Attach(pid, fd int) (identity.Executable, error) {
	if b.Attached() {
		return identity.Executable{}, b.taken()
	}
	p, err := identity.OpenPeer(pid)
	var e identity.Executable
	if err == nil {
		e, err = b.attestor.Measure(p, fd)
	}
	if err != nil {
		if p != nil {
			p.Close()
		}
		return e, &remit.Error{Code: remit.CodeInvalid, Msg: fmt.Sprintf("process %d cannot be attached to launch %s: %v", pid, b.Launch, err), Cause: err}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ended || b.root != nil {
		p.Close()
		return e, b.taken()
	}
	b.root, b.file = p, e
	return e, nil
}

func (b *Bound) taken() error {
	return &remit.Error{Code: remit.CodeConflict, Msg: fmt.Sprintf("launch %s has its process already, or has ended", b.Launch)}
}

// runs measures what the launched process runs now: the first time it must be the very file that was measured while it waited,
// with the digest that it had, and untouched; always one of the agent's. So no file can be changed between check and use, and a
// process that executed something else has lost its identity (S4).
func (b *Bound) runs(commands []remit.Digest) error {
	b.mu.Lock()
	root, file, ran := b.root, b.file, b.ran
	b.mu.Unlock()
	if root == nil {
		return errors.New("the launch has no process yet")
	}
	now, err := b.attestor.Measure(root, 0)
	if err != nil {
		return err
	}
	//remit:guard S4 TestLaunchedRunsAnother
	if !slices.Contains(commands, now.Digest) {
		return fmt.Errorf("it runs %s (%s), which the agent's file does not list", now.Path, now.Digest)
	}
	//remit:guard S4 TestLaunchedFileIsTouched
	if !ran && !now.Untouched(&file) {
		return fmt.Errorf("%s is not the file that was measured when it was launched, or was written to since", now.Path)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ran = true
	return nil
}

// Kill ends the launched process. What it started itself runs on, without an identity.
func (b *Bound) Kill() error {
	b.mu.Lock()
	root := b.root
	b.mu.Unlock()
	if root == nil {
		return nil // it has none yet, and will be admitted nothing
	}
	return root.Kill()
}

// Alive reports whether the launched process runs; one that was not attached yet counts as alive.
func (b *Bound) Alive() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return !b.ended && (b.root == nil || b.root.Alive() == nil)
}

// Attached reports whether the process was named, or none is to be.
func (b *Bound) Attached() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.root != nil || b.Sandbox != nil
}

// admits returns nil for the launched process, and with Inherit for its descendants.
func (b *Bound) admits(p *identity.Peer) error {
	b.mu.Lock()
	root := b.root
	b.mu.Unlock()
	switch {
	//remit:guard S4 TestBoundSocket
	case root == nil:
		return errors.New("the launch has no process yet")
	case p.PID == root.PID:
		return errors.Join(p.Alive(), root.Alive()) // both alive: one process
	case b.Inherit:
		return p.Descends(root)
	}
	return errors.New("not the launched process")
}

func (b *Bound) join(c *connection) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	//remit:guard S35 TestConnectionsOfASandbox
	if b.Sandbox != nil && len(b.conns) >= maxInSandbox {
		return false
	}
	if b.ended {
		return false
	}
	leave := c.leave
	c.leave = func() {
		leave()
		b.mu.Lock()
		delete(b.conns, c)
		b.mu.Unlock()
	}
	b.conns[c] = struct{}{}
	return true
}

// Close stops serving: streams end, connections close, the socket is gone. Closing twice is fine.
func (b *Bound) Close() error {
	b.mu.Lock()
	if b.ended {
		b.mu.Unlock()
		return nil
	}
	b.ended = true
	close(b.done)
	conns := make([]*connection, 0, len(b.conns))
	for c := range b.conns {
		conns = append(conns, c)
	}
	root := b.root
	b.mu.Unlock()
	errs := []error{b.listener.Close()}
	if err := os.Remove(b.Path); err != nil && !errors.Is(err, os.ErrNotExist) {
		errs = append(errs, err)
	}
	for _, c := range conns {
		_ = c.Close() // outside the lock: leaving takes it
	}
	if root != nil {
		root.Close()
	}
	return errors.Join(errs...)
}
