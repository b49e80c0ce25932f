// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"remit"
)

// Export prints the revision as Rego, by file name relative to one folder: policy.rego with the workflows, and rules/NAME.rego
// with the organisation's rules as they were loaded. Stock OPA gives with it the answer {effect, permission, reasons, ttl_ns}
// that the plan gives, for an input document made by Input. It is the same text for the same revision.
func (p *Plan) Export() map[string][]byte { return p.print(func(string, string) bool { return true }) }

// print exports the stages that are wanted, of the workflows that are: those it asks about with the stage "".
func (p *Plan) print(wanted func(workflow, stage string) bool) map[string][]byte {
	w := &printer{plan: p}
	w.line("%s", preamble)
	w.line("# The rules' outputs, and which rule defines each.")
	w.line("rule_of := {")
	for _, output := range []string{"columns", "deny", "hold", "tier"} {
		w.line("\t%s: %s,", quote(output), quote(p.rules.of(output)))
	}
	w.line("}\n")
	w.workflows(p, wanted)
	files := map[string][]byte{"policy.rego": []byte(w.String())}
	if p.rules != nil {
		for _, m := range p.rules.modules {
			files["rules/"+strings.TrimSuffix(m.Name, ".rego")+".rego"] = []byte(m.Module)
		}
	}
	return files
}

// printer writes Rego. Each predicate becomes rules of its own, named after permission and argument.
type printer struct {
	strings.Builder
	plan *Plan
}

func (w *printer) line(format string, args ...any) { fmt.Fprintf(w, format+"\n", args...) }

func quote(s string) string { return string(remit.AppendJSONString(nil, s)) }

func quoteAll(list []string) string {
	quoted := make([]string, len(list))
	for i, s := range list {
		quoted[i] = quote(s)
	}
	return "[" + strings.Join(quoted, ", ") + "]"
}

func (w *printer) workflows(p *Plan, wanted func(workflow, stage string) bool) {
	var printed []*stage
	w.line("workflows := {")
	for i := range p.cfg.Workflows {
		flow := &p.cfg.Workflows[i]
		if !wanted(flow.Name, "") {
			continue
		}
		w.line("\t%s: {\"digest\": %s, \"stages\": {", quote(flow.Name), quote(string(flow.Digest)))
		for j := range flow.Stages {
			if name := flow.Stages[j].Name; wanted(flow.Name, name) {
				s := p.workflows[flow.Name].stages[name]
				w.line("\t\t%s: {%s},", quote(name), index(s))
				printed = append(printed, s)
			}
		}
		w.line("\t}},")
	}
	w.line("}")
	for _, s := range printed {
		for _, c := range s.all {
			w.permission(c)
		}
	}
}

func index(s *stage) string {
	var entries []string
	seen := map[key]bool{}
	for _, c := range s.all {
		k := key{c.Who, c.Action, c.Target}
		if seen[k] {
			continue
		}
		seen[k] = true
		var ids []string
		for _, same := range s.index[k] {
			ids = append(ids, same.id)
		}
		entries = append(entries, quoteAll([]string{string(k.who), k.action, k.target})+": "+quoteAll(ids))
	}
	return strings.Join(entries, ", ")
}

func (w *printer) permission(c *permission) {
	w.line("\n# %s of workflow %s, stage %s: %s may %s on %s", comment(c.Name), comment(c.ref.Workflow), comment(c.ref.Stage),
		comment(string(c.Who)), comment(c.Action), comment(c.Target))
	named := make([]string, len(c.where))
	for i := range c.where {
		named[i] = c.where[i].name
	}
	limit := c.TTL
	if limit == 0 {
		limit = DefaultTTL
	}
	w.line("permission.%s := {\"name\": %s, \"named\": %s, \"ttl_ns\": %d}", c.id, quote(c.Name), quoteAll(named), limit)
	if c.Under != "" {
		w.under(c)
	}
	if c.Hours != nil {
		w.hours(c)
	}
	for i := range c.where {
		a := &c.where[i]
		if a.is.Kind == remit.PredicateAny {
			continue
		}
		rule := fmt.Sprintf("%s_where_%d", c.id, i)
		w.line("difference.%s contains {\"code\": \"argument_mismatch\", \"of\": %s} if not %s", c.id, quote("where."+a.name), rule)
		w.predicate(c, rule, "input.args["+quote(a.name)+"]", a.is)
	}
	if c.Sandbox != "" {
		w.line("lack.%s contains {\"code\": \"attestation_level\", \"of\": \"sandbox\"} if not tiered(%s)", c.id, quote(c.Sandbox))
	}
	if w.plan.production[c.Target] {
		w.line("lack.%s contains {\"code\": \"attestation_level\", \"of\": \"caller\"} if not launched", c.id)
	}
	w.evidence(c)
}

// comment keeps a name from ending the line that it stands in.
func comment(s string) string { return strings.Trim(strconv.Quote(s), `"`) }

func (w *printer) under(c *permission) {
	w.line("difference.%s contains {\"code\": \"not_inside_call\", \"of\": \"under\"} if not %s_call", c.id, c.id)
	w.line("%s_call := input.parent.args if {", c.id)
	w.line("\tinput.parent.effect == \"allow\"\n\tinput.run.id != \"\"\n\tinput.parent.run == input.run.id")
	w.line("\tinput.parent.permission == {\"workflow\": %s, \"stage\": %s, \"permission\": %s}\n}",
		quote(c.ref.Workflow), quote(c.ref.Stage), quote(c.Under))
}

func (w *printer) hours(c *permission) {
	h := c.Hours
	var today, after []string // after: the days on which a window over midnight ends
	for i, on := range h.Days {
		if on {
			today = append(today, time.Weekday(i).String())
			after = append(after, time.Weekday((i+1)%7).String())
		}
	}
	w.line("difference.%s contains {\"code\": \"outside_hours\", \"of\": \"hours\"} if not %s_hours", c.id, c.id)
	body := func(days []string, conditions ...string) {
		w.line("%s_hours if {\n\tc := clock(%s)\n\tc.day in %s", c.id, quote(h.Zone.String()), quoteAll(days))
		for _, condition := range conditions {
			w.line("\t%s", condition)
		}
		w.line("}")
	}
	from, to := fmt.Sprintf("c.minute >= %d", h.From), fmt.Sprintf("c.minute < %d", h.To)
	if h.From < h.To {
		body(today, from, to)
		return
	}
	body(today, from)
	body(after, to)
}

// term is the expression of a term; it is undefined when the term cannot be resolved.
func (w *printer) term(c *permission, t *remit.Term) string {
	switch {
	case t.Param != "":
		return "input.run.params[" + quote(t.Param) + "]"
	case t.Call != "":
		return c.id + "_call[" + quote(t.Call) + "]"
	}
	return t.Value.String()
}

// predicate prints rule, which is defined when path holds p. A path that is undefined, because an argument is absent, leaves
// the rule undefined.
func (w *printer) predicate(c *permission, rule, path string, p *remit.Predicate) {
	switch p.Kind {
	case remit.PredicateAny:
		w.line("%s := true", rule)
	case remit.PredicateEqual:
		w.line("%s if {\n\tpresent(%s)\n\t%s == %s\n}", rule, path, path, w.term(c, &p.Terms[0]))
	case remit.PredicateSubset:
		w.terms(c, rule, p)
		w.line("%s if within(%s, %s_terms)", rule, path, rule)
	case remit.PredicateRange:
		w.line("%s if {\n\tis_number(%s)", rule, path)
		w.bounds(path, p)
		w.line("}")
	case remit.PredicatePattern:
		w.line("%s if {\n\tis_string(%s)\n\tregex.match(%s, %s)\n}", rule, path, quote(p.Pattern.String()), path)
	case remit.PredicateObject:
		w.object(c, rule, path, p)
	case remit.PredicateFrom:
		w.line("%s if within(%s, {f.value | some f in input.from; f.permission == %s; f.path == %s})", rule, path, quote(p.From), quote(p.Path))
	case remit.PredicateChoice:
		w.choice(c, rule, path, p)
	default:
		w.line("%s if false", rule)
	}
}

// choice prints a rule for what is not there, and one for what is.
func (w *printer) choice(c *permission, rule, path string, p *remit.Predicate) {
	if p.Empty {
		w.line("%s_there if present(%s)\n\n%s if not %s_there\n\n%s if %s == []", rule, path, rule, rule, rule, path)
	}
	w.line("%s_terms contains f.value if {\n\tsome f in input.from\n\t[f.permission, f.path] in [", rule)
	for _, by := range p.Sources {
		w.line("\t\t[%s, %s],", quote(by.From), quote(by.Path))
	}
	w.line("\t]\n}")
	w.terms(c, rule, p)
	w.line("%s if {\n\tpresent(%s)\n\twithin(%s, %s_terms)\n}", rule, path, path, rule)
}

func (w *printer) terms(c *permission, rule string, p *remit.Predicate) {
	for i := range p.Terms {
		w.line("%s_terms contains %s", rule, w.term(c, &p.Terms[i]))
	}
}

func (w *printer) bounds(path string, p *remit.Predicate) {
	if p.Min != nil {
		w.line("\t%s >= %s", path, p.Min)
	}
	if p.Max != nil {
		w.line("\t%s <= %s", path, p.Max)
	}
}

func (w *printer) object(c *permission, rule, path string, p *remit.Predicate) {
	names := slices.Sorted(maps.Keys(p.Fields))
	w.line("%s if {\n\tis_object(%s)\n\tnot unnamed(%s, %s)", rule, path, path, quoteAll(names))
	for i, name := range names {
		if p.Fields[name].Kind != remit.PredicateAny {
			w.line("\t%s_%d", rule, i)
		}
	}
	w.line("}")
	for i, name := range names {
		if is := p.Fields[name]; is.Kind != remit.PredicateAny {
			w.predicate(c, fmt.Sprintf("%s_%d", rule, i), path+"["+quote(name)+"]", &is)
		}
	}
}
