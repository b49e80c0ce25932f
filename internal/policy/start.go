// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"time"

	"remit"
)

// StartNeed returns the evidence that run parameters with a source of this kind are fields of: what the first requirement of the
// kind in the workflow asks for, with the starter's parameters in it. ok is false when no permission requires any; reasons say
// what of it cannot be resolved.
func (p *Plan) StartNeed(workflow string, kind remit.EvidenceKind, params map[string]remit.Value) (need remit.Need, ok bool, reasons []remit.Reason) {
	s := scope{params: params}
	for _, c := range p.inOrder(workflow) {
		for i := range c.facts {
			if c.facts[i].Kind == kind {
				reasons = s.need(&c.facts[i], &need, nil)
				return need, true, reasons
			}
		}
	}
	return need, false, nil
}

// StartArgs returns the arguments that every permission of the workflow that names them fixes to one and the same value: what a
// source can compare its fact with before anything is asked for.
func (p *Plan) StartArgs(workflow string, params map[string]remit.Value) remit.Args {
	s := scope{params: params}
	out, open := remit.Args{}, map[string]bool{}
	for _, c := range p.inOrder(workflow) {
		for i := range c.where {
			a := &c.where[i]
			v, ok := remit.Value{}, false
			if a.is.Kind == remit.PredicateEqual {
				v, ok = s.resolve(&a.is.Terms[0])
			}
			before, twice := out[a.name]
			if !ok || twice && !before.Equal(v) {
				open[a.name] = true
			}
			out[a.name] = v
		}
	}
	for name := range open {
		delete(out, name)
	}
	return out
}

// inOrder lists a workflow's permissions as its file does.
func (p *Plan) inOrder(workflow string) (out []*permission) {
	for i := range p.cfg.Workflows {
		if w := &p.cfg.Workflows[i]; w.Name == workflow {
			for j := range w.Stages {
				out = append(out, p.workflows[workflow].stages[w.Stages[j].Name].all...)
			}
		}
	}
	return out
}

// Lacks says in what a fact is not what is needed; nothing: it is.
func Lacks(need *remit.Need, f *remit.Found, at time.Time) []remit.Reason { return lacks(need, f, at) }
