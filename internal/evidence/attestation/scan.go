// SPDX-License-Identifier: Apache-2.0

package attestation

import (
	"strconv"
	"strings"
	"time"

	"remit"
	"remit/internal/evidence"
)

// scanIDAnnotation is where a statement may carry its scan id on a subject, for scanners that cannot extend the predicate.
const scanIDAnnotation = "scanId"

// parseScan reads what the vulnerability predicates share. The scan id stands inside the signed bytes, at the first of:
//
//  1. predicate.metadata.scanId
//  2. predicate.invocation.event_id (cosign vuln v1, vulns v0.1)
//  3. subject[].annotations.scanId, which must be the same on every subject that has it
//
// A scan without an id can still be found by its subject.
func (f *fact) parseScan(doc, p evidence.Node, worst func(result evidence.Node) (remit.Severity, *remit.Reason)) (reason *remit.Reason) {
	f.kind = remit.EvidenceScan
	finished := p.Get("metadata", "scanFinishedOn").Text()
	made, err := time.Parse(time.RFC3339Nano, finished)
	//remit:guard S14 TestWrongEvidenceHasItsOwnReason
	if err != nil {
		return bad("scan: metadata.scanFinishedOn %s is not a time", clip(finished))
	}
	f.made = made.UTC()
	if f.name, reason = scanID(doc, p); reason != nil {
		return reason
	}
	scanner := p.Get("scanner")
	if scanner.Get("uri").Text() == "" {
		return bad("scan: scanner.uri is missing")
	}
	for name, value := range map[string]string{"scanner": scanner.Get("uri").Text(), "scanner_version": scanner.Get("version").Text(),
		"database": scanner.Get("db", "lastUpdate").Text()} {
		if reason = f.set(name, value); reason != nil {
			return reason
		}
	}
	f.worst, reason = worst(scanner.Get("result"))
	return reason
}

func scanID(doc, p evidence.Node) (string, *remit.Reason) {
	id := p.Get("metadata", "scanId").Text()
	if id == "" {
		id = p.Get("invocation", "event_id").Scalar()
	}
	subjects, _ := doc.Get("subject").List()
	for i := 0; i < len(subjects) && id == ""; i++ {
		id = subjects[i].Get("annotations", scanIDAnnotation).Text()
	}
	for _, s := range subjects {
		//remit:guard S14 TestWrongEvidenceHasItsOwnReason
		if other := s.Get("annotations", scanIDAnnotation); other.Exists() && other.Text() != id {
			return "", bad("scan: two scan ids, %s and %s", clip(id), clip(other.Text()))
		}
	}
	if !plain(id) || len(id) > 128 {
		return "", bad("scan: the scan id is over 128 bytes or not printable")
	}
	return id, nil
}

// vulnsWorst reads in-toto vulns: a list of findings, empty when nothing was found. Of several scores of one finding the
// worst counts.
func vulnsWorst(result evidence.Node) (remit.Severity, *remit.Reason) {
	findings, ok := result.List()
	if !ok {
		return remit.SeverityUnset, bad("scan: scanner.result is not a list")
	}
	worst := remit.SeverityNone
	for _, finding := range findings {
		if inner := finding.Get("vulnerability"); inner.Exists() { // the long form of v0.1
			finding = inner
		}
		scores, _ := finding.Get("severity").List()
		//remit:guard S14 TestSeverity
		if len(scores) == 0 {
			worst = remit.SeverityCritical
		}
		for _, s := range scores {
			worst = max(worst, score(s.Get("score").Scalar()))
		}
	}
	return worst, nil
}

// reportWorst reads cosign vuln, whose result is the scanner's own report: Trivy's (Results[].Vulnerabilities[].Severity),
// Grype's (matches[].vulnerability.severity), or a list as in-toto vulns has. A report without its list is no report.
func reportWorst(result evidence.Node) (remit.Severity, *remit.Reason) {
	if _, ok := result.List(); ok {
		return vulnsWorst(result)
	}
	worst := remit.SeverityNone
	if matches, ok := result.Get("matches").List(); ok {
		for _, m := range matches {
			worst = max(worst, severity(m.Get("vulnerability", "severity").Text()))
		}
		return worst, nil
	}
	targets, ok := result.Get("Results").List()
	if !ok {
		return remit.SeverityUnset, bad("scan: scanner.result is neither a list nor a report of Trivy or Grype")
	}
	for _, t := range targets {
		list := t.Get("Vulnerabilities") // left out or null by Trivy when there are none
		findings, ok := list.List()
		if !ok && list.Exists() && !list.IsNull() {
			return remit.SeverityUnset, bad("scan: Vulnerabilities is not a list")
		}
		for _, v := range findings {
			worst = max(worst, severity(v.Get("Severity").Text()))
		}
	}
	return worst, nil
}

// score reads a word, or a CVSS base score by the bands of CVSS v3.1 section 5.
func score(s string) remit.Severity {
	n, err := strconv.ParseFloat(s, 64)
	switch {
	case err != nil || strings.Trim(s, "0123456789.") != "":
		return severity(s)
	case n == 0:
		return remit.SeverityNone
	case n > 0 && n < 4:
		return remit.SeverityLow
	case n >= 4 && n < 7:
		return remit.SeverityMedium
	case n >= 7 && n < 9:
		return remit.SeverityHigh
	}
	return remit.SeverityCritical
}

// severity reads a word; one that is missing or unknown counts as critical.
func severity(word string) remit.Severity {
	s, err := remit.ParseSeverity(strings.ToLower(strings.TrimSpace(word)))
	if err != nil {
		return remit.SeverityCritical
	}
	return s
}
