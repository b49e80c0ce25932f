// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	"remit"
)

// DefaultTTL bounds an answer whose permission states no ttl.
const DefaultTTL = 5 * time.Minute

// maxTTL bounds what a file or rule may state, so that sums of durations cannot overflow.
const maxTTL = 366 * 24 * time.Hour

// tiers that a permission may ask for, weakest first.
func tiers() []string {
	var out []string
	for _, t := range remit.Tiers() {
		out = append(out, string(t))
	}
	return out
}

func invalid(line, format string, args ...any) error {
	msg := fmt.Sprintf(format, args...)
	if line != "" {
		msg = line + ": " + msg
	}
	return &remit.Error{Code: remit.CodeInvalid, Msg: msg, Hint: "mend the file and apply again; the old revision stays active"}
}

func checkWorkflow(w *remit.Workflow, cfg *Config) error {
	if w.Name == "" || w.Digest == "" || len(w.Stages) == 0 {
		return invalid("", "workflow %q needs a name, a digest and a stage", w.Name)
	}
	c := checker{cfg: cfg, params: map[string]string{}}
	for _, p := range w.Parameters {
		c.params[p.Name] = p.Type
	}
	seen := map[string]bool{}
	for i := range w.Stages {
		s := &w.Stages[i]
		if s.Name == "" || seen[s.Name] {
			return invalid("", "workflow %q: a stage needs a name of its own, not %q", w.Name, s.Name)
		}
		seen[s.Name] = true
		if err := c.stage(s); err != nil {
			return fmt.Errorf("workflow %s, stage %s: %w", w.Name, s.Name, err)
		}
	}
	return nil
}

type checker struct {
	cfg     *Config
	params  map[string]string // name to type
	earlier []string          // permissions of this and earlier stages
	stageOf []string          // permissions of this stage
}

func (c *checker) stage(s *remit.Stage) error {
	c.stageOf = nil
	for i := range s.May {
		if slices.Contains(c.stageOf, s.May[i].Name) {
			return invalid(s.May[i].Line, "permission %q stands twice in stage %q", s.May[i].Name, s.Name)
		}
		c.stageOf = append(c.stageOf, s.May[i].Name)
		c.earlier = append(c.earlier, s.May[i].Name)
	}
	for i := range s.May {
		if err := c.permission(&s.May[i]); err != nil {
			return err
		}
	}
	return nil
}

func (c *checker) permission(m *remit.Permission) error {
	fail := func(format string, args ...any) error {
		return invalid(m.Line, "permission "+m.Name+": "+format, args...)
	}
	if m.Name == "" || m.Action == "" || m.Target == "" {
		return fail("needs name, action and target")
	}
	if _, err := remit.ParseName(string(m.Who)); err != nil {
		return fail("who: %v", err)
	}
	if c.cfg.Agents != nil && !slices.Contains(c.cfg.Agents, m.Who) {
		return fail("who: there is no %s", m.Who)
	}
	target := m.Target
	if strings.HasPrefix(m.Action, "mcp.") { // NAME/MCPTOOL
		target, _, _ = strings.Cut(target, "/")
	}
	if c.cfg.Targets != nil && !slices.Contains(c.cfg.Targets, target) {
		return fail("there is no target %q", m.Target)
	}
	if m.Under != "" && (m.Under == m.Name || !slices.Contains(c.stageOf, m.Under)) {
		return fail("under names %q, which is no other permission of this stage", m.Under)
	}
	if m.TTL < 0 || m.TTL > maxTTL {
		return fail("ttl is outside 0 to %s", maxTTL)
	}
	if m.Sandbox != "" && !slices.Contains(tiers(), m.Sandbox) {
		return fail("sandbox is one of %s, not %q", strings.Join(tiers(), ", "), m.Sandbox)
	}
	if err := checkHours(m.Hours); err != nil {
		return fail("hours: %v", err)
	}
	for _, name := range slices.Sorted(maps.Keys(m.Where)) {
		if err := c.predicate(m, m.Where[name]); err != nil {
			return fail("where.%s: %v", name, err)
		}
	}
	for i := range m.Evidence {
		if err := c.requirement(m, &m.Evidence[i]); err != nil {
			return fail("evidence: %v", err)
		}
	}
	return nil
}

func checkHours(h *remit.Hours) error {
	if h == nil {
		return nil
	}
	if h.Zone == nil || h.Zone.String() == "Local" {
		return fmt.Errorf("needs a zone by name")
	}
	if _, err := time.LoadLocation(h.Zone.String()); err != nil {
		return fmt.Errorf("zone: %w", err)
	}
	if h.From < 0 || h.To < 0 || h.From > 1440 || h.To > 1440 || h.From == h.To || h.Days == [7]bool{} {
		return fmt.Errorf("the window is empty or outside the day")
	}
	return nil
}

func (c *checker) predicate(m *remit.Permission, p remit.Predicate) error {
	switch p.Kind {
	case remit.PredicateAny:
		return nil
	case remit.PredicateEqual, remit.PredicateSubset:
		if len(p.Terms) == 0 || p.Kind == remit.PredicateEqual && len(p.Terms) != 1 {
			return fmt.Errorf("%s with %d values", p.Kind, len(p.Terms))
		}
		for i := range p.Terms {
			if err := c.term(m, &p.Terms[i]); err != nil {
				return err
			}
		}
		return nil
	case remit.PredicateRange:
		return checkRange(p)
	case remit.PredicatePattern:
		return checkPattern(p.Pattern)
	case remit.PredicateObject:
		for _, name := range slices.Sorted(maps.Keys(p.Fields)) {
			if err := c.predicate(m, p.Fields[name]); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
		return nil
	case remit.PredicateFrom, remit.PredicateChoice:
		return c.choice(m, p)
	}
	return fmt.Errorf("there is no predicate %q", p.Kind)
}

func (c *checker) choice(m *remit.Permission, p remit.Predicate) error {
	for i := range p.Terms {
		if err := c.term(m, &p.Terms[i]); err != nil {
			return err
		}
	}
	for _, by := range sources(&p) {
		if by.From == m.Name || !slices.Contains(c.earlier, by.From) {
			return fmt.Errorf("from names %q, which is no permission of this or an earlier stage", by.From)
		}
	}
	return nil
}

func checkRange(p remit.Predicate) error {
	if p.Min == nil && p.Max == nil {
		return fmt.Errorf("a range needs min or max")
	}
	for _, bound := range []*remit.Value{p.Min, p.Max} {
		if bound != nil && (bound.Kind() != remit.Number || !exact(bound.Text())) {
			return fmt.Errorf("%s is not a number of at most 15 digits", bound)
		}
	}
	if p.Min != nil && p.Max != nil && compareDecimals(p.Min.Text(), p.Max.Text()) > 0 {
		return fmt.Errorf("no number is from %s to %s", p.Min, p.Max)
	}
	return nil
}

// checkPattern demands that the whole text must match, whatever alternatives or brackets the pattern holds.
func checkPattern(p *regexp.Regexp) error {
	if p == nil {
		return fmt.Errorf("a pattern is missing")
	}
	inner, ok := strings.CutPrefix(p.String(), "^(?:")
	if inner, ok2 := strings.CutSuffix(inner, ")$"); ok && ok2 {
		if _, err := regexp.Compile(inner); err == nil {
			return nil
		}
	}
	return fmt.Errorf("pattern %q is not anchored as ^(?:…)$", p)
}

func (c *checker) term(m *remit.Permission, t *remit.Term) error {
	switch {
	case t.Param != "":
		if _, ok := c.params[t.Param]; !ok {
			return fmt.Errorf("the workflow has no parameter %q", t.Param)
		}
	case t.Call != "":
		if m.Under == "" {
			return fmt.Errorf("$call.%s needs a permission with under", t.Call)
		}
	case !usable(t.Value):
		return fmt.Errorf("%s cannot be compared: null, or a number of more than 15 digits that is no 64-bit integer", clip(t.Value.String()))
	}
	return nil
}

func (c *checker) requirement(m *remit.Permission, r *remit.Requirement) error {
	if r.Within < 0 || r.Within > 100*maxTTL {
		return fmt.Errorf("%s: within is outside its bounds", r.Kind)
	}
	if a := r.Approval; a != nil {
		return c.approval(m, r, a)
	}
	switch r.Kind {
	case remit.EvidenceScan, remit.EvidenceProvenance, remit.EvidenceTicket, remit.EvidenceCI:
	default:
		return fmt.Errorf("there is no kind %q", r.Kind)
	}
	if r.Source == "" {
		return fmt.Errorf("%s needs a source", r.Kind)
	}
	for _, name := range slices.Sorted(maps.Keys(r.Match)) {
		t := r.Match[name]
		if err := c.scalar(m, &t); err != nil {
			return fmt.Errorf("%s.%s: %w", r.Kind, name, err)
		}
	}
	if r.ID != nil {
		if err := c.scalar(m, r.ID); err != nil {
			return fmt.Errorf("%s.id: %w", r.Kind, err)
		}
	}
	if r.Of == nil {
		return nil
	}
	if err := c.term(m, r.Of); err != nil {
		return fmt.Errorf("%s.of: %w", r.Kind, err)
	}
	if r.Of.Param != "" && c.params[r.Of.Param] != "image" {
		return fmt.Errorf("%s.of: parameter %s is no image", r.Kind, r.Of.Param)
	}
	if _, ok := imageOf(r.Of.Value, true); r.Of.Param == "" && r.Of.Call == "" && !ok {
		return fmt.Errorf("%s.of: %s is not an image with a digest", r.Kind, clip(r.Of.Value.String()))
	}
	return nil
}

func (c *checker) scalar(m *remit.Permission, t *remit.Term) error {
	if err := c.term(m, t); err != nil {
		return err
	}
	if t.Param == "" && t.Call == "" && t.Value.Text() == "" {
		return fmt.Errorf("%s is no text", clip(t.Value.String()))
	}
	return nil
}

func (c *checker) approval(m *remit.Permission, r *remit.Requirement, a *remit.ApprovalRequirement) error {
	if r.Kind != remit.EvidenceApproval || a.Group == "" || a.People < 1 || a.Within < 0 || a.Within > 100*maxTTL {
		return fmt.Errorf("an approval needs a group and at least one person")
	}
	for _, name := range slices.Sorted(maps.Keys(a.When)) {
		if err := c.predicate(m, a.When[name]); err != nil {
			return fmt.Errorf("approval.when.%s: %w", name, err)
		}
	}
	return nil
}
