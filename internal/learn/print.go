// SPDX-License-Identifier: Apache-2.0

package learn

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"remit"
)

// Text writes a workflow that was learned as a file. About says where the history is from; lines of it are the head.
func (l *Learner) Text(w *remit.Workflow, about []string) ([]byte, error) {
	doc := mapping()
	add(doc, "kind", text("Workflow"))
	add(doc, "name", text(w.Name))
	if len(w.Parameters) > 0 {
		params := mapping()
		for i := range w.Parameters {
			add(params, w.Parameters[i].Name, parameter(&w.Parameters[i]))
		}
		add(doc, "parameters", params)
	}
	add(doc, "start", start(&w.Start))
	stages := list()
	for i := range w.Stages {
		stages.Content = append(stages.Content, l.stageNode(&w.Stages[i]))
	}
	add(doc, "stages", stages)
	var b bytes.Buffer
	for _, line := range append(l.evidence(), about...) {
		fmt.Fprintf(&b, "# %s\n", comment(line))
	}
	enc := yaml.NewEncoder(&b)
	enc.SetIndent(2)
	if err := enc.Encode(doc); err != nil {
		return nil, fmt.Errorf("write workflow %s: %w", w.Name, err)
	}
	return b.Bytes(), enc.Close()
}

// comment keeps a text within its line.
func comment(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == 0x85 || r == 0x2028 || r == 0x2029 || r == 0xfeff {
			return ' '
		}
		return r
	}, s)
}

func (l *Learner) evidence() []string {
	out := []string{fmt.Sprintf("Learned from %d allowed acts of %d runs, from %s to %s.", l.acts, len(l.runs), day(l.first), day(l.last))}
	if left := l.unused(); len(left) > 0 {
		out = append(out, "Left out, because nothing of that used them: "+strings.Join(left, ", ")+".")
	}
	return out
}

func (l *Learner) unused() (out []string) {
	for i := range l.bound.Stages {
		for j := range l.bound.Stages[i].May {
			if name := l.bound.Stages[i].May[j].Name; l.perms[name].acts == 0 && !l.keeps(l.perms[name]) {
				out = append(out, name)
			}
		}
	}
	return out
}

func day(t time.Time) string { return t.UTC().Format("2006-01-02 15:04") }

func parameter(p *remit.Parameter) *yaml.Node {
	n := flow(mapping())
	add(n, "type", text(p.Type))
	if p.Pattern != nil {
		add(n, "pattern", quoted(unanchored(p.Pattern.String())))
	}
	bounds(n, p.Min, p.Max, nil)
	if len(p.OneOf) > 0 {
		add(n, "one_of", flow(list(values(p.OneOf)...)))
	}
	addSome(n, "source", p.Source)
	if p.Sensitive {
		add(n, "sensitive", plainly("true"))
	}
	return n
}

func start(s *remit.Start) *yaml.Node {
	n := flow(mapping())
	add(n, "by", names(s.By))
	add(n, "expires", text(s.Expires.String()))
	per := flow(mapping())
	add(per, "runs", plainly(strconv.Itoa(s.Runs)))
	add(per, "values", plainly(strconv.Itoa(s.Values)))
	add(n, "per_hour", per)
	if s.Self {
		add(n, "self", plainly("true"))
	}
	return n
}

func (l *Learner) stageNode(s *remit.Stage) *yaml.Node {
	n := mapping()
	add(n, "name", text(s.Name))
	if s.Expires > 0 {
		add(n, "expires", text(s.Expires.String()))
	}
	if len(s.End) > 0 {
		end := flow(mapping())
		add(end, "by", names(s.End))
		if len(s.When) > 0 {
			when := flow(list())
			for _, f := range s.When {
				when.Content = append(when.Content, text(f.String()))
			}
			add(end, "when", when)
		}
		add(n, "end", end)
	}
	may := list()
	for i := range s.May {
		p := permission(&s.May[i])
		u := l.perms[s.May[i].Name]
		p.HeadComment = fmt.Sprintf("# %d acts in %d runs", u.acts, len(u.runs))
		if l.keeps(u) {
			p.HeadComment += ", kept as the bound has it"
		} else {
			l.remarks(p, u)
		}
		may.Content = append(may.Content, p)
	}
	add(n, "may", may)
	return n
}

// remarks writes beside each condition what it rests on; no values, which would stand there twice.
func (l *Learner) remarks(p *yaml.Node, u *used) {
	for i := 0; i+1 < len(p.Content); i += 2 {
		if p.Content[i].Value != "where" {
			continue
		}
		where := p.Content[i+1]
		for j := 0; j+1 < len(where.Content); j += 2 {
			if s := u.args[where.Content[j].Value]; s != nil {
				where.Content[j+1].LineComment = "# " + s.remark(u.acts)
			}
		}
	}
}

func (s *seen) remark(acts int) string {
	out := fmt.Sprintf("%d values", len(s.values))
	switch {
	case s.many:
		out = fmt.Sprintf("more than %d values", maxValues)
	case s.objects == s.acts:
		out = fmt.Sprintf("%d fields", len(s.fields))
	case len(s.values) == 1:
		out = "1 value"
	}
	if s.acts < acts {
		out += fmt.Sprintf(", in %d acts", s.acts)
	}
	return out
}

func permission(p *remit.Permission) *yaml.Node {
	n := mapping()
	add(n, "name", text(p.Name))
	add(n, "who", text(string(p.Who)))
	addSome(n, "under", p.Under)
	add(n, "action", text(p.Action))
	add(n, "target", text(p.Target))
	if len(p.Where) > 0 {
		where := mapping()
		for _, name := range slices.Sorted(maps.Keys(p.Where)) {
			add(where, name, condition(p.Where[name]))
		}
		add(n, "where", where)
	}
	if p.Hours != nil {
		add(n, "hours", hours(p.Hours))
	}
	if len(p.Evidence) > 0 {
		needs := list()
		for i := range p.Evidence {
			needs.Content = append(needs.Content, requirement(&p.Evidence[i]))
		}
		add(n, "evidence", needs)
	}
	if len(p.Limits) > 0 {
		limits := flow(mapping())
		for _, name := range slices.Sorted(maps.Keys(p.Limits)) {
			add(limits, name, plainly(strconv.FormatInt(p.Limits[name], 10)))
		}
		add(n, "limits", limits)
	}
	addSome(n, "sandbox", p.Sandbox)
	if len(p.Sensitive) > 0 {
		sensitive := flow(list())
		for _, name := range p.Sensitive {
			sensitive.Content = append(sensitive.Content, text(name))
		}
		add(n, "sensitive", sensitive)
	}
	add(n, "ttl", text(p.TTL.String()))
	return n
}

func condition(p remit.Predicate) *yaml.Node {
	n := flow(mapping())
	switch p.Kind {
	case remit.PredicateEqual:
		return term(p.Terms[0])
	case remit.PredicateSubset, remit.PredicateChoice:
		n = flow(list())
		if p.Empty {
			n.Content = append(n.Content, plainly("null"))
		}
		for _, t := range p.Terms {
			n.Content = append(n.Content, term(t))
		}
		for _, by := range p.Sources {
			n.Content = append(n.Content, source(by))
		}
	case remit.PredicateRange:
		bounds(n, p.Min, p.Max, p.Above)
	case remit.PredicatePattern:
		add(n, "pattern", quoted(unanchored(p.Pattern.String())))
	case remit.PredicateObject:
		for _, name := range slices.Sorted(maps.Keys(p.Fields)) {
			add(n, name, condition(p.Fields[name]))
		}
	case remit.PredicateFrom:
		return source(p.Source)
	default:
		add(n, "any", plainly("true"))
	}
	return n
}

func source(by remit.Source) *yaml.Node {
	n := flow(mapping())
	add(n, "from", text(by.From))
	add(n, "path", quoted(by.Path))
	return n
}

func bounds(n *yaml.Node, least, greatest, above *remit.Value) {
	if above != nil {
		add(n, "above", literal(*above))
		if least != nil && least.Equal(*above) {
			least = nil // it stands there because of above
		}
	}
	if least != nil {
		add(n, "min", literal(*least))
	}
	if greatest != nil {
		add(n, "max", literal(*greatest))
	}
}

func term(t remit.Term) *yaml.Node {
	switch {
	case t.Param != "":
		return plainly("$" + t.Param)
	case t.Call != "":
		return plainly("$call." + t.Call)
	case t.Value.Kind() == remit.String && strings.HasPrefix(t.Value.Text(), "$"):
		return quoted("$" + t.Value.Text())
	}
	return literal(t.Value)
}

func literal(v remit.Value) *yaml.Node {
	if v.Kind() == remit.String {
		return quoted(v.Text())
	}
	return plainly(v.Text())
}

func hours(h *remit.Hours) *yaml.Node {
	n := flow(mapping())
	days := flow(list())
	for i := range 7 {
		if d := (i + 1) % 7; h.Days[d] {
			days.Content = append(days.Content, text(strings.ToLower(time.Weekday(d).String()[:3])))
		}
	}
	add(n, "days", days)
	add(n, "from", quoted(fmt.Sprintf("%02d:%02d", h.From/60, h.From%60)))
	add(n, "to", quoted(fmt.Sprintf("%02d:%02d", h.To/60, h.To%60)))
	add(n, "zone", text(h.Zone.String()))
	return n
}

func requirement(r *remit.Requirement) *yaml.Node {
	n := flow(mapping())
	if a := r.Approval; a != nil {
		if len(a.When) > 0 {
			when := flow(mapping())
			for _, name := range slices.Sorted(maps.Keys(a.When)) {
				add(when, name, condition(a.When[name]))
			}
			add(n, "when", when)
		}
		add(n, "group", text(a.Group))
		add(n, "people", plainly(strconv.Itoa(a.People)))
		addSome(n, "by", a.By)
	}
	if r.ID != nil {
		add(n, "id", term(*r.ID))
	}
	if r.Of != nil {
		add(n, "of", term(*r.Of))
	}
	addSome(n, "source", r.Source)
	addSome(n, "worst", r.Worst.String())
	for _, name := range slices.Sorted(maps.Keys(r.Match)) {
		add(n, name, term(r.Match[name]))
	}
	within := r.Within
	if r.Approval != nil {
		within = r.Approval.Within
	}
	if within > 0 {
		add(n, "within", text(within.String()))
	}
	out := flow(mapping())
	add(out, string(r.Kind), n)
	return out
}

func unanchored(re string) string {
	return strings.TrimSuffix(strings.TrimPrefix(re, "^(?:"), ")$")
}

func mapping() *yaml.Node                      { return &yaml.Node{Kind: yaml.MappingNode} }
func list(items ...*yaml.Node) *yaml.Node      { return &yaml.Node{Kind: yaml.SequenceNode, Content: items} }
func text(s string) *yaml.Node                 { n := &yaml.Node{}; n.SetString(s); return n }
func plainly(s string) *yaml.Node              { return &yaml.Node{Kind: yaml.ScalarNode, Value: s} }
func add(n *yaml.Node, k string, v *yaml.Node) { n.Content = append(n.Content, text(k), v) }

func quoted(s string) *yaml.Node {
	return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Style: yaml.DoubleQuotedStyle, Value: s}
}

func flow(n *yaml.Node) *yaml.Node {
	n.Style = yaml.FlowStyle
	return n
}

func addSome(n *yaml.Node, key, s string) {
	if s != "" {
		add(n, key, text(s))
	}
}

func values(list []remit.Value) (out []*yaml.Node) {
	for _, v := range list {
		out = append(out, literal(v))
	}
	return out
}

func names(list []remit.Name) *yaml.Node {
	n := flow(&yaml.Node{Kind: yaml.SequenceNode})
	for _, name := range list {
		n.Content = append(n.Content, text(string(name)))
	}
	return n
}
