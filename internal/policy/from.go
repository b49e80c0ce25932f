// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"maps"
	"slices"
	"strconv"
	"strings"

	"remit"
)

// Values that earlier calls of the run returned (S25). Which of a request's values are such is asked once, before anything is
// compared, and stands in the decision, so that any judge comes to the same answer later, when nobody knows the results any more.

// fact is a value of a request that an earlier call under a permission returned at a path.
type fact struct {
	remit.FromFact
	value remit.Value
}

// returned reports whether one value, which is no list and no object, is among the facts.
func (s *scope) returned(by *remit.Source, v remit.Value) bool {
	return slices.ContainsFunc(s.from, func(f fact) bool { return f.Permission == by.From && f.Path == by.Path && f.value.Equal(v) })
}

// choice: nothing and an empty list hold where the condition says so, every other list when each element does.
func (s *scope) choice(p *remit.Predicate, v remit.Value) bool {
	if v.IsNull() || v.Kind() == remit.List && len(v.Elements()) == 0 {
		return p.Empty
	}
	if v.Kind() != remit.List {
		return s.chosen(p, v)
	}
	for _, e := range v.Elements() {
		//remit:guard S25 TestChoice
		if !s.chosen(p, e) {
			return false
		}
	}
	return true
}

func (s *scope) chosen(p *remit.Predicate, v remit.Value) bool {
	if s.oneOf(p, v) {
		return true
	}
	for i := range p.Sources {
		if s.returned(&p.Sources[i], v) {
			return true
		}
	}
	return false
}

// holdsFrom: a list holds when it is not empty and each element is such a value.
func (s *scope) holdsFrom(p *remit.Predicate, v remit.Value) bool {
	if v.Kind() != remit.List {
		return s.returned(&p.Source, v)
	}
	for _, e := range v.Elements() {
		//remit:guard S25 TestChoice
		if !s.returned(&p.Source, e) {
			return false
		}
	}
	return len(v.Elements()) > 0
}

// facts finds which values of the request earlier calls of the run returned, for all candidates.
func (p *Plan) facts(candidates []*permission, req *remit.Request, run *remit.Run) (out []fact) {
	known := p.cfg.From
	if known == nil {
		return nil
	}
	for _, c := range candidates {
		for i := range c.where {
			visit(c.where[i].is, req.Args[c.where[i].name], "/"+escape(c.where[i].name), func(is *remit.Source, v remit.Value, at string) {
				f := fact{remit.FromFact{Permission: is.From, Path: is.Path, Arg: at}, v}
				same := func(o fact) bool { return o.FromFact == f.FromFact }
				if usable(v) && known(run.ID, is.From, is.Path, v) && !slices.ContainsFunc(out, same) {
					out = append(out, f)
				}
			})
		}
	}
	return out
}

// visit calls f for each single value that a from is about, with its place in the arguments.
func visit(is *remit.Predicate, v remit.Value, at string, f func(*remit.Source, remit.Value, string)) {
	switch is.Kind {
	case remit.PredicateObject:
		for _, name := range slices.Sorted(maps.Keys(is.Fields)) {
			field := is.Fields[name]
			visit(&field, v.Field(name), at+"/"+escape(name), f)
		}
	case remit.PredicateFrom:
		visitEach(&is.Source, v, at, f)
	case remit.PredicateChoice:
		for i := range is.Sources {
			visitEach(&is.Sources[i], v, at, f)
		}
	}
}

func visitEach(by *remit.Source, v remit.Value, at string, f func(*remit.Source, remit.Value, string)) {
	switch v.Kind() {
	case remit.Null, remit.Object:
	case remit.List:
		for i, e := range v.Elements() {
			if e.Kind() != remit.List && e.Kind() != remit.Object && !e.IsNull() {
				f(by, e, at+"/"+strconv.Itoa(i))
			}
		}
	default:
		f(by, v, at)
	}
}

// factsOf restores the facts of a recorded decision. A place that its arguments do not have is no fact.
func factsOf(d *remit.Decision) (out []fact) {
	for _, f := range d.From {
		if v, ok := at(d.Args, f.Arg); ok {
			out = append(out, fact{f, v})
		}
	}
	return out
}

// at follows a JSON pointer into arguments.
func at(args remit.Args, pointer string) (remit.Value, bool) {
	v := remit.ObjectValue(args)
	for _, step := range strings.Split(strings.TrimPrefix(pointer, "/"), "/") {
		switch v.Kind() {
		case remit.Object:
			v = v.Field(unescape(step))
		case remit.List:
			i, err := strconv.Atoi(step)
			if err != nil || i < 0 || i >= len(v.Elements()) {
				return remit.Value{}, false
			}
			v = v.Elements()[i]
		default:
			return remit.Value{}, false
		}
	}
	return v, !v.IsNull()
}

func escape(name string) string {
	return strings.ReplaceAll(strings.ReplaceAll(name, "~", "~0"), "/", "~1")
}

func unescape(step string) string {
	return strings.ReplaceAll(strings.ReplaceAll(step, "~1", "/"), "~0", "~")
}

// fromFacts are the facts as they are recorded.
func fromFacts(facts []fact) (out []remit.FromFact) {
	for i := range facts {
		out = append(out, facts[i].FromFact)
	}
	return out
}

// Sources lists the paths at which results under a permission of a workflow are used by a from: all that is worth keeping of them.
func (p *Plan) Sources(ref remit.PermissionRef) []string {
	w := p.workflows[ref.Workflow]
	if w == nil {
		return nil
	}
	return w.sources[ref.Name]
}

// sourcesOf collects, by permission, the paths that a workflow's conditions name.
func sourcesOf(w *remit.Workflow) map[string][]string {
	out := map[string][]string{}
	var walk func(is *remit.Predicate)
	walk = func(is *remit.Predicate) {
		for _, by := range sources(is) {
			if !slices.Contains(out[by.From], by.Path) {
				out[by.From] = append(out[by.From], by.Path)
			}
		}
		for name := range is.Fields {
			field := is.Fields[name]
			walk(&field)
		}
	}
	for i := range w.Stages {
		for j := range w.Stages[i].May {
			for _, is := range w.Stages[i].May[j].Where {
				walk(&is)
			}
		}
	}
	for name := range out {
		slices.Sort(out[name])
	}
	return out
}

// sources are what a condition itself names, without its fields.
func sources(is *remit.Predicate) []remit.Source {
	if is.Kind == remit.PredicateFrom {
		return []remit.Source{is.Source}
	}
	return is.Sources
}
