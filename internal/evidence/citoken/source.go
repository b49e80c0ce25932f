// SPDX-License-Identifier: Apache-2.0

// Package citoken is the evidence source of CI jobs' own tokens (S16): the OpenID Connect token that GitHub Actions or GitLab gives to a
// job says by immutable ids which run of which workflow it is. A job that hands one in vouches for the image that the token's audience
// names. Its signature is checked when it comes, and it counts once; what is stored is its claims without the signature, which nobody can
// show anywhere, and which are judged by the configuration of the source at every use.
//
// It never trusts an issuer that its file does not name, makes no network call but for the issuer's keys, and starts no goroutine.
package citoken

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"remit"
	"remit/internal/evidence"
)

const (
	maxEnvelope = 64 << 10
	maxClaims   = 32 << 10
	pageSize    = 64 // how many runs that vouch for one image are weighed, the newest first
	skew        = time.Minute
)

// Deps are what the source uses besides its file. All are required.
type Deps struct {
	Name       string // of the EvidenceSource
	Statements evidence.Statements
	// Verify returns the claims of a token of the configured issuer for exactly this audience, valid now.
	Verify func(ctx context.Context, token, audience string) (claims []byte, err error)
}

// Source is one issuer whose jobs vouch. It is safe for concurrent use.
type Source struct {
	cfg  Config
	deps Deps
}

var (
	_ evidence.Source = (*Source)(nil)
	_ evidence.Adder  = (*Source)(nil)
)

// New checks the configuration. It does not connect.
func New(cfg Config, deps Deps) (*Source, error) {
	if deps.Name == "" || deps.Statements == nil || deps.Verify == nil {
		return nil, errors.New("citoken: name, statements and verify are required")
	}
	if err := cfg.check(); err != nil {
		return nil, err
	}
	return &Source{cfg: cfg, deps: deps}, nil
}

// record is the stored form of a token that verified.
type record struct {
	Subject remit.Digest    `json:"subject"`
	Token   remit.Digest    `json:"token"` // of the token as it came
	Claims  json.RawMessage `json:"claims"`
}

// Add implements evidence.Adder. What is handed in is {"token": JWT, "subject": DIGEST}.
func (s *Source) Add(ctx context.Context, envelope []byte, by string, at time.Time) (evidence.Added, error) {
	doc, err := evidence.ParseJSON(envelope, maxEnvelope)
	if err != nil {
		return evidence.Added{}, invalid("the token of a CI job: "+err.Error(), usage)
	}
	token := doc.Get("token").Text()
	subject, err := remit.ParseDigest(doc.Get("subject").Text())
	if err != nil || token == "" {
		return evidence.Added{}, invalid("the token of a CI job comes as {token, subject}, and the subject is the image's digest", usage)
	}
	claims, err := s.deps.Verify(ctx, token, s.cfg.audience(subject))
	if err != nil {
		return evidence.Added{}, err
	}
	r, reason := s.cfg.read(claims)
	if reason != nil {
		return evidence.Added{}, refused(reason)
	}
	body, err := json.Marshal(record{subject, remit.DigestOf([]byte(token)), claims})
	if err != nil {
		return evidence.Added{}, fmt.Errorf("store the claims of a token: %w", err)
	}
	row := remit.Statement{ID: remit.NewEvidenceID(), Kind: remit.EvidenceCI, Source: s.deps.Name, Name: r.fields["invocation"],
		Subjects: []remit.Digest{subject}, Envelope: body, Added: at, AddedBy: by}
	fact, err := s.Read(&row)
	return evidence.Added{Row: row, Fact: fact, Once: &remit.Used{Issuer: "oidc " + s.cfg.Issuer, JTI: r.jti, Until: r.expires.Add(skew)}}, err
}

const usage = "remit evidence add --source NAME --subject sha256:HEX FILE"

// Read implements evidence.Adder.
func (s *Source) Read(row *remit.Statement) (*remit.Evidence, error) {
	e, reason := s.judge(row, row.Added)
	if reason != nil {
		return nil, refused(reason)
	}
	return e, nil
}

// judge makes the fact of a stored row by today's configuration.
func (s *Source) judge(row *remit.Statement, at time.Time) (*remit.Evidence, *remit.Reason) {
	var rec record
	if err := json.Unmarshal(row.Envelope, &rec); err != nil || row.Kind != remit.EvidenceCI || !slices.Equal(row.Subjects, []remit.Digest{rec.Subject}) {
		return nil, bad("the stored statement is another than its row says")
	}
	r, reason := s.cfg.read(rec.Claims)
	if reason != nil {
		return nil, reason
	}
	return &remit.Evidence{ID: row.ID, Kind: remit.EvidenceCI, Source: s.deps.Name, Signer: s.cfg.Issuer, Name: r.fields["invocation"],
		Subjects: []remit.Digest{rec.Subject}, Made: r.issued, Verified: at, Fields: maps.Clone(r.fields), Digest: rec.Token}, nil
}

// Find implements evidence.Source: of the runs that vouch for the image, the newest that says what is asked, else the newest.
func (s *Source) Find(_ context.Context, need remit.Need, req *remit.Request) (*remit.Evidence, *remit.Reason) {
	switch {
	case need.Kind != remit.EvidenceCI:
		return nil, &remit.Reason{Code: remit.ReasonEvidenceSigner, Want: "a source that vouches for " + string(need.Kind), Got: s.deps.Name}
	//remit:guard S14 TestTargets
	case len(s.cfg.Targets) > 0 && !slices.Contains(s.cfg.Targets, req.Target):
		return nil, &remit.Reason{Code: remit.ReasonEvidenceSigner, Want: "a source for target " + req.Target, Got: s.deps.Name}
	case need.Of.Digest == "":
		return nil, &remit.Reason{Code: remit.ReasonEvidenceSubject, Want: "an image with a digest", Got: need.Of.String()}
	}
	var newest *remit.Evidence
	var faulty *remit.Reason
	rows := s.deps.Statements.Statements(s.deps.Name, remit.EvidenceCI, need.Of.Digest, "", pageSize)
	for i := range rows {
		e, reason := s.judge(&rows[i], req.At)
		switch {
		case reason != nil && faulty == nil:
			faulty = reason
		case reason != nil, need.ID != "" && e.Name != need.ID:
		case meets(e, need.Match):
			return e, nil
		case newest == nil:
			newest = e
		}
	}
	switch {
	case newest != nil:
		return newest, nil // policy says what it lacks
	case faulty != nil:
		return nil, faulty
	}
	return nil, &remit.Reason{Code: remit.ReasonEvidenceMissing, Want: "a CI run of " + need.Of.String(), Got: "no job vouched for it"}
}

func meets(e *remit.Evidence, match map[string]string) bool {
	for name, want := range match {
		if e.Fields[name] != want {
			return false
		}
	}
	return true
}

// refused says a reason to the one who handed something in.
func refused(r *remit.Reason) *remit.Error {
	e := &remit.Error{Code: remit.CodeInvalid, Msg: fmt.Sprintf("%s: %s", r.Code, r.Got)}
	if r.Want != "" {
		e.Msg += ", want " + r.Want
	}
	if r.Code == remit.ReasonEvidenceSigner {
		e.Code = remit.CodeForbidden
	}
	return e
}
