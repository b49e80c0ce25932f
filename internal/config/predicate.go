// SPDX-License-Identifier: Apache-2.0

package config

import (
	"regexp"
	"strings"

	"go.yaml.in/yaml/v3"

	"remit"
)

// termPattern is what a text may be where parameters can stand: it does not begin with $, begins with $$, or refers.
const termPattern = `^($|[^$]|\$\$|\$[a-z][a-z0-9_]{0,62}$|\$call\.[A-Za-z_][A-Za-z0-9_-]{0,62}$)`

var (
	termFormat = expr(termPattern)
	argFormat  = expr(`^[A-Za-z_][A-Za-z0-9_./-]{0,126}$`)
)

// ref is a use of something that must exist.
type ref struct {
	kind refKind
	name string
	line int
}

type refKind uint8

const (
	refParam refKind = iota
	refCall          // an argument of the parent call
	refFrom          // a permission whose results are used
)

// term is a literal, $parameter or $call.argument, with the place where it stands.
type term struct {
	remit.Term
	line int
}

func (t *term) read(d *decoder, n *yaml.Node, _ string) {
	t.line = n.Line
	v, ok := scalar(n)
	if !ok {
		d.add(n, "expected text, a decimal number, a boolean or $PARAMETER, found %s", describe(n))
		return
	}
	s := v.Text()
	switch {
	case v.Kind() != remit.String || !strings.HasPrefix(s, "$"):
		t.Value = v
	case !termFormat.MatchString(s):
		d.add(n, "%q refers to nothing: write $PARAMETER, $call.ARGUMENT, or $$ for a literal $", clip(s))
	case strings.HasPrefix(s, "$$"):
		t.Value = remit.StringValue(s[1:])
	case strings.HasPrefix(s, "$call."):
		t.Call = strings.TrimPrefix(s, "$call.")
	default:
		t.Param = s[1:]
	}
}

func (*term) schema(string) map[string]any { return map[string]any{"$ref": "#/$defs/term"} }

func (t *term) refs() []ref {
	switch {
	case t == nil:
		return nil
	case t.Param != "":
		return []ref{{refParam, t.Param, t.line}}
	case t.Call != "":
		return []ref{{refCall, t.Call, t.line}}
	}
	return nil
}

// predicate is a condition on an argument, with what it refers to.
type predicate struct {
	remit.Predicate
	uses []ref
	line int
}

func (p *predicate) read(d *decoder, n *yaml.Node, is string) {
	p.line = n.Line
	switch n.Kind {
	case yaml.SequenceNode:
		p.readList(d, n)
	case yaml.MappingNode:
		p.readMapping(d, n, is)
	default:
		p.Kind = remit.PredicateEqual
		p.addTerm(d, n)
	}
}

// readList reads a subset, or a choice where null or a from stands among the values.
func (p *predicate) readList(d *decoder, n *yaml.Node) {
	p.Kind = remit.PredicateSubset
	if len(n.Content) == 0 {
		d.add(n, "an empty list allows nothing: list values, or leave the argument out")
	}
	for _, c := range n.Content {
		switch {
		case c.Kind == yaml.ScalarNode && c.Tag == "!!null":
			p.Kind, p.Empty = remit.PredicateChoice, true
		case c.Kind == yaml.MappingNode:
			p.Kind = remit.PredicateChoice
			p.addSource(d, c)
		default:
			p.addTerm(d, c)
		}
	}
}

func (p *predicate) addSource(d *decoder, n *yaml.Node) {
	keys := map[string]*yaml.Node{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		keys[n.Content[i].Value] = n.Content[i+1]
	}
	if len(keys) != 2 || keys["from"] == nil || keys["path"] == nil {
		d.add(n, "expected {from: PERMISSION, path: POINTER}, a value or null in a list")
		return
	}
	p.Sources = append(p.Sources, p.source(d, keys))
}

func (p *predicate) addTerm(d *decoder, n *yaml.Node) {
	var t term
	t.read(d, n, "")
	p.Terms = append(p.Terms, t.Term)
	p.uses = append(p.uses, t.refs()...)
}

// readMapping tells the forms apart by their keys; every other mapping is an object.
func (p *predicate) readMapping(d *decoder, n *yaml.Node, is string) {
	keys := map[string]*yaml.Node{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		keys[n.Content[i].Value] = n.Content[i+1]
	}
	only := func(names ...string) bool {
		found := 0
		for _, name := range names {
			if keys[name] != nil {
				found++
			}
		}
		return found > 0 && found == len(keys)
	}
	switch {
	case only("any"):
		p.Kind = remit.PredicateAny
		if v, ok := scalar(keys["any"]); !ok || v.Kind() != remit.Bool || v.Text() != "true" {
			d.add(n, "any can only be true: an argument that is not named must be absent")
		}
	case only("min", "max") || is == "when" && only("min", "max", "above"):
		p.readRange(d, n, keys)
	case only("pattern"):
		p.Kind = remit.PredicatePattern
		p.Pattern = d.pattern(keys["pattern"])
	case only("from", "path") && len(keys) == 2:
		p.readFrom(d, keys)
	default:
		p.readObject(d, n, is)
	}
}

func (p *predicate) readRange(d *decoder, n *yaml.Node, keys map[string]*yaml.Node) {
	p.Kind = remit.PredicateRange
	for _, bound := range []struct {
		key  string
		into **remit.Value
	}{{"min", &p.Min}, {"max", &p.Max}, {"above", &p.Above}} {
		if keys[bound.key] == nil {
			continue
		}
		var x number
		x.read(d, keys[bound.key], "")
		*bound.into = x.value()
	}
	if p.Above != nil && p.Min == nil {
		p.Min = p.Above // who compares with Min alone asks once too often, never once too rarely
	}
	if p.Min != nil && p.Max != nil {
		if order, _ := p.Min.Compare(*p.Max); order > 0 {
			d.add(n, "min %s is above max %s: no number fits", p.Min.Text(), p.Max.Text())
		}
	}
}

func (p *predicate) readFrom(d *decoder, keys map[string]*yaml.Node) {
	p.Kind = remit.PredicateFrom
	p.Source = p.source(d, keys)
}

func (p *predicate) source(d *decoder, keys map[string]*yaml.Node) remit.Source {
	var from, path word
	from.read(d, keys["from"], "label")
	path.read(d, keys["path"], "pointer")
	if from.s != "" {
		p.uses = append(p.uses, ref{refFrom, from.s, from.line})
	}
	return remit.Source{From: from.s, Path: path.s}
}

func (p *predicate) readObject(d *decoder, n *yaml.Node, is string) {
	p.Kind, p.Fields = remit.PredicateObject, map[string]remit.Predicate{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key := n.Content[i]
		if !argFormat.MatchString(key.Value) {
			d.add(key, "%q is no name of a field: write letters, digits and . _ / -", clip(key.Value))
		}
		var f predicate
		f.read(d, n.Content[i+1], is)
		p.Fields[key.Value] = f.Predicate
		p.uses = append(p.uses, f.uses...)
	}
}

func (*predicate) schema(is string) map[string]any {
	if is == "when" {
		return map[string]any{"$ref": "#/$defs/when"}
	}
	return map[string]any{"$ref": "#/$defs/predicate"}
}

// args is a mapping of argument names to predicates, with the place where it stands.
type args struct {
	m    map[string]remit.Predicate
	uses []ref
	line int
}

func (a *args) read(d *decoder, n *yaml.Node, is string) {
	a.line = n.Line
	if n.Kind != yaml.MappingNode {
		d.add(n, "expected a mapping of arguments, found %s: write {name: value}", describe(n))
		return
	}
	var p predicate
	p.readObject(d, n, is)
	a.m, a.uses = p.Fields, p.uses
}

func (*args) schema(is string) map[string]any {
	return map[string]any{"type": "object", "propertyNames": map[string]any{"pattern": argFormat.String()},
		"additionalProperties": (&predicate{}).schema(is)}
}

// pattern compiles a regular expression that must match as a whole. It is compiled alone first: "a)|(?:b" would be valid
// inside the anchors and slip out of them.
func (d *decoder) pattern(n *yaml.Node) *regexp.Regexp {
	var w word
	w.read(d, n, "regexp")
	if w.s == "" {
		return nil
	}
	if _, err := regexp.Compile(w.s); err != nil {
		d.add(n, "%v: write a regular expression in RE2's syntax", err)
		return nil
	}
	re, err := regexp.Compile(`^(?:` + w.s + `)$`)
	if err != nil {
		d.add(n, "%v: write a regular expression in RE2's syntax", err)
		return nil
	}
	return re
}

// pattern is a regular expression, anchored.
type pattern struct{ re *regexp.Regexp }

func (p *pattern) read(d *decoder, n *yaml.Node, _ string) { p.re = d.pattern(n) }

func (*pattern) schema(string) map[string]any { return (&word{}).schema("regexp") }
