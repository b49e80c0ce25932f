// SPDX-License-Identifier: Apache-2.0

package config

import (
	"maps"
	"slices"

	"remit"
)

// requirement turns one entry of evidence into a Requirement; none when it is wrong beyond use.
func (f *flow) requirement(m *mayFile, r *requirementFile) []remit.Requirement {
	var out remit.Requirement
	var line int
	var source word
	switch {
	case r.Scan != nil:
		s := r.Scan
		out = remit.Requirement{Kind: remit.EvidenceScan, ID: f.text(s.ID, m), Of: f.image(&s.Of, m),
			Within: s.Within.or(0, maxWithin, f.file, "within", f.out)}
		out.Worst, _ = remit.ParseSeverity(s.Worst.s) // the format has checked it; empty is no bound
		source, line = s.Source, s.Of.line
	case r.Provenance != nil:
		out, source, line = f.provenance(remit.EvidenceProvenance, r.Provenance, m), r.Provenance.Source, r.Provenance.Of.line
	case r.CI != nil:
		out, source, line = f.provenance(remit.EvidenceCI, r.CI, m), r.CI.Source, r.CI.Of.line
	case r.Ticket != nil:
		t := r.Ticket
		out = remit.Requirement{Kind: remit.EvidenceTicket, ID: f.text(&t.ID, m), Match: f.match(t.Match, m),
			Within: t.Within.or(0, maxWithin, f.file, "within", f.out)}
		source, line = t.Source, t.ID.line
	case r.Approval != nil:
		return f.approval(r.Approval, m)
	default:
		return nil
	}
	out.Source = source.s
	switch o, ok := f.set.Sources[source.s]; {
	case !ok && f.broken["EvidenceSource/"+source.s]:
	case !ok:
		f.add(max(source.line, line), "source: there is no %s: declare a document of kind EvidenceSource with that name", source.s)
	case o.Fact() != out.Kind:
		f.add(source.line, "source: %s vouches for %s, not for %s: name a source of type %s", source.s, o.Type, out.Kind, out.Kind)
	}
	return []remit.Requirement{out}
}

func (f *flow) provenance(kind remit.EvidenceKind, p *provenanceFile, m *mayFile) remit.Requirement {
	return remit.Requirement{Kind: kind, Of: f.image(&p.Of, m), Within: p.Within.or(0, maxWithin, f.file, "within", f.out),
		Match: f.match(map[string]*term{"repository": p.Repository, "repository_url": p.RepositoryURL, "ref": p.Ref,
			"commit": p.Commit, "version": p.Version, "builder": p.Builder, "build_type": p.BuildType, "workflow": p.Workflow,
			"event": p.Event, "repository_id": p.RepositoryID, "repository_owner_id": p.RepositoryOwnerID,
			"environment": p.Environment, "ref_protected": p.RefProtected}, m)}
}

// match keeps the terms that stand; nil when none does.
func (f *flow) match(terms map[string]*term, m *mayFile) map[string]remit.Term {
	var out map[string]remit.Term
	for _, name := range slices.Sorted(maps.Keys(terms)) {
		if terms[name] == nil {
			continue
		}
		if !formats["param"].pattern.MatchString(name) {
			f.add(terms[name].line, "%q is no name of a field: write %s", clip(name), formats["param"].write)
		}
		f.checkRefs(terms[name].refs(), permAt{}, m.Under.s != "")
		if out == nil {
			out = map[string]remit.Term{}
		}
		out[name] = terms[name].Term
	}
	return out
}

// text is the id of a scan or ticket: text, or a parameter that is text.
func (f *flow) text(t *term, m *mayFile) *remit.Term {
	if t == nil {
		return nil
	}
	f.checkRefs(t.refs(), permAt{}, m.Under.s != "")
	p, known := f.params[t.Param]
	switch {
	case t.Param == "" && t.Call == "" && (t.Value.Kind() != remit.String || t.Value.Text() == ""):
		f.add(t.line, "id: expected text, found %s: put it in quotes", t.Value)
	case known && p.Type.s != "string" && p.Type.s != "name":
		f.add(t.line, "id: $%s is of type %s: an id is a string or name", t.Param, p.Type.s)
	}
	return &t.Term
}

// image is what evidence must be about: a parameter of type image, or an image with its digest.
func (f *flow) image(t *term, m *mayFile) *remit.Term {
	f.checkRefs(t.refs(), permAt{}, m.Under.s != "")
	p, known := f.params[t.Param]
	switch {
	case t.Call != "":
	case t.Param != "" && known && p.Type.s != "image":
		f.add(t.line, "of: $%s is of type %s: name a parameter of type image", t.Param, p.Type.s)
	case t.Param == "":
		image, err := remit.ParseImage(t.Value.Text())
		if t.Value.Kind() != remit.String || err != nil || image.Digest == "" {
			f.add(t.line, "of: %s is no image with a digest: write $PARAMETER, or REPOSITORY@sha256:HEX", clip(t.Value.String()))
		}
	}
	return &t.Term
}

func (f *flow) approval(a *approvalFile, m *mayFile) []remit.Requirement {
	f.checkRefs(a.When.uses, f.perms[m.Name.s], m.Under.s != "")
	people := 1
	if a.People != nil {
		people = *a.People
	}
	if people < 1 || people > 20 {
		f.add(a.Group.line, "approval: people: %d: write 1 to 20", people)
	}
	return []remit.Requirement{{Kind: remit.EvidenceApproval, Approval: &remit.ApprovalRequirement{When: a.When.m, Group: a.Group.s,
		People: people, By: a.By.s, Within: a.Within.or(0, maxRunExpires, f.file, "within", f.out)}}}
}
