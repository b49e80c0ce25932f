// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"maps"
	"slices"
	"strconv"
	"strings"

	"remit"
)

// needs resolves the permission's requirements: first the evidence in file order, then those approvals whose condition
// may hold. What cannot be resolved is a reason to deny.
func (c *permission) needs(args remit.Args, s *scope) ([]remit.Need, []remit.Reason) {
	if len(c.Evidence) == 0 {
		return nil, nil
	}
	needs := make([]remit.Need, 0, len(c.Evidence))
	var reasons []remit.Reason
	for i := range c.Evidence {
		if r := &c.Evidence[i]; r.Approval == nil {
			need, bad := s.need(r)
			needs, reasons = append(needs, need), append(reasons, bad...)
		}
	}
	for i := range c.Evidence {
		if a := c.Evidence[i].Approval; a != nil && s.asks(a, args) {
			needs = append(needs, approvalNeed(a))
		}
	}
	return needs, reasons
}

func (s *scope) need(r *remit.Requirement) (remit.Need, []remit.Reason) {
	n := remit.Need{Kind: r.Kind, Source: r.Source, Worst: r.Worst, Within: r.Within}
	var reasons []remit.Reason
	lack := func(part, want string, t *remit.Term) {
		v, _ := s.resolve(t)
		reasons = append(reasons, remit.Reason{Code: remit.ReasonArgument, Of: "evidence." + string(r.Kind) + "." + part,
			Want: want, Got: clip(v.String())})
	}
	if r.ID != nil {
		if n.ID = s.text(r.ID); n.ID == "" {
			lack("id", "a text", r.ID)
		}
	}
	if r.Of != nil {
		v, ok := s.resolve(r.Of)
		if n.Of, ok = imageOf(v, ok); !ok {
			lack("of", "an image with a digest", r.Of)
		}
	}
	if len(r.Match) > 0 {
		n.Match = make(map[string]string, len(r.Match))
	}
	for _, name := range slices.Sorted(maps.Keys(r.Match)) {
		t := r.Match[name]
		if n.Match[name] = s.text(&t); n.Match[name] == "" {
			lack(name, "a text", &t)
		}
	}
	return n, reasons
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
	return remit.Need{Kind: remit.EvidenceApproval, Source: "approval", Within: a.Within, Match: match}
}

// imageOf reads an image with a digest. Names in the plainest form skip the parser's regular expression, which alone would
// take longer than the rest of a match.
func imageOf(v remit.Value, ok bool) (remit.Image, bool) {
	if !ok || v.Kind() != remit.String {
		return remit.Image{}, false
	}
	name, hex, found := strings.Cut(v.Text(), "@sha256:")
	if found && len(v.Text()) <= 512 && len(hex) == 64 && strings.Trim(hex, "0123456789abcdef") == "" && plainName(name) {
		return remit.Image{Repository: name, Digest: remit.Digest(v.Text()[len(name)+1:])}, true
	}
	image, err := remit.ParseImage(v.Text())
	return image, err == nil && image.Digest != ""
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
