// SPDX-License-Identifier: Apache-2.0

package attestation

import (
	"encoding/hex"
	"slices"
	"strings"
	"time"
	"unicode"

	"remit"
	"remit/internal/evidence"
)

// The predicate types that are read.
const (
	PredicateVulns01    = "https://in-toto.io/attestation/vulns/v0.1"
	PredicateVulns02    = "https://in-toto.io/attestation/vulns/v0.2"
	PredicateCosignVuln = "https://cosign.sigstore.dev/attestation/vuln/v1"
	PredicateProvenance = "https://slsa.dev/provenance/v1"
)

// Statement types: v1, and v0.1 which cosign still writes; their subjects are alike.
const (
	statementV1  = "https://in-toto.io/Statement/v1"
	statementV01 = "https://in-toto.io/Statement/v0.1"
)

const (
	maxSubjects = 256
	maxText     = 512 // bytes of a field, a name or a URI
)

// fact is what a verified statement says, before it is known whether it answers anything.
type fact struct {
	kind     remit.EvidenceKind // scan or provenance
	family   string             // versions of one predicate are one family: a newer one supersedes across them
	name     string
	subjects []remit.Digest
	made     time.Time // zero: the statement does not say
	worst    remit.Severity
	fields   map[string]string
	digest   remit.Digest
	signers  []*signer
}

// parseStatement reads an in-toto statement (in-toto attestation spec v1, statement.md) with one of the known predicates.
func parseStatement(payload []byte, cfg *Config) (fact, *remit.Reason) {
	doc, err := evidence.ParseJSON(payload, MaxEnvelope)
	if err != nil {
		return fact{}, bad("statement: %v", err)
	}
	//remit:guard S14 TestWrongEvidenceHasItsOwnReason
	if t := doc.Get("_type").Text(); t != statementV1 && t != statementV01 {
		return fact{}, &remit.Reason{Code: remit.ReasonEvidenceInvalid, Want: "type " + statementV1, Got: clip(t)}
	}
	subjects, reason := parseSubjects(doc.Get("subject"))
	if reason != nil {
		return fact{}, reason
	}
	predicate := doc.Get("predicate")
	if _, ok := predicate.Object(); !ok {
		return fact{}, bad("statement: the predicate is not an object")
	}
	f := fact{subjects: subjects, fields: map[string]string{}}
	switch t := doc.Get("predicateType").Text(); t {
	case PredicateVulns01, PredicateVulns02:
		f.family = "vulns"
		reason = f.parseScan(doc, predicate, vulnsWorst)
	case PredicateCosignVuln:
		f.family = "cosign-vuln"
		reason = f.parseScan(doc, predicate, reportWorst)
	case PredicateProvenance:
		f.family = "provenance"
		reason = f.parseProvenance(predicate, cfg)
	default:
		reason = &remit.Reason{Code: remit.ReasonEvidenceInvalid, Want: "a scan or provenance predicate", Got: clip(t)}
	}
	return f, reason
}

// parseSubjects returns the sha256 digests; a subject that has only others is about nothing that we could compare.
func parseSubjects(n evidence.Node) ([]remit.Digest, *remit.Reason) {
	list, _ := n.List()
	if len(list) == 0 || len(list) > maxSubjects {
		return nil, bad("statement: %d subjects, not 1 to %d", len(list), maxSubjects)
	}
	var out []remit.Digest
	for _, s := range list {
		sum := s.Get("digest", "sha256")
		if !sum.Exists() {
			continue
		}
		d, err := remit.ParseDigest("sha256:" + sum.Text())
		if err != nil {
			return nil, bad("statement: a subject's sha256 is not 64 lower-case hex digits")
		}
		if !slices.Contains(out, d) {
			out = append(out, d)
		}
	}
	//remit:guard S14 TestWrongEvidenceHasItsOwnReason
	if len(out) == 0 {
		return nil, bad("statement: no subject has a sha256 digest")
	}
	return out, nil
}

// set keeps a field that has a value; a value that is too long or not printable makes the statement invalid.
func (f *fact) set(name, value string) *remit.Reason {
	if value == "" {
		return nil
	}
	//remit:guard S14 TestWrongEvidenceHasItsOwnReason
	if !plain(value) {
		return bad("statement: %s is too long or not printable", name)
	}
	f.fields[name] = value
	return nil
}

// plain reports whether s is short and printable.
func plain(s string) bool {
	return len(s) <= maxText && !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) })
}

func isCommit(s string) bool {
	_, err := hex.DecodeString(s)
	return err == nil && (len(s) == 40 || len(s) == 64)
}
