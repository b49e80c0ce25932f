// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"remit"
	"remit/internal/api"
	"remit/internal/gateway"
	"remit/internal/sandbox"
	"remit/internal/sandbox/shim"
	"remit/internal/tool"
)

// Where an agent in a sandbox finds its program and its run token.
const (
	agentAt      = "/agent"
	runTokenFile = "run-token"
)

// agentBoxes are the agents that run in sandboxes.
type agentBoxes struct {
	mu  sync.Mutex // guards all
	all map[remit.LaunchID]*boxed
}

// boxed is an agent in a sandbox, from its launch to its end (S26). Its ways out are Remit itself, where it is who it is by the socket
// that it came over, and what its stage permits of targets of type http; nothing else of the host or the network is there.
type boxed struct {
	server  *Server
	box     *box
	record  remit.LaunchRecord
	front   *http.Server      // Remit, over the sandbox's own socket
	streams *net.UnixListener // for its launcher
	work    sync.WaitGroup    // of front

	ctx  context.Context // ends with the reason to end it
	stop context.CancelCauseFunc
	gone chan struct{} // closed when nothing of it is left and that is on record
}

// launchInSandbox decides and records as opLaunch does, and makes the sandbox; the agent runs once its launcher connects.
func (s *Server) launchInSandbox(ctx context.Context, who remit.Principal, in *api.Launch, a *remit.Agent, r *remit.Run) (any, error) {
	id := remit.NewLaunchID()
	data := launchData{Launch: id, For: in.For, Outcome: "launched", Identity: a.ID.String(), Path: remit.Clip(in.Program, 200)}
	b, refused := s.makeBoxed(ctx, who, in, a, r, id)
	change := remit.Change{}
	if refused != nil {
		data.Outcome = "refused: " + refused.Error()
	} else {
		data.Command, data.Sandbox, data.Tier, data.Driver = b.box.about.Files, b.box.about.Sandbox, b.box.about.Tier, b.box.about.Driver
		change.Rows = []remit.Row{b.record}
	}
	body, err := json.Marshal(data)
	if err == nil {
		change.Events = []remit.Event{{At: s.now(), Kind: remit.EventLaunch, Agent: a.Name, Run: r.ID, By: who.String(), Data: body}}
		_, err = s.store.Commit(ctx, change)
	}
	switch {
	case refused != nil:
		return nil, errors.Join(refused, err)
	case err != nil:
		_, derr := b.destroy()
		return nil, errors.Join(err, derr)
	}
	s.inBoxes.mu.Lock()
	if s.inBoxes.all == nil {
		s.inBoxes.all = map[remit.LaunchID]*boxed{}
	}
	s.inBoxes.all[id] = b
	s.inBoxes.mu.Unlock()
	if err := s.mayLaunch(who, a, r); err != nil { // from here on a suspension ends it; one that came before has to be seen
		b.stop(err)
	}
	go b.live()
	return api.Launched{ID: id, Streams: b.streams.Addr().String()}, nil
}

// makeBoxed makes the sandbox and its sockets, or leaves nothing behind.
func (s *Server) makeBoxed(ctx context.Context, who remit.Principal, in *api.Launch, a *remit.Agent, r *remit.Run, id remit.LaunchID) (_ *boxed, err error) {
	if err := s.mayLaunch(who, a, r); err != nil {
		return nil, err
	}
	program, digest, err := s.takeProgram(in.Program, a.Launch.Commands)
	if err != nil {
		return nil, err
	}
	t := *a.Launch.Sandbox
	t.Name, t.Command = a.Name, append([]string{agentAt}, in.Args...)
	t.Mounts = append(slices.Clone(t.Mounts), remit.ToolMount{From: program, At: agentAt})
	made, err := s.prepareBox(ctx, &t, true, "")
	if err != nil {
		return nil, err
	}
	b := &boxed{server: s, box: made, gone: make(chan struct{})}
	b.ctx, b.stop = context.WithCancelCause(context.Background())
	defer func() {
		if err != nil {
			_, derr := b.destroy()
			err = errors.Join(err, derr)
		}
	}()
	made.launch, made.about.Files = id, digest
	b.record = remit.LaunchRecord{ID: id, Agent: a.Name, Run: r.ID, By: who.Person, Tier: made.about.Tier, Started: s.now()}
	if err := made.instance.Claim(); err != nil {
		return nil, err
	}
	token, err := s.issueRunToken(r, remit.Holder{Agent: a.Name, Launch: id})
	if err != nil {
		return nil, err
	}
	// The folder is this sandbox's alone; in it, the agent is the only one who reads.
	if err := os.WriteFile(filepath.Join(made.folder, runTokenFile), []byte(token.Token+"\n"), 0o644); err != nil { //nolint:gosec // as its folder
		return nil, fmt.Errorf("write the agent's run token: %w", err)
	}
	// An agent's requests are under no call: its stage permits them as such, or not.
	order := tool.Order{Claim: tool.Claim{Tool: a.Name, Run: r.ID}, Tool: &t, Launch: id, Call: func() (tool.Call, bool) { return tool.Call{}, true }}
	if err := made.connect(order); err != nil {
		return nil, err
	}
	return b, b.listen()
}

// listen opens Remit to the sandbox, and the agent's streams to its launcher.
func (b *boxed) listen() (err error) {
	s := b.server
	handler, err := s.front()
	if err != nil {
		return err
	}
	b.front = s.serverOf(handler, gateway.SandboxConnection(b.record.ID))
	l, err := listenUnix(filepath.Join(b.box.folder, shim.Gateway))
	if err != nil {
		return err
	}
	b.work.Go(func() {
		if err := b.front.ServeTLS(&admitting{l, b.box}, "", ""); !errors.Is(err, http.ErrServerClosed) {
			s.log.Error("an agent's way to Remit is shut", "agent", b.record.Agent, "sandbox", b.box.about.Sandbox, "err", err)
		}
	})
	path := filepath.Join(filepath.Dir(s.cfg.Workload), "l", string(b.record.ID)+".io") // short, since socket addresses are
	if err := os.MkdirAll(filepath.Dir(path), 0o711); err != nil {                      //nolint:gosec // as for launches outside a sandbox
		return fmt.Errorf("make the folder of launches: %w", err)
	}
	b.streams, err = listenUnix(path)
	return err
}

// live is the agent from the launcher's connection to its end.
func (b *boxed) live() {
	defer close(b.gone)
	launcher, err := b.launcher()
	if err == nil {
		if err = b.box.Start(b.ctx); err == nil {
			b.carry(launcher)
		}
	}
	if err != nil {
		b.stop(err)
	}
	b.finish(launcher)
}

// launcher waits for who launched it: nobody else gets its streams.
func (b *boxed) launcher() (*net.UnixConn, error) {
	defer context.AfterFunc(b.ctx, func() { _ = b.streams.Close() })()
	_ = b.streams.SetDeadline(time.Now().Add(launchWithin))
	for {
		c, err := b.streams.AcceptUnix()
		if err != nil {
			return nil, errors.Join(errors.New("its launcher did not come"), err)
		}
		peer, err := peerOf(c)
		if name, _, ok := b.server.person(peer.Uid); err != nil || !ok || name != b.record.By {
			_ = c.Close()
			continue
		}
		return c, nil
	}
}

// aliveEvery is how soon it is noticed that a launcher is gone.
const aliveEvery = time.Second

// carry carries the streams until the agent has ended, or is to.
func (b *boxed) carry(c *net.UnixConn) {
	var one sync.Mutex // a frame at a time
	frame := func(kind api.FrameKind, data []byte) {
		one.Lock()
		defer one.Unlock()
		_ = c.SetWriteDeadline(time.Now().Add(30 * time.Second))
		if err := api.WriteFrame(c, kind, data); err != nil {
			b.stop(errors.New("its launcher went away"))
		}
	}
	b.work.Go(func() {
		_, _ = io.Copy(b.box.Stdin(), c)
		_ = b.box.Stdin().Close()
	})
	said := make(chan struct{})
	b.work.Go(func() {
		defer close(said)
		for buf := make([]byte, 32<<10); ; {
			n, err := b.box.Stdout().Read(buf)
			if n > 0 {
				frame(api.FrameOutput, buf[:n])
			}
			if err != nil {
				return
			}
		}
	})
	alive := time.NewTicker(aliveEvery)
	defer alive.Stop()
	for {
		select {
		case <-alive.C:
			frame(api.FrameAlive, nil)
		case <-b.ctx.Done():
			return
		case <-b.box.Done():
			select { // what it said last
			case <-said:
			case <-time.After(2 * time.Second):
			}
			return
		}
	}
}

// destroy ends all ways in and out, then the sandbox. It may be called again.
func (b *boxed) destroy() (tool.Report, error) {
	if b.front != nil {
		_ = b.front.Close()
	}
	if b.streams != nil {
		_ = b.streams.Close()
	}
	return b.box.Destroy(context.Background())
}

// finish destroys the sandbox, tells the launcher and records the end.
func (b *boxed) finish(c *net.UnixConn) {
	s := b.server
	var report tool.Report
	var err error
	for try := range 5 {
		if report, err = b.destroy(); err == nil {
			break
		}
		s.log.Error("the sandbox of an agent is not gone yet", "agent", b.record.Agent, "sandbox", b.box.about.Sandbox, "err", err)
		time.Sleep(100 * time.Millisecond << try)
	}
	if c != nil {
		if n := len(report.Stderr); n > 0 {
			_ = api.WriteFrame(c, api.FrameErrors, report.Stderr[max(0, n-api.MaxFrame):])
		}
		exit, _ := json.Marshal(api.Exit{Cause: report.Cause, Code: report.Code})
		_ = api.WriteFrame(c, api.FrameExit, exit)
		_ = c.Close()
	}
	b.work.Wait()
	s.inBoxes.mu.Lock()
	delete(s.inBoxes.all, b.record.ID)
	s.inBoxes.mu.Unlock()
	b.record.Ended = s.now()
	why := ""
	if cause := context.Cause(b.ctx); cause != nil {
		why = remit.Clip(cause.Error(), 200)
	}
	body, _ := json.Marshal(struct { // plain fields
		Sandbox remit.SandboxID `json:"sandbox"`
		Launch  remit.LaunchID  `json:"launch"`
		Why     string          `json:"why,omitempty"`
		tool.Report
	}{b.box.about.Sandbox, b.record.ID, why, report})
	change := remit.Change{Rows: []remit.Row{b.record},
		Events: []remit.Event{{At: b.record.Ended, Kind: remit.EventSandboxEnded, Agent: b.record.Agent, Run: b.record.Run, By: "remit", Data: body}}}
	for try := range 8 {
		if _, err = s.store.Commit(context.Background(), change); err == nil {
			return
		}
		s.log.Error("the end of an agent's sandbox is not on record yet", "agent", b.record.Agent, "err", err)
		time.Sleep(50 * time.Millisecond << try)
	}
}

// endBoxed ends the agents in sandboxes that match, and reports whether there were any. It waits some seconds until they are gone.
func (s *Server) endBoxed(ctx context.Context, why string, match func(*boxed) bool) bool {
	var hit []*boxed
	s.inBoxes.mu.Lock()
	for _, b := range s.inBoxes.all {
		if match(b) {
			hit = append(hit, b)
		}
	}
	s.inBoxes.mu.Unlock()
	var frozen sync.WaitGroup
	for _, b := range hit {
		frozen.Go(func() {
			b.box.freeze()
			b.stop(errors.New(why))
			b.box.instance.End(sandbox.CauseKilled)
		})
	}
	frozen.Wait()
	ctx, cancel := context.WithTimeout(ctx, endWithin)
	defer cancel()
	for _, b := range hit {
		select {
		case <-b.gone:
		case <-ctx.Done():
		}
	}
	return len(hit) > 0
}
