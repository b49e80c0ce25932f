// SPDX-License-Identifier: Apache-2.0

package config

import (
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"remit"
)

// Limits and defaults of time.
const (
	defaultRunExpires = time.Hour
	maxRunExpires     = 7 * 24 * time.Hour
	defaultTTL        = 5 * time.Minute
	maxTTL            = time.Hour

	defaultRunsPerHour, defaultValuesPerHour, maxPerHour = 200, 100, 100_000
	maxWithin                                            = 10 * 365 * 24 * time.Hour
)

// flow is a workflow while it is built.
type flow struct {
	*builder
	file   string
	doc    *workflowDoc
	params map[string]parameterFile
	perms  map[string]permAt // by name
	acting map[remit.Name]bool
}

// permAt is where a permission stands.
type permAt struct {
	stage int
	index int
	who   string
	line  int
}

func (b *builder) workflow(doc *workflowDoc) {
	f := &flow{builder: b, file: doc.file, doc: doc, params: doc.Parameters, perms: map[string]permAt{}, acting: map[remit.Name]bool{}}
	f.index()
	w := remit.Workflow{Name: doc.Name.s, Digest: remit.DigestOf(canonical(doc.node).AppendJSON(nil)), Parameters: f.parameters(), Start: f.start()}
	names := map[string]int{}
	for i := range doc.Stages {
		s := &doc.Stages[i]
		if first, twice := names[s.Name.s]; twice {
			f.add(s.Name.line, "stage %s stands twice, first on line %d: rename one", s.Name.s, first)
		}
		names[s.Name.s] = s.Name.line
		w.Stages = append(w.Stages, f.stage(i, s, w.Start.Expires))
	}
	if len(doc.Stages) == 0 {
		f.add(doc.Name.line, "stages is empty: a run needs a stage")
	}
	f.checkSelf(&w)
	b.set.Workflows = append(b.set.Workflows, w)
}

func (f *flow) add(line int, format string, args ...any) { f.out.add(f.file, line, format, args...) }

// index learns all permissions first, for under and from.
func (f *flow) index() {
	for i := range f.doc.Stages {
		for j := range f.doc.Stages[i].May {
			m := &f.doc.Stages[i].May[j]
			f.acting[remit.Name(m.Who.s)] = true
			if before, twice := f.perms[m.Name.s]; twice {
				f.add(m.Name.line, "permission %s stands twice, first on line %d: rename one", m.Name.s, before.line)
				continue
			}
			f.perms[m.Name.s] = permAt{i, j, m.Who.s, m.Name.line}
		}
	}
}

func (f *flow) parameters() (out []remit.Parameter) {
	for _, name := range slices.Sorted(maps.Keys(f.params)) {
		p := f.params[name]
		if !formats["param"].pattern.MatchString(name) || name == "call" {
			f.add(p.Type.line, "%q is no name for a parameter: write %s; not call", clip(name), formats["param"].write)
			continue
		}
		out = append(out, f.parameter(name, &p))
	}
	return out
}

func (f *flow) parameter(name string, p *parameterFile) remit.Parameter {
	out := remit.Parameter{Name: name, Type: p.Type.s, Min: p.Min.value(), Max: p.Max.value(), Source: p.Source.s, Sensitive: p.Sensitive}
	line := p.Type.line
	numeric := p.Type.s == "integer" || p.Type.s == "number"
	if p.Pattern != nil {
		if out.Pattern = p.Pattern.re; p.Type.s != "string" && p.Type.s != "name" {
			f.add(line, "parameter %s: a pattern is for string and name, not for %s: remove it", name, p.Type.s)
		}
	}
	if (out.Min != nil || out.Max != nil) && !numeric {
		f.add(line, "parameter %s: min and max are for integer and number, not for %s: remove them", name, p.Type.s)
	}
	if out.Min != nil && out.Max != nil {
		if order, _ := out.Min.Compare(*out.Max); order > 0 {
			f.add(line, "parameter %s: min %s is above max %s: no value fits", name, out.Min.Text(), out.Max.Text())
		}
	}
	if p.OneOf != nil && len(p.OneOf) == 0 {
		f.add(line, "parameter %s: one_of is empty: no value fits", name)
	}
	for _, l := range p.OneOf {
		if !fits(&out, l.v) {
			f.add(l.line, "parameter %s: %s in one_of is no %s within the parameter's other bounds: correct one of them", name, l.v, p.Type.s)
		}
		out.OneOf = append(out.OneOf, l.v)
	}
	return out
}

// fits reports whether a literal can be a value of p at all.
func fits(p *remit.Parameter, v remit.Value) bool {
	switch p.Type {
	case "boolean":
		return v.Kind() == remit.Bool
	case "integer", "number":
		low, high := 0, 0
		if p.Min != nil {
			low, _ = v.Compare(*p.Min)
		}
		if p.Max != nil {
			high, _ = v.Compare(*p.Max)
		}
		whole := p.Type == "number" || !strings.Contains(v.Text(), ".")
		return v.Kind() == remit.Number && whole && low >= 0 && high <= 0
	case "image":
		image, err := remit.ParseImage(v.Text())
		return v.Kind() == remit.String && err == nil && image.Digest != ""
	}
	return v.Kind() == remit.String && (p.Pattern == nil || p.Pattern.MatchString(v.Text()))
}

func (f *flow) start() remit.Start {
	s := &f.doc.Start
	out := remit.Start{Self: s.Self, Expires: s.Expires.or(defaultRunExpires, maxRunExpires, f.file, "start: expires", f.out)}
	out.Runs, out.Values = defaultRunsPerHour, defaultValuesPerHour
	if s.PerHour != nil {
		f.perHour("runs", s.PerHour.Runs, &out.Runs)
		f.perHour("values", s.PerHour.Values, &out.Values)
	}
	out.By = f.principals("start: by", s.By, f.doc.Name.line)
	for i, n := range out.By {
		if f.acting[n] && !s.Self {
			f.add(s.By[i].line, "start: by: %s acts in this workflow, so it cannot start it: name another, or write self: true", n)
		}
	}
	return out
}

func (f *flow) perHour(key string, n *int32, into *int) {
	if n == nil {
		return
	}
	if *n < 1 || *n > maxPerHour {
		f.add(f.doc.Name.line, "start: per_hour: %s: %d: write 1 to %d", key, *n, maxPerHour)
	}
	*into = int(*n)
}

func (f *flow) principals(key string, words []word, line int) (out []remit.Name) {
	if len(words) == 0 {
		f.add(line, "%s lists nobody: name who may", key)
	}
	for _, w := range words {
		f.principal(principalRef{f.file, key, w})
		out = append(out, remit.Name(w.s))
	}
	return out
}

// checkSelf holds a workflow whose own agent may start it to S9: a value that an agent chose binds nothing.
func (f *flow) checkSelf(w *remit.Workflow) {
	if !slices.ContainsFunc(w.Start.By, func(n remit.Name) bool { return f.acting[n] }) || !w.Start.Self {
		return
	}
	bound := map[string]bool{}
	for _, s := range f.doc.Stages {
		for _, m := range s.May {
			for _, r := range m.Where.uses {
				bound[r.name] = bound[r.name] || r.kind == refParam
			}
		}
	}
	for _, p := range w.Parameters {
		if p.Source == "" && bound[p.Name] {
			f.add(f.params[p.Name].Type.line, "parameter %s: an agent that acts in this workflow may start it, and its own word binds nothing: "+
				"name the parameter's source, or let others start", p.Name)
		}
	}
}

func (f *flow) stage(i int, s *stageFile, run time.Duration) remit.Stage {
	out := remit.Stage{Name: s.Name.s, Expires: s.Expires.or(0, maxRunExpires, f.file, "expires", f.out)}
	if out.Expires > run {
		f.add(s.Expires.line, "expires: the stage would outlive its run of %s: write less, or raise start: expires", run)
	}
	if s.End.By != nil {
		out.End = f.principals("end: by", s.End.By, s.Name.line)
	}
	for _, w := range s.End.When {
		name, fact, _ := strings.Cut(w.s, " ")
		if at, ok := f.perms[name]; !ok || at.stage != i {
			f.add(w.line, "end: when: there is no permission %s in this stage: name one", name)
		}
		out.When = append(out.When, remit.ExitFact{Permission: name, Fact: fact})
	}
	for j := range s.May {
		out.May = append(out.May, f.permission(i, j, &s.May[j]))
	}
	return out
}

func (f *flow) permission(stage, index int, m *mayFile) remit.Permission {
	p := remit.Permission{Name: m.Name.s, Who: remit.Name(m.Who.s), Under: m.Under.s, Action: m.Action.s, Target: m.Target.s,
		Where: m.Where.m, Sandbox: m.tier(), TTL: m.TTL.or(defaultTTL, maxTTL, f.file, "ttl", f.out),
		Line: place(f.file, m.Name.line)}
	f.principal(principalRef{f.file, "who", m.Who})
	f.checkTarget(m)
	f.checkUnder(stage, m)
	f.checkRefs(m.Where.uses, permAt{stage, index, m.Who.s, m.Name.line}, m.Under.s != "")
	for _, name := range m.Sensitive {
		if _, ok := m.Where.m[name.s]; !ok {
			f.add(name.line, "sensitive: %s does not stand in where: name an argument of this entry", name.s)
		}
		p.Sensitive = append(p.Sensitive, name.s)
	}
	if m.Hours != nil {
		p.Hours = f.hours(m.Hours)
	}
	if m.Limits != nil && m.Limits.Rows != nil {
		if *m.Limits.Rows < 1 {
			f.add(m.Name.line, "limits: rows: %d allows nothing: write 1 or more", *m.Limits.Rows)
		}
		p.Limits = map[string]int64{"rows": *m.Limits.Rows}
	}
	for i := range m.Evidence {
		p.Evidence = append(p.Evidence, f.requirement(m, &m.Evidence[i])...)
	}
	return p
}

// tier is the least tier that a permission asks for. Whatever makes a tool's code run, and whatever a tool itself asks for, asks for
// the default sandbox unless the file says so: there is no silent fallback.
func (m *mayFile) tier() string {
	//remit:guard S27 TestDefaultTier
	if m.Sandbox.s == "" && (strings.HasPrefix(m.Action.s, "mcp.") || m.Under.s != "") {
		return string(remit.TierKernel)
	}
	return m.Sandbox.s
}

// checkTarget: the target of mcp.* is a tool or a Target, that of everything else a Target.
func (f *flow) checkTarget(m *mayFile) {
	name, mcpTool, named := strings.Cut(m.Target.s, "/")
	if named && !strings.HasPrefix(m.Action.s, "mcp.") {
		f.add(m.Target.line, "target: %s: only mcp.* names a tool of a server: write %s", clip(m.Target.s), name)
		return
	}
	if named && mcpTool == name {
		f.add(m.Target.line, "target: %s: write %s, which is the server's tool of the same name", clip(m.Target.s), name)
	}
	if named {
		if _, ok := f.set.Agents[remit.Name("tool/"+name)]; !ok && !f.broken["Tool/"+name] {
			f.add(m.Target.line, "target: there is no Tool %s: declare a document of kind Tool with that name", name)
		}
		return
	}
	if _, ok := f.set.Targets[m.Target.s]; ok || f.broken["Target/"+m.Target.s] {
		return
	}
	kind := "Target"
	if strings.HasPrefix(m.Action.s, "mcp.") {
		if _, ok := f.set.Agents[remit.Name("tool/"+m.Target.s)]; ok || f.broken["Tool/"+m.Target.s] {
			return
		}
		kind = "Tool or Target"
	}
	f.add(m.Target.line, "target: there is no %s: declare a document of kind %s with that name", m.Target.s, kind)
}

func (f *flow) checkUnder(stage int, m *mayFile) {
	if m.Under.s == "" {
		return
	}
	switch parent, ok := f.perms[m.Under.s]; {
	case !ok || parent.stage != stage:
		f.add(m.Under.line, "under: there is no permission %s in this stage: name one", m.Under.s)
	case parent.who == m.Who.s:
		f.add(m.Under.line, "under: %s is of %s itself: name a permission of who calls it", m.Under.s, parent.who)
	}
}

// checkRefs checks what predicates and terms of a permission refer to.
func (f *flow) checkRefs(uses []ref, at permAt, inside bool) {
	for _, r := range uses {
		switch r.kind {
		case refParam:
			if _, ok := f.params[r.name]; !ok {
				f.add(r.line, "$%s: there is no such parameter: declare it, or write $$ for a literal $", r.name)
			}
		case refCall:
			if !inside {
				f.add(r.line, "$call.%s: this permission has no parent call: add under: PERMISSION", r.name)
			}
		case refFrom:
			// A stage may be left and the earlier one's results used; a result of a later one cannot exist yet.
			from, ok := f.perms[r.name]
			if !ok || from.stage > at.stage || from.stage == at.stage && from.index == at.index {
				f.add(r.line, "from: there is no other permission %s in this stage or an earlier one: name one", r.name)
			}
		}
	}
}

func (f *flow) hours(h *hoursFile) *remit.Hours {
	out := &remit.Hours{Days: h.Days.set, From: minutes(h.From.s), To: minutes(h.To.s)}
	zone, err := time.LoadLocation(h.Zone.s)
	if err != nil || h.Zone.s == "Local" {
		f.add(h.Zone.line, "zone: %q is no time zone that this host knows: write Europe/Berlin or UTC", clip(h.Zone.s))
	}
	if out.Zone = zone; out.From == out.To || out.From == 24*60 {
		f.add(h.From.line, "hours: no minute lies from %s to %s: write an earlier and a later time", h.From.s, h.To.s)
	}
	return out
}

// minutes parses HH:MM, which the format has checked.
func minutes(s string) int {
	hour, minute, _ := strings.Cut(s, ":")
	h, _ := strconv.Atoi(hour)
	m, _ := strconv.Atoi(minute)
	return h*60 + m
}
