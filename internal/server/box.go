// SPDX-License-Identifier: Apache-2.0

package server

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"remit"
	"remit/internal/gateway/egress"
	"remit/internal/identity/workloadapi"
	"remit/internal/sandbox"
	"remit/internal/sandbox/shim"
	"remit/internal/tool"
)

// workloadSocket is where a tool in a sandbox finds its identity.
const workloadSocket = "workload.sock"

// shimAt is where this program stands in a sandbox; its name makes it the shim.
const shimAt = "/" + shim.Name

// box is a sandbox with what Remit put around it: its identity and its way out. It implements tool.Box.
type box struct {
	server   *Server
	instance *sandbox.Instance
	about    tool.About
	launch   remit.LaunchID // empty: it has no identity and no way out
	folder   string         // of its sockets; empty: none
	image    string         // what it goes on from; empty: it begins
	grouped  bool           // its processes are in a control group of its name
	gate     *egress.Gate
	tokens   *http.Server   // of a tool: the token endpoint; nil before it is open
	work     sync.WaitGroup // the goroutines of the gate and of tokens
	freezing sync.Once
	frozen   []string // the programs that it had then
}

var _ tool.Box = (*box)(nil)

// makeBox makes the sandbox of a claim. It is claimed before any credential comes near it.
func (s *Server) makeBox(ctx context.Context, o tool.Order) (_ tool.Box, err error) {
	b := s.spares.take(ctx, o.Tool)
	if b == nil {
		if b, err = s.prepareToolBox(ctx, o.Tool); err != nil {
			return nil, err
		}
	}
	defer func() {
		if err == nil {
			s.spares.refill(o.Tool) // for the next run
		}
	}()
	defer func() {
		if err != nil {
			_, derr := b.Destroy(ctx)
			err = errors.Join(err, derr)
		}
	}()
	if err := b.instance.Claim(); err != nil {
		return nil, err
	}
	b.launch = o.Launch
	return b, errors.Join(b.connect(o), b.openTokens(o))
}

// prepareToolBox makes a sandbox for a tool's next claim: from its checkpoint, where it has one.
func (s *Server) prepareToolBox(ctx context.Context, t *remit.Tool) (*box, error) {
	if !t.Checkpoint {
		return s.prepareBox(ctx, t, true, "")
	}
	d, _, err := s.sandboxes.choose(ctx, t)
	if err != nil {
		return nil, err
	}
	return s.prepareBox(ctx, t, true, s.toolImages.of(t, d.Name()))
}

// prepareBox makes a sandbox for a tool, of which nothing runs yet. sockets: with a folder for a way out and an identity; from: a
// checkpoint to go on from, empty to begin.
func (s *Server) prepareBox(ctx context.Context, t *remit.Tool, sockets bool, from string) (*box, error) {
	driver, probed, err := s.sandboxes.choose(ctx, t)
	if err != nil {
		return nil, err
	}
	id := remit.NewSandboxID()
	b := &box{server: s, about: tool.About{Sandbox: id, Tier: driver.Tier(), Driver: driver.Name(), Program: t.Command[0], Files: t.Files.Digest,
		Restored: from != ""}, image: from,
		grouped: slices.Contains(probed.Limits, "memory")}
	spec := sandbox.Spec{ID: id, Command: append([]string{shimAt, sandbox.SocketsAt}, t.Command...), Env: maps.Clone(t.Environment), Image: from, Observe: true,
		Limits: sandbox.Limits{Memory: t.Limits.Memory, CPU: t.Limits.CPU, Processes: t.Limits.Processes, Wall: t.Limits.Wall, Output: t.Limits.Output},
		Mounts: []sandbox.Mount{{From: s.sandboxes.executable, At: shimAt}}}
	if _, ok := driver.(sandbox.Answering); ok && sockets {
		spec.Listen, spec.Command = shim.Listen, slices.Insert(spec.Command, 1, shim.Answered)
	}
	for _, m := range t.Mounts {
		spec.Mounts = append(spec.Mounts, sandbox.Mount{From: m.From, At: m.At, Write: m.Write})
	}
	if t.Files.From != "" {
		if spec.Files, err = s.toolFiles.Take(t.Files); err != nil {
			return nil, err
		}
	}
	if sockets {
		if spec.Env == nil {
			spec.Env = map[string]string{}
		}
		spec.Env["SPIFFE_ENDPOINT_SOCKET"] = "unix://" + sandbox.SocketsAt + "/" + workloadSocket
		spec.Env["REMIT_URL"], spec.Env["REMIT_RUN_TOKEN_FILE"] = "https://"+shim.GatewayListen, sandbox.SocketsAt+"/"+runTokenFile
		b.folder = filepath.Join(s.sandboxes.sockets, string(id))
		if err := errors.Join(os.Mkdir(b.folder, 0o755), os.Chmod(b.folder, 0o755)); err != nil { //nolint:gosec // its parent lets nobody in
			return nil, fmt.Errorf("make the folder of a sandbox's sockets: %w", err)
		}
		spec.Sockets = b.folder
	}
	if b.instance, err = driver.Prepare(ctx, spec); err != nil {
		return nil, errors.Join(err, b.removeFolder())
	}
	return b, nil
}

func (b *box) removeFolder() error {
	if b.folder == "" {
		return nil
	}
	return os.RemoveAll(b.folder)
}

// connect gives the sandbox its identity and its way out; both are nobody else's.
func (b *box) connect(o tool.Order) error {
	s := b.server
	agent, ok := s.registry.Named(o.Claim.Tool)
	if !ok {
		return notFound("tool", string(o.Claim.Tool))
	}
	workload := map[string]string{"sandbox": string(b.about.Sandbox), "tier": string(b.about.Tier), "program": b.about.Program}
	if b.about.Files != "" {
		workload["files"] = string(b.about.Files)
	}
	err := s.ids.hold(workloadapi.Binding{Launch: o.Launch, Agent: o.Claim.Tool, Path: filepath.Join(b.folder, workloadSocket), Owner: -1,
		Sandbox: &workloadapi.Sandbox{Admit: b.admit, Workload: workload}})
	if err != nil {
		return err
	}
	until := s.now().Add(o.Tool.Limits.Wall + time.Minute)
	who := remit.Principal{ID: agent.ID, Method: remit.MethodSocket, Level: remit.LevelSandbox, Credential: string(b.about.Sandbox), Launch: o.Launch,
		Expires: until, Workload: workload}
	b.gate, err = s.egress.Open(egress.Box{Tool: o.Claim.Tool, Principal: who, Run: o.Claim.Run, Sandbox: b.about.Tier, Until: until,
		Call: func() (remit.DecisionID, <-chan struct{}, bool) {
			c, ok := o.Call()
			return c.ID, c.Done, ok
		}})
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(b.folder, shim.CA), b.gate.Bundle(), 0o644); err != nil { //nolint:gosec // public
		return fmt.Errorf("write what a tool has to trust: %w", err)
	}
	way, err := b.wayOut()
	if err != nil {
		return err
	}
	b.work.Go(func() {
		if err := b.gate.Serve(context.Background(), way); err != nil {
			s.log.Error("the way out of a sandbox is shut", "tool", o.Claim.Tool, "sandbox", b.about.Sandbox, "err", err)
		}
	})
	return nil
}

// wayOut is what the sandbox's processes reach and nobody else: a socket that was made in its own network, where the driver can, or one
// in its folder, to which the shim in it copies.
func (b *box) wayOut() (net.Listener, error) {
	if l := b.instance.Listener(); l != nil {
		return l, nil
	}
	l, err := listenUnix(filepath.Join(b.folder, shim.Socket))
	if err != nil {
		return nil, err
	}
	return &admitting{l, b}, nil
}

// admitting accepts only connections of the sandbox's own processes.
type admitting struct {
	*net.UnixListener
	box *box
}

// Accept implements net.Listener.
func (l *admitting) Accept() (net.Conn, error) {
	for {
		c, err := l.AcceptUnix()
		if err != nil {
			return nil, err
		}
		err = l.box.admitConn(c)
		//remit:guard S27 TestSandboxSockets
		if err != nil {
			l.box.server.log.Warn("a process is not of the sandbox whose way out it uses", "sandbox", l.box.about.Sandbox, "err", err)
			_ = c.Close()
			continue
		}
		return c, nil
	}
}

func (b *box) admitConn(c *net.UnixConn) error {
	peer, err := peerOf(c)
	if err != nil {
		return err
	}
	return b.admit(int(peer.Pid))
}

// peerOf asks the kernel who connected.
func peerOf(c *net.UnixConn) (*unix.Ucred, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return &unix.Ucred{}, err
	}
	peer := &unix.Ucred{}
	var failed error
	err = raw.Control(func(fd uintptr) { peer, failed = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	return peer, errors.Join(err, failed)
}

// admit checks that a process is in the control group of the sandbox. What keeps others from its sockets is their folder, which only
// the sandbox has; this is for those that no folder stops.
func (b *box) admit(pid int) error {
	if !b.grouped {
		return nil
	}
	f, err := os.Open(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return fmt.Errorf("see which sandbox process %d is in: %w", pid, err)
	}
	defer f.Close()
	for lines := bufio.NewScanner(io.LimitReader(f, 64<<10)); lines.Scan(); {
		if slices.Contains(strings.Split(lines.Text(), "/"), string(b.about.Sandbox)) {
			return nil
		}
	}
	return fmt.Errorf("process %d is not in the sandbox %s", pid, b.about.Sandbox)
}

// About implements tool.Box.
func (b *box) About() tool.About { return b.about }

// Start implements tool.Box.
func (b *box) Start(ctx context.Context) error {
	err := b.instance.Start(ctx)
	if err != nil && b.image != "" {
		b.server.toolImages.forget(b.image)
	}
	return err
}

// Stdin implements tool.Box.
func (b *box) Stdin() io.WriteCloser { return b.instance.Stdin() }

// Stdout implements tool.Box.
func (b *box) Stdout() io.Reader { return b.instance.Stdout() }

// Done implements tool.Box.
func (b *box) Done() <-chan struct{} { return b.instance.Done() }

// Now implements tool.Box.
func (b *box) Now() (tool.Usage, *tool.Activity) {
	u, _ := b.instance.Usage() // a host without limits counts nothing
	usage := tool.Usage{Peak: u.Peak, CPU: u.CPU, Throttled: u.Throttled, Output: u.Output}
	a := b.instance.Activity()
	if a == nil {
		return usage, nil
	}
	return usage, &tool.Activity{Executed: a.Executed, Opened: a.Opened, Connected: a.Connected, Programs: a.Programs, Addresses: a.Addresses, More: a.More,
		Dropped: a.Dropped}
}

// freeze stops what runs, once, before it can see that anything ends.
func (b *box) freeze() {
	b.freezing.Do(func() { b.frozen = b.instance.Freeze() })
}

// Destroy implements tool.Box: what runs is frozen, then its way out ends, then the process, the identity and what was given to it, then
// the sandbox.
func (b *box) Destroy(ctx context.Context) (tool.Report, error) {
	b.freeze()
	if b.tokens != nil {
		_ = b.tokens.Close()
	}
	if b.gate != nil {
		b.gate.Cut()
	}
	select {
	case <-b.instance.Done():
	default:
		b.instance.End(sandbox.CauseKilled)
	}
	if b.launch != "" {
		s := b.server
		s.ids.unbind(b.launch)
		s.store.Tighten(remit.LaunchKey(b.launch))
		_ = s.endOf(ctx, func(l *remit.Lease) bool { return l.Launch == b.launch }, "its sandbox ended", "remit") // it is tried again
	}
	if b.gate != nil { // last: what it did is written down, for which a disk may take its time
		b.gate.Close()
		b.work.Wait()
	}
	r := tool.Report{Frozen: b.frozen}
	r.Usage, _ = b.Now() // before it goes
	err := b.instance.Destroy(ctx)
	_, r.Activity = b.Now() // all of it
	r.Stderr = b.instance.Stderr()
	select {
	case <-b.instance.Done():
		exit, _ := b.instance.Wait(ctx) // it is done
		r.Cause, r.Code, r.Detail, r.Took = string(exit.Cause), exit.Code, remit.Clip(exit.Detail, 200), exit.Took
	default:
	}
	return r, errors.Join(err, b.removeFolder())
}
