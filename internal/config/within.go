// SPDX-License-Identifier: Apache-2.0

package config

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"remit"
)

// What is within what. Every function answers true only when it can be shown for every run and every argument; what cannot be
// shown is not within.

func paramsOf(w *remit.Workflow) map[string]remit.Parameter {
	out := make(map[string]remit.Parameter, len(w.Parameters))
	for _, p := range w.Parameters {
		out[p.Name] = p
	}
	return out
}

// within reports whether all that p lets pass, most lets pass, too. Parameters are those of the workflow that p stands in, and of
// most's. A list is within a condition when each of its values is.
func within(p remit.Predicate, params map[string]remit.Parameter, most remit.Predicate, mostParams map[string]remit.Parameter) bool {
	switch {
	case most.Kind == remit.PredicateAny:
		return true
	case most.Kind != remit.PredicateChoice && (p.Kind == remit.PredicateEqual || p.Kind == remit.PredicateSubset):
		if p.Kind == remit.PredicateSubset && most.Kind == remit.PredicateEqual && len(p.Terms) > 1 {
			return false
		}
		for _, t := range p.Terms {
			if !termWithin(t, params, most, mostParams) {
				return false
			}
		}
		return true
	case most.Kind == remit.PredicateChoice:
		return choiceWithin(p, params, most, mostParams)
	case p.Kind != most.Kind:
		return false
	case p.Kind == remit.PredicateFrom:
		return p.Source == most.Source
	case p.Kind == remit.PredicateRange:
		return rangeWithin(p.Min, p.Max, most)
	case p.Kind == remit.PredicatePattern:
		return p.Pattern.String() == most.Pattern.String()
	case p.Kind == remit.PredicateObject:
		return fieldsWithin(p.Fields, params, most.Fields, mostParams)
	}
	return false
}

// choiceWithin: p lists values and sources, and each is one of most's.
func choiceWithin(p remit.Predicate, params map[string]remit.Parameter, most remit.Predicate, mostParams map[string]remit.Parameter) bool {
	switch p.Kind {
	case remit.PredicateEqual, remit.PredicateSubset, remit.PredicateChoice:
	case remit.PredicateFrom:
		return slices.Contains(most.Sources, p.Source)
	default:
		return false
	}
	values := remit.Predicate{Kind: remit.PredicateSubset, Terms: most.Terms}
	for _, t := range p.Terms {
		if !termWithin(t, params, values, mostParams) {
			return false
		}
	}
	other := func(by remit.Source) bool { return !slices.Contains(most.Sources, by) }
	return (most.Empty || !p.Empty) && !slices.ContainsFunc(p.Sources, other)
}

// fieldsWithin: a field that most names must stand; one that it does not name is free.
func fieldsWithin(fields map[string]remit.Predicate, params map[string]remit.Parameter, most map[string]remit.Predicate, mostParams map[string]remit.Parameter) bool {
	for name, m := range most {
		f, stands := fields[name]
		if m.Kind != remit.PredicateAny && (!stands || !within(f, params, m, mostParams)) {
			return false
		}
	}
	return true
}

func termWithin(t remit.Term, params map[string]remit.Parameter, most remit.Predicate, mostParams map[string]remit.Parameter) bool {
	if most.Kind == remit.PredicateEqual || most.Kind == remit.PredicateSubset {
		for _, m := range most.Terms {
			if !sameTerm(t, m) {
				continue
			}
			if t.Param == "" || parameterWithin(params[t.Param], mostParams[t.Param]) {
				return true
			}
		}
	}
	switch {
	case t.Call != "":
		return false
	case t.Param != "":
		p, known := params[t.Param]
		return known && valuesWithin(p, most)
	}
	return valueWithin(t.Value, most)
}

func sameTerm(a, b remit.Term) bool {
	return a.Param == b.Param && a.Call == b.Call && (a.Param != "" || a.Call != "" || a.Value.Equal(b.Value))
}

func valueWithin(v remit.Value, most remit.Predicate) bool {
	switch most.Kind {
	case remit.PredicateAny:
		return true
	case remit.PredicateEqual, remit.PredicateSubset:
		return slices.ContainsFunc(most.Terms, func(m remit.Term) bool { return m.Param == "" && m.Call == "" && m.Value.Equal(v) })
	case remit.PredicateRange:
		return v.Kind() == remit.Number && rangeWithin(&v, &v, most)
	case remit.PredicatePattern:
		return v.Kind() == remit.String && most.Pattern.MatchString(v.Text())
	}
	return false
}

func rangeWithin(least, greatest *remit.Value, most remit.Predicate) bool {
	reaches := func(a, b *remit.Value, sign int) bool { // a lies on b's side, or there is no b
		if b == nil {
			return true
		}
		if a == nil {
			return false
		}
		order, ok := a.Compare(*b)
		return ok && order*sign >= 0
	}
	return reaches(least, most.Min, 1) && reaches(greatest, most.Max, -1)
}

// valuesWithin reports whether every value that a parameter can have is.
func valuesWithin(p remit.Parameter, most remit.Predicate) bool {
	switch {
	case most.Kind == remit.PredicateAny:
		return true
	case len(p.OneOf) > 0:
		return !slices.ContainsFunc(p.OneOf, func(v remit.Value) bool { return !valueWithin(v, most) })
	case most.Kind == remit.PredicateRange:
		return (p.Type == "integer" || p.Type == "number") && rangeWithin(p.Min, p.Max, most)
	case most.Kind == remit.PredicatePattern:
		return p.Pattern != nil && p.Pattern.String() == most.Pattern.String()
	}
	return false
}

// parameterWithin compares two declarations of one parameter.
func parameterWithin(p, most remit.Parameter) bool {
	if p.Type != most.Type || most.Source != "" && p.Source != most.Source {
		return false
	}
	if len(most.OneOf) > 0 {
		terms := make([]remit.Term, len(most.OneOf))
		for i, v := range most.OneOf {
			terms[i].Value = v
		}
		if !valuesWithin(p, remit.Predicate{Kind: remit.PredicateSubset, Terms: terms}) {
			return false
		}
	}
	if (most.Min != nil || most.Max != nil) && !valuesWithin(p, remit.Predicate{Kind: remit.PredicateRange, Min: most.Min, Max: most.Max}) {
		return false
	}
	return most.Pattern == nil || valuesWithin(p, remit.Predicate{Kind: remit.PredicatePattern, Pattern: most.Pattern})
}

// atLeast reports whether who meets r meets the floor, too.
func atLeast(r, floor *remit.Requirement) bool {
	if r.Kind != floor.Kind || floor.Source != "" && r.Source != floor.Source {
		return false
	}
	if floor.Approval != nil {
		a := r.Approval
		return a != nil && len(a.When) == 0 && a.Group == floor.Approval.Group && a.People >= floor.Approval.People
	}
	if floor.Worst != remit.SeverityUnset && (r.Worst == remit.SeverityUnset || r.Worst > floor.Worst) {
		return false
	}
	if floor.Within > 0 && (r.Within == 0 || r.Within > floor.Within) {
		return false
	}
	for name, want := range floor.Match {
		if have, ok := r.Match[name]; !ok || !sameTerm(have, want) {
			return false
		}
	}
	return true
}

// stricter reports whether a requirement of one revision asks no less than one of another, about the same.
func stricter(r, than *remit.Requirement) bool {
	if than.Approval != nil {
		return reflect.DeepEqual(r, than) || atLeast(r, than) && than.Approval.By == "" && r.Approval.Within <= than.Approval.Within
	}
	same := func(a, b *remit.Term) bool { return b == nil || a != nil && sameTerm(*a, *b) }
	return atLeast(r, than) && same(r.ID, than.ID) && same(r.Of, than.Of)
}

// DescribePredicate names a condition for people.
func DescribePredicate(p remit.Predicate) string {
	var terms []string
	for _, t := range p.Terms {
		terms = append(terms, describeTerm(t))
	}
	switch p.Kind {
	case remit.PredicateEqual:
		return terms[0]
	case remit.PredicateSubset, remit.PredicateChoice:
		for _, by := range p.Sources {
			terms = append(terms, "results of "+by.From+" at "+by.Path)
		}
		if p.Empty {
			terms = append(terms, "nothing")
		}
		return "[" + strings.Join(terms, ", ") + "]"
	case remit.PredicateRange:
		out := ""
		if p.Min != nil {
			out = "from " + p.Min.Text() + " "
		}
		if p.Max != nil {
			out += "to " + p.Max.Text()
		}
		return strings.TrimSpace(out)
	case remit.PredicatePattern:
		return "the pattern " + strings.TrimSuffix(strings.TrimPrefix(p.Pattern.String(), "^(?:"), ")$")
	case remit.PredicateObject:
		var fields []string
		for _, name := range slices.Sorted(maps.Keys(p.Fields)) {
			fields = append(fields, name+": "+DescribePredicate(p.Fields[name]))
		}
		return "{" + strings.Join(fields, ", ") + "}"
	case remit.PredicateFrom:
		return "a result of " + p.From + " at " + p.Path
	}
	return "anything"
}

func describeTerm(t remit.Term) string {
	switch {
	case t.Param != "":
		return "$" + t.Param
	case t.Call != "":
		return "$call." + t.Call
	case t.Value.Kind() == remit.String:
		return clip(t.Value.Text())
	}
	return t.Value.String()
}

func describeFloor(r *remit.Requirement, of string) string {
	out := string(r.Kind)
	if r.Source != "" {
		out += " of " + r.Source
	}
	if of != "" {
		out += " about the image in " + of
	}
	if r.Worst != remit.SeverityUnset {
		out += ", worst " + r.Worst.String()
	}
	if r.Within > 0 {
		out += ", within " + r.Within.String()
	}
	for _, name := range slices.Sorted(maps.Keys(r.Match)) {
		out += ", " + name + " " + describeTerm(r.Match[name])
	}
	if r.Approval != nil {
		out += fmt.Sprintf(" by %d of %s, without condition", r.Approval.People, r.Approval.Group)
	}
	return out
}

// split is the reverse of place.
func split(at string) (file string, line int) {
	file, number, _ := strings.Cut(at, ":")
	line, _ = strconv.Atoi(number)
	return file, line
}
