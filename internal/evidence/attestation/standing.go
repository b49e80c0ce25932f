// SPDX-License-Identifier: Apache-2.0

package attestation

import (
	"maps"
	"slices"
	"strings"

	"remit"
	"remit/internal/evidence"
)

// pool gives the statements about one digest.
type pool func(remit.Digest) []held

// parts are the digests that a statement must be about to count: the image, and its platform manifests.
func (q *search) parts() []remit.Digest { return append([]remit.Digest{q.image}, q.platforms...) }

// standing returns what the pool says about the image as a whole, or why it says nothing.
func (q *search) standing(about pool) (held, *remit.Reason) {
	//remit:guard S14 TestNewerFailSupersedes
	if q.need.Kind == remit.EvidenceScan {
		if h, ok := q.failing(about); ok {
			return q.covering(h), nil
		}
	}
	if h, ok := q.best(about(q.image)); ok {
		return h, nil
	}
	var all []held
	var bare remit.Digest // a platform that nothing is about
	for _, p := range q.platforms {
		if h, ok := q.best(about(p)); ok {
			all = append(all, h)
		} else {
			bare = p
		}
	}
	switch {
	case len(all) == 0:
		return held{}, q.missing()
	//remit:guard S14 TestEveryPlatformIsCovered
	case bare != "":
		return held{}, &remit.Reason{Code: remit.ReasonEvidenceSubject, Want: "statements about every platform", Got: "none about " + string(bare)}
	}
	return q.covering(q.merge(all)), nil
}

// current keeps the newest statement of each group; of two at the same time, the failing one.
func (q *search) current(list []held) []held {
	newest := map[string]held{}
	for _, h := range list {
		old, ok := newest[h.group()]
		if !ok || h.when().After(old.when()) || (h.when().Equal(old.when()) && q.fails(&h)) {
			newest[h.group()] = h
		}
	}
	return slices.SortedFunc(maps.Values(newest), func(a, b held) int { return strings.Compare(string(a.row.ID), string(b.row.ID)) })
}

// failing returns the worst of the current statements about any part that the need does not bear.
func (q *search) failing(about pool) (worst held, found bool) {
	for _, part := range q.parts() {
		for _, h := range q.current(about(part)) {
			if q.fails(&h) && (!found || h.worst > worst.worst) {
				worst, found = h, true
			}
		}
	}
	return worst, found
}

// best returns the newest current statement that meets the need, else the newest.
func (q *search) best(list []held) (best held, found bool) {
	for _, h := range q.current(list) {
		better := !q.fails(&h) && q.fails(&best)
		if !found || better || (q.fails(&h) == q.fails(&best) && h.when().After(best.when())) {
			best, found = h, true
		}
	}
	return best, found
}

// fails reports whether the need will not bear what h says. It only chooses between statements: policy judges the chosen.
func (q *search) fails(h *held) bool {
	if q.need.Kind == remit.EvidenceScan {
		return q.need.Worst != remit.SeverityUnset && h.worst > q.need.Worst
	}
	for name, want := range q.need.Match {
		if h.fields[name] != want {
			return true
		}
	}
	return q.need.Kind == remit.EvidenceCI && evidence.CIReason(h.fields) != nil
}

// covering says of h that it is about the image, of which it covers every platform or fails one.
func (q *search) covering(h held) held {
	if !h.about(q.image) {
		h.subjects = append(slices.Clone(h.subjects), q.image)
	}
	return h
}

// merge makes one fact of one statement for each platform: the worst of them (a failing one first), as old as the oldest,
// with the fields that all share. The others' ids are in the field "statements".
func (q *search) merge(all []held) held {
	out := all[0]
	for _, h := range all[1:] {
		if h.worst > out.worst || (q.fails(&h) && !q.fails(&out)) {
			out = h
		}
	}
	fields, made := maps.Clone(out.fields), out.made
	var subjects []remit.Digest
	var others []string
	for _, h := range all {
		if h.made.Before(made) {
			made = h.made
		}
		subjects = append(subjects, h.subjects...)
		maps.DeleteFunc(fields, func(name, value string) bool { return h.fields[name] != value })
		if id := string(h.row.ID); h.row.ID != out.row.ID && !slices.Contains(others, id) {
			others = append(others, id)
		}
	}
	slices.Sort(subjects)
	out.subjects, out.made, out.fields = slices.Compact(subjects), made, fields
	if len(others) > 0 {
		out.fields["statements"] = strings.Join(others, ",")
	}
	return out
}
