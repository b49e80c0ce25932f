// SPDX-License-Identifier: Apache-2.0

package learn

import (
	"cmp"
	"errors"
	"maps"
	"regexp"
	"slices"
	"strings"
	"sync"

	"remit"
)

// When a condition gets wider than what was seen.
const (
	minRuns    = 3  // fewer show nothing about the next one
	fresh      = 4  // new values keep coming when more than one run in so many had one of its own
	proseWords = 3  // a text of so many words is prose
	proseShare = 3  // an argument is prose when one text in so many is
	dateShare  = 2  // an argument is a date when at most one value in so many is none
	maxWords   = 10 // different ones of them
	maxWord    = 40 // bytes
	hostless   = 20 // so many texts that name no host show that none does
	// prose is a text in which no letter follows a dot and no slash a colon: it names no host, no address and no file.
	prose = `(?s:([^.:]|\.+[^\pL.:]|:+[^/.:])*[.:]*)`
	dates = `[0-9]{4}-[0-9]{2}-[0-9]{2}([T ][0-9]{2}:[0-9]{2}(:[0-9]{2})?Z?)?`
	days  = `|today|tomorrow|yesterday` // as the same tools take them
)

var (
	errMany  = errors.New("more values than can be listed, which nothing explains: make it a run parameter, or bind it by from: in the bound")
	proseIs  = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^(?:` + prose + `)$`) })
	textIs   = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^(?:(?s:.*))$`) })
	datesAre = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^(?:` + dates + days + `)$`) })
)

// narrowed returns the condition for what was seen in acts of so many runs; stands is false where the argument was never there. Where
// the bound says of whom or what a value must be, it stays: nothing is narrower.
func (s *seen) narrowed(bound remit.Predicate, acts, runs int) (is remit.Predicate, stands bool, err error) {
	if s == nil {
		switch bound.Kind {
		case remit.PredicateAny, remit.PredicateChoice:
			return bound, false, nil
		}
		return bound, true, nil
	}
	absent := acts - s.acts
	switch bound.Kind {
	case remit.PredicateEqual, remit.PredicateFrom:
		return bound, true, nil
	case remit.PredicateObject:
		is, err = s.object(bound, runs)
		return is, true, err
	case remit.PredicateSubset, remit.PredicateChoice:
		return s.among(bound, absent), true, nil
	}
	switch {
	case bound.Kind == remit.PredicateRange || bound.Kind == remit.PredicatePattern:
		return s.one(bound), true, nil
	case s.objects == s.acts && absent == 0 && bound.Kind == remit.PredicateAny:
		is, err = s.object(remit.Predicate{Kind: remit.PredicateObject}, runs)
		return is, true, err
	case s.objects > 0 || s.mixed:
		return bound, true, nil // no condition says more of such a value
	}
	is, err = s.list(absent, runs)
	return is, true, err
}

// one narrows a range, which no list is within, and a pattern.
func (s *seen) one(bound remit.Predicate) remit.Predicate {
	for _, v := range s.values {
		if len(s.values) == 1 && !v.v.IsNull() {
			return remit.Predicate{Kind: remit.PredicateEqual, Terms: []remit.Term{{Value: v.v}}}
		}
	}
	if bound.Kind == remit.PredicateRange && s.numbers == s.total {
		bound.Min, bound.Max = &s.least, &s.greatest
	}
	return bound
}

// object narrows field by field. One that was never there is not named, and so must be absent.
func (s *seen) object(bound remit.Predicate, runs int) (remit.Predicate, error) {
	out := remit.Predicate{Kind: remit.PredicateObject, Fields: map[string]remit.Predicate{}}
	names := slices.Collect(maps.Keys(s.fields))
	for name := range bound.Fields {
		if s.fields[name] == nil {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range names {
		f, named := bound.Fields[name]
		if !named {
			f = remit.Predicate{Kind: remit.PredicateAny}
		}
		is, stands, err := s.fields[name].narrowed(f, s.objects, runs)
		if err != nil {
			return out, err
		}
		if stands {
			out.Fields[name] = is
		}
	}
	if ambiguous(out.Fields) {
		return remit.Predicate{Kind: remit.PredicateAny}, nil
	}
	return out, nil
}

// ambiguous reports whether a file would read the fields as another condition.
func ambiguous(fields map[string]remit.Predicate) bool {
	for _, keys := range [][]string{{"any"}, {"min", "max"}, {"pattern"}, {"from", "path"}} {
		all := len(fields) > 0
		for name := range fields {
			all = all && slices.Contains(keys, name)
		}
		if all {
			return true
		}
	}
	return false
}

// among keeps, of a bound that lists values and sources, those that are needed.
func (s *seen) among(bound remit.Predicate, absent int) remit.Predicate {
	if s.many || s.mixed {
		return bound
	}
	var from []element
	for _, t := range bound.Terms {
		from = append(from, element{term: t})
	}
	for _, by := range bound.Sources {
		from = append(from, element{source: by})
	}
	out, rest := cover(s.sorted(), from)
	if len(rest) > 0 { // a term that no longer resolves
		return bound
	}
	return s.condition(out, absent+s.empty > 0)
}

// list finds the condition where the bound says nothing.
func (s *seen) list(absent, runs int) (remit.Predicate, error) {
	values := s.sorted()
	optional := absent+s.empty > 0
	if !s.many {
		given, rest := cover(values, s.given(values))
		if !s.open(rest, runs) {
			return s.condition(append(given, literals(rest)...), optional), nil
		}
		returned, rest := cover(rest, s.returned(rest))
		if !s.open(rest, runs) {
			return s.condition(slices.Concat(given, returned, literals(rest)), optional), nil
		}
	} else if c, ok := s.whole(); ok {
		return s.condition([]element{c}, optional), nil
	}
	if is, ok := s.wider(optional); ok {
		return is, nil
	}
	if s.many || slices.ContainsFunc(values, func(v *value) bool { return v.v.IsNull() }) {
		return remit.Predicate{}, errMany
	}
	given, rest := cover(values, append(s.given(values), s.returned(values)...))
	return s.condition(append(given, literals(rest)...), optional), nil
}

// wider is a condition that also holds for what was not seen.
func (s *seen) wider(optional bool) (remit.Predicate, bool) {
	one := !optional && s.lists == 0
	pattern := func(re *regexp.Regexp) (remit.Predicate, bool) {
		if one {
			return remit.Predicate{Kind: remit.PredicatePattern, Pattern: re}, true
		}
		return remit.Predicate{Kind: remit.PredicateAny}, true
	}
	switch {
	case s.total == 0:
		return remit.Predicate{}, false
	case s.numbers == s.total && one:
		return remit.Predicate{Kind: remit.PredicateRange, Min: &s.least, Max: &s.greatest}, true
	case s.dates == s.total && one:
		return pattern(datesAre())
	case s.isDates() && one:
		return pattern(s.datesOrWords())
	case s.isProse() && s.hosts == 0 && s.total >= hostless:
		return pattern(proseIs())
	case s.isProse():
		return pattern(textIs())
	}
	return remit.Predicate{}, false
}

// isProse reports whether the values are what somebody words anew each time.
func (s *seen) isProse() bool { return s.strings == s.total && proseShare*s.prose >= s.total }

// isDates reports whether the values are dates but for a few words, such as today.
func (s *seen) isDates() bool {
	words := 0
	for _, v := range s.values {
		if !date().MatchString(v.v.Text()) {
			words++
		}
		if v.v.IsNull() || len(v.v.Text()) > maxWord {
			return false
		}
	}
	return !s.many && s.strings == s.total && dateShare*(s.total-s.dates) <= s.total && words <= maxWords
}

// datesOrWords admits any date, and of other words those that were seen.
func (s *seen) datesOrWords() *regexp.Regexp {
	out := dates + days
	for _, v := range s.sorted() {
		if !datesAre().MatchString(v.v.Text()) {
			out += "|" + regexp.QuoteMeta(v.v.Text())
		}
	}
	return regexp.MustCompile("^(?:" + out + ")$")
}

// open reports whether the next run is likely to have a value that none had. Two in two runs show it of prose and dates.
func (s *seen) open(values []*value, runs int) bool {
	own := 0
	for _, v := range values {
		if !v.common {
			own++
		}
	}
	if (s.isProse() || s.isDates()) && runs > 1 && len(values) > 1 {
		return own > 0
	}
	return runs >= minRuns && own > 1 && own*fresh > runs
}

// element is one entry of a list: a term or a source.
type element struct {
	term   remit.Term
	source remit.Source
}

// covers reports whether the element admitted each occurrence of the value.
func (e *element) covers(v *value) bool {
	switch {
	case e.source != remit.Source{}:
		return v.causes[cause{source: e.source}] == v.n
	case e.term.Param != "":
		return v.causes[cause{param: e.term.Param}] == v.n
	case e.term.Call != "":
		return v.causes[cause{call: e.term.Call}] == v.n
	}
	return e.term.Value.Equal(v.v)
}

// cover takes elements, in their order, that admit values which no other taken one admits, and returns what none does.
func cover(values []*value, from []element) (taken []element, rest []*value) {
	rest = values
	for i := range from {
		left := slices.DeleteFunc(slices.Clone(rest), from[i].covers)
		if len(left) < len(rest) {
			taken, rest = append(taken, from[i]), left
		}
	}
	for i := len(taken) - 1; i >= 0; i-- { // an earlier one may be needless after later ones
		without := slices.Delete(slices.Clone(taken), i, i+1)
		needless := !slices.ContainsFunc(values, func(v *value) bool {
			return taken[i].covers(v) && !slices.ContainsFunc(without, func(e element) bool { return e.covers(v) })
		})
		if needless {
			taken = without
		}
	}
	return taken, rest
}

// given are the parameters and arguments of the enclosing call that explain all values, or more than one, the best first.
func (s *seen) given(values []*value) []element {
	return s.explaining(values, func(c cause) bool { return c.source == remit.Source{} })
}

// returned are the sources that do.
func (s *seen) returned(values []*value) []element {
	return s.explaining(values, func(c cause) bool { return c.source != remit.Source{} })
}

func (s *seen) explaining(values []*value, sort func(cause) bool) (out []element) {
	hits := map[cause]int{}
	for c := range s.causes {
		if !sort(c) {
			continue
		}
		e := c.element()
		for _, v := range values {
			if e.covers(v) {
				hits[c]++
			}
		}
	}
	for c, n := range hits {
		if n < 2 && n < len(values) {
			delete(hits, c)
		}
	}
	for _, c := range slices.SortedFunc(maps.Keys(hits), func(a, b cause) int {
		return cmp.Or(hits[b]-hits[a], compareCauses(a, b))
	}) {
		out = append(out, c.element())
	}
	return out
}

// whole is a cause that explains every value, also those that were not kept.
func (s *seen) whole() (element, bool) {
	for _, c := range slices.SortedFunc(maps.Keys(s.causes), compareCauses) {
		if s.causes[c] == s.total {
			return c.element(), true
		}
	}
	return element{}, false
}

func compareCauses(a, b cause) int {
	return cmp.Or(cmp.Compare(a.source.From, b.source.From), cmp.Compare(a.source.Path, b.source.Path), cmp.Compare(a.call, b.call), cmp.Compare(a.param, b.param))
}

func (c cause) element() element {
	return element{term: remit.Term{Param: c.param, Call: c.call}, source: c.source}
}

// literals are the values themselves; a link also as it is written with or without its scheme: it is the same place.
func literals(values []*value) (out []element) {
	had := map[string]bool{}
	for _, v := range values {
		for _, v := range spellings(v.v) {
			if key := v.String(); !had[key] {
				had[key] = true
				out = append(out, element{term: remit.Term{Value: v}})
			}
		}
	}
	return out
}

var link = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^(?:https?://|www\.)[^\s@]+$`) })

func spellings(v remit.Value) []remit.Value {
	if v.Kind() != remit.String || !link().MatchString(v.Text()) {
		return []remit.Value{v}
	}
	bare := strings.TrimPrefix(strings.TrimPrefix(v.Text(), "https://"), "http://")
	return []remit.Value{remit.StringValue(bare), remit.StringValue("http://" + bare), remit.StringValue("https://" + bare)}
}

// condition is the list as a condition, in the simplest form. What was never a list must be none.
func (s *seen) condition(list []element, optional bool) remit.Predicate {
	if len(list) == 1 && list[0].source == (remit.Source{}) && !optional && s.lists == 0 {
		return remit.Predicate{Kind: remit.PredicateEqual, Terms: []remit.Term{list[0].term}}
	}
	return predicate(list, optional)
}

// predicate is the list as a condition that also holds for lists of its elements.
func predicate(list []element, optional bool) remit.Predicate {
	var out remit.Predicate
	for _, e := range list {
		if e.source != (remit.Source{}) {
			out.Sources = append(out.Sources, e.source)
		} else {
			out.Terms = append(out.Terms, e.term)
		}
	}
	switch {
	case optional || len(out.Sources) > 0 && len(list) > 1:
		out.Kind, out.Empty = remit.PredicateChoice, optional
	case len(out.Sources) == 1:
		return remit.Predicate{Kind: remit.PredicateFrom, Source: out.Sources[0]}
	default:
		out.Kind = remit.PredicateSubset
	}
	return out
}

// sorted are the values in a fixed order: by their text.
func (s *seen) sorted() []*value {
	out := make([]*value, 0, len(s.values))
	for _, key := range slices.Sorted(maps.Keys(s.values)) {
		out = append(out, s.values[key])
	}
	return out
}
