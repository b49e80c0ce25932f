// SPDX-License-Identifier: Apache-2.0

package authzen

import (
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"remit"
	"remit/internal/gateway"
)

// caller is who sent the HTTP request: an enforcement point, or an agent for itself.
type caller struct {
	principal remit.Principal
	name      remit.Name
	point     *remit.EnforcementPoint // nil: an agent
}

// who refuses a verified identity that is neither enrolled nor an agent; that is about the caller's own standing, so it is
// 403 and not a decision.
func (h *Handler) who(p remit.Principal) (caller, error) {
	if ep, ok := h.cfg.Directory.EnforcementPoint(p.ID); ok {
		point := ep // so that nothing is allocated for an agent
		return caller{principal: p, name: point.Name, point: &point}, nil
	}
	if name, ok := h.cfg.Directory.Agent(p.ID); ok {
		return caller{principal: p, name: name}, nil
	}
	return caller{}, &remit.Error{Code: remit.CodeForbidden, Msg: "this identity is neither an enrolled enforcement point nor an agent",
		Hint: "an operator has to add a file of kind EnforcementPoint"}
}

// request turns an evaluation into a Request. What it finds wrong with who asks for whom goes into Refused and is recorded.
func (h *Handler) request(a *asking, e *evaluation) (remit.Request, error) {
	var req remit.Request
	if err := e.complete(); err != nil {
		return req, err
	}
	args, err := e.arguments()
	if err != nil {
		return req, err
	}
	var c circumstances
	if e.context != nil {
		c = *e.context
	}
	req = remit.Request{At: a.at, Caller: a.caller.principal, Stage: c.stage, Permission: c.permission,
		Action: e.action.name, Target: e.resource.id, Args: args, Via: "authzen", Keeps: c.keeps}
	if c.under != "" {
		if req.Under, err = remit.ParseDecisionID(c.under); err != nil {
			return req, invalid("context.under is not the id of a decision")
		}
	}
	//remit:guard S17 TestSubjectTypes
	if kind, _, dotted := strings.Cut(e.action.name, "."); dotted && kind != e.resource.kind {
		refuse(&req, remit.ReasonNoPermission, "resource.type")
		return req, nil
	}
	id, ok := subjectID(a, e.subject)
	if !ok {
		refuse(&req, remit.ReasonUnknownAgent, "subject")
		return req, nil
	}
	req.Agent, _ = h.cfg.Directory.Agent(id) // "": the line denies
	proven, reason := h.prove(a, e, id)
	if reason != nil {
		req.Refused = []remit.Reason{*reason}
		return req, nil
	}
	req.Caller = speaking(a.caller.principal, proven)
	h.enter(&req, &c, proven)
	return req, nil
}

func refuse(req *remit.Request, code remit.ReasonCode, of string) {
	req.Refused = []remit.Reason{{Code: code, Of: of}}
}

func subjectID(a *asking, s *subject) (spiffeid.ID, bool) {
	switch s.kind {
	case "agent", "tool", "workload", "spiffe":
	default:
		return spiffeid.ID{}, false
	}
	if s.id == a.caller.principal.ID.String() {
		return a.caller.principal.ID, true
	}
	id, err := spiffeid.FromString(s.id)
	return id, err == nil
}

// prove returns the subject as a principal, or why the caller may not speak for it (S6).
func (h *Handler) prove(a *asking, e *evaluation, id spiffeid.ID) (remit.Principal, *remit.Reason) {
	c := &a.caller
	if c.point == nil {
		//remit:guard S6 TestWhoMaySpeakForWhom
		if id != c.principal.ID {
			return remit.Principal{}, &remit.Reason{Code: remit.ReasonNotEnrolled, Of: "subject"}
		}
		return c.principal, nil
	}
	//remit:guard S6 TestWhoMaySpeakForWhom
	if !gateway.Speaks(c.point, e.action.name, id.TrustDomain()) {
		return remit.Principal{}, &remit.Reason{Code: remit.ReasonNotEnrolled}
	}
	if e.subject.token != "" {
		p, err := h.cfg.Authenticator.Assertion(a.ctx, e.subject.token)
		//remit:guard S6 TestWhoMaySpeakForWhom
		if err != nil || p.ID != id {
			return remit.Principal{}, &remit.Reason{Code: remit.ReasonAsserted, Of: "subject.properties.token", Got: gateway.Refusal(err)}
		}
		return p, nil
	}
	//remit:guard S6 TestWhoMaySpeakForWhom
	if !c.point.Assert {
		return remit.Principal{}, &remit.Reason{Code: remit.ReasonAsserted, Of: "subject"}
	}
	return remit.Principal{ID: id, Method: c.principal.Method, Level: remit.LevelNone,
		Thumbprint: e.subject.thumbprint, Expires: c.principal.Expires}, nil
}

// speaking is the caller as the decision sees it: who sent the request, with the attestation of the one it is about, and
// until the first of the two ends.
func speaking(sender, about remit.Principal) remit.Principal {
	if sender.ID == about.ID {
		return sender
	}
	//remit:guard S3 TestLevelIsTheSubjects
	sender.Level, sender.Launch, sender.Workload = about.Level, about.Launch, about.Workload
	//remit:guard S12 TestLevelIsTheSubjects
	if about.Expires.Before(sender.Expires) {
		sender.Expires = about.Expires
	}
	return sender
}

// enter sets the run from the run token, which must be bound to the subject (S10). A run that is only named is none.
func (h *Handler) enter(req *remit.Request, c *circumstances, holder remit.Principal) {
	if c.token == "" {
		return
	}
	run, err := h.cfg.RunTokens.RunToken(c.token, holder, req.At)
	switch {
	//remit:guard S10 TestRunEntersOnlyByItsToken
	case err != nil:
		req.Refused = []remit.Reason{{Code: remit.ReasonRunToken, Of: "context.run_token", Got: gateway.Refusal(err)}}
	//remit:guard S10 TestRunEntersOnlyByItsToken
	case c.run != "" && c.run != string(run):
		refuse(req, remit.ReasonRunMismatch, "run")
	default:
		req.Run = run
	}
}

// decide asks the line about one evaluation.
func (h *Handler) decide(a *asking, e *evaluation) (remit.Decision, error) {
	req, err := h.request(a, e)
	if err != nil {
		return remit.Decision{}, err
	}
	return h.cfg.Line.Decide(a.ctx, &req)
}

// single answers /access/v1/evaluation.
func (h *Handler) single(a *asking, b []byte) ([]byte, error) {
	var e space
	d := remit.NewDecoder(a.text)
	if err := d.Object(func(name string) error { return e.member(&d, name) }); err != nil {
		return b, err
	}
	if err := d.End(); err != nil {
		return b, err
	}
	decision, err := h.decide(a, &e.evaluation)
	if err != nil {
		return b, err
	}
	return h.appendDecision(b, &decision, e.approval()), nil
}
