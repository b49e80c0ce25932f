// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// generate writes the workflow for what a user asked for. It knows the user's words and the descriptions of the suite's tools, and
// nothing else.
func generate(id, suite, prompt string, tools []tool) string {
	p := planFor(prompt, tools)
	var b strings.Builder
	fmt.Fprintf(&b, "# %s\nkind: Workflow\nname: %s\nstart: {by: [operator/%s], per_hour: {runs: 100000}}\nstages:\n- name: work\n  may:\n",
		strings.Join(strings.Fields(prompt), " "), id, operator)
	for _, m := range p.may {
		fmt.Fprintf(&b, "  - {name: %s, who: agent/%s, action: mcp.call, target: %s/%s, sandbox: remote, where: %s}\n",
			m.name, agentName, suite, m.skill.Name, m.where())
	}
	if len(p.may) == 0 { // a stage that permits nothing is an error
		fmt.Fprintf(&b, "  - {name: see, who: agent/%s, action: mcp.list, target: %s, sandbox: remote}\n", agentName, suite)
	}
	return b.String()
}

// permission is one entry of may.
type permission struct {
	name  string
	skill *skill
	is    map[string]*choice // by argument; one that does not stand there must be absent
}

// choice is what an argument may be: anything, or one of literals, and of values that other permissions' calls returned.
type choice struct {
	any      bool
	literals []any
	from     []source
	optional bool
}

// source is a field of the results of a permission's calls.
type source struct {
	From string `json:"from"`
	Path string `json:"path"`
}

func (c *choice) add(values ...string) {
	for _, v := range values {
		if v == "" || slices.Contains(c.literals, any(v)) {
			continue
		}
		c.literals = append(c.literals, v)
	}
}

func (c *choice) take(from string, paths ...string) {
	for _, path := range paths {
		if s := (source{from, path}); !slices.Contains(c.from, s) {
			c.from = append(c.from, s)
		}
	}
}

func (c *choice) empty() bool { return !c.any && len(c.literals) == 0 && len(c.from) == 0 }

// others are the permissions whose results one can be bound to.
func (p *plan) others(m *permission) []*permission {
	return slices.DeleteFunc(slices.Clone(p.may), func(o *permission) bool { return o == m })
}

// where writes the conditions as JSON, which is YAML, too.
func (m *permission) where() string {
	out := map[string]any{}
	for arg, c := range m.is {
		if c.any {
			out[arg] = map[string]bool{"any": true}
			continue
		}
		list := []any{}
		if c.optional {
			list = append(list, nil, "")
		}
		for _, l := range c.literals {
			if s, ok := l.(string); ok && strings.HasPrefix(s, "$") {
				l = "$" + s
			}
			list = append(list, l)
		}
		for _, s := range c.from {
			list = append(list, s)
		}
		out[arg] = list
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(out); err != nil {
		return "{}" // strings and maps of them always encode
	}
	return strings.TrimSpace(b.String())
}

// plan is a workflow while it is made.
type plan struct {
	*request
	skills []skill
	may    []*permission
}

func planFor(prompt string, tools []tool) *plan {
	p := &plan{}
	own := map[string]bool{}
	for _, t := range tools {
		s := understand(t)
		p.skills = append(p.skills, s)
		own[s.verb] = own[s.verb] || s.acts
	}
	p.request = read(prompt, own)
	for i := range p.skills {
		if s := &p.skills[i]; !s.acts || p.wants(s) {
			p.permit(s)
		}
	}
	p.bind()
	return p
}

// permit adds a permission for a tool, and for a tool that reads an address two: results of the addresses that the user named count
// for more than those of others.
func (p *plan) permit(s *skill) {
	n := label(s.Name)
	p.may = append(p.may, &permission{name: n, skill: s})
	if !s.acts && s.takes(ofLink) {
		p.may = append(p.may, &permission{name: n + "-found", skill: s})
	}
}

func (s *skill) takes(k kind) bool {
	return slices.ContainsFunc(s.args, func(a argument) bool { return a.kind == k })
}

// bind finds what each argument may be. A tool with a required argument that nothing is known for is not permitted; others that take
// values from its results are bound anew without it.
func (p *plan) bind() {
	for {
		var kept []*permission
		for _, m := range p.may {
			if p.bindAll(m) {
				kept = append(kept, m)
			}
		}
		if len(kept) == len(p.may) {
			return
		}
		p.may = kept
	}
}

func (p *plan) bindAll(m *permission) bool {
	m.is = map[string]*choice{}
	for i := range m.skill.args {
		a := &m.skill.args[i]
		c := &choice{optional: a.optional}
		if !a.bound() || !m.skill.acts && a.kind != ofLink {
			c.any = true
		} else {
			p.choose(m, a, c)
		}
		switch {
		case !c.empty() || a.optional:
			m.is[a.name] = c
		default:
			return false
		}
	}
	return true
}

// wants reports whether the user asks for what the tool does.
func (p *plan) wants(s *skill) bool {
	for i := range p.clauses {
		for _, v := range p.clauses[i].verbs {
			if p.matches(s, v, &p.clauses[i]) && (v == s.verb || !p.exact(v, &p.clauses[i])) {
				return true
			}
		}
	}
	return p.delegates && !narrow[s.verb] && !s.takes(ofSecret) && !s.takes(ofLink)
}

// matches: the verb means the tool's, and what it is said of is what the tool is about, or what one of its arguments names, or nothing of which
// either is so of another tool.
func (p *plan) matches(s *skill, v string, c *clause) bool {
	if v != s.verb && !verbs[s.verb][v] && !verbs[s.means][v] {
		return false
	}
	if n := implied[v]; n != "" && p.anyAbout(n) {
		return s.about(n)
	}
	if slices.ContainsFunc(s.nouns, func(n string) bool { return c.nouns[n] }) {
		return true
	}
	for i := range p.skills {
		if o := &p.skills[i]; o.acts && slices.ContainsFunc(o.nouns, func(n string) bool { return c.nouns[n] }) {
			return false
		}
	}
	named := func(s *skill) bool {
		return s.acts && slices.ContainsFunc(s.args, func(a argument) bool { return a.kind == ofName && c.nouns[noun(a.name)] })
	}
	return named(s) || !slices.ContainsFunc(p.skills, func(o skill) bool { return named(&o) })
}

// exact reports whether a tool that is wanted has just this verb in its name: then the verb does not mean others.
func (p *plan) exact(v string, c *clause) bool {
	for i := range p.skills {
		if s := &p.skills[i]; s.acts && s.verb == v && p.matches(s, v, c) {
			return true
		}
	}
	return false
}

func (p *plan) anyAbout(noun string) bool {
	return slices.ContainsFunc(p.skills, func(s skill) bool { return s.acts && s.about(noun) })
}
