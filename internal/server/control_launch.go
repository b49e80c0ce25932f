// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"remit"
	"remit/internal/api"
	"remit/internal/gateway/admin"
)

type launchData struct {
	Launch   remit.LaunchID `json:"launch"`
	Command  remit.Digest   `json:"command,omitempty"` // as the server measured it
	Path     string         `json:"path,omitempty"`    // likewise
	For      string         `json:"for,omitempty"`
	Outcome  string         `json:"outcome"` // "waiting" for its process, "launched", or "refused: …"
	Identity string         `json:"identity,omitempty"`
	// Sandbox, Tier and Driver are of the sandbox that it is in.
	Sandbox remit.SandboxID `json:"sandbox,omitempty"`
	Tier    remit.Tier      `json:"tier,omitempty"`
	Driver  string          `json:"driver,omitempty"`
}

// opLaunch decides whether a person may start a process with an agent's identity (S4), and makes its private socket and a run
// token that is bound to it; both serve nobody before opLaunchPID. Every answer is recorded before it leaves.
func (s *Server) opLaunch(ctx context.Context, c admin.Call) (any, error) {
	var in api.Launch
	if err := c.Decode(&in); err != nil {
		return nil, err
	}
	a, ok := s.registry.Named(in.Agent)
	if !ok {
		return nil, notFound("agent", string(in.Agent))
	}
	r, ok := s.store.Run(in.Run)
	if !ok {
		return nil, notFound("run", string(in.Run))
	}
	if a.Launch != nil && a.Launch.Sandbox != nil {
		return s.launchInSandbox(ctx, c.Who, &in, &a, &r)
	}
	id := remit.NewLaunchID()
	data := launchData{Launch: id, For: in.For, Outcome: "waiting", Identity: a.ID.String()}
	refused := s.mayLaunch(c.Who, &a, &r)
	var socket string
	if refused == nil { // before it is on record, or it would look like one whose process is gone; it serves nobody yet
		socket, refused = s.bindLaunch(id, &a)
	}
	if refused != nil {
		data.Outcome = "refused: " + refused.Error()
	}
	body, err := json.Marshal(data)
	if err != nil {
		return nil, err
	}
	change := remit.Change{Events: []remit.Event{{At: s.now(), Kind: remit.EventLaunch, Agent: a.Name, Run: r.ID, By: c.Who.String(), Data: body}}}
	if refused == nil {
		change.Rows = []remit.Row{remit.LaunchRecord{ID: id, Agent: a.Name, Run: r.ID, By: c.Who.Person, Started: s.now()}}
	}
	if _, err := s.store.Commit(ctx, change); err != nil {
		s.ids.unbind(id)
		return nil, err
	}
	if refused != nil {
		return nil, refused
	}
	return s.launched(&a, &r, id, in.For, socket)
}

func (s *Server) mayLaunch(who remit.Principal, a *remit.Agent, r *remit.Run) error {
	//remit:guard S4 TestLaunchRefused
	if a.Launch == nil || !slices.Contains(a.Launch.By, who.Person) {
		return &remit.Error{Code: remit.CodeForbidden, Msg: fmt.Sprintf("%s may not launch %s", who, a.Name),
			Hint: "the agent's file says who may: launch: {by: [" + who.String() + "], …}"}
	}
	if a.Launch.Sandbox == nil { // one in a sandbox reaches nothing of the host
		//remit:guard S4 TestLaunchAsOperatorRefused
		if err := s.ownUser(a); err != nil {
			return err
		}
	}
	w, ok := s.rev.Load().workflow(r.Workflow)
	if !ok {
		return notFound("workflow", r.Workflow)
	}
	return s.mayEnter(who, r, w, a.Name)
}

// ownUser refuses a child that would be an operator on the admin socket, or could read the server's keys, by its user (S2, S4):
// no agent can hold a role. allow_own_uid is for one user who is all of them.
func (s *Server) ownUser(a *remit.Agent) error {
	_, _, operator := s.person(a.Launch.UID)
	own := a.Launch.OwnUID && !operator && int(a.Launch.UID) != os.Geteuid()
	if !own && !s.cfg.AllowOwnUID {
		return &remit.Error{Code: remit.CodeForbidden, Msg: fmt.Sprintf("%s would run as an operator or as the server", a.Name),
			Hint: "give its launch a uid of its own"}
	}
	return nil
}

// bindLaunch makes the launch's socket. Its path is short, since socket addresses are.
func (s *Server) bindLaunch(id remit.LaunchID, a *remit.Agent) (string, error) {
	path := filepath.Join(filepath.Dir(s.cfg.Workload), "l", string(id)+".sock")
	return path, s.ids.bind(id, a, path)
}

// launched prepares the child's side.
func (s *Server) launched(a *remit.Agent, r *remit.Run, id remit.LaunchID, permission, path string) (api.Launched, error) {
	token, err := s.issueRunToken(r, remit.Holder{Agent: a.Name, Launch: id})
	if err != nil {
		s.ids.unbind(id)
		return api.Launched{}, err
	}
	return api.Launched{ID: id, Socket: path, Token: token.Token, SetUID: a.Launch.OwnUID, UID: a.Launch.UID, HTTPS: s.baseURL(),
		Client: s.clientOf(r, a.Name, permission)}, nil
}

// clientOf returns what a client of the permission's target needs to know.
func (s *Server) clientOf(r *remit.Run, agent remit.Name, permission string) map[string]string {
	rev := s.rev.Load()
	req := remit.Request{Run: r.ID, Agent: agent, Permission: permission}
	line{s}.complete(&req)
	client := map[string]string{}
	for k, v := range rev.clients[req.Target] {
		client[k] = v
	}
	if ns := s.namespaceOf(r, agent, permission); ns != "" && client["server"] != "" {
		client["namespace"] = ns
	}
	return client
}

// namespaceOf is the namespace that the permission fixes, so that a client's default is the one that will be granted.
func (s *Server) namespaceOf(r *remit.Run, agent remit.Name, permission string) string {
	req := &remit.Request{At: s.now(), Run: r.ID, Agent: agent, Permission: permission, Fill: true}
	line{s}.complete(req)
	m := s.rev.Load().plan.Match(req, r)
	return m.Args["namespace"].Text()
}

func (s *Server) launchOf(c admin.Call) (remit.LaunchRecord, error) {
	l, ok := s.store.Launch(remit.LaunchID(c.Path("id")))
	if !ok || !l.Ended.IsZero() {
		return l, notFound("launch", c.Path("id"))
	}
	//remit:guard S4 TestLaunchOfAnother
	if l.By != c.Who.Person {
		return l, &remit.Error{Code: remit.CodeForbidden, Msg: fmt.Sprintf("launch %s is %s's", l.ID, l.By)}
	}
	return l, nil
}

// opLaunchPID measures the waiting process's executable itself, whatever the launcher said: digests of the agent's file decide. The
// Workload API measures again at every use of the launch's socket.
func (s *Server) opLaunchPID(ctx context.Context, c admin.Call) (any, error) {
	l, err := s.launchOf(c)
	if err != nil {
		return nil, err
	}
	var in api.LaunchPID
	if err := c.Decode(&in); err != nil {
		return nil, err
	}
	exe, err := s.ids.started(l.ID, in.PID, in.FD)
	if remit.CodeOf(err) == remit.CodeConflict {
		return nil, err // it has its process already, which goes on
	}
	a, _ := s.registry.Named(l.Agent)
	//remit:guard S4 TestLaunchOfAnotherProgram
	if err == nil && (a.Launch == nil || !slices.Contains(a.Launch.Commands, exe.Digest)) {
		err = &remit.Error{Code: remit.CodeForbidden, Msg: fmt.Sprintf("%s may not be launched with %s (%s)", l.Agent, exe.Path, exe.Digest),
			Hint: "add that digest to the agent's launch: commands, if it is the right executable"}
	}
	data := launchData{Launch: l.ID, Command: exe.Digest, Path: exe.Path, Outcome: "launched", Identity: a.ID.String()}
	change := remit.Change{}
	if err != nil {
		s.ids.unbind(l.ID)
		data.Outcome, l.Ended = "refused: "+err.Error(), s.now()
		change.Rows = []remit.Row{l}
	}
	body, fault := json.Marshal(data)
	if fault != nil {
		return nil, fault
	}
	change.Events = []remit.Event{{At: s.now(), Kind: remit.EventLaunch, Agent: l.Agent, Run: l.Run, By: c.Who.String(), Data: body}}
	if _, fault := s.store.Commit(ctx, change); fault != nil {
		s.ids.unbind(l.ID)
		return nil, fault
	}
	return struct{}{}, err
}

func (s *Server) opLaunchEnd(ctx context.Context, c admin.Call) (any, error) {
	l, err := s.launchOf(c)
	if err != nil {
		return nil, err
	}
	if s.endBoxed(ctx, "the launcher ended it", func(b *boxed) bool { return b.record.ID == l.ID }) {
		return struct{}{}, nil
	}
	return struct{}{}, s.endLaunch(ctx, l)
}

// endLaunch takes the socket away and ends what the process was given: at the targets first, on record after (S20), and once
// more what was being decided meanwhile. SVIDs that the socket issued live on until they expire, but nobody accepts them.
func (s *Server) endLaunch(ctx context.Context, l remit.LaunchRecord) error {
	s.ids.unbind(l.ID)
	s.store.Tighten(l.EpochKey())
	ends := func(le *remit.Lease) bool { return le.Launch == l.ID }
	s.endOf(ctx, ends, "its launch ended", "remit")
	l.Ended = s.now()
	_, err := s.store.Commit(ctx, remit.Change{Rows: []remit.Row{l}})
	s.endOf(ctx, ends, "its launch ended", "remit")
	return err
}

// launchWithin is how long a launch waits for its process.
const launchWithin = time.Minute

// endDeadLaunches ends launches whose process is gone, or never came, and those that a previous process of ours left.
func (s *Server) endDeadLaunches(ctx context.Context) {
	var wg sync.WaitGroup // a target that hangs must not keep the other launches from ending
	for _, l := range s.store.LiveLaunches() {
		if s.ids.alive(l.ID, s.now().Sub(l.Started) < launchWithin) {
			continue
		}
		wg.Go(func() {
			if err := s.endLaunch(ctx, l); err != nil && ctx.Err() == nil {
				s.log.Warn("an ended launch is not on record yet; it is tried again", "launch", l.ID, "err", err)
			}
		})
	}
	wg.Wait()
}
