// SPDX-License-Identifier: Apache-2.0

package remit

import (
	"fmt"
	"slices"
	"time"
)

// EvidenceKind is what a fact is about.
type EvidenceKind string

// The kinds.
const (
	EvidenceScan       EvidenceKind = "scan"       // a vulnerability scan of an image
	EvidenceProvenance EvidenceKind = "provenance" // who built an image, from what
	EvidenceTicket     EvidenceKind = "ticket"     // a change ticket, read from its system
	EvidenceCI         EvidenceKind = "ci"         // the CI run that built an image
	EvidenceApproval   EvidenceKind = "approval"   // a person's answer
)

// Severity orders vulnerability findings; the zero value is "no statement about it".
type Severity uint8

// The severities. SeverityNone means: scanned, nothing found.
const (
	SeverityUnset Severity = iota
	SeverityNone
	SeverityLow
	SeverityMedium
	SeverityHigh
	SeverityCritical
)

var severityNames = []string{"", "none", "low", "medium", "high", "critical"}

func (s Severity) String() string { return severityNames[s] }

// MarshalText writes the name.
func (s Severity) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads the name.
func (s *Severity) UnmarshalText(b []byte) (err error) {
	if len(b) == 0 {
		*s = SeverityUnset
		return nil
	}
	*s, err = ParseSeverity(string(b))
	return err
}

// ParseSeverity parses none, low, medium, high or critical. An unknown word is an error: callers that read scanner output
// count it as critical.
func ParseSeverity(s string) (Severity, error) {
	if i := slices.Index(severityNames, s); i > 0 {
		return Severity(i), nil
	}
	return SeverityUnset, &Error{Code: CodeInvalid, Msg: fmt.Sprintf("%.40q is not a severity", s),
		Hint: "write none, low, medium, high or critical"}
}

// Evidence is a verified fact. Only the evidence package makes one, after it checked signature, signer and structure; what
// the fact must say (subject, age, severity, fields) is policy's to judge.
type Evidence struct {
	ID         EvidenceID        `json:"id"`
	Kind       EvidenceKind      `json:"kind"`
	Source     string            `json:"source"`           // the EvidenceSource that vouches
	Signer     string            `json:"signer,omitempty"` // which of its signers
	Name       string            `json:"name,omitempty"`   // scan id or ticket id, as the source states it
	Subjects   []Digest          `json:"subjects,omitempty"`
	Worst      Severity          `json:"worst,omitempty"`
	Made       time.Time         `json:"made"`           // when the source says the fact became true
	Verified   time.Time         `json:"verified"`       // when we checked
	Until      time.Time         `json:"until,omitzero"` // when it ends by itself
	Fields     map[string]string `json:"fields,omitempty"`
	Digest     Digest            `json:"digest"`               // of the signed bytes or of the reply
	Superseded EvidenceID        `json:"superseded,omitempty"` // a newer statement of that signer about that subject (S14)
}

// About reports whether e covers d.
func (e *Evidence) About(d Digest) bool { return slices.Contains(e.Subjects, d) }

// Statement is the stored row of a signed statement: the envelope as received, verified again at every use.
type Statement struct {
	ID       EvidenceID   `json:"id"`
	Kind     EvidenceKind `json:"kind"`
	Source   string       `json:"source"`
	Name     string       `json:"name,omitempty"`
	Subjects []Digest     `json:"subjects"`
	Envelope []byte       `json:"envelope"`
	Added    time.Time    `json:"added"`
	AddedBy  string       `json:"added_by"`
}
