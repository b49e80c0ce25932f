// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"fmt"
	"time"

	"remit"
	"remit/internal/api"
	"remit/internal/gateway/admin"
	"remit/internal/run"
	"remit/internal/store"
	"remit/internal/tool"
)

func (s *Server) opRuns(_ context.Context, c admin.Call) (any, error) {
	limit, after, err := page(c.Query)
	if err != nil {
		return nil, err
	}
	runs, err := s.store.Runs(store.RunFilter{}, limit, remit.RunID(after))
	for i := range runs {
		runs[i] = runs[i].Shown()
	}
	return listed(runs, limit, func(r remit.Run) string { return string(r.ID) }), err
}

func (s *Server) runOf(c admin.Call) (remit.Run, *remit.Workflow, error) {
	id, err := remit.ParseRunID(c.Path("id"))
	if err != nil {
		return remit.Run{}, nil, err
	}
	r, ok := s.store.Run(id)
	if !ok {
		return r, nil, notFound("run", string(id))
	}
	w, ok := s.rev.Load().workflow(r.Workflow)
	if !ok {
		return r, nil, &remit.Error{Code: remit.CodeConflict, Msg: fmt.Sprintf("workflow %s is not in the active revision any more", r.Workflow),
			Hint: "finish the run, or restore the workflow"}
	}
	return r, w, nil
}

func (s *Server) opRun(_ context.Context, c admin.Call) (any, error) {
	id, err := remit.ParseRunID(c.Path("id"))
	if err != nil {
		return nil, err
	}
	r, ok := s.store.Run(id)
	if !ok {
		return nil, notFound("run", string(id))
	}
	return r.Shown(), nil
}

// opRunStart resolves image tags, so that a run is about digests from its first moment, and starts the run.
func (s *Server) opRunStart(ctx context.Context, c admin.Call) (any, error) {
	var in api.StartRun
	if err := c.Decode(&in); err != nil {
		return nil, err
	}
	r, err := s.startRun(ctx, in, person(c.Who))
	return r.Shown(), err
}

func (s *Server) startRun(ctx context.Context, in api.StartRun, by run.Actor) (remit.Run, error) {
	rev := s.rev.Load()
	w, ok := rev.workflow(in.Workflow)
	if !ok {
		return remit.Run{}, notFound("workflow", in.Workflow)
	}
	//remit:guard S9 TestAgentCallsAreBounded
	if err := run.MayStart(w, by); err != nil { // before anything is fetched: a stranger must not make us call where he likes
		return remit.Run{}, err
	}
	if err := s.roomForRun(by.Name); err != nil {
		return remit.Run{}, err
	}
	posture := s.store.Posture(by.Name)
	if posture.Suspended {
		return remit.Run{}, &remit.Error{Code: remit.CodeForbidden, Msg: fmt.Sprintf("%s is suspended", by.Name)}
	}
	if err := s.resolveImages(ctx, w, in.Params); err != nil {
		return remit.Run{}, err
	}
	id, at := remit.NewRunID(), s.now()
	s.starting.Store(id, remit.Run{ID: id, Workflow: w.Name, Starter: by.Name})
	defer s.starting.Delete(id)
	from, err := s.fromEvidence(ctx, rev, w, &in, &remit.Request{At: at, Caller: by.Principal, Agent: by.Name, Run: id})
	if err != nil {
		return remit.Run{}, err
	}
	r, events, err := run.Start(w, id, by, run.Input{Params: in.Params, Verified: from.verified}, at)
	if err != nil {
		return remit.Run{}, err
	}
	if err := s.starts.take(w, &r); err != nil {
		return remit.Run{}, err
	}
	started, err := s.commitRun(ctx, r, events, 0, append(from.seen, remit.Precondition{Key: remit.AgentKey(by.Name), Epoch: posture.Epoch},
		remit.Precondition{Key: remit.PolicyKey, Epoch: rev.epoch})...)
	if err != nil {
		s.starts.drop(&r)
	}
	return started, err
}

// maxLiveRuns bounds what one starter can have under way: live runs are in memory (S9).
const maxLiveRuns = 2000

func (s *Server) roomForRun(starter remit.Name) error {
	n := 0
	for _, r := range s.store.LiveRuns() {
		if r.Starter == starter {
			n++
		}
	}
	if n >= maxLiveRuns {
		return &remit.Error{Code: remit.CodeExhausted, Msg: fmt.Sprintf("%s has %d runs under way", starter, n), Hint: "finish some of them"}
	}
	return nil
}

func person(p remit.Principal) run.Actor { return run.Actor{Name: p.Person, Principal: p} }

func (s *Server) resolveImages(ctx context.Context, w *remit.Workflow, params map[string]string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for _, p := range w.Parameters {
		text, ok := params[p.Name]
		if p.Type != "image" || !ok {
			continue
		}
		img, err := remit.ParseImage(text)
		if err != nil {
			return err
		}
		if img.Digest == "" {
			if img, err = s.images.Resolve(ctx, img); err != nil {
				return err
			}
		}
		params[p.Name] = img.String()
	}
	return nil
}

// commitRun writes a transition; a run that moved meanwhile is a conflict.
func (s *Server) commitRun(ctx context.Context, r remit.Run, events []remit.Event, seen uint64, more ...remit.Precondition) (remit.Run, error) {
	change := remit.Change{Rows: []remit.Row{r}, Events: events,
		Require: append(more, remit.Precondition{Key: remit.RunKey(r.ID), Epoch: seen})}
	if _, err := s.store.Commit(ctx, change); err != nil {
		return remit.Run{}, err
	}
	r, _ = s.store.Run(r.ID)
	return r, nil
}

func (s *Server) opRunAdvance(ctx context.Context, c admin.Call) (any, error) {
	var in api.AdvanceRun
	if err := c.Decode(&in); err != nil {
		return nil, err
	}
	r, w, err := s.runOf(c)
	if err != nil {
		return nil, err
	}
	return s.advance(ctx, r, w, person(c.Who), in.To)
}

func (s *Server) advance(ctx context.Context, r remit.Run, w *remit.Workflow, by run.Actor, to string) (any, error) {
	facts, err := s.factsOf(&r, w)
	if err != nil {
		return nil, err
	}
	next, events, err := run.Advance(r, w, by, to, s.now(), facts...)
	if err != nil {
		return nil, err
	}
	return s.leaveStage(ctx, r.Epoch, next, events, "the stage ended", by.Principal.String())
}

func (s *Server) opRunFinish(ctx context.Context, c admin.Call) (any, error) {
	id, err := remit.ParseRunID(c.Path("id"))
	if err != nil {
		return nil, err
	}
	r, ok := s.store.Run(id)
	if !ok {
		return nil, notFound("run", string(id))
	}
	w, ok := s.rev.Load().workflow(r.Workflow)
	if !ok {
		w = &remit.Workflow{Name: r.Workflow} // removed meanwhile: its starter and a responder can still finish
	}
	return s.finish(ctx, r, w, person(c.Who))
}

func (s *Server) finish(ctx context.Context, r remit.Run, w *remit.Workflow, by run.Actor) (any, error) {
	next, events, err := run.Finish(r, w, by, s.now())
	if err != nil {
		return nil, err
	}
	return s.leaveStage(ctx, r.Epoch, next, events, "the run ended", by.Principal.String())
}

// leaveStage ends the stage's grants first and writes the transition after (S20). Tighten comes before either, so that no
// grant that is being decided survives. While the targets are busy the stage is still the present one, and somebody may be
// given more: once the transition has moved the run's epoch nobody is any more, and what came meanwhile is ended, too. A run
// that moved since seen stays as it is; its grants are ended all the same.
func (s *Server) leaveStage(ctx context.Context, seen uint64, next remit.Run, events []remit.Event, why, by string) (any, error) {
	key := remit.RunKey(next.ID)
	//remit:guard S20 TestGrantDuringStageEnd
	s.store.Tighten(key)
	now := s.store.Epoch(key)
	claimed := func(c tool.Claim, _ *remit.Tool) bool { return c.Run == next.ID }
	s.endClaims(ctx, why, claimed)
	s.endOf(ctx, func(l *remit.Lease) bool { return l.Run == next.ID }, why, by)
	if now != seen+1 {
		return nil, &remit.Error{Code: remit.CodeConflict, Msg: fmt.Sprintf("run %s changed meanwhile", next.ID), Hint: "remit run show " + string(next.ID)}
	}
	r, err := s.commitRun(ctx, next, events, now)
	if err != nil {
		return nil, err
	}
	s.endClaims(ctx, why, func(c tool.Claim, t *remit.Tool) bool {
		return claimed(c, t) && (next.State != remit.RunActive || c.Stage != next.Stage)
	})
	s.endBoxed(ctx, why, func(b *boxed) bool { return b.record.Run == next.ID && next.State != remit.RunActive })
	s.endOf(ctx, func(l *remit.Lease) bool {
		g, ok := s.store.Grant(l.Grant)
		return l.Run == next.ID && (!ok || next.State != remit.RunActive || g.Permission.Stage != next.Stage)
	}, why, by)
	return r.Shown(), nil
}

// endOf ends leases within a few seconds; what its target has not confirmed by then is dead for our own enforcement points,
// and the broker goes on with it.
func (s *Server) endOf(ctx context.Context, which func(*remit.Lease) bool, why, by string) error {
	ctx, cancel := context.WithTimeout(ctx, endWithin)
	defer cancel()
	err := s.broker.End(ctx, which, why, by)
	if err != nil {
		s.log.Error("not all leases are ended yet; it is tried again every second", "why", why, "err", err)
	}
	return err
}

// endWithin is how long a call waits for the targets before it writes down what it did: a target that hangs must not keep a
// suspension or a transition off the record.
const endWithin = 5 * time.Second

// expireRuns is the janitor of time limits: a run or stage that is over by time is over on record, too. The line does not
// wait for it: it compares times itself.
func (s *Server) expireRuns(ctx context.Context) {
	now := s.now()
	s.values.Retain(func(id remit.RunID) bool {
		r, ok := s.store.Run(id)
		return ok && !r.Over()
	})
	for _, r := range s.store.LiveRuns() {
		next, events, due := run.Expire(r, now)
		if !due {
			continue
		}
		if _, err := s.leaveStage(ctx, r.Epoch, next, events, "the run expired", "remit"); err != nil && ctx.Err() == nil {
			s.log.Warn("an expired run is not on record yet; it is tried again", "run", r.ID, "err", err)
		}
	}
}

func (s *Server) opRunToken(_ context.Context, c admin.Call) (any, error) {
	var in api.TokenRequest
	if err := c.Decode(&in); err != nil {
		return nil, err
	}
	if in.Thumbprint == "" {
		return nil, &remit.Error{Code: remit.CodeInvalid, Msg: "a run token is bound to a certificate: x5t#S256 is missing"}
	}
	r, w, err := s.runOf(c)
	if err != nil {
		return nil, err
	}
	if err := s.mayEnter(c.Who, &r, w, in.Agent); err != nil {
		return nil, err
	}
	return s.issueRunToken(&r, remit.Holder{Agent: in.Agent, Thumbprint: in.Thumbprint})
}

// mayEnter decides who may let an agent into a run (S10): the run's starter or an admin, and only an agent that is active in
// the present stage and not suspended.
func (s *Server) mayEnter(who remit.Principal, r *remit.Run, w *remit.Workflow, agent remit.Name) error {
	//remit:guard S10 TestWhoLetsAgentsIn
	if who.Person != r.Starter && !who.HasRole("admin") {
		return &remit.Error{Code: remit.CodeForbidden, Msg: fmt.Sprintf("only %s, who started the run, lets agents into it", r.Starter)}
	}
	//remit:guard S10 TestWhoLetsAgentsIn
	if !r.Live(s.now()) {
		return &remit.Error{Code: remit.CodeConflict, Msg: fmt.Sprintf("run %s is %s", r.ID, r.State), Hint: "start another with remit run start"}
	}
	//remit:guard S10 TestRunTokenIsBound
	if !run.Active(r, w, agent) {
		return &remit.Error{Code: remit.CodeForbidden, Msg: fmt.Sprintf("%s does nothing in stage %s of %s", agent, r.Stage, r.Workflow),
			Hint: "remit workflow show " + r.Workflow}
	}
	if p := s.store.Posture(agent); p.Suspended {
		return &remit.Error{Code: remit.CodeForbidden, Msg: fmt.Sprintf("%s is suspended: %s", agent, p.Reason),
			Hint: "remit agent reinstate, when that is settled"}
	}
	return nil
}

func (s *Server) issueRunToken(r *remit.Run, h remit.Holder) (api.Token, error) {
	a, ok := s.rev.Load().set.Agents[h.Agent]
	if !ok {
		return api.Token{}, notFound("agent", string(h.Agent))
	}
	token, err := s.ids.tokens.Issue(r, h, a.ID, s.now())
	if err != nil {
		return api.Token{}, err
	}
	return api.Token{Token: token.Reveal(), Expires: r.StageExpires}, nil
}
