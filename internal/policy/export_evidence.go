// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"maps"
	"slices"

	"remit"
)

// evidence prints what a permission needs: the facts by their place, then the approvals after them.
func (w *printer) evidence(c *permission) {
	for i := range c.facts {
		w.requirement(c, i, c.facts[i].Requirement)
	}
	for i := range c.approvals {
		w.approval(c, len(c.facts), i, c.approvals[i].Approval)
	}
}

// reason is the object that a reason about evidence is.
func reason(code remit.ReasonCode, of string) string {
	return fmt.Sprintf(`{"code": %s, "of": %s}`, quote(string(code)), quote(of))
}

func (w *printer) requirement(c *permission, at int, r *remit.Requirement) {
	of := "evidence." + string(r.Kind)
	place := fmt.Sprint(at)
	rule := fmt.Sprintf("%s_need_%d", c.id, at)
	names := 0
	// resolved prints a rule with the value of a call on a term, and returns the rule's name.
	resolved := func(part, call string, t *remit.Term) string {
		name := fmt.Sprintf("%s_%d", rule, names)
		names++
		w.line("%s := %s(%s)", name, call, w.term(c, t))
		w.line("unresolved.%s contains %s if not %s", c.id, reason(remit.ReasonArgument, of+"."+part), name)
		return name
	}
	checks := 0
	w.absent(c, place, of, "true")
	check := func(code remit.ReasonCode, condition string) {
		w.check(c, fmt.Sprintf("%s_check_%d", rule, checks), place, reason(code, of), condition)
		checks++
	}
	check(remit.ReasonFault, fmt.Sprintf("[e.kind, e.source] == [%s, %s]", quote(string(r.Kind)), quote(r.Source)))
	check(remit.ReasonSuperseded, `e.superseded == ""`)
	check(remit.ReasonEvidenceStale, fmt.Sprintf("fresh(e, %d)", r.Within))
	if r.ID != nil {
		check(remit.ReasonEvidenceField, "e.name == "+resolved("id", "text", r.ID))
	}
	if r.Of != nil {
		check(remit.ReasonEvidenceSubject, resolved("of", "digest", r.Of)+" in e.subjects")
	}
	if r.Worst != remit.SeverityUnset {
		check(remit.ReasonEvidenceSeverity, fmt.Sprintf("rank[e.worst] <= rank[%s]", quote(r.Worst.String())))
	}
	for _, name := range slices.Sorted(maps.Keys(r.Match)) {
		t := r.Match[name]
		check(remit.ReasonEvidenceField, fmt.Sprintf("e.fields[%s] == %s", quote(name), resolved(name, "text", &t)))
	}
}

// absent prints the reason for no fact at a place, when the requirement applies.
func (w *printer) absent(c *permission, place, of, when string) {
	w.line("lack.%s contains absent(%s, %s) if {\n\t%s\n\tnot fact(%s)\n}", c.id, place, quote(of), when, place)
}

// check prints the reason for a fact that does not say what it must. The condition is a rule of its own, as everything that
// stands under a "not": OPA evaluates the operands of an expression before its "not", so that an undefined operand would
// make the whole line undefined, and the reason disappear.
func (w *printer) check(c *permission, rule, place, reason, condition string) {
	w.line("lack.%s contains %s if {\n\tfact(%s)\n\tnot %s\n}", c.id, reason, place, rule)
	w.line("%s if {\n\te := fact(%s)\n\t%s\n}", rule, place, condition)
}

// approval prints the condition under which the k-th approval is asked for. Its place depends on the ones before it.
func (w *printer) approval(c *permission, facts, k int, a *remit.ApprovalRequirement) {
	names := slices.Sorted(maps.Keys(a.When))
	rule := fmt.Sprintf("%s_asks_%d", c.id, k)
	w.line("%s_asks contains %d if {\n\ttrue", c.id, k)
	for i := range names {
		w.line("\t%s_%d", rule, i)
	}
	w.line("}")
	for i, name := range names {
		is := a.When[name]
		w.may(c, fmt.Sprintf("%s_%d", rule, i), "input.args["+quote(name)+"]", &is)
	}
	place := rule + "_place"
	w.line("%s := %d + count({i | some i in %s_asks; i < %d}) if %d in %s_asks", place, facts, c.id, k, k, c.id)
	need := approvalNeed(a)
	of := "evidence." + string(remit.EvidenceApproval)
	w.line("lack.%s contains absent_approval(%s) if not fact(%s)", c.id, place, place)
	check := func(name string, code remit.ReasonCode, condition string) {
		w.check(c, rule+"_check_"+name, place, reason(code, of), condition)
	}
	check("kind", remit.ReasonFault, `e.kind == "approval"`)
	check("newest", remit.ReasonSuperseded, `e.superseded == ""`)
	check("fresh", remit.ReasonEvidenceStale, fmt.Sprintf("fresh(e, %d)", a.Within))
	for _, name := range slices.Sorted(maps.Keys(need.Match)) {
		check(name, remit.ReasonEvidenceField, fmt.Sprintf("e.fields[%s] == %s", quote(name), quote(need.Match[name])))
	}
}

// may prints the meaning of a predicate in an approval's condition: absent, mistyped and unresolved values hold.
func (w *printer) may(c *permission, rule, path string, p *remit.Predicate) {
	unless := func(name, condition string) {
		w.line("%s_%s if %s\n%s if not %s_%s", rule, name, condition, rule, rule, name)
	}
	unless("there", "present("+path+")")
	switch p.Kind {
	case remit.PredicateEqual, remit.PredicateSubset:
		w.terms(c, rule, p)
		for i := range p.Terms {
			unless(fmt.Sprintf("term_%d", i), "present("+w.term(c, &p.Terms[i])+")")
		}
		if p.Kind == remit.PredicateEqual {
			w.line("%s if %s in %s_terms", rule, path, rule)
			return
		}
		w.line("%s if overlaps(%s, %s_terms)", rule, path, rule)
	case remit.PredicateRange:
		unless("number", "is_number("+path+")")
		w.line("%s if {\n\ttrue", rule)
		w.bounds(path, p)
		w.line("}")
	case remit.PredicatePattern:
		unless("text", "is_string("+path+")")
		w.line("%s if {\n\tis_string(%s)\n\tregex.match(%s, %s)\n}", rule, path, quote(p.Pattern.String()), path)
	case remit.PredicateObject:
		unless("object", "is_object("+path+")")
		w.mayFields(c, rule, path, p)
	default:
		w.line("%s := true", rule)
	}
}

func (w *printer) mayFields(c *permission, rule, path string, p *remit.Predicate) {
	names := slices.Sorted(maps.Keys(p.Fields))
	w.line("%s if {\n\tis_object(%s)", rule, path)
	for i := range names {
		w.line("\t%s_%d", rule, i)
	}
	w.line("}")
	for i, name := range names {
		is := p.Fields[name]
		w.may(c, fmt.Sprintf("%s_%d", rule, i), path+"["+quote(name)+"]", &is)
	}
}
