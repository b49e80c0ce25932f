// SPDX-License-Identifier: Apache-2.0

// Package attestation is the evidence source of signed statements: in-toto statements in DSSE envelopes, which the store
// keeps as they came and this package verifies at every use against the signers of its configuration. It reads vulnerability
// scans (in-toto vulns, cosign vuln), SLSA provenance, and from provenance the CI run that built an image.
//
// It never trusts what stands outside the signed bytes, never stores anything, makes no network call but for the platforms
// of an image index, and starts no goroutine.
package attestation

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"remit"
	"remit/internal/evidence"
)

// maxSkew is how far a signer's clock may be ahead of ours.
const maxSkew = time.Minute

// Deps are what the source reads besides its file.
type Deps struct {
	Name       string // of the EvidenceSource
	Statements evidence.Statements
	// Platforms returns the digests of the platform manifests of an index, and none for a plain manifest. Required with
	// platforms: all.
	Platforms func(ctx context.Context, image remit.Image) ([]remit.Digest, error)
	// Acting returns the principals of a run: its starter, and who acts in its stages. Required if a signer has a holder.
	Acting func(run remit.RunID) []remit.Name
}

// Source is one configured set of signers. It is safe for concurrent use.
type Source struct {
	cfg     Config
	deps    Deps
	signers []signer
	seen    cache
}

var (
	_ evidence.Source = (*Source)(nil)
	_ evidence.Adder  = (*Source)(nil)
)

// New reads the signers' keys. An error is of CodeInvalid and says what to write instead.
func New(cfg Config, deps Deps) (*Source, error) {
	if deps.Name == "" || deps.Statements == nil {
		return nil, errors.New("attestation: name and statements are required")
	}
	if err := cfg.check(); err != nil {
		return nil, err
	}
	if cfg.Platforms != "" && deps.Platforms == nil {
		return nil, invalid("platforms: all needs a registry", "configure one, or leave platforms out")
	}
	s := &Source{cfg: cfg, deps: deps}
	for _, c := range cfg.Signers {
		one, err := newSigner(c)
		if err != nil {
			return nil, err
		}
		if one.holder != "" && deps.Acting == nil {
			return nil, errors.New("attestation: a signer with a holder needs Acting")
		}
		s.signers = append(s.signers, one)
	}
	return s, nil
}

// verify opens and reads an envelope, or remembers that it did so: equal bytes give an equal answer for as long as this
// Source lives, and a new configuration makes a new Source.
func (s *Source) verify(envelope []byte) (fact, *remit.Reason) {
	if len(envelope) > MaxEnvelope {
		return fact{}, bad("envelope of %d bytes: the limit is %d", len(envelope), MaxEnvelope)
	}
	key := remit.DigestOf(envelope)
	if v, ok := s.seen.get(key); ok {
		return v.fact, v.reason
	}
	v := verdict{}
	var o opened
	if o, v.reason = openEnvelope(envelope, s.signers); v.reason == nil {
		v.fact, v.reason = parseStatement(o.payload, &s.cfg)
		v.fact.digest, v.fact.signers = o.digest, o.signers
	}
	s.seen.put(key, v)
	return v.fact, v.reason
}

// Add implements evidence.Adder.
func (s *Source) Add(_ context.Context, envelope []byte, by string, at time.Time) (evidence.Added, error) {
	f, err := s.acceptable(envelope, at)
	if err != nil {
		return evidence.Added{}, err
	}
	h := held{fact: f, row: remit.Statement{ID: remit.NewEvidenceID(), Kind: f.kind, Source: s.deps.Name, Name: f.name,
		Subjects: slices.Clone(f.subjects), Envelope: slices.Clone(envelope), Added: at, AddedBy: by}}
	for _, row := range s.deps.Statements.Statements(s.deps.Name, f.kind, f.subjects[0], "", pageSize) {
		// The same signed bytes in another envelope are the same statement: a replay must not look new.
		//remit:guard S14 TestReplayIsNotNew
		if old, reason := s.verify(row.Envelope); reason == nil && old.digest == f.digest {
			h.row = row
			break
		}
	}
	return evidence.Added{Row: h.row, Fact: h.evidence(s.deps.Name, f.kind, f.signers[0].name, at)}, nil
}

// Read implements evidence.Adder.
func (s *Source) Read(row *remit.Statement) (*remit.Evidence, error) {
	f, err := s.acceptable(row.Envelope, row.Added)
	if err != nil {
		return nil, err
	}
	h := held{fact: f, row: *row}
	return h.evidence(s.deps.Name, f.kind, f.signers[0].name, row.Added), nil
}

// acceptable verifies an envelope that came at the time given.
func (s *Source) acceptable(envelope []byte, at time.Time) (fact, error) {
	f, reason := s.verify(envelope)
	//remit:guard S14 TestWrongEvidenceHasItsOwnReason
	if reason == nil && f.made.After(at.Add(maxSkew)) {
		reason = bad("made at %s, which is in the future", f.made.Format(time.RFC3339))
	}
	//remit:guard S14 TestAddRefuses
	if reason != nil {
		return fact{}, refused(reason)
	}
	//remit:guard S14 TestAddRefuses
	if !s.cfg.vouchesFor(f.kind) && (f.kind != remit.EvidenceProvenance || !s.cfg.vouchesFor(remit.EvidenceCI)) {
		return fact{}, invalid(fmt.Sprintf("evidence source %q does not vouch for a %s", s.deps.Name, f.kind),
			"add the statement to the source whose kinds list it")
	}
	return f, nil
}

// refused says a reason to the one who wanted to add a statement.
func refused(r *remit.Reason) *remit.Error {
	e := &remit.Error{Code: remit.CodeInvalid, Msg: fmt.Sprintf("%s: %s", r.Code, r.Got)}
	if r.Want != "" {
		e.Msg += ", want " + r.Want
	}
	if r.Code == remit.ReasonEvidenceSigner {
		e.Code, e.Hint = remit.CodeForbidden, "have it signed by a signer of the source, or list the signer in the source's file"
	}
	return e
}
