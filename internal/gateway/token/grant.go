// SPDX-License-Identifier: Apache-2.0

package token

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"time"

	"remit"
	"remit/internal/gateway"
)

// clientCredentials asks the line for a grant, or for an access token of an enforcement point of ours.
func (h *Handler) clientCredentials(ctx context.Context, c *call) ([]byte, error) {
	if resource := c.form.get("resource"); h.cfg.Access != nil && c.form.get("authorization_details") == "" && resource != "" {
		if audience, ok := h.cfg.Access.Audience(resource); ok {
			return h.access(ctx, c, audience)
		}
	}
	req, err := h.request(c)
	if err != nil {
		return nil, err
	}
	got, err := h.cfg.Line.Grant(ctx, &req)
	if err != nil {
		return nil, &problem{status: 503, code: unavailable, text: "no credential could be made; nothing was handed over", retry: true,
			decision: got.Decision.ID, cause: err}
	}
	switch got.Decision.Effect {
	case remit.Allow:
		return granted(&got, h.cfg.Now())
	case remit.Hold:
		return nil, &problem{code: authorizationPending, text: "a person has to agree first", decision: got.Decision.ID,
			reasons: got.Decision.Reasons, receipt: got.Decision.Receipt, handle: string(got.Decision.Hold)}
	}
	text := "denied"
	if len(got.Decision.Reasons) > 0 {
		text = "denied: " + gateway.Next(got.Decision.Reasons[0].Code)
	}
	return nil, &problem{code: accessDenied, text: text, decision: got.Decision.ID, reasons: got.Decision.Reasons,
		receipt: got.Decision.Receipt}
}

// access answers with an access token for the audience.
func (h *Handler) access(ctx context.Context, c *call, audience string) ([]byte, error) {
	run, err := remit.RunID(""), error(nil)
	if c.txn != "" {
		run, err = h.cfg.RunTokens.RunToken(c.txn, c.client, c.at)
	}
	reason := remit.Reason{Code: remit.ReasonRunToken}
	if c.txn == "" {
		reason.Code = remit.ReasonNoRun
	}
	//remit:guard S10 TestAccessToken
	if err != nil || run == "" {
		return nil, &problem{code: accessDenied, text: "denied: " + gateway.Next(reason.Code), reasons: []remit.Reason{reason}}
	}
	token, expires, err := h.cfg.Access.Access(ctx, c.client, c.agent, run, audience, c.at)
	switch code := remit.CodeOf(err); {
	case err != nil && (code == remit.CodeForbidden || code == remit.CodeConflict || code == remit.CodeUnauthenticated):
		return nil, &problem{code: accessDenied, text: "denied: the agent does nothing in this stage of the run, or the run is over",
			reasons: []remit.Reason{{Code: remit.ReasonNoPermission}}, cause: err}
	case err != nil:
		return nil, &problem{status: 503, code: unavailable, text: "no token could be made", retry: true, cause: err}
	}
	b := remit.AppendJSONString([]byte(`{"access_token":`), token.Reveal()) // handed over here, and nowhere else
	b = append(b, `,"token_type":"Bearer","issued_token_type":"urn:ietf:params:oauth:token-type:access_token"`...)
	b = strconv.AppendInt(append(b, `,"expires_in":`...), int64(expires.Sub(h.cfg.Now())/time.Second), 10)
	b = expires.UTC().AppendFormat(append(b, `,"expires_at":"`...), time.RFC3339)
	return append(b, `"}`...), nil
}

// request builds the Request. What is wrong with the run token is the line's to record.
func (h *Handler) request(c *call) (remit.Request, error) {
	if c.form.get("scope") != "" {
		return remit.Request{}, &problem{code: "invalid_scope", text: "scopes are not used here: say it in authorization_details"}
	}
	text := c.form.get("authorization_details")
	if text == "" {
		return remit.Request{}, badDetails("it is missing")
	}
	e, err := parseDetails(text)
	if err != nil {
		return remit.Request{}, err
	}
	target, err := h.where(&e, c.form.get("resource"))
	if err != nil {
		return remit.Request{}, err
	}
	req := remit.Request{At: c.at, Caller: c.client, Agent: c.agent, Stage: e.stage, Permission: e.permission, Action: e.action,
		Target: target, Args: e.args, TTL: e.ttl, Via: "token", Fill: e.permission != ""}
	if e.call != "" {
		if req.Under, err = remit.ParseDecisionID(e.call); err != nil {
			return req, badDetails("under is not the id of a decision")
		}
	}
	if c.txn == "" {
		return req, nil
	}
	run, err := h.cfg.RunTokens.RunToken(c.txn, c.client, c.at)
	switch {
	//remit:guard S10 TestRunToken
	case err != nil:
		var reason remit.Reason
		reason, req.Run = gateway.RefusedToken(err)
		req.Refused = []remit.Reason{reason}
	//remit:guard S10 TestRunToken
	case e.run != "" && e.run != string(run):
		req.Refused = []remit.Reason{{Code: remit.ReasonRunMismatch, Of: "run"}}
	default:
		req.Run = run
	}
	return req, nil
}

// granted writes the answer of RFC 6749 section 5.1 and RFC 9396 section 7. expires_in is the effective end, rounded down.
func granted(got *gateway.Granted, now time.Time) ([]byte, error) {
	cred, g := &got.Credential, &got.Grant
	left := int64(cred.Expires.Sub(now) / time.Second)
	//remit:guard S12 TestAnswersOfTheLine
	if cred.Secret.IsZero() || left < 1 {
		return nil, &problem{status: 503, code: unavailable, text: "the credential ended before it could be handed over", retry: true,
			decision: got.Decision.ID, cause: errors.New("grant " + string(g.ID) + ": no live credential")}
	}
	b := remit.AppendJSONString([]byte(`{"access_token":`), cred.Secret.Reveal()) // handed over here, and nowhere else
	b = append(b, `,"token_type":"N_A"`...)
	b = remit.AppendJSONString(append(b, `,"issued_token_type":`...), "urn:remit:token-type:"+cred.Type)
	b = strconv.AppendInt(append(b, `,"expires_in":`...), left, 10)
	b = cred.Expires.UTC().AppendFormat(append(b, `,"expires_at":"`...), time.RFC3339)
	b = appendGranted(append(b, `","authorization_details":[`...), g, left)
	b = append(append(b, `],"decision_id":"`...), got.Decision.ID...)
	b = append(append(append(b, `","grant_id":"`...), g.ID...), '"')
	b = gateway.AppendTexts(append(b, `,"bounds":`...), cred.Bounds)
	b = gateway.AppendTexts(append(b, `,"not_bounded":`...), cred.NotBounded)
	b = strconv.AppendInt(append(b, `,"worst_case_s":`...), int64((cred.WorstCase+time.Second-1)/time.Second), 10)
	fields := make(remit.Args, len(cred.Fields))
	for k, v := range cred.Fields {
		fields[k] = remit.StringValue(v)
	}
	b = fields.AppendJSON(append(b, `,"credential":`...))
	if got.Decision.Receipt != nil {
		b = gateway.AppendReceipt(append(b, `,"receipt":`...), got.Decision.Receipt)
	}
	return append(b, '}'), nil
}

// appendGranted writes the entry as it was granted: the decided scope, maybe narrowed, never the request's own words.
func appendGranted(b []byte, g *remit.Grant, seconds int64) []byte {
	b = remit.AppendJSONString(append(b, `{"type":`...), g.Action)
	b = remit.AppendJSONString(append(b, `,"target":`...), g.Target)
	b = remit.AppendJSONString(append(b, `,"permission":`...), g.Permission.Name)
	b = remit.AppendJSONString(append(b, `,"run":`...), string(g.Run))
	b = remit.AppendJSONString(append(b, `,"stage":`...), g.Permission.Stage)
	b = strconv.AppendInt(append(b, `,"ttl":`...), seconds, 10)
	names := make([]string, 0, len(g.Scope))
	for name := range g.Scope {
		if !slices.Contains(reserved, name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range names {
		b = append(remit.AppendJSONString(append(b, ','), name), ':')
		b = g.Scope[name].AppendJSON(b)
	}
	return append(b, '}')
}

// reserved are the members of an entry that are no arguments.
var reserved = []string{"type", "target", "locations", "actions", "permission", "run", "stage", "under", "ttl"}
