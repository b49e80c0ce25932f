// SPDX-License-Identifier: Apache-2.0

package attestation

import (
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	"remit"
	"remit/internal/evidence"
)

// pageSize is how many statements about one subject are weighed; they are verified once and then remembered.
const pageSize = 256

// held is a stored statement that verified.
type held struct {
	fact
	row    remit.Statement
	signer string // one who vouches for this request
}

// when orders statements: by what the signer says, else by when we received it.
func (h *held) when() time.Time {
	if h.made.IsZero() {
		return h.row.Added
	}
	return h.made
}

// group is whose newest statement counts.
func (h *held) group() string { return h.family + " by " + h.signer }

func (h *held) about(d remit.Digest) bool { return slices.Contains(h.subjects, d) }

func (h *held) evidence(source string, kind remit.EvidenceKind, signer string, at time.Time) *remit.Evidence {
	return &remit.Evidence{ID: h.row.ID, Kind: kind, Source: source, Signer: signer, Name: h.name,
		Subjects: slices.Clone(h.subjects), Worst: h.worst, Made: h.when(), Verified: at, Fields: maps.Clone(h.fields), Digest: h.digest}
}

// search is the state of one Find.
type search struct {
	s         *Source
	need      remit.Need
	req       *remit.Request
	acting    []remit.Name // who must not vouch
	image     remit.Digest
	platforms []remit.Digest // of the image, if it is an index and the source asks for all
	faulty    *remit.Reason  // why the first statement that does not verify does not
	more      time.Time      // statements that are not newer than this may exist unread
}

// Find implements evidence.Source. Of the statements about the image, the newest of each predicate and signer counts. A scan
// among those that fails the need is the answer before any that passes; with an id the scan of that id is the answer, and
// the newer failing one is named in Superseded (S14).
func (s *Source) Find(ctx context.Context, need remit.Need, req *remit.Request) (*remit.Evidence, *remit.Reason) {
	if reason := s.admits(need, req); reason != nil {
		return nil, reason
	}
	q := &search{s: s, need: need, req: req, image: need.Of.Digest}
	if s.deps.Acting != nil {
		q.acting = append(slices.Clone(s.deps.Acting(req.Run)), req.Agent)
	}
	if s.cfg.Platforms != "" && q.image != "" {
		var err error
		//remit:guard S14 TestRegistryDown
		if q.platforms, err = s.deps.Platforms(ctx, need.Of); err != nil {
			return nil, &remit.Reason{Code: remit.ReasonEvidenceSource, Want: "the platforms of " + need.Of.String(), Got: err.Error()}
		}
	}
	if need.ID != "" {
		return q.byID()
	}
	h, missing := q.standing(q.about)
	if missing != nil {
		return nil, missing
	}
	return q.answer(&h, "")
}

// admits checks what needs no statement.
func (s *Source) admits(need remit.Need, req *remit.Request) *remit.Reason {
	switch {
	//remit:guard S14 TestAddRefuses
	case !s.cfg.vouchesFor(need.Kind):
		return &remit.Reason{Code: remit.ReasonEvidenceSigner, Want: "a source that vouches for " + string(need.Kind), Got: s.deps.Name}
	//remit:guard S14 TestTargetsAndHolders
	case len(s.cfg.Targets) > 0 && !slices.Contains(s.cfg.Targets, req.Target):
		return &remit.Reason{Code: remit.ReasonEvidenceSigner, Want: "a source for target " + req.Target, Got: s.deps.Name}
	case need.Of != (remit.Image{}) && need.Of.Digest == "":
		return &remit.Reason{Code: remit.ReasonEvidenceSubject, Want: "an image with a digest", Got: need.Of.String()}
	case need.Of.Digest == "" && need.ID == "":
		return &remit.Reason{Code: remit.ReasonEvidenceMissing, Want: "an id or an image"}
	}
	return nil
}

// byID finds the statement that is named. One that is about another image is returned as it is: policy says so.
func (q *search) byID() (*remit.Evidence, *remit.Reason) {
	named := slices.DeleteFunc(q.read("", q.need.ID), func(h held) bool { return h.name != q.need.ID })
	if len(named) == 0 {
		return nil, q.missing()
	}
	newest := slices.MaxFunc(named, func(a, b held) int { return a.when().Compare(b.when()) })
	if q.image == "" {
		return q.answer(&newest, "")
	}
	h, reason := q.standing(func(d remit.Digest) []held {
		return slices.DeleteFunc(slices.Clone(named), func(h held) bool { return !h.about(d) })
	})
	if reason != nil { // about something else, or about some of the platforms only
		return q.answer(&newest, "")
	}
	var newer remit.EvidenceID
	for _, part := range q.parts() {
		for _, c := range q.current(q.about(part)) {
			rival := h.kind == remit.EvidenceScan || c.group() == h.group()
			//remit:guard S14 TestNewerFailSupersedes
			if rival && c.row.ID != h.row.ID && q.fails(&c) && !c.when().Before(h.when()) {
				newer = c.row.ID
			}
		}
	}
	return q.answer(&h, newer)
}

// answer makes the evidence, and checks what only a CI fact must hold.
func (q *search) answer(h *held, superseded remit.EvidenceID) (*remit.Evidence, *remit.Reason) {
	//remit:guard S35 TestMoreStatementsThanAreWeighed
	if !q.more.IsZero() && !h.when().After(q.more) {
		return nil, &remit.Reason{Code: remit.ReasonEvidenceSource, Got: "more newer statements than can be weighed"}
	}
	if q.need.Kind == remit.EvidenceCI {
		//remit:guard S16 TestCI
		if reason := evidence.CIReason(h.fields); reason != nil {
			return nil, reason
		}
	}
	//remit:guard S14 TestGenericProvenance
	if h.made.IsZero() && q.need.Within > 0 {
		return nil, &remit.Reason{Code: remit.ReasonEvidenceStale, Want: "at most " + q.need.Within.String() + " old",
			Got: "the statement does not say when it became true"}
	}
	e := h.evidence(q.s.deps.Name, q.need.Kind, h.signer, q.req.At)
	e.Superseded = superseded
	return e, nil
}

func (q *search) missing() *remit.Reason {
	if q.faulty != nil {
		return q.faulty
	}
	want := "a " + string(q.need.Kind) + " of " + q.need.Of.String()
	if q.need.ID != "" {
		want = string(q.need.Kind) + " " + clip(q.need.ID)
	}
	return &remit.Reason{Code: remit.ReasonEvidenceMissing, Want: want, Got: "no such statement"}
}

// about returns the statements about d.
func (q *search) about(d remit.Digest) []held { return q.read(d, "") }

// read verifies stored statements. One that does not verify counts as absent, and explains why nothing was found.
func (q *search) read(d remit.Digest, name string) (out []held) {
	kind := q.need.Kind
	if kind == remit.EvidenceCI {
		kind = remit.EvidenceProvenance
	}
	rows := q.s.deps.Statements.Statements(q.s.deps.Name, kind, d, name, pageSize)
	for _, row := range rows {
		f, reason := q.s.verify(row.Envelope)
		switch {
		case reason != nil:
		//remit:guard S14 TestWrongEvidenceHasItsOwnReason
		case f.kind != kind || (d != "" && !slices.Contains(f.subjects, d)):
			reason = bad("the stored statement is another than its row says")
		//remit:guard S14 TestWrongEvidenceHasItsOwnReason
		case f.made.After(q.req.At.Add(maxSkew)):
			reason = bad("made at %s, which is in the future", f.made.Format(time.RFC3339))
		default:
			h := held{fact: f, row: row}
			if h.signer, reason = q.voucher(f.signers); reason == nil {
				out = append(out, h)
			}
		}
		if reason != nil && q.faulty == nil {
			copied := *reason
			q.faulty = &copied
		}
	}
	if len(rows) == pageSize { // what is left out was added earlier, so it was made no later than this
		if t := rows[pageSize-1].Added.Add(maxSkew); t.After(q.more) {
			q.more = t
		}
	}
	return out
}

// voucher returns the first signer that does not act in the run.
func (q *search) voucher(signers []*signer) (string, *remit.Reason) {
	for _, s := range signers {
		//remit:guard S14 TestTargetsAndHolders
		if s.holder == "" || !slices.Contains(q.acting, s.holder) {
			return s.name, nil
		}
	}
	return "", &remit.Reason{Code: remit.ReasonEvidenceSigner, Want: "a signer that does not act in the run",
		Got: strings.Join([]string{signers[0].name, string(signers[0].holder)}, ", held by ")}
}
