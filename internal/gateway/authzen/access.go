// SPDX-License-Identifier: Apache-2.0

package authzen

import (
	"context"
	"net/http"
	"strconv"
	"time"

	"remit"
)

// Holds tells how what was held stands. It is safe for concurrent use, and returns an error of remit.CodeNotFound for what there is
// not.
type Holds interface {
	// Evaluated returns a decision as it was recorded. whole is false where some of its values are not on record.
	Evaluated(id remit.DecisionID) (d remit.Decision, whole bool, err error)
	Held(id remit.HoldID) (remit.Held, error)
}

// The Access Request and Approval profile (draft of August 2026). People are asked when an evaluation is held, not by the request for
// access: that only gives the enforcement point a task of its own, named after the evaluation, to ask how it stands. A task is its
// caller's alone, and it approves nothing: the enforcement point evaluates again, and what was approved is found by the digest of
// exactly that request.
const (
	accessPath = "/access/v1/requests"
	capability = "urn:openid:authzen:capability:access-request"
	askAgain   = 10 // seconds
)

// accessRequest is the body of a request for access.
type accessRequest struct {
	space
	denied   string // denial.evaluation_id
	callback bool   // wants to be called
}

func (q *accessRequest) member(d *remit.Decoder, name string) error {
	switch name {
	case "denial":
		return d.Object(func(name string) error {
			if name == "evaluation_id" {
				return text(d, &q.denied)
			}
			return d.Skip()
		})
	case "callback":
		q.callback = !d.Null()
		if !q.callback {
			return nil
		}
		return d.Skip()
	}
	return q.space.member(d, name) // requested_access and client have no say: an approval counts for one decision
}

// access opens a task for a held evaluation of the caller's own.
func (h *Handler) access(a *asking, b []byte) ([]byte, error) {
	var q accessRequest
	d := remit.NewDecoder(a.text)
	if err := d.Object(func(name string) error { return q.member(&d, name) }); err != nil {
		return b, err
	}
	if err := d.End(); err != nil {
		return b, err
	}
	if err := q.complete(); err != nil {
		return b, err
	}
	//remit:guard S17 TestAccessRequestsAreRefused
	if q.callback {
		return b, invalid("callback: nobody is called from here; ask the task's status_endpoint")
	}
	args, err := q.arguments()
	if err != nil {
		return b, err
	}
	decision, held, err := h.task(a, q.denied)
	if err != nil {
		return b, err
	}
	id, ok := subjectID(a, q.subject)
	agent, _ := h.cfg.Directory.Agent(id)
	whole, same := decision.whole, ok && agent != "" && agent == decision.Agent && q.action.name == decision.Action && q.resource.id == decision.Target
	//remit:guard S39 TestAccessRequestsAreRefused
	if !same || whole && !remit.ObjectValue(args).Equal(remit.ObjectValue(decision.Args)) {
		return b, invalid("denial.evaluation_id is of another request")
	}
	return h.appendTask(b, &decision.Decision, held, a.at), nil
}

type evaluated struct {
	remit.Decision
	whole bool
}

// task finds an evaluation of the caller's own that was held, and how it stands.
func (h *Handler) task(a *asking, name string) (d evaluated, held remit.Held, err error) {
	id, err := remit.ParseDecisionID(name)
	if err != nil {
		return d, held, invalid("it is not the id of an evaluation")
	}
	none := &remit.Error{Code: remit.CodeNotFound, Msg: "you have no such held evaluation"}
	if d.Decision, d.whole, err = h.cfg.Holds.Evaluated(id); err != nil {
		if remit.CodeOf(err) == remit.CodeNotFound {
			err = none
		}
		return d, held, err
	}
	//remit:guard S30 TestAccessRequestsAreRefused
	if d.Caller != a.caller.principal.String() || d.Hold == "" || d.Effect != remit.Hold {
		return d, held, none
	}
	if held, err = h.cfg.Holds.Held(d.Hold); remit.CodeOf(err) == remit.CodeNotFound {
		err = none
	}
	return d, held, err
}

// appendTask appends {"task":{…}}. What is approved can be evaluated again until approved_until.
func (h *Handler) appendTask(b []byte, d *remit.Decision, held remit.Held, at time.Time) []byte {
	b = append(append(b, `{"task":{"id":"`...), d.ID...)
	status := taskStatus(&held, at)
	b = append(append(b, `","status":"`...), status...)
	b = append(append(append(b, `","status_endpoint":`...), remit.AppendJSONString(nil, h.cfg.Base+accessPath+"/"+string(d.ID))...), `,"expires_at":"`...)
	b = append(appendTime(b, held.Until), '"')
	switch status {
	case "pending":
		b = strconv.AppendInt(append(b, `,"retry_after":`...), askAgain, 10)
	case "approved":
		b = append(append(b, `,"result":{"mode":"reevaluate","approval":{"id":"`...), held.ID...)
		b = append(appendTime(append(b, `","approved_until":"`...), held.Lapses()), `"}}`...)
	}
	return append(b, `}}`...)
}

// taskStatus is the profile's word; what was approved and used counts no more.
func taskStatus(held *remit.Held, at time.Time) string {
	switch {
	case held.Open(at):
		return "pending"
	case held.State == remit.HeldApproved && at.Before(held.Lapses()):
		return "approved"
	case held.State == remit.HeldDenied:
		return "denied"
	}
	return "expired"
}

// serveTask answers GET of a task.
func (h *Handler) serveTask(w http.ResponseWriter, r *http.Request, name string) {
	if r.Method != http.MethodGet {
		methodNotAllowed(w, "GET")
		return
	}
	a := asking{at: h.cfg.Now()}
	defer func() { a.account.Leave() }()
	err := h.known(&a, r, 0)
	if err == nil {
		ctx, cancel := context.WithTimeout(r.Context(), h.cfg.Timeout)
		defer cancel()
		a.ctx = ctx
		var d evaluated
		var held remit.Held
		if d, held, err = h.task(&a, name); err == nil {
			w.Header()["Retry-After"] = []string{strconv.Itoa(askAgain)}
			answer(w, http.StatusOK, h.appendTask(nil, &d.Decision, held, a.at))
			return
		}
	}
	fail(w, err)
}

// appendNext says, to an enforcement point that evaluates again with an approval, how it goes on and why the approval did not serve.
func (h *Handler) appendNext(b []byte, d *remit.Decision, approval string) []byte {
	next, why := "none", "policy_denied"
	switch {
	case d.Effect == remit.Hold && approval == string(d.Hold):
		next, why = "retry", "grant_pending"
	case d.Effect == remit.Hold:
		next, why = "request", h.unserved(approval, d)
	case len(d.Reasons) == 1 && d.Reasons[0].Code == remit.ReasonHoldExpired:
		why = "approval_expired"
	}
	b = append(append(append(append(b, `,"next_action":"`...), next...), `","next_reason":"`...), why...)
	if next == "retry" {
		return strconv.AppendInt(append(b, `","retry_after":`...), askAgain, 10)
	}
	return append(b, '"')
}

// unserved says why an approval is none of a request that is held now. Of another agent's nothing is told.
func (h *Handler) unserved(approval string, d *remit.Decision) string {
	id, err := remit.ParseHoldID(approval)
	if err != nil {
		return "approval_unverifiable"
	}
	held, err := h.cfg.Holds.Held(id)
	switch {
	case err != nil || held.Agent != d.Agent:
		return "approval_unverifiable"
	case held.State == remit.HeldUsed || held.State == remit.HeldExpired || held.State == remit.HeldApproved && !d.At.Before(held.Lapses()):
		return "approval_expired"
	}
	return "out_of_scope"
}
