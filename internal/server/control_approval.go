// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"remit"
	"remit/internal/api"
	"remit/internal/gateway/admin"
	"remit/internal/store"
)

// approvalData is the event of an answer, and of a held request that nobody answered.
type approvalData struct {
	Hold     remit.HoldID        `json:"hold"`
	Bound    remit.Digest        `json:"bound"` // of what was asked; compares with the evidence of the decision that uses it
	State    remit.HeldState     `json:"state"` // after it
	Session  remit.SessionID     `json:"session,omitempty"`
	Account  string              `json:"account,omitempty"`
	Groups   []string            `json:"groups,omitempty"`
	Missing  map[string]int      `json:"missing,omitempty"` // how many more people, by group
	By       string              `json:"via,omitempty"`     // a denial from elsewhere
	Asked    time.Time           `json:"asked"`
	Until    time.Time           `json:"until"`
	Reason   json.RawMessage     `json:"reason,omitempty"`
	Requires remit.PermissionRef `json:"permission"`
}

// heldOf reads the held request that a call names, as it stands now, with its epoch.
func (s *Server) heldOf(c admin.Call) (h remit.Held, epoch uint64, err error) {
	id, err := remit.ParseHoldID(c.Path("id"))
	if err != nil {
		return h, 0, err
	}
	return s.held(id)
}

// answered returns when a held request is not open any more, or ctx ends. It looks in memory only, and starts nothing.
func (s *Server) answered(ctx context.Context, id remit.HoldID) {
	h, _, err := s.held(id)
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for known := err == nil; known && h.ID == id && h.Open(s.now()); {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			h, _, known = s.store.HeldAs(h.Digest)
		}
	}
}

func (s *Server) held(id remit.HoldID) (h remit.Held, epoch uint64, err error) {
	h, ok, err := s.store.Held(id)
	if err != nil {
		return h, 0, err
	}
	if !ok {
		return h, 0, notFound("approval", string(id))
	}
	now, epoch, ok := s.store.HeldAs(h.Digest)
	if ok && now.ID == id {
		return now, epoch, nil
	}
	return h, ^uint64(0), nil // its run is over, or a newer one stands in its place: it can be looked at
}

// holds implements authzen.Holds.
type holds struct{ s *Server }

func (h holds) Evaluated(id remit.DecisionID) (d remit.Decision, whole bool, err error) {
	e, ok, err := h.s.store.Decision(id)
	if err == nil && !ok {
		err = notFound("decision", string(id))
	}
	if err != nil {
		return d, false, err
	}
	o := e.Open()
	d, err = decisionOf(e)
	return d, len(o.Erased) == 0 && len(o.Private) == 0, err
}

func (h holds) Held(id remit.HoldID) (remit.Held, error) {
	held, _, err := h.s.held(id)
	return held, err
}

// opApprove takes one person's approval. Whoever it is has to hold for all of it: a session of their own, the group, four eyes.
func (s *Server) opApprove(ctx context.Context, c admin.Call) (any, error) {
	return s.answer(ctx, c, func(h *remit.Held, now time.Time) (*remit.Event, error) {
		if err := s.mayApprove(h, c.Who, now); err != nil {
			return nil, err
		}
		h.Answers = append(slices.Clone(h.Answers), remit.Answer{Person: c.Who.Person, Session: remit.SessionID(c.Who.Credential),
			Account: c.Who.Account, Groups: c.Who.Groups, Approve: true, At: now})
		if h.Complete() {
			h.State = remit.HeldApproved
		}
		return &remit.Event{Kind: remit.EventApproved}, nil
	})
}

// opDeny takes one person's denial, which is the end of it. It only tightens, so that the approver's role is enough, and what was
// approved and not used yet can be denied still.
func (s *Server) opDeny(ctx context.Context, c admin.Call) (any, error) {
	return s.answer(ctx, c, func(h *remit.Held, now time.Time) (*remit.Event, error) {
		if err := deniable(h); err != nil {
			return nil, err
		}
		h.Answers = append(slices.Clone(h.Answers), remit.Answer{Person: c.Who.Person, Session: remit.SessionID(c.Who.Credential), Account: c.Who.Account, At: now})
		h.State, h.Ended = remit.HeldDenied, now
		return &remit.Event{Kind: remit.EventRefused}, nil
	})
}

func deniable(h *remit.Held) error {
	if h.State != remit.HeldPending && h.State != remit.HeldApproved {
		return &remit.Error{Code: remit.CodeConflict, Msg: fmt.Sprintf("%s is %s", h.ID, h.State), ID: string(h.ID),
			Hint: "what was given is ended with remit grant revoke"}
	}
	return nil
}

// answer changes a held request by what do says, if nothing moves meanwhile: two answers, an answer and the use, the end of the
// person's session. What moved is judged again.
func (s *Server) answer(ctx context.Context, c admin.Call, do func(h *remit.Held, now time.Time) (*remit.Event, error)) (any, error) {
	var in api.Answered
	if err := c.Decode(&in); err != nil {
		return nil, err
	}
	if in.Reason = strings.TrimSpace(in.Reason); len(in.Reason) > 500 {
		return nil, &remit.Error{Code: remit.CodeInvalid, Msg: "a reason has at most 500 characters"}
	}
	for try := 0; ; try++ {
		h, epoch, err := s.heldOf(c)
		if err != nil {
			return nil, err
		}
		require := []remit.Precondition{{Key: h.EpochKey(), Epoch: epoch}, {Key: remit.RunKey(h.Run), Epoch: s.store.Epoch(remit.RunKey(h.Run))}}
		if c.Who.Method == remit.MethodSession {
			key := remit.EpochKey("session/" + c.Who.Credential)
			require = append(require, remit.Precondition{Key: key, Epoch: s.store.Epoch(key)})
		}
		now := s.now()
		e, err := do(&h, now)
		if err != nil {
			return nil, err
		}
		h.Answers[len(h.Answers)-1].Reason = in.Reason
		change := remit.Change{Rows: []remit.Row{h}, Events: []remit.Event{approvalEvent(&h, e.Kind, now, c.Who.String(), "")}}
		//remit:guard S39 TestTwoAnswersAtOnce
		change.Require = require
		_, err = s.store.Commit(ctx, change)
		if remit.CodeOf(err) == remit.CodeConflict && try < 3 {
			continue
		}
		if err != nil {
			return nil, err
		}
		return s.view(ctx, &h, c.Who, s.used())
	}
}

// approvalEvent is what the ledger says of the last answer, or of none.
func approvalEvent(h *remit.Held, kind remit.EventKind, at time.Time, by, via string) remit.Event {
	seal := &remit.Seal{}
	data := approvalData{Hold: h.ID, Bound: h.Bound(), State: h.State, By: via, Asked: h.Asked, Until: h.Until, Requires: h.Permission}
	if n := len(h.Answers); n > 0 && kind != remit.EventUnanswered {
		a := &h.Answers[n-1]
		data.Session, data.Account, data.Groups, data.Reason = a.Session, a.Account, a.Groups, seal.Text("reason", a.Reason)
	}
	for i := range h.Needs {
		if n := h.Missing(&h.Needs[i]); n > 0 && h.State == remit.HeldPending {
			if data.Missing == nil {
				data.Missing = map[string]int{}
			}
			data.Missing[h.Needs[i].Match["group"]] = n
		}
	}
	body, err := json.Marshal(data)
	if err != nil {
		panic("server: " + err.Error()) // a plain struct of ours, which cannot fail
	}
	return remit.Event{At: at, Kind: kind, Agent: h.Agent, Run: h.Run, Decision: h.Decision, By: by, Data: body, Payload: seal.Payload}
}

// mayApprove says why a person cannot approve a held request now; nil: he can (S39).
func (s *Server) mayApprove(h *remit.Held, who remit.Principal, now time.Time) error {
	forbidden := func(format string, args ...any) error {
		return &remit.Error{Code: remit.CodeForbidden, Msg: fmt.Sprintf(format, args...), ID: string(h.ID), Hint: "somebody else has to approve it, or deny it"}
	}
	//remit:guard S39 TestApprovalNeedsASession
	if who.Method != remit.MethodSession || who.Account == "" {
		return &remit.Error{Code: remit.CodeForbidden, Msg: "a person approves in a session of their own, after a login: not over the admin socket, and no CI job", ID: string(h.ID),
			Hint: "remit login --server https://HOST:PORT --ca bundle.pem (the server's bundle.pem), then remit approval approve"}
	}
	//remit:guard S39 TestApproveAfterExpiry
	if !h.Open(now) {
		return &remit.Error{Code: remit.CodeConflict, Msg: fmt.Sprintf("%s takes no answers any more: it is %s, and waited until %s", h.ID, h.State, h.Until.UTC().Format(time.RFC3339)), ID: string(h.ID)}
	}
	run, ok := s.store.Run(h.Run)
	//remit:guard S39 TestApproveAfterExpiry
	if !ok || !run.Live(now) || run.Stage != h.Permission.Stage {
		return &remit.Error{Code: remit.CodeConflict, Msg: "its run is over, or in another stage", ID: string(h.ID)}
	}
	if why := s.sameEyes(h, &run, who); why != "" {
		return forbidden("%s %s", who.Person, why)
	}
	twice := slices.ContainsFunc(h.Answers, func(a remit.Answer) bool { return a.Person == who.Person || a.Account == who.Account })
	//remit:guard S39 TestQuorum
	if twice {
		return forbidden("%s has answered it already", who.Person)
	}
	asked := slices.ContainsFunc(h.Needs, func(n remit.Need) bool { return slices.Contains(who.Groups, n.Match["group"]) })
	//remit:guard S39 TestApproverOfAnotherGroup
	if !asked {
		return forbidden("%s is in no group that is asked", who.Person)
	}
	opened, err := s.askedOf(h)
	//remit:guard S39 TestErasedIsNotApproved
	if err != nil || len(opened.erased) > 0 {
		return &remit.Error{Code: remit.CodeConflict, Msg: "what was asked cannot be shown any more, so it cannot be approved", ID: string(h.ID), Cause: err}
	}
	return nil
}

// sameEyes says why a person's eyes are not a second pair; empty: they are.
func (s *Server) sameEyes(h *remit.Held, run *remit.Run, who remit.Principal) string {
	//remit:guard S39 TestFourEyes
	if who.Person == run.Starter {
		return "started the run"
	}
	//remit:guard S39 TestFourEyes
	if who.Person == h.Requester {
		return "launched the process that asks"
	}
	for _, agent := range []remit.Name{h.Agent, run.Starter} {
		a, _ := s.registry.Named(agent)
		//remit:guard S39 TestFourEyes
		if isOf(a.Owner, who) {
			return "answers for " + string(agent)
		}
	}
	for _, author := range s.rev.Load().authors[h.Permission.Workflow] {
		//remit:guard S39 TestFourEyes
		if isOf(author, who) {
			return "is an author of workflow " + h.Permission.Workflow
		}
	}
	return ""
}

// isOf compares an owner or author, which files write as text, with a person and the person's groups.
func isOf(text string, who remit.Principal) bool {
	text = strings.TrimSpace(text)
	if text == "" {
		return false
	}
	names := append([]string{string(who.Person), strings.TrimPrefix(string(who.Person), "operator/")}, who.Groups...)
	return slices.ContainsFunc(names, func(n string) bool { return strings.EqualFold(n, text) })
}

// endUnanswered ends what nobody answered in time, and what waits in runs that are over.
func (s *Server) endUnanswered(ctx context.Context) {
	now := s.now()
	for _, h := range s.store.LiveHeld() {
		run, ok := s.store.Run(h.Run)
		if h.State != remit.HeldPending || h.Open(now) && ok && !run.Over() {
			continue
		}
		_, epoch, known := s.store.HeldAs(h.Digest)
		if !known {
			continue
		}
		h.State, h.Ended = remit.HeldExpired, now
		_, err := s.store.Commit(ctx, remit.Change{Rows: []remit.Row{h}, Require: []remit.Precondition{{Key: h.EpochKey(), Epoch: epoch}},
			Events: []remit.Event{approvalEvent(&h, remit.EventUnanswered, now, "remit", "")}})
		if err != nil && remit.CodeOf(err) != remit.CodeConflict && ctx.Err() == nil {
			s.log.Warn("an unanswered request is not ended on record yet; nobody can answer it", "hold", h.ID, "err", err)
		}
	}
}

// seesApprovals reports whether somebody may look at what is held: it shows what agents ask for (S30).
func seesApprovals(who remit.Principal) error {
	//remit:guard S30 TestWhoSeesApprovals
	if !who.HasRole("approver") && !who.HasRole("responder") && !who.HasRole("auditor") {
		return &remit.Error{Code: remit.CodeForbidden, Msg: "approvals need the role approver, responder or auditor", Hint: "an admin can give it in remit.yaml"}
	}
	return nil
}

func (s *Server) opApprovals(ctx context.Context, c admin.Call) (any, error) {
	if err := seesApprovals(c.Who); err != nil {
		return nil, err
	}
	limit, after, err := page(c.Query)
	if err != nil {
		return nil, err
	}
	rows, err := s.store.ListHeld(store.HeldFilter{State: remit.HeldState(c.Query.Get("state")), Run: remit.RunID(c.Query.Get("run"))}, limit, remit.HoldID(after))
	if err != nil {
		return nil, err
	}
	out, past := make([]api.Approval, 0, len(rows)), s.used()
	for i := range rows {
		v, err := s.view(ctx, &rows[i], c.Who, past)
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return listed(out, limit, func(a api.Approval) string { return string(a.ID) }), nil
}

func (s *Server) opApproval(ctx context.Context, c admin.Call) (any, error) {
	if err := seesApprovals(c.Who); err != nil {
		return nil, err
	}
	h, _, err := s.heldOf(c)
	if err != nil {
		return nil, err
	}
	return s.view(ctx, &h, c.Who, s.used())
}
