// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"remit"
)

// requirement is a remit.Requirement with its further fields in a fixed order.
type requirement struct {
	*remit.Requirement
	of    string // "evidence.scan"
	match []field
}

type field struct {
	name string
	term remit.Term
}

func compileRequirements(list []remit.Requirement) (facts, approvals []requirement) {
	for i := range list {
		r := requirement{Requirement: &list[i], of: "evidence." + string(list[i].Kind)}
		for _, name := range slices.Sorted(maps.Keys(list[i].Match)) {
			r.match = append(r.match, field{name, list[i].Match[name]})
		}
		if r.Approval != nil {
			approvals = append(approvals, r)
		} else {
			facts = append(facts, r)
		}
	}
	return facts, approvals
}

// needs resolves the permission's requirements: first the evidence in file order, then those approvals whose condition
// may hold. What cannot be resolved is a reason to deny.
func (c *permission) needs(args remit.Args, s *scope) (needs []remit.Need, reasons []remit.Reason) {
	if len(c.facts)+len(c.approvals) == 0 {
		return nil, nil
	}
	needs = make([]remit.Need, len(c.facts), len(c.facts)+len(c.approvals))
	for i := range c.facts {
		reasons = s.need(&c.facts[i], &needs[i], reasons)
	}
	for i := range c.approvals {
		if a := c.approvals[i].Approval; s.asks(a, args) {
			needs = append(needs, approvalNeed(a))
		}
	}
	return needs, reasons
}

// need resolves r into n, and appends to reasons what it could not resolve.
func (s *scope) need(r *requirement, n *remit.Need, reasons []remit.Reason) []remit.Reason {
	n.Kind, n.Source, n.Worst, n.Within = r.Kind, r.Source, r.Worst, r.Within
	if r.ID != nil {
		if n.ID = s.text(r.ID); n.ID == "" {
			reasons = append(reasons, s.unresolved(r.of+".id", "a text", r.ID))
		}
	}
	if r.Of != nil {
		v, ok := s.resolve(r.Of)
		if n.Of, ok = imageOf(v, ok); !ok {
			reasons = append(reasons, s.unresolved(r.of+".of", "an image with a digest", r.Of))
		}
	}
	if len(r.match) > 0 {
		n.Match = make(map[string]string, len(r.match))
	}
	for i := range r.match {
		f := &r.match[i]
		text := s.text(&f.term)
		if n.Match[f.name] = text; text == "" {
			reasons = append(reasons, s.unresolved(r.of+"."+f.name, "a text", &f.term))
		}
	}
	return reasons
}

func (s *scope) unresolved(of, want string, t *remit.Term) remit.Reason {
	v, _ := s.resolve(t)
	return remit.Reason{Code: remit.ReasonArgument, Of: of, Want: want, Got: clip(v.String())}
}

// text returns a scalar's text, or "" for what has none.
func (s *scope) text(t *remit.Term) string {
	v, ok := s.resolve(t)
	if !ok {
		return ""
	}
	return v.Text()
}

// asks reports whether an approval is needed for args.
func (s *scope) asks(a *remit.ApprovalRequirement, args remit.Args) bool {
	for name, is := range a.When {
		if !s.mayHold(&is, args[name]) {
			return false
		}
	}
	return true
}

func approvalNeed(a *remit.ApprovalRequirement) remit.Need {
	match := map[string]string{"group": a.Group, "people": strconv.Itoa(a.People)}
	if a.By != "" {
		match["by"] = a.By
	}
	return remit.Need{Kind: remit.EvidenceApproval, Source: remit.SourceApproval, Within: a.Within, Match: match}
}

// ruleWithin is how long an approval that a rule asks for counts.
const ruleWithin = 15 * time.Minute

// ruleNeed is the approval of one person of a group that a rule names.
func ruleNeed(group string) remit.Need {
	return remit.Need{Kind: remit.EvidenceApproval, Source: remit.SourceRule, Within: ruleWithin, Match: map[string]string{"group": group, "people": "1"}}
}

// ofRule reports whether a need, or a fact, is of a rule: those stand after all that the permission needs.
func ofRule(f *remit.Found) bool {
	if f.Evidence != nil {
		return f.Evidence.Kind == remit.EvidenceApproval && f.Evidence.Source == remit.SourceRule
	}
	return f.Need.Source == remit.SourceRule || f.Reason != nil && f.Reason.Of == askedByRule
}

// askedByRule is where a rule's missing approval stands in reasons and in the record.
const askedByRule = "rules.approvers"

// imageOf reads an image with a digest. Names in the plainest form skip the parser's regular expression, which alone would
// take longer than the rest of a match.
func imageOf(v remit.Value, ok bool) (remit.Image, bool) {
	if !ok || v.Kind() != remit.String {
		return remit.Image{}, false
	}
	name, hex, found := strings.Cut(v.Text(), "@sha256:")
	if found && len(v.Text()) <= 512 && len(hex) == 64 && isHex(hex) && plainName(name) {
		return remit.Image{Repository: name, Digest: remit.Digest(v.Text()[len(name)+1:])}, true
	}
	image, err := remit.ParseImage(v.Text())
	return image, err == nil && image.Digest != ""
}

func isHex(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// plainName accepts parts of [a-z0-9] with single separators between them: a subset of what remit.ParseImage accepts.
func plainName(name string) bool {
	separated := true
	for i := range len(name) {
		switch c := name[i]; {
		case c >= 'a' && c <= 'z' || c >= '0' && c <= '9':
			separated = false
		case (c == '.' || c == '-' || c == '/') && !separated:
			separated = true
		default:
			return false
		}
	}
	return !separated
}
