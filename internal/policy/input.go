// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"

	"remit"
)

// document is the input of the organisation's rules and of the printed policy: one shape for both.
//
//	at          RFC 3339, UTC            asked       {permission, ttl_ns} as the caller stated them
//	agent       "agent/deploy"           run         {id, workflow, digest, stage, params}
//	caller      SPIFFE ID or person      permission  the name of the one that matched (rules only)
//	level       none … node              evidence    in the order of the needs: a fact
//	via         enforcement point          {id, kind, source, signer, name, subjects, worst, made, until, fields, superseded}
//	sandbox     {tier}: in what it runs        or {kind, reason: {code, of}}
//	action, target
//	args        as judged                parent      {id, effect, run, permission: {workflow, stage, permission}, args} or {}
//	approvals   those that the rules asked for, as evidence (printed policy only)
//	from        [{permission, path, value}]: values of args that earlier calls of the run returned (printed policy only)
//	outside     [{code, of}]: reasons from outside policy that denied (printed policy only)
//
// A number that OPA would round stands as {"#number": "…"}.
type document struct {
	at                                time.Time
	agent                             remit.Name
	caller, level, via                string
	action, target, asked, permission string
	sandbox                           remit.Tier
	askedTTL                          time.Duration
	args                              remit.Args
	run                               remit.RunID
	workflow, stage                   string
	digest                            remit.Digest
	params                            map[string]remit.Value
	evidence, approvals               []remit.Found
	parent                            *remit.Decision
	from                              []fact
	outside                           []remit.Reason
}

// ruleFields are the members of input that rules may refer to.
func ruleFields() []string {
	return []string{"action", "agent", "args", "asked", "at", "caller", "evidence", "level", "parent", "permission", "run", "sandbox", "target", "via"}
}

func (p *Plan) ruleInput(req *remit.Request, run *remit.Run, m *remit.Match, found []remit.Found) *document {
	d := &document{at: req.At, agent: req.Agent, caller: req.Caller.String(), level: req.Caller.Level.String(), via: req.Via,
		action: req.Action, target: req.Target, sandbox: req.Sandbox, asked: req.Permission, askedTTL: req.TTL, permission: m.Ref.Name, args: m.Args,
		run: run.ID, workflow: run.Workflow, stage: run.Stage, digest: run.Digest, params: run.Params, evidence: found}
	if req.Under != "" && p.cfg.Parent != nil {
		if parent, ok := p.cfg.Parent(req.Under); ok {
			d.parent = &parent
		}
	}
	return d
}

// Input returns the input document, as JSON, under which the exported policy must give a recorded decision's answer. The
// parent is the decision that d.Under names, when it was open then; nil: there was none. Reasons that did not come from
// policy (a suspension, an ended run, state that moved, a target's refusal) are handed in as such: policy cannot know them.
func Input(d *remit.Decision, parent *remit.Decision) ([]byte, error) {
	doc := document{at: d.At, agent: d.Agent, caller: d.Caller, level: d.Level, via: d.Via, action: d.Action, target: d.Target, sandbox: d.Sandbox,
		asked: d.Asked, askedTTL: d.AskedTTL, permission: d.Permission.Name, args: d.Args, run: d.Run, workflow: d.Permission.Workflow,
		stage: d.Permission.Stage, digest: d.WorkflowDigest, params: d.Params, parent: parent, from: factsOf(d), outside: outside(d)}
	found, err := foundOf(d)
	if err != nil {
		return nil, err
	}
	doc.evidence = own(found)
	doc.approvals = found[len(doc.evidence):]
	value, err := ast.JSON(doc.object(append(ruleFields(), "approvals", "from", "outside")))
	if err != nil {
		return nil, fmt.Errorf("input of decision %s: %w", d.ID, err)
	}
	return json.Marshal(value)
}

// foundOf restores what was found for each need, in order.
func foundOf(d *remit.Decision) ([]remit.Found, error) {
	found := make([]remit.Found, len(d.Evidence)+len(d.Lacking))
	lacking := make([]bool, len(found))
	for i := range d.Lacking {
		l := &d.Lacking[i]
		if l.Need < 0 || l.Need >= len(found) || lacking[l.Need] {
			return nil, &remit.Error{Code: remit.CodeInvalid, Msg: "decision " + string(d.ID) + " lists its missing evidence wrongly"}
		}
		lacking[l.Need] = true
		found[l.Need].Need.Kind = l.Kind
		if l.Reason.Code != "" {
			found[l.Need].Reason = &l.Reason
		}
	}
	next := 0
	for i := range found {
		if !lacking[i] {
			found[i].Evidence, found[i].Need.Kind = &d.Evidence[next], d.Evidence[next].Kind
			next++
		}
	}
	return found, nil
}

// outside lists the reasons of a decision that policy did not give, or could not give again. Where there is one, it stands
// for the whole answer.
func outside(d *remit.Decision) []remit.Reason {
	if d.Policy == "" || slices.ContainsFunc(d.Reasons, isOutside) {
		return d.Reasons
	}
	return nil
}

func isOutside(r remit.Reason) bool {
	switch r.Code {
	case remit.ReasonTarget, remit.ReasonConflict, remit.ReasonLimit, remit.ReasonHoldExpired, remit.ReasonApprovalDenied, remit.ReasonObligation,
		remit.ReasonThrottled:
		return true
	case remit.ReasonFault: // a source's fault is part of what was found, and so of the input
		return !strings.HasPrefix(r.Of, "evidence.")
	case remit.ReasonRule:
		return r.Of == "rules.fault"
	}
	return r.Code == remit.ReasonArgument && r.Of == "arguments" // a request too large for the ledger: its arguments are not recorded
}

// object builds the named members and no other: most rules look at few, and building is what costs.
func (d *document) object(fields []string) ast.Value {
	o := ast.NewObjectWithCapacity(len(fields))
	for _, f := range fields {
		o.Insert(ast.InternedTerm(f), d.field(f))
	}
	return o
}

func (d *document) field(name string) *ast.Term {
	switch name {
	case "at":
		return instant(d.at)
	case "agent":
		return ast.StringTerm(string(d.agent))
	case "caller":
		return ast.StringTerm(d.caller)
	case "level":
		return ast.StringTerm(d.level)
	case "via":
		return ast.StringTerm(d.via)
	case "action":
		return ast.StringTerm(d.action)
	case "target":
		return ast.StringTerm(d.target)
	case "sandbox":
		return objectTerm("tier", ast.StringTerm(string(d.sandbox)))
	case "permission":
		return ast.StringTerm(d.permission)
	case "args":
		return fieldsTerm(d.args)
	case "asked":
		return objectTerm("permission", ast.StringTerm(d.asked), "ttl_ns", ast.NumberTerm(json.Number(fmt.Sprint(int64(d.askedTTL)))))
	case "run":
		return objectTerm("id", ast.StringTerm(string(d.run)), "workflow", ast.StringTerm(d.workflow),
			"digest", ast.StringTerm(string(d.digest)), "stage", ast.StringTerm(d.stage), "params", scalarsTerm(d.params))
	case "parent":
		return parentTerm(d.parent)
	case "evidence":
		return foundTerms(d.evidence)
	case "approvals":
		return foundTerms(d.approvals)
	case "from":
		terms := make([]*ast.Term, len(d.from))
		for i := range d.from {
			f := &d.from[i]
			terms[i] = objectTerm("permission", ast.StringTerm(f.Permission), "path", ast.StringTerm(f.Path), "value", inputValue(f.value))
		}
		return ast.ArrayTerm(terms...)
	case "outside":
		terms := make([]*ast.Term, len(d.outside))
		for i := range d.outside {
			terms[i] = reasonTerm(&d.outside[i])
		}
		return ast.ArrayTerm(terms...)
	}
	return ast.NullTerm()
}

// objectTerm takes key, value, key, value …
func objectTerm(pairs ...any) *ast.Term {
	o := ast.NewObjectWithCapacity(len(pairs) / 2)
	for i := 0; i < len(pairs); i += 2 {
		o.Insert(ast.InternedTerm(pairs[i].(string)), pairs[i+1].(*ast.Term))
	}
	return ast.NewTerm(o)
}

func reasonTerm(r *remit.Reason) *ast.Term {
	return objectTerm("code", ast.StringTerm(string(r.Code)), "of", ast.StringTerm(r.Of))
}

func parentTerm(p *remit.Decision) *ast.Term {
	if p == nil {
		return objectTerm()
	}
	usableArgs := make(remit.Args, len(p.Args))
	for name, v := range p.Args {
		if usable(v) {
			usableArgs[name] = v
		}
	}
	return objectTerm("id", ast.StringTerm(string(p.ID)), "effect", ast.StringTerm(p.Effect.String()), "run", ast.StringTerm(string(p.Run)),
		"permission", objectTerm("workflow", ast.StringTerm(p.Permission.Workflow), "stage", ast.StringTerm(p.Permission.Stage),
			"permission", ast.StringTerm(p.Permission.Name)),
		"args", fieldsTerm(usableArgs))
}

func foundTerms(found []remit.Found) *ast.Term {
	terms := make([]*ast.Term, len(found))
	for i := range found {
		terms[i] = foundTerm(&found[i])
	}
	return ast.ArrayTerm(terms...)
}

func foundTerm(f *remit.Found) *ast.Term {
	if r := lackReason(&f.Need, f); r != nil {
		return objectTerm("kind", ast.StringTerm(string(f.Need.Kind)), "reason", reasonTerm(r))
	}
	e := f.Evidence
	subjects := make([]*ast.Term, len(e.Subjects))
	for i, s := range e.Subjects {
		subjects[i] = ast.StringTerm(string(s))
	}
	fields := ast.NewObjectWithCapacity(len(e.Fields))
	for _, k := range slices.Sorted(maps.Keys(e.Fields)) {
		fields.Insert(ast.StringTerm(k), ast.StringTerm(e.Fields[k]))
	}
	return objectTerm("id", ast.StringTerm(string(e.ID)), "kind", ast.StringTerm(string(e.Kind)), "source", ast.StringTerm(e.Source),
		"signer", ast.StringTerm(e.Signer), "name", ast.StringTerm(e.Name), "subjects", ast.ArrayTerm(subjects...),
		"worst", ast.StringTerm(e.Worst.String()), "made", instant(e.Made), "until", instant(e.Until), "fields", ast.NewTerm(fields),
		"superseded", ast.StringTerm(string(e.Superseded)))
}

// instant is "" for no time. Times that OPA cannot count in nanoseconds are moved to the ends of what it can.
func instant(t time.Time) *ast.Term {
	first, last := time.Date(1700, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(2260, 1, 1, 0, 0, 0, 0, time.UTC)
	switch {
	case t.IsZero():
		return ast.StringTerm("")
	case t.Before(first):
		t = first
	case t.After(last):
		t = last
	}
	return ast.StringTerm(t.UTC().Format(time.RFC3339Nano))
}

// scalarsTerm holds the run's parameters as far as predicates may use them; see scope.resolve.
func scalarsTerm(params map[string]remit.Value) *ast.Term {
	o := ast.NewObjectWithCapacity(len(params))
	for _, name := range slices.Sorted(maps.Keys(params)) {
		if v := params[name]; v.Kind() != remit.List && v.Kind() != remit.Object && usable(v) {
			o.Insert(ast.StringTerm(name), inputValue(v))
		}
	}
	return ast.NewTerm(o)
}

func fieldsTerm(fields map[string]remit.Value) *ast.Term {
	o := ast.NewObjectWithCapacity(len(fields))
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		o.Insert(ast.StringTerm(name), inputValue(fields[name]))
	}
	return ast.NewTerm(o)
}

func inputValue(v remit.Value) *ast.Term {
	switch v.Kind() {
	case remit.Bool:
		return ast.BooleanTerm(v.Text() == "true")
	case remit.Number:
		if !exact(v.Text()) {
			return objectTerm(inexactKey, ast.StringTerm(v.Text()))
		}
		return ast.NumberTerm(json.Number(v.Text()))
	case remit.String:
		return ast.StringTerm(v.Text())
	case remit.List:
		terms := make([]*ast.Term, len(v.Elements()))
		for i, e := range v.Elements() {
			terms[i] = inputValue(e)
		}
		return ast.ArrayTerm(terms...)
	case remit.Object:
		return fieldsTerm(v.Fields())
	}
	return ast.NullTerm()
}
