// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"remit"
)

// scope is what terms resolve to for one request and one permission.
type scope struct {
	params map[string]remit.Value
	call   remit.Args // of the parent decision
	inside bool       // whether there is a parent decision that fits
	from   []fact
}

// resolve returns the term's value. Nothing, null, and what cannot be compared exactly are not resolved, and a predicate on
// an unresolved term does not hold.
func (s *scope) resolve(t *remit.Term) (remit.Value, bool) {
	v := t.Value
	switch {
	case t.Param == "" && t.Call == "":
		return v, true // checked at load
	case t.Param != "":
		v = s.params[t.Param]
		if v.Kind() == remit.List || v.Kind() == remit.Object {
			return v, false // no parameter type has them
		}
	case t.Call != "":
		if !s.inside {
			return v, false
		}
		v = s.call[t.Call]
	}
	return v, usable(v)
}

// inexactKey stands in OPA's input for a number that OPA would round; see inputValue.
const inexactKey = "#number"

// usable reports whether v can be compared to the same result here, in OPA, and by a target: no null, only numbers that
// all of them hold exactly.
func usable(v remit.Value) bool {
	switch v.Kind() {
	case remit.Null:
		return false
	case remit.Number:
		return exact(v.Text())
	case remit.List:
		for _, e := range v.Elements() {
			if !e.IsNull() && !usable(e) {
				return false
			}
		}
	case remit.Object:
		for k, f := range v.Fields() {
			if k == inexactKey || !f.IsNull() && !usable(f) {
				return false
			}
		}
	}
	return true
}

// exact reports whether a number in normal form is a 64-bit integer or has at most 15 significant digits. OPA, and most
// JSON readers behind a target, round others: two different ones may look equal there.
func exact(text string) bool {
	if len(text) <= 15 {
		return true
	}
	if _, err := strconv.ParseInt(text, 10, 64); err == nil {
		return true
	}
	digits := 0
	for i := range len(text) {
		if c := text[i]; c >= '1' && c <= '9' || c == '0' && digits > 0 {
			digits++
		}
	}
	return digits <= 15
}

// holds is the meaning of a predicate. v is Null when the argument is absent.
func (s *scope) holds(p *remit.Predicate, v remit.Value) bool {
	switch p.Kind {
	case remit.PredicateAny:
		return true
	case remit.PredicateEqual:
		want, ok := s.resolve(&p.Terms[0])
		return ok && v.Equal(want)
	case remit.PredicateSubset:
		return s.subset(p, v)
	case remit.PredicateRange:
		return v.Kind() == remit.Number && exact(v.Text()) && between(p, v)
	case remit.PredicatePattern:
		return v.Kind() == remit.String && p.Pattern.MatchString(v.Text())
	case remit.PredicateObject:
		return s.object(p, v)
	case remit.PredicateFrom:
		return s.holdsFrom(p, v)
	case remit.PredicateChoice:
		return s.choice(p, v)
	}
	return false // anything unknown
}

// subset: an empty list is refused, because a target may read "no columns" as "all columns".
func (s *scope) subset(p *remit.Predicate, v remit.Value) bool {
	if v.Kind() != remit.List {
		return s.oneOf(p, v)
	}
	for _, e := range v.Elements() {
		if !s.oneOf(p, e) {
			return false
		}
	}
	return len(v.Elements()) > 0
}

func (s *scope) oneOf(p *remit.Predicate, v remit.Value) bool {
	for i := range p.Terms {
		if t, ok := s.resolve(&p.Terms[i]); ok && v.Equal(t) {
			return true
		}
	}
	return false
}

func (s *scope) object(p *remit.Predicate, v remit.Value) bool {
	if v.Kind() != remit.Object {
		return false
	}
	for name, f := range v.Fields() {
		if _, named := p.Fields[name]; !named && !f.IsNull() {
			return false
		}
	}
	for name, is := range p.Fields {
		if !s.holds(&is, v.Field(name)) {
			return false
		}
	}
	return true
}

func between(p *remit.Predicate, v remit.Value) bool {
	return (p.Min == nil || compareDecimals(v.Text(), p.Min.Text()) >= 0) &&
		(p.Max == nil || compareDecimals(v.Text(), p.Max.Text()) <= 0)
}

// compareDecimals orders two numbers in normal form as remit.Value.Compare does, without allocating.
func compareDecimals(a, b string) int {
	a, negA := strings.CutPrefix(a, "-")
	b, negB := strings.CutPrefix(b, "-")
	switch {
	case negA && !negB:
		return -1
	case !negA && negB:
		return 1
	case negA:
		a, b = b, a
	}
	wholeA, fracA, _ := strings.Cut(a, ".")
	wholeB, fracB, _ := strings.Cut(b, ".")
	return cmp.Or(cmp.Compare(len(wholeA), len(wholeB)), strings.Compare(wholeA, wholeB), strings.Compare(fracA, fracB))
}

// mayHold is the meaning of a predicate in an approval's `when`: whatever could be what the condition is about counts, so
// that a missing, mistyped or unresolved value asks a person instead of nobody.
func (s *scope) mayHold(p *remit.Predicate, v remit.Value) bool {
	if v.IsNull() {
		return true
	}
	switch p.Kind {
	case remit.PredicateEqual, remit.PredicateSubset:
		return s.mayBeOneOf(p, v)
	case remit.PredicateRange:
		return v.Kind() != remit.Number || !exact(v.Text()) || between(p, v)
	case remit.PredicatePattern:
		return v.Kind() != remit.String || p.Pattern.MatchString(v.Text())
	case remit.PredicateObject:
		if v.Kind() != remit.Object {
			return true
		}
		for name, is := range p.Fields {
			if !s.mayHold(&is, v.Field(name)) {
				return false
			}
		}
	}
	return true
}

func (s *scope) mayBeOneOf(p *remit.Predicate, v remit.Value) bool {
	for i := range p.Terms {
		t, ok := s.resolve(&p.Terms[i])
		if !ok || v.Equal(t) {
			return true
		}
	}
	if p.Kind == remit.PredicateEqual || v.Kind() != remit.List {
		return false
	}
	return len(v.Elements()) == 0 || slices.ContainsFunc(v.Elements(), func(e remit.Value) bool { return s.oneOf(p, e) })
}

// fill adds, to a copy, the absent arguments that can have only one value.
func (c *permission) fill(args remit.Args, s *scope) remit.Args {
	out := make(remit.Args, len(c.where))
	for name, v := range args {
		out[name] = v
	}
	for i := range c.where {
		if a := &c.where[i]; out[a.name].IsNull() {
			if v, ok := s.only(a.is); ok {
				out[a.name] = v
			}
		}
	}
	return out
}

// only returns the one value that a predicate admits: an equal's, a one-element list's, or an object of such.
func (s *scope) only(p *remit.Predicate) (remit.Value, bool) {
	switch {
	case p.Kind == remit.PredicateEqual, p.Kind == remit.PredicateSubset && len(p.Terms) == 1:
		return s.resolve(&p.Terms[0])
	case p.Kind != remit.PredicateObject:
		return remit.Value{}, false
	}
	fields := make(map[string]remit.Value, len(p.Fields))
	for name, is := range p.Fields {
		if is.Kind == remit.PredicateAny {
			continue
		}
		v, ok := s.only(&is)
		if !ok {
			return remit.Value{}, false
		}
		fields[name] = v
	}
	return remit.ObjectValue(fields), true
}

// open reports whether at lies in the window.
func open(h *remit.Hours, at time.Time) bool {
	local := at.In(h.Zone)
	day, minute := int(local.Weekday()), local.Hour()*60+local.Minute()
	if h.From < h.To {
		return h.Days[day] && minute >= h.From && minute < h.To
	}
	return h.Days[day] && minute >= h.From || h.Days[(day+6)%7] && minute < h.To
}

// describe says, for people, what a predicate asks.
func (s *scope) describe(p *remit.Predicate) string {
	switch p.Kind {
	case remit.PredicateEqual:
		return clip(s.describeTerm(&p.Terms[0]))
	case remit.PredicateSubset, remit.PredicateChoice:
		words := make([]string, len(p.Terms), len(p.Terms)+len(p.Sources))
		for i := range p.Terms {
			words[i] = s.describeTerm(&p.Terms[i])
		}
		for _, by := range p.Sources {
			words = append(words, "what "+by.From+" returned at "+by.Path)
		}
		return clip("of [" + strings.Join(words, ", ") + "]")
	case remit.PredicateRange:
		return clip("a number " + describeRange(p))
	case remit.PredicatePattern:
		return clip("text that matches " + p.Pattern.String())
	case remit.PredicateObject:
		return "an object with the named fields and no other"
	case remit.PredicateFrom:
		return clip("a value that " + p.From + " returned at " + p.Path + " in this run, since the server started")
	}
	return "anything"
}

func describeRange(p *remit.Predicate) string {
	switch {
	case p.Min == nil:
		return "of at most " + p.Max.Text()
	case p.Max == nil:
		return "of at least " + p.Min.Text()
	}
	return "from " + p.Min.Text() + " to " + p.Max.Text()
}

func (s *scope) describeTerm(t *remit.Term) string {
	name := ""
	switch {
	case t.Param != "":
		name = "$" + t.Param
	case t.Call != "":
		name = "$call." + t.Call
	}
	v, ok := s.resolve(t)
	switch {
	case !ok && name != "":
		return name + ", which has no value here"
	case name != "":
		return v.String() + " (" + name + ")"
	}
	return v.String()
}

func describeHours(h *remit.Hours) string {
	var days []string
	for i, on := range h.Days {
		if on {
			days = append(days, time.Weekday(i).String()[:3])
		}
	}
	return fmt.Sprintf("%s %02d:%02d-%02d:%02d %s", strings.Join(days, ","), h.From/60, h.From%60, h.To/60, h.To%60, h.Zone)
}

// clip bounds what a reason repeats of a request.
func clip(s string) string { return remit.Clip(s, 200) }
