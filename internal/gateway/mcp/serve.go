// SPDX-License-Identifier: Apache-2.0

package mcp

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/modelcontextprotocol/go-sdk/jsonrpc"

	"remit"
	"remit/internal/gateway"
)

// Line is the authorizer as this enforcement point sees it. An error means that nothing could be recorded; the gateway denies. It
// is safe for concurrent use.
type Line interface {
	Decide(ctx context.Context, req *remit.Request) (remit.Decision, error)
	// Executed records what became of an allowed call.
	Executed(ctx context.Context, acts []remit.Outcome) error
}

// call is one request of a client on its way through the gateway.
type call struct {
	h        *Handler
	c        *caller
	a        *asked
	id       string      // of the client's request
	session  *session    // nil in the stateless era
	header   http.Header // of a stateless request, for Mcp-Param; else nil
	view     View
	conn     *conn
	tool     *described
	decision remit.Decision
	declined bool // its user did not want to hear of people who approve
	// acted is what is recorded once the client has its answer.
	acted *remit.Outcome
}

// prepare sees to everything before a server is asked: what the agent sees, the connection, the decision. A non-nil result is the
// answer already.
func (k *call) prepare(ctx context.Context) ([]byte, *rpcError) {
	req := k.request("mcp.list", k.a.server)
	var reasons []remit.Reason
	k.view, reasons = k.h.cfg.Stages.Visible(&req)
	switch k.a.kind {
	case decided:
		return k.decide(ctx, reasons)
	case own, listed, streamed:
		//remit:guard S10 TestRefusedTokenIsDecided
		if len(k.c.refused) > 0 {
			return nil, k.recorded(ctx, &req)
		}
		if len(reasons) > 0 {
			return nil, k.denial(reasons[0])
		}
	}
	//remit:guard S29 TestListsAreCut
	if k.a.server != "" && !k.view.sees(k.a.server) {
		return nil, k.denial(remit.Reason{Code: remit.ReasonNoPermission})
	}
	//remit:guard S29 TestListsAreCut
	if k.a.kind == listed && k.a.verb != "tools/list" && !k.view.List[k.a.server] {
		return nil, k.denial(remit.Reason{Code: remit.ReasonNoPermission, Of: "mcp.list"})
	}
	if k.a.kind == streamed {
		if e := k.decideListen(ctx); e != nil {
			return nil, e
		}
	}
	return nil, nil
}

// recorded denies what came with a run token that is not the caller's, on record whatever it asks for: a client greets before it calls, and who
// is refused then never comes to call.
func (k *call) recorded(ctx context.Context, req *remit.Request) *rpcError {
	d, err := k.h.cfg.Line.Decide(ctx, req)
	if err != nil {
		k.h.cfg.Log.Error("record a refused run token", "decision", d.ID, "err", err)
		return &rpcError{code: jsonrpc.CodeInternalError, message: "no decision could be recorded: nothing was done", status: 503}
	}
	if d.Effect == remit.Allow {
		return k.denial(k.c.refused[0])
	}
	return k.deniedError(&d)
}

// sees reports whether the agent may know of the server at all.
func (v *View) sees(server string) bool {
	for _, targets := range []map[string]bool{v.Call, v.List} {
		for t := range targets {
			if name, _, _ := strings.Cut(t, "/"); name == server {
				return true
			}
		}
	}
	return false
}

// shows reports whether the stage shows a server's tool: what it may call it may see.
func (v *View) shows(server, tool string) bool {
	t := target(server, tool)
	return v.Call[t] || v.List[t] || v.List[server]
}

func (k *call) request(action, target string) remit.Request {
	return remit.Request{At: k.c.at, Caller: k.c.who, Agent: k.c.agent, Run: cmp.Or(k.c.run, k.c.tokenOf), Action: action, Target: target, Via: "mcp",
		Refused: k.c.refused}
}

// decide asks the line about exactly what will go upstream (S29). A tool that is not what was reviewed is denied on record.
func (k *call) decide(ctx context.Context, reasons []remit.Reason) ([]byte, *rpcError) {
	a := k.a
	at := a.server
	if a.verb == "tools/call" {
		at = target(a.server, a.name)
	}
	req := k.request(a.action, at)
	req.Args, req.Trace = a.args, a.meta.traceparent
	if a.verb == "tools/call" {
		req.Keeps = keeps
	}
	if a.verb == "tools/call" && len(reasons) == 0 && k.view.shows(a.server, a.name) {
		if e := k.look(ctx, &req); e != nil {
			return nil, e
		}
	}
	d, err := k.h.cfg.Line.Decide(ctx, &req)
	if err != nil {
		k.h.cfg.Log.Error("decide a call of a tool", "decision", d.ID, "err", err)
		return nil, &rpcError{code: jsonrpc.CodeInternalError, message: "no decision could be recorded: nothing was done", status: 503}
	}
	//remit:guard S29 TestCallIsDecided
	if d.Effect != remit.Allow {
		return k.refused(&d)
	}
	if a.verb == "tools/call" {
		k.acted = &remit.Outcome{At: k.c.at, Target: at, Decision: d.ID, Permission: d.Permission, Agent: d.Agent, Run: d.Run, Verb: a.verb,
			Resource: a.name, Allowed: true, Source: "mcp"}
	}
	k.decision = d
	return nil, nil
}

// look finds the tool as its server describes it now and compares it with its pin and the client's headers with its schema.
func (k *call) look(ctx context.Context, req *remit.Request) *rpcError {
	if e := k.open(ctx); e != nil {
		if e.unfit == "" {
			return e
		}
		req.Refused = append(req.Refused, remit.Reason{Code: remit.ReasonTarget, Of: "server", Got: remit.Clip(e.unfit, 200)})
		return nil
	}
	set, e := k.conn.listTools(ctx)
	if e != nil {
		return e
	}
	pins, e := k.pinned(ctx, &set)
	if e != nil {
		return e
	}
	k.tool = set.named(k.a.name)
	//remit:guard S27 TestChangedToolIsHeld
	if k.tool == nil || pins.Tools[k.a.name].Digest != k.tool.digest {
		req.Refused = append(req.Refused, remit.Reason{Code: remit.ReasonTarget, Of: "pins",
			Got: "the tool is not as it was reviewed or first read: remit tool review " + k.a.server})
	}
	return nil
}

func (k *call) open(ctx context.Context) (e *rpcError) {
	if k.conn == nil {
		k.conn, e = k.h.open(ctx, k.c, &k.view, k.a.server, k.session)
	}
	return e
}

// decideListen: each subscription to a resource is a reading of it.
func (k *call) decideListen(ctx context.Context) *rpcError {
	var uris []string
	if raw := k.a.listen["resourceSubscriptions"]; raw != "" && json.Unmarshal([]byte(raw), &uris) != nil || len(uris) > 64 {
		return invalid("resourceSubscriptions must be at most 64 texts")
	}
	slices.Sort(uris)
	for _, uri := range slices.Compact(uris) {
		req := k.request("mcp.read", k.a.server)
		req.Args = remit.Args{"uri": remit.StringValue(uri)}
		d, err := k.h.cfg.Line.Decide(ctx, &req)
		if err != nil {
			return &rpcError{code: jsonrpc.CodeInternalError, message: "no decision could be recorded", status: 503}
		}
		if d.Effect != remit.Allow {
			return k.deniedError(&d)
		}
	}
	for _, list := range []string{"toolsListChanged", "promptsListChanged", "resourcesListChanged"} {
		if list != "toolsListChanged" && !k.view.List[k.a.server] {
			delete(k.a.listen, list)
		}
	}
	wanted := object{}
	for _, name := range []string{"toolsListChanged", "promptsListChanged", "resourcesListChanged", "resourceSubscriptions"} {
		if raw, ok := k.a.listen[name]; ok {
			wanted = append(wanted, member{name, []byte(raw)})
		}
	}
	k.a.params = object{{"notifications", wanted.append(nil)}}
	return nil
}

// perform asks the server and returns what the client gets. state and inputs are the server's own, of the stateless era.
func (k *call) perform(ctx context.Context, p peer, state, inputs string) ([]byte, *rpcError) {
	a := k.a
	switch a.verb {
	case "ping":
		return []byte("{}"), nil
	case "tools/list":
		return k.h.toolsFor(ctx, k)
	}
	if e := k.open(ctx); e != nil {
		return nil, e
	}
	o := &outgoing{method: a.verb, params: a.params, meta: a.meta, state: state, inputs: inputs}
	if a.method.name != "" {
		o.name = a.name
		if a.method.name == "uri" {
			o.name = a.uri
		}
	}
	if a.verb == "tools/call" {
		var e *rpcError
		if o.headers, e = k.tool.paramHeaders(k.header, a.args); e != nil {
			return nil, e
		}
		if k.conn.server.Turn != nil {
			leave, err := k.conn.server.Turn(ctx, &k.decision)
			if err != nil {
				return nil, unreachable(errors.New("it takes no call now"))
			}
			defer leave()
		}
	}
	ask := k.conn.exchange
	if k.session != nil && k.conn.greet.modern {
		ask = k.conn.rounds
	}
	raw, e := ask(ctx, o, p)
	if e != nil {
		k.failed(e)
		return nil, e
	}
	return k.finish(ctx, raw)
}

// finish notes what a call returned, and takes from a list what the stage does not show.
func (k *call) finish(ctx context.Context, raw []byte) ([]byte, *rpcError) {
	if k.acted == nil && k.a.kind != decided {
		return raw, nil
	}
	o, err := parseObject(raw)
	if err != nil {
		return nil, unreachable(errors.New("its result cannot be read"))
	}
	if o.text("resultType") == "input_required" {
		k.acted = nil // it goes on with the client's next round
		return k.sealState(o)
	}
	if k.acted == nil {
		return raw, nil
	}
	raw, e := k.returned(ctx, raw, o)
	if e != nil {
		return nil, e
	}
	return k.marked(raw), nil
}

// returned notes what a call returned, and withholds what may not be shown.
func (k *call) returned(ctx context.Context, raw []byte, o object) ([]byte, *rpcError) {
	sum := sha256.Sum256(raw)
	all := len(raw)
	raw, err := keep(k.decision.Obligations, raw)
	if err != nil {
		k.acted.Status, k.acted.Detail = 200, map[string]string{"withheld": err.Error(), "bytes": strconv.Itoa(all)}
		k.acted.Effective = string(o.get("isError")) != "true"
		return withheld(err), nil
	}
	failed := string(o.get("isError")) == "true"
	k.acted.Status, k.acted.Effective = 200, !failed
	if failed {
		k.acted.Status = 500
	}
	k.acted.Detail = map[string]string{"result": "sha256:" + hex.EncodeToString(sum[:]), "bytes": strconv.Itoa(all)}
	if k.h.cfg.Result != nil && !failed {
		if err := k.h.cfg.Result(ctx, &k.decision, raw); err != nil {
			k.h.cfg.Log.Error("keep values of a tool's result", "decision", k.decision.ID, "err", err)
			return nil, unreachable(errors.New("its result could not be kept"))
		}
	}
	return raw, nil
}

// metaCall is the member of _meta that says under which decision a call was made, where its run is: for traces.
const metaCall = "remit.internal/call"

// marked adds to the result of a call under which decision it was made. What the server itself says in our name is taken out.
func (k *call) marked(raw []byte) []byte {
	o, err := parseObject(raw)
	if err != nil {
		return raw // finish has read it, or written it
	}
	var meta object
	if given := o.get("_meta"); given != nil {
		if meta, err = parseObject(given); err != nil {
			return raw // no object: it is the server's, and the client's to refuse
		}
	}
	//remit:guard S29 TestResultsSayTheirDecision
	meta = slices.DeleteFunc(meta, func(m member) bool { return strings.HasPrefix(m.name, "remit.internal/") })
	b := []byte(`{"decision_id":"` + string(k.decision.ID) + `","run":`)
	b = remit.AppendJSONString(b, string(k.decision.Run))
	b = append(remit.AppendJSONString(append(b, `,"stage":`...), k.view.Stage), '}')
	return o.with("_meta", meta.with(metaCall, b).append(nil)).append(nil)
}

// sealState binds the server's state, and what it asks, to this caller and request: the server cannot tell who brings it back.
func (k *call) sealState(o object) ([]byte, *rpcError) {
	s := sealed{State: o.text("requestState")}
	if raw := o.get("inputRequests"); raw != nil {
		requests, err := parseObject(raw)
		if err != nil {
			return nil, unreachable(errors.New("what it asks cannot be read"))
		}
		for _, q := range requests {
			s.Asked = append(s.Asked, q.name)
		}
	}
	return o.with("requestState", remit.AppendJSONString(nil, k.h.seal(k.c, k.a, s))).append(nil), nil
}

// failed notes that a call did not return a result.
func (k *call) failed(e *rpcError) {
	if k.acted != nil {
		k.acted.Status = 502
		k.acted.Detail = map[string]string{"error": strconv.FormatInt(e.code, 10)}
	}
}

// record notes what became of an allowed call, once the client has its answer.
func (k *call) record() {
	if k.acted != nil && k.acted.Status != 0 {
		k.h.recorder.Note(*k.acted)
	}
}

// denial is a refusal that needs no decision, since nothing was asked of a target.
func (k *call) denial(r remit.Reason) *rpcError {
	return &rpcError{code: codeDenied, message: "denied: " + string(r.Code) + ": " + gateway.Next(r.Code), data: k.denialData(&remit.Decision{Reasons: []remit.Reason{r}})}
}

func (k *call) deniedError(d *remit.Decision) *rpcError {
	return &rpcError{code: codeDenied, message: k.deniedText(d), data: k.denialData(d)}
}

// denialData is what a program reads of a denial: codes and parts, never limits or others' evidence (S30), and where its run is, so
// that a trace can be laid beside the ledger.
func (k *call) denialData(d *remit.Decision) []byte {
	b := []byte(`{`)
	if d.Effect == remit.Hold {
		b = appendHeld(b, d)
	}
	if d.ID != "" {
		b = append(append(append(b, `"decision_id":"`...), d.ID...), `",`...)
	}
	for _, at := range []struct{ name, value string }{{"run", string(k.c.run)}, {"stage", k.view.Stage}} {
		if at.value != "" {
			b = append(remit.AppendJSONString(append(append(append(b, '"'), at.name...), `":`...), at.value), ',')
		}
	}
	b = gateway.AppendReasons(append(b, `"reasons":`...), d.Reasons)
	if len(d.Reasons) > 0 {
		b = remit.AppendJSONString(append(b, `,"next":`...), gateway.Next(d.Reasons[0].Code))
	}
	return append(b, '}')
}

// deniedText is what a model reads of a denial. Some frameworks keep nothing but the text: it names the run and its stage, too.
func (k *call) deniedText(d *remit.Decision) string {
	var b strings.Builder
	if d.Effect == remit.Hold {
		b.WriteString("Held: a person has to agree first")
	} else {
		b.WriteString("Denied")
	}
	for i, r := range d.Reasons {
		if i == 0 {
			b.WriteString(": ")
		} else {
			b.WriteString(", ")
		}
		b.WriteString(string(r.Code))
		if r.Of != "" {
			b.WriteString(" (" + r.Of + ")")
		}
	}
	b.WriteString(". ")
	if len(d.Reasons) > 0 {
		b.WriteString("To go on: " + gateway.Next(d.Reasons[0].Code) + ". ")
	}
	if d.Hold != "" {
		fmt.Fprintf(&b, "It waits as %s until %s: make the same call with the same arguments again, every %d seconds or so; once approved it passes one time. ",
			d.Hold, clock(d.Until), askAgain)
	}
	fmt.Fprintf(&b, "Decision %s", d.ID)
	if k.view.Stage != "" {
		fmt.Fprintf(&b, ", run %s, stage %s", k.c.run, k.view.Stage)
	}
	b.WriteByte('.')
	return b.String()
}

// metaDenial is the member of _meta that holds a denial for programs.
const metaDenial = "remit.internal/denial"

// withheld is what the client gets of a call that ran and whose result may not be shown as it is.
func withheld(err error) []byte {
	b := remit.AppendJSONString([]byte(`{"content":[{"type":"text","text":`), "The call was made; its result is withheld: "+err.Error())
	return append(b, `}],"isError":true}`...)
}

// deniedResult is a denial as frameworks show it to their model: a result that is an error.
func (k *call) deniedResult(d *remit.Decision) []byte {
	b := remit.AppendJSONString([]byte(`{"content":[{"type":"text","text":`), k.deniedText(d))
	b = append(b, `}],"isError":true,"_meta":{"`+metaDenial+`":`...)
	return append(append(b, k.denialData(d)...), `}}`...)
}
