// SPDX-License-Identifier: Apache-2.0

package config

import (
	"maps"
	"path"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.yaml.in/yaml/v3"

	"remit"
)

type ceilingFile struct {
	head  `yaml:",inline"`
	May   []boundFile `yaml:"may" need:"yes" doc:"What permissions may be at most. Each permission of each workflow must be within one entry."`
	Start []word      `yaml:"start" is:"principal" doc:"Who may be named to start runs. Left out: anybody."`
	Run   span        `yaml:"run" doc:"How long a run lives at most. Left out: 168h."`
	Pins  []pinFile   `yaml:"pins" doc:"Documents that stand exactly so, or not at all; a Rule must stand."`
}

type boundFile struct {
	Actions  []word      `yaml:"actions" need:"yes" is:"actions" doc:"Which actions: names, or KIND.*."`
	Targets  []word      `yaml:"targets" is:"aim" doc:"On which targets. Left out: any. NAME stands for every NAME/MCPTOOL, too."`
	Who      []word      `yaml:"who" is:"actor" doc:"Which agents and tools. Left out: any."`
	Where    args        `yaml:"where" doc:"What the conditions on arguments must stay within; no parameters here. An argument that stands here must stand in the permission; others are free. A list is within when each of its values is."`
	Evidence []floorFile `yaml:"evidence" doc:"The evidence that a permission must require at least; all of it."`
	Limits   *limitsFile `yaml:"limits" doc:"The greatest limits."`
	Sandbox  word        `yaml:"sandbox" is:"tier" doc:"The least sandbox. Left out: none asked."`
	TTL      span        `yaml:"ttl" doc:"How long a credential lives at most. Left out: 1h."`
}

type floorFile struct {
	_          struct{}           `one:"scan,provenance,ticket,ci,approval"`
	Scan       *scanFloorFile     `yaml:"scan" doc:"A scan."`
	Provenance *factFloorFile     `yaml:"provenance" doc:"A provenance."`
	Ticket     *factFloorFile     `yaml:"ticket" doc:"A ticket."`
	CI         *factFloorFile     `yaml:"ci" doc:"The CI run that built an image. The same keys as provenance."`
	Approval   *approvalFloorFile `yaml:"approval" doc:"An approval, under no condition."`
}

type scanFloorFile struct {
	Source word `yaml:"source" is:"label" doc:"The evidence source. Left out: any."`
	Of     word `yaml:"of" is:"text" doc:"The argument whose image it must be about. Left out: any image."`
	Worst  word `yaml:"worst" is:"severity" doc:"The worst finding that may pass. Left out: any."`
	Within span `yaml:"within" doc:"The greatest age that may pass. Left out: any."`
}

type factFloorFile struct {
	Source word             `yaml:"source" is:"label" doc:"The evidence source. Left out: any."`
	Of     word             `yaml:"of" is:"text" doc:"The argument whose image it must be about. Left out: any image."`
	Within span             `yaml:"within" doc:"The greatest age that may pass. Left out: any."`
	Match  map[string]*term `yaml:",rest" doc:"Every other key is a field of the fact that the permission must demand with this value."`
}

type approvalFloorFile struct {
	Group  word `yaml:"group" need:"yes" is:"label" doc:"Of which group the people must be."`
	People *int `yaml:"people" doc:"How many at least. Left out: 1."`
}

type pinFile struct {
	Kind word      `yaml:"kind" need:"yes" is:"pinkind" doc:"The kind of the document."`
	Name word      `yaml:"name" need:"yes" is:"label" doc:"Its name."`
	With yaml.Node `yaml:"with" need:"yes" doc:"Its keys beside kind and name, with their values. A Rule's module is compared as rego, wherever it stands; a Tool's pins as the digest of the file."`
	Free []word    `yaml:"free" is:"text" doc:"Keys that may have any value. Every other key must be absent."`
}

// Ceiling is everything that one directory of ceilings declares. It is immutable.
type Ceiling struct {
	Digest remit.Digest
	Files  map[string][]byte
	docs   []ceilingDoc
}

type ceilingDoc struct {
	*ceilingFile
	file   string
	bounds []bound
	pins   []pin
}

// bound is one entry of may, ready to compare.
type bound struct {
	*boundFile
	needs []remit.Requirement
	ofs   []string // the argument that each of needs must be about; "": any
	ttl   time.Duration
	at    string // FILE:LINE
}

type pin struct {
	kind, name string
	with       map[string]remit.Value
	free       []string
	at         string
}

// ParseCeiling reads the files of a directory of ceilings, as strictly as Parse.
func ParseCeiling(files map[string][]byte) (*Ceiling, error) {
	b := newBuilder(files, spiffeid.TrustDomain{})
	c := &Ceiling{Digest: digest(files), Files: files}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if ext := path.Ext(name); ext != ".yaml" && ext != ".yml" {
			b.out.add(name, 0, "a ceiling is YAML: take this out of its directory")
			continue
		}
		for _, n := range documents(name, files[name], b.out) {
			b.ceiling(name, n, c)
		}
	}
	if len(c.docs) == 0 && b.out.err() == nil {
		b.out.add(".", 0, "there is no document of kind Ceiling: write one, or remove the directory")
	}
	if err := b.out.err(); err != nil {
		return nil, err
	}
	return c, nil
}

func (b *builder) ceiling(file string, n *yaml.Node, c *Ceiling) {
	d := &decoder{file: file, out: b.out}
	if kind := valueOf(n, "kind"); kind != "Ceiling" {
		d.add(n, "kind is %q: here stands only Ceiling; other documents belong into the configuration directory", clip(kind))
		return
	}
	var f ceilingFile
	d.decode(n, reflect.ValueOf(&f).Elem(), "")
	if !b.first(f.head, file, n) {
		return
	}
	doc := ceilingDoc{ceilingFile: &f, file: file}
	for i := range f.May {
		doc.bounds = append(doc.bounds, b.bound(file, f.Name.line, &f.May[i]))
	}
	for i := range f.Pins {
		doc.pins = append(doc.pins, b.pin(file, &f.Pins[i]))
	}
	f.Run.or(0, maxRunExpires, file, "run", b.out)
	c.docs = append(c.docs, doc)
}

func (b *builder) bound(file string, line int, f *boundFile) bound {
	if len(f.Actions) > 0 {
		line = f.Actions[0].line
	} else {
		b.out.add(file, line, "may: actions is empty: list actions")
	}
	for _, r := range f.Where.uses {
		b.out.add(file, r.line, "where: a ceiling knows no parameters and no earlier calls: write values")
	}
	out := bound{boundFile: f, at: place(file, line), ttl: f.TTL.or(maxTTL, maxTTL, file, "ttl", b.out)}
	for i := range f.Evidence {
		need, of := b.floor(file, line, &f.Evidence[i])
		out.needs, out.ofs = append(out.needs, need), append(out.ofs, of)
	}
	return out
}

// floor turns an entry of evidence into the requirement that a permission must meet, and the argument it must be about.
func (b *builder) floor(file string, line int, f *floorFile) (remit.Requirement, string) {
	fact := func(kind remit.EvidenceKind, f *factFloorFile) (remit.Requirement, string) {
		r := remit.Requirement{Kind: kind, Source: f.Source.s, Within: f.Within.or(0, maxWithin, file, "within", b.out)}
		for _, name := range slices.Sorted(maps.Keys(f.Match)) {
			if len(f.Match[name].refs()) > 0 {
				b.out.add(file, f.Match[name].line, "%s: a ceiling knows no parameters: write a value", name)
			}
			if r.Match == nil {
				r.Match = map[string]remit.Term{}
			}
			r.Match[name] = f.Match[name].Term
		}
		return r, f.Of.s
	}
	switch {
	case f.Scan != nil:
		r := remit.Requirement{Kind: remit.EvidenceScan, Source: f.Scan.Source.s, Within: f.Scan.Within.or(0, maxWithin, file, "within", b.out)}
		r.Worst, _ = remit.ParseSeverity(f.Scan.Worst.s) // the format has checked it
		return r, f.Scan.Of.s
	case f.Provenance != nil:
		return fact(remit.EvidenceProvenance, f.Provenance)
	case f.Ticket != nil:
		return fact(remit.EvidenceTicket, f.Ticket)
	case f.CI != nil:
		return fact(remit.EvidenceCI, f.CI)
	case f.Approval != nil:
		people := 1
		if f.Approval.People != nil {
			people = *f.Approval.People
		}
		if people < 1 || people > 20 {
			b.out.add(file, f.Approval.Group.line, "approval: people: %d: write 1 to 20", people)
		}
		return remit.Requirement{Kind: remit.EvidenceApproval, Approval: &remit.ApprovalRequirement{Group: f.Approval.Group.s, People: people}}, ""
	}
	b.out.add(file, line, "evidence: an entry names nothing")
	return remit.Requirement{}, ""
}

func (b *builder) pin(file string, f *pinFile) pin {
	p := pin{kind: f.Kind.s, name: f.Name.s, at: place(file, f.Name.line)}
	if f.With.Kind != 0 && f.With.Kind != yaml.MappingNode {
		b.out.add(file, f.With.Line, "with: expected a mapping of keys, found %s", describe(&f.With))
		return p
	}
	p.with = canonical(&f.With).Fields()
	for _, w := range f.Free {
		p.free = append(p.free, w.s)
	}
	return p
}

// Within reports every way in which the set exceeds the ceiling, each at its own place. A nil ceiling bounds nothing.
func (c *Ceiling) Within(s *Set) error {
	if c == nil {
		return nil
	}
	out := &problems{}
	for i := range c.docs {
		c.docs[i].check(s, out)
	}
	return out.err()
}

func (d *ceilingDoc) check(s *Set, out *problems) {
	for i := range s.Workflows {
		w := &s.Workflows[i]
		at := s.docs["Workflow/"+w.Name]
		d.checkStart(w, at, out)
		for j := range w.Stages {
			for k := range w.Stages[j].May {
				p := &w.Stages[j].May[k]
				//remit:guard S31 TestCeiling
				if why := d.exceeds(w, p); why != "" {
					file, line := split(p.Line)
					out.add(file, line, "permission %s exceeds ceiling %s: %s", p.Name, d.Name.s, why)
				}
			}
		}
	}
	for i := range d.pins {
		d.pins[i].check(s, d.Name.s, out)
	}
}

func (d *ceilingDoc) checkStart(w *remit.Workflow, at doc, out *problems) {
	//remit:guard S31 TestCeiling
	if d.Run.d > 0 && w.Start.Expires > d.Run.d {
		out.add(at.file, at.node.Line, "workflow %s exceeds ceiling %s: a run of %s is longer than %s: write a shorter start: expires", w.Name, d.Name.s, w.Start.Expires, d.Run.d)
	}
	for _, name := range w.Start.By {
		//remit:guard S31 TestCeiling
		if d.Start != nil && !listed(d.Start, string(name)) {
			out.add(at.file, at.node.Line, "workflow %s exceeds ceiling %s: %s is not among those who may start a run", w.Name, d.Name.s, name)
		}
	}
}

// exceeds says why a permission is within no entry: what is wrong with the one that comes nearest.
func (d *ceilingDoc) exceeds(w *remit.Workflow, p *remit.Permission) string {
	var whys []string
	for i := range d.bounds {
		b := &d.bounds[i]
		if !b.covers(p) {
			continue
		}
		why := b.exceeds(w, p)
		if why == "" {
			return ""
		}
		whys = append(whys, why+" ("+b.at+")")
	}
	if whys == nil {
		return "no entry permits " + string(p.Who) + " to " + p.Action + " on " + p.Target + ": take the permission out, or have the ceiling raised by who signs it"
	}
	return strings.Join(whys, "; or ")
}

// covers reports whether the entry is about the permission at all.
func (b *bound) covers(p *remit.Permission) bool {
	action := slices.ContainsFunc(b.Actions, func(w word) bool {
		kind, any := strings.CutSuffix(w.s, "*")
		return w.s == p.Action || any && strings.HasPrefix(p.Action, kind)
	})
	return action && (b.Targets == nil || listed(b.Targets, p.Target) || listed(b.Targets, toolOf(p.Target))) && (b.Who == nil || listed(b.Who, string(p.Who)))
}

func listed(words []word, s string) bool {
	return slices.ContainsFunc(words, func(w word) bool { return w.s == s })
}

func (b *bound) exceeds(w *remit.Workflow, p *remit.Permission) string {
	//remit:guard S31 TestCeiling
	if p.TTL > b.ttl {
		return "ttl " + p.TTL.String() + " is more than " + b.ttl.String()
	}
	//remit:guard S31 TestCeilingBounds
	if tiers[p.Sandbox] < tiers[b.Sandbox.s] {
		return "sandbox: " + b.Sandbox.s + " is the least"
	}
	if b.Limits != nil && b.Limits.Rows != nil {
		rows, ok := p.Limits["rows"]
		//remit:guard S31 TestCeilingBounds
		if !ok || rows > *b.Limits.Rows {
			return "limits: rows must stand and be at most " + remit.IntValue(*b.Limits.Rows).Text()
		}
	}
	params := paramsOf(w)
	for _, name := range slices.Sorted(maps.Keys(b.Where.m)) {
		have, stands := p.Where[name]
		//remit:guard S31 TestCeiling
		if most := b.Where.m[name]; most.Kind != remit.PredicateAny && (!stands || !within(have, params, most, nil)) {
			return "where: " + name + " cannot be shown to stay within " + DescribePredicate(most)
		}
	}
	for i := range b.needs {
		//remit:guard S31 TestCeiling
		if !slices.ContainsFunc(p.Evidence, func(r remit.Requirement) bool { return atLeast(&r, &b.needs[i]) && about(&r, b.ofs[i], p) }) {
			return "evidence: " + describeFloor(&b.needs[i], b.ofs[i]) + " must be required"
		}
	}
	return ""
}

// toolOf is the tool of NAME/MCPTOOL; other targets have no slash.
func toolOf(target string) string {
	name, _, _ := strings.Cut(target, "/")
	return name
}

var tiers = map[string]int{"": 0, "remote": 0, "process": 1, "kernel": 2, "vm": 3}

// about reports whether the fact must be about the very image of an argument.
func about(r *remit.Requirement, of string, p *remit.Permission) bool {
	if of == "" {
		return true
	}
	w := p.Where[of]
	return r.Of != nil && w.Kind == remit.PredicateEqual && sameTerm(w.Terms[0], *r.Of)
}

func (p *pin) check(s *Set, ceiling string, out *problems) {
	d, ok := s.docs[p.kind+"/"+p.name]
	if !ok {
		//remit:guard S31 TestCeilingPins
		if p.kind == "Rule" {
			out.add(".", 0, "ceiling %s (%s) demands the Rule %s, and there is none: put it back", ceiling, p.at, p.name)
		}
		return
	}
	have := maps.Clone(canonical(d.node).Fields())
	delete(have, "kind")
	delete(have, "name")
	if p.kind == "Rule" {
		delete(have, "file")
		have["rego"] = remit.StringValue(s.module(p.name))
	}
	if p.kind == "Tool" {
		have = s.withPins(have)
	}
	for _, key := range slices.Sorted(maps.Keys(p.with)) {
		//remit:guard S31 TestCeilingPins
		if !have[key].Equal(p.with[key]) {
			out.add(d.file, d.node.Line, "%s %s: %s is not as ceiling %s pins it (%s): write %s", p.kind, p.name, key, ceiling, p.at, clip(p.with[key].String()))
		}
	}
	for _, key := range slices.Sorted(maps.Keys(have)) {
		_, pinned := p.with[key]
		//remit:guard S31 TestCeilingPins
		if !pinned && !slices.Contains(p.free, key) {
			out.add(d.file, d.node.Line, "%s %s: ceiling %s (%s) does not allow the key %s: take it out", p.kind, p.name, ceiling, p.at, key)
		}
	}
}

func (s *Set) module(rule string) string {
	for _, r := range s.Rules {
		if r.Name == rule {
			return r.Module
		}
	}
	return ""
}
