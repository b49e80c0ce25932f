// SPDX-License-Identifier: Apache-2.0

package config

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	"remit"
)

// What a change does.
const (
	Added    = "added"
	Removed  = "removed"
	Widened  = "widened"  // all that was possible is, and more
	Narrowed = "narrowed" // less is possible, and nothing new
	Changed  = "changed"  // neither can be shown: read it as widened
)

// Diff says what the set changes against the one before, by meaning: permissions first, then what else workflows say, then the other
// documents. Files that were moved or rewritten without a change of meaning make no difference. before nil: everything is added.
func (s *Set) Diff(before *Set) []remit.PolicyChange {
	if before == nil {
		before = &Set{}
	}
	var out []remit.PolicyChange
	old, now := workflowsOf(before), workflowsOf(s)
	for _, name := range union(old, now) {
		out = append(out, permissionChanges(old[name], now[name])...)
	}
	for _, name := range union(old, now) {
		if o, n := old[name], now[name]; o != nil && n != nil {
			out = append(out, workflowChanges(o, n)...)
		}
	}
	return append(out, documentChanges(before, s)...)
}

func workflowsOf(s *Set) map[string]*remit.Workflow {
	out := map[string]*remit.Workflow{}
	for i := range s.Workflows {
		out[s.Workflows[i].Name] = &s.Workflows[i]
	}
	return out
}

func union[V any](a, b map[string]V) []string {
	keys := slices.Collect(maps.Keys(a))
	for k := range b {
		if _, ok := a[k]; !ok {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	return keys
}

// permissionsOf lists a workflow's permissions by "workflow/stage/name"; none for nil.
func permissionsOf(w *remit.Workflow) map[string]*remit.Permission {
	out := map[string]*remit.Permission{}
	if w == nil {
		return out
	}
	for i := range w.Stages {
		for j := range w.Stages[i].May {
			p := &w.Stages[i].May[j]
			out[w.Name+"/"+w.Stages[i].Name+"/"+p.Name] = p
		}
	}
	return out
}

func permissionChanges(old, now *remit.Workflow) []remit.PolicyChange {
	var out []remit.PolicyChange
	before, after := permissionsOf(old), permissionsOf(now)
	for _, name := range union(before, after) {
		o, n := before[name], after[name]
		c := remit.PolicyChange{Of: "permission " + name}
		switch {
		case o == nil:
			c.What, c.Line, c.Text = Added, n.Line, permissionText(n)
		case n == nil:
			c.What, c.Text = Removed, permissionText(o)
		default:
			d := comparison{old: paramsOf(old), now: paramsOf(now)}
			if c.What, c.Text = d.permission(o, n); c.What == "" {
				continue
			}
			c.Line = n.Line
		}
		out = append(out, c)
	}
	return out
}

func permissionText(p *remit.Permission) string {
	return fmt.Sprintf("%s may %s on %s", p.Who, p.Action, p.Target)
}

// comparison collects how two forms of one permission differ.
type comparison struct {
	old, now     map[string]remit.Parameter
	texts        []string
	wider, other bool // something new is possible; something that was is not
}

// note says that a part differs: whether the new one is within the old, and the reverse.
func (c *comparison) note(narrower, wider bool, format string, args ...any) {
	if narrower && wider {
		return
	}
	c.wider = c.wider || !narrower
	c.other = c.other || !wider
	c.texts = append(c.texts, fmt.Sprintf(format, args...))
}

func (c *comparison) what() string {
	switch {
	case c.texts == nil:
		return ""
	case !c.wider:
		return Narrowed
	case !c.other:
		return Widened
	}
	return Changed
}

func (c *comparison) permission(o, n *remit.Permission) (what, text string) {
	for _, part := range []struct{ of, old, now string }{{"who", string(o.Who), string(n.Who)}, {"action", o.Action, n.Action}, {"target", o.Target, n.Target}} {
		c.note(part.old == part.now, part.old == part.now, "%s: %s, was %s", part.of, part.now, part.old)
	}
	c.note(o.Under == "" || o.Under == n.Under, n.Under == "" || o.Under == n.Under, "under: %s, was %s", or(n.Under, "none"), or(o.Under, "none"))
	for _, name := range union(o.Where, n.Where) {
		c.argument(name, o.Where, n.Where)
	}
	same := reflect.DeepEqual(o.Hours, n.Hours)
	c.note(same || o.Hours == nil, same || n.Hours == nil, "hours differ")
	c.note(allMet(n.Evidence, o.Evidence), allMet(o.Evidence, n.Evidence), "evidence: %s, was %s", evidenceText(n.Evidence), evidenceText(o.Evidence))
	for _, name := range union(o.Limits, n.Limits) {
		was, is := o.Limits[name], n.Limits[name] // 0: none
		c.note(was == 0 || is != 0 && is <= was, is == 0 || was != 0 && was <= is, "limits: %s %d, was %d", name, is, was)
	}
	c.note(tiers[n.Sandbox] >= tiers[o.Sandbox], tiers[n.Sandbox] <= tiers[o.Sandbox], "sandbox: %s, was %s", or(n.Sandbox, "none"), or(o.Sandbox, "none"))
	c.note(n.TTL <= o.TTL, n.TTL >= o.TTL, "ttl: %s, was %s", n.TTL, o.TTL)
	return c.what(), strings.Join(c.texts, "; ")
}

// argument: one that is not named must be absent, which is within nothing but any.
func (c *comparison) argument(name string, old, now map[string]remit.Predicate) {
	o, had := old[name]
	n, has := now[name]
	switch {
	case !had:
		c.note(false, n.Kind == remit.PredicateAny, "where: %s: %s, was absent", name, DescribePredicate(n))
	case !has:
		c.note(o.Kind == remit.PredicateAny, false, "where: %s: absent, was %s", name, DescribePredicate(o))
	default:
		same := reflect.DeepEqual(o, n) && c.sameParameters(o)
		c.note(same || exactly(n, c.now, o, c.old), same || exactly(o, c.old, n, c.now), "where: %s: %s, was %s", name, DescribePredicate(n), DescribePredicate(o))
	}
}

// exactly is within, but a field that the greater one does not name must be absent.
func exactly(p remit.Predicate, params map[string]remit.Parameter, most remit.Predicate, mostParams map[string]remit.Parameter) bool {
	if p.Kind == remit.PredicateObject && most.Kind == remit.PredicateObject {
		for name, f := range p.Fields {
			if m, ok := most.Fields[name]; !ok || !exactly(f, params, m, mostParams) {
				return false
			}
		}
		return fieldsWithin(p.Fields, params, most.Fields, mostParams)
	}
	single := most.Kind == remit.PredicateEqual || most.Kind == remit.PredicateRange || most.Kind == remit.PredicatePattern
	if p.Kind == remit.PredicateSubset && single {
		return false // a list is no single value
	}
	return within(p, params, most, mostParams)
}

// sameParameters reports whether the parameters that a condition uses are declared as before.
func (c *comparison) sameParameters(p remit.Predicate) bool {
	for _, t := range p.Terms {
		if t.Param != "" && !(parameterWithin(c.old[t.Param], c.now[t.Param]) && parameterWithin(c.now[t.Param], c.old[t.Param])) {
			return false
		}
	}
	for _, f := range p.Fields {
		if !c.sameParameters(f) {
			return false
		}
	}
	return true
}

// allMet reports whether have asks for at least all that need asks for.
func allMet(have, need []remit.Requirement) bool {
	for i := range need {
		if !slices.ContainsFunc(have, func(r remit.Requirement) bool { return stricter(&r, &need[i]) }) {
			return false
		}
	}
	return true
}

func evidenceText(all []remit.Requirement) string {
	var out []string
	for i := range all {
		out = append(out, describeFloor(&all[i], ""))
	}
	if out == nil {
		return "none"
	}
	return strings.Join(out, " and ")
}

func workflowChanges(o, n *remit.Workflow) []remit.PolicyChange {
	var c comparison
	subset := func(a, b []remit.Name) bool {
		return !slices.ContainsFunc(a, func(x remit.Name) bool { return !slices.Contains(b, x) })
	}
	c.note(subset(n.Start.By, o.Start.By), subset(o.Start.By, n.Start.By), "start: by %v, was %v", n.Start.By, o.Start.By)
	c.note(n.Start.Expires <= o.Start.Expires, n.Start.Expires >= o.Start.Expires, "start: expires %s, was %s", n.Start.Expires, o.Start.Expires)
	c.note(!n.Start.Self || o.Start.Self, n.Start.Self || !o.Start.Self, "start: self %t, was %t", n.Start.Self, o.Start.Self)
	old, now := paramsOf(o), paramsOf(n)
	for _, name := range union(old, now) {
		p, had := old[name]
		q, has := now[name]
		c.note(had && has && parameterWithin(q, p), had && has && parameterWithin(p, q), "parameter %s differs", name)
	}
	same := slices.EqualFunc(o.Stages, n.Stages, func(a, b remit.Stage) bool { return a.Name == b.Name && slices.Equal(a.End, b.End) })
	c.note(same, same, "the stages, their order or who ends them differ")
	for i := range min(len(o.Stages), len(n.Stages)) {
		a, b := &o.Stages[i], &n.Stages[i]
		if a.Name != b.Name {
			break
		}
		c.note(b.Expires <= a.Expires && b.Expires != 0 || a.Expires == 0, a.Expires <= b.Expires && a.Expires != 0 || b.Expires == 0,
			"stage %s: expires %s, was %s", a.Name, expiry(b.Expires), expiry(a.Expires))
		order := slices.Equal(common(a, b), common(b, a))
		c.note(order, order, "stage %s: the order of its permissions differs, and the first that holds decides", a.Name)
	}
	if what := c.what(); what != "" {
		return []remit.PolicyChange{{What: what, Of: "Workflow " + n.Name, Text: strings.Join(c.texts, "; ")}}
	}
	return nil
}

func expiry(d time.Duration) string {
	if d == 0 {
		return "with the run"
	}
	return d.String()
}

// common lists the permissions of a that b has, too, in a's order.
func common(a, b *remit.Stage) []string {
	var out []string
	for i := range a.May {
		if slices.ContainsFunc(b.May, func(p remit.Permission) bool { return p.Name == a.May[i].Name }) {
			out = append(out, a.May[i].Name)
		}
	}
	return out
}

// documentChanges compares everything but workflows as written: what a key means there, only its reader knows.
func documentChanges(before, s *Set) []remit.PolicyChange {
	var out []remit.PolicyChange
	for _, key := range union(before.docs, s.docs) {
		kind, name, _ := strings.Cut(key, "/")
		o, had := before.docs[key]
		n, has := s.docs[key]
		c := remit.PolicyChange{Of: kind + " " + name}
		switch {
		case !had:
			c.What, c.Line = Added, place(n.file, n.node.Line)
		case !has:
			c.What = Removed
		case kind != "Workflow":
			a, b := canonical(o.node).Fields(), canonical(n.node).Fields()
			if kind == "Rule" {
				a, b = withModule(a, before.module(name)), withModule(b, s.module(name))
			}
			if kind == "Tool" {
				a, b = before.withPins(a), s.withPins(b)
			}
			var differ []string
			for _, k := range union(a, b) {
				if !a[k].Equal(b[k]) {
					differ = append(differ, k)
				}
			}
			if differ == nil {
				continue
			}
			c.What, c.Line, c.Text = Changed, place(n.file, n.node.Line), strings.Join(differ, ", ")
			if kind == "Tool" {
				c.What, c.Text = toolChange(before, s, name, differ)
			}
		default:
			continue
		}
		out = append(out, c)
	}
	return out
}

func withModule(fields map[string]remit.Value, module string) map[string]remit.Value {
	out := maps.Clone(fields)
	delete(out, "file")
	out["rego"] = remit.StringValue(module)
	return out
}
