// SPDX-License-Identifier: Apache-2.0

// Package config reads what an operator writes: the directory of declarations (Agent, Tool, Workflow, Target,
// EvidenceSource, EnforcementPoint, Rule) and the server's own file. Reading is strict: an unknown key, a key that stands
// twice, a wrong type, a rule that nothing can meet and a reference to nothing are errors, and all of them are reported, each
// with file, line and what to do. It never reads a secret by itself, never contacts anything, keeps no state and starts no
// goroutine. One set of structs makes parser, JSON Schema and reference.
package config

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"maps"
	"path"
	"reflect"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.yaml.in/yaml/v3"

	"remit"
)

// Set is everything that one directory declares. It is immutable.
type Set struct {
	Digest            remit.Digest               // of all paths and bytes
	Files             map[string][]byte          // by path relative to the directory, with slashes
	Agents            map[remit.Name]remit.Agent // tools included
	Tools             map[remit.Name]remit.Tool  // those with a server
	EnforcementPoints map[remit.Name]remit.EnforcementPoint
	Workflows         []remit.Workflow // in the order of their names
	Targets           map[string]Object
	Sources           map[string]Object
	Rules             []Rule // in the order of their names
	docs              map[string]doc
}

// doc is a document as written, by "Kind/name".
type doc struct {
	file string
	node *yaml.Node
}

// Rule is a Rego module of the organisation; the policy package compiles it.
type Rule struct {
	Name   string
	Module string
	File   string
	Line   int
}

// Parse reads files, by path relative to the directory. The error joins one *remit.Error of CodeInvalid for each thing that
// is wrong; then there is no Set.
func Parse(files map[string][]byte, td spiffeid.TrustDomain) (*Set, error) {
	b := newBuilder(files, td)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		b.read(name, files[name])
	}
	b.build()
	if err := b.out.err(); err != nil {
		return nil, err
	}
	b.set.Digest = digest(files)
	return b.set, nil
}

// digest hashes lengths with contents, so that no two sets of files run together.
func digest(files map[string][]byte) remit.Digest {
	h := sha256.New()
	write := func(b []byte) {
		h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(b))))
		h.Write(b)
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		write([]byte(name))
		write(files[name])
	}
	return remit.Digest("sha256:" + hex.EncodeToString(h.Sum(nil)))
}

// builder turns files into a Set: first every document by itself, then what refers to another.
type builder struct {
	td        spiffeid.TrustDomain
	out       *problems
	set       *Set
	workflows []workflowDoc
	rules     []ruleDoc
	seen      map[string]spot // "Kind/name" to where it is declared
	broken    map[string]bool // "Kind/name" of documents that are not well: references to them are
	ids       map[spiffeid.ID]string
	docs      int
}

// spot is where something stands.
type spot struct {
	file string
	line int
}

type workflowDoc struct {
	file string
	node *yaml.Node
	workflowFile
}

type ruleDoc struct {
	file string
	line int
	ruleFile
}

func newBuilder(files map[string][]byte, td spiffeid.TrustDomain) *builder {
	return &builder{td: td, out: &problems{}, seen: map[string]spot{}, broken: map[string]bool{}, ids: map[spiffeid.ID]string{}, set: &Set{
		Files: files, Agents: map[remit.Name]remit.Agent{}, Tools: map[remit.Name]remit.Tool{}, EnforcementPoints: map[remit.Name]remit.EnforcementPoint{},
		Targets: map[string]Object{}, Sources: map[string]Object{}, docs: map[string]doc{}}}
}

func (b *builder) read(name string, body []byte) {
	switch path.Ext(name) {
	case ".rego":
		if len(body) > maxFileBytes {
			b.out.add(name, 0, "%d bytes are more than the limit of %d: split the rule", len(body), maxFileBytes)
		}
		return
	case ".yaml", ".yml":
	case ".json":
		if !strings.HasSuffix(name, pinsSuffix) {
			b.out.add(name, 0, "this is neither .yaml, .rego nor .pins.json: take it out of the directory")
		} else if len(body) > maxFileBytes {
			b.out.add(name, 0, "%d bytes are more than the limit of %d", len(body), maxFileBytes)
		}
		return
	default:
		b.out.add(name, 0, "this is neither .yaml, .rego nor .pins.json: take it out of the directory")
		return
	}
	for _, n := range documents(name, body, b.out) {
		if b.docs++; b.docs > maxDocuments {
			b.out.add(name, n.Line, "more than %d documents in all: remove some", maxDocuments)
			return
		}
		b.document(name, n)
	}
}

func (b *builder) document(file string, n *yaml.Node) {
	d := &decoder{file: file, out: b.out}
	if n.Kind != yaml.MappingNode {
		d.add(n, "expected a document with kind and name, found %s", describe(n))
		return
	}
	var names []string
	for _, k := range kinds() {
		if names = append(names, k.name); k.name != valueOf(n, "kind") {
			continue
		}
		into := reflect.New(k.typ)
		before := len(b.out.list) + b.out.more
		d.decode(n, into.Elem(), "")
		if len(b.out.list)+b.out.more == before {
			b.declare(file, n, into.Interface())
			return
		}
		b.broken[k.name+"/"+valueOf(n, "name")] = true
		return
	}
	d.add(n, "kind is %q: write one of %s", clip(valueOf(n, "kind")), strings.Join(names, ", "))
}

func valueOf(n *yaml.Node, key string) string {
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key && n.Content[i+1].Kind == yaml.ScalarNode {
			return n.Content[i+1].Value
		}
	}
	return ""
}

// declare takes a document that is well by itself.
func (b *builder) declare(file string, n *yaml.Node, doc any) {
	switch f := doc.(type) {
	case *agentFile:
		if b.first(f.head, file, n) {
			b.agent(file, f)
		}
	case *toolFile:
		if b.first(f.head, file, n) {
			b.tool(file, f)
		}
	case *pepFile:
		if b.first(f.head, file, n) {
			b.enforcementPoint(file, f)
		}
	case *targetFile:
		if b.first(f.head, file, n) {
			b.set.Targets[f.Name.s] = Object{f.Kind, f.Name.s, f.Type.s, file, n.Line, f.Production, f.Spec}
		}
	case *sourceFile:
		if b.first(f.head, file, n) {
			b.set.Sources[f.Name.s] = Object{f.Kind, f.Name.s, f.Type.s, file, n.Line, false, f.Spec}
		}
	case *workflowFile:
		if b.first(f.head, file, n) {
			b.workflows = append(b.workflows, workflowDoc{file, n, *f})
		}
	case *ruleFile:
		if b.first(f.head, file, n) {
			b.rules = append(b.rules, ruleDoc{file, n.Line, *f})
		}
	case *ceilingFile:
		b.out.add(file, n.Line, "a Ceiling does not stand among what it bounds: put it into the directory that ceiling in remit.yaml names")
	}
}

func (b *builder) first(h head, file string, n *yaml.Node) bool {
	key := h.Kind + "/" + h.Name.s
	if before, twice := b.seen[key]; twice {
		b.out.add(file, h.Name.line, "%s %s is declared twice, first at %s: rename or remove one", h.Kind, h.Name.s, place(before.file, before.line))
		return false
	}
	b.seen[key] = spot{file, h.Name.line}
	b.set.docs[key] = doc{file, n}
	return true
}

// build resolves what refers to another document.
func (b *builder) build() {
	b.checkAudiences()
	b.checkPins()
	slices.SortFunc(b.workflows, func(x, y workflowDoc) int { return strings.Compare(x.Name.s, y.Name.s) })
	for i := range b.workflows {
		b.workflow(&b.workflows[i])
	}
	b.buildRules()
}

func (b *builder) buildRules() {
	used := map[string]bool{}
	slices.SortFunc(b.rules, func(x, y ruleDoc) int { return strings.Compare(x.Name.s, y.Name.s) })
	for _, r := range b.rules {
		rule := Rule{Name: r.Name.s, Module: r.Rego.s, File: r.file, Line: r.line}
		if r.File.s != "" {
			body, ok := b.set.Files[r.File.s]
			if !ok || path.Ext(r.File.s) != ".rego" {
				b.out.add(r.file, r.File.line, "there is no file %q: write its path in the configuration directory", clip(r.File.s))
				continue
			}
			used[r.File.s] = true
			rule.Module, rule.File, rule.Line = string(body), r.File.s, 1
		}
		b.set.Rules = append(b.set.Rules, rule)
	}
	for _, name := range slices.Sorted(maps.Keys(b.set.Files)) {
		// A rule that nobody names would be silently without effect.
		if path.Ext(name) == ".rego" && !strings.HasSuffix(name, "_test.rego") && !used[name] {
			b.out.add(name, 0, "no Rule names this file: add {kind: Rule, name: NAME, file: %s}, or remove it", name)
		}
	}
}
