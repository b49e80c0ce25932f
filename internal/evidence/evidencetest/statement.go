// SPDX-License-Identifier: Apache-2.0

package evidencetest

import (
	"encoding/json"
	"fmt"
	"time"

	"remit"
)

// Statement is an in-toto statement v1.
type Statement struct {
	Type          string    `json:"_type"`
	Subject       []Subject `json:"subject"`
	PredicateType string    `json:"predicateType"`
	Predicate     any       `json:"predicate"`
}

// Subject is what a statement is about.
type Subject struct {
	Name        string            `json:"name,omitempty"`
	Digest      map[string]string `json:"digest"`
	Annotations map[string]any    `json:"annotations,omitempty"`
}

// JSON encodes the statement.
func (s Statement) JSON() ([]byte, error) {
	b, err := json.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("encode statement: %w", err)
	}
	return b, nil
}

func newStatement(predicateType string, predicate any, name string, digests []remit.Digest) Statement {
	s := Statement{Type: "https://in-toto.io/Statement/v1", PredicateType: predicateType, Predicate: predicate}
	for _, d := range digests {
		s.Subject = append(s.Subject, Subject{Name: name, Digest: map[string]string{"sha256": d.Hex()}})
	}
	return s
}

// object is a JSON object.
type object = map[string]any

// Scan is what a scanner found.
type Scan struct {
	ID       string
	Image    string // the subjects' name
	Subjects []remit.Digest
	Finished time.Time
	Findings []Finding
}

// Finding is one vulnerability; Severity is the scanner's word, and none at all when it is empty.
type Finding struct{ ID, Severity string }

// Statement returns the scan as in-toto vulns v0.2, with its id at predicate.metadata.scanId.
func (s Scan) Statement() Statement {
	result := []object{}
	for _, f := range s.Findings {
		entry := object{"id": f.ID}
		if f.Severity != "" {
			entry["severity"] = []object{{"method": "nvd", "score": f.Severity}}
		}
		result = append(result, entry)
	}
	metadata := object{"scanStartedOn": stamp(s.Finished.Add(-time.Minute)), "scanFinishedOn": stamp(s.Finished)}
	if s.ID != "" {
		metadata["scanId"] = s.ID
	}
	return newStatement("https://in-toto.io/attestation/vulns/v0.2",
		object{"scanner": s.scanner(result), "metadata": metadata}, s.Image, s.Subjects)
}

// CosignStatement returns the scan as cosign vuln v1 around a report of Trivy's shape, with its id at invocation.event_id.
func (s Scan) CosignStatement() Statement {
	var found []object
	for _, f := range s.Findings {
		entry := object{"VulnerabilityID": f.ID}
		if f.Severity != "" {
			entry["Severity"] = f.Severity
		}
		found = append(found, entry)
	}
	report := object{"SchemaVersion": 2, "ArtifactName": s.Image, "Results": []object{{"Target": s.Image, "Vulnerabilities": found}}}
	return newStatement("https://cosign.sigstore.dev/attestation/vuln/v1", object{
		"invocation": object{"parameters": nil, "uri": "", "event_id": s.ID, "builder.id": ""},
		"scanner":    s.scanner(report),
		"metadata":   object{"scanStartedOn": stamp(s.Finished.Add(-time.Minute)), "scanFinishedOn": stamp(s.Finished)},
	}, s.Image, s.Subjects)
}

func (s Scan) scanner(result any) object {
	return object{
		"uri": "pkg:github/aquasecurity/trivy@v0.60.0", "version": "0.60.0", "result": result,
		"db": object{"uri": "pkg:github/aquasecurity/trivy-db", "version": "2", "lastUpdate": stamp(s.Finished.Add(-time.Hour))},
	}
}

// Provenance is how an image was built by a GitHub Actions workflow.
type Provenance struct {
	Image        string
	Subjects     []remit.Digest
	Finished     time.Time // zero: left out, as GitHub does
	Builder      string    // empty: GitHub's hosted runner
	Repository   string    // https://github.com/company/foo
	RepositoryID string
	Ref          string // refs/tags/v1.2
	Commit       string // 40 hex digits
	Workflow     string // .github/workflows/release.yml
	Event        string // push
	Environment  string
	Protected    bool
	Invocation   string
}

// Statement returns SLSA provenance v1 of build type https://actions.github.io/buildtypes/workflow/v1.
func (p Provenance) Statement() Statement {
	if p.Builder == "" {
		p.Builder = "https://github.com/actions/runner/github-hosted"
	}
	inner := object{"event_name": p.Event, "repository_id": p.RepositoryID, "repository_owner_id": "1", "runner_environment": "github-hosted"}
	if p.Environment != "" {
		inner["environment"] = p.Environment
	}
	if p.Protected {
		inner["ref_protected"] = "true"
	}
	metadata := object{"invocationId": p.Invocation}
	if !p.Finished.IsZero() {
		metadata["finishedOn"] = stamp(p.Finished)
	}
	return newStatement("https://slsa.dev/provenance/v1", object{
		"buildDefinition": object{
			"buildType":          "https://actions.github.io/buildtypes/workflow/v1",
			"externalParameters": object{"workflow": object{"ref": p.Ref, "repository": p.Repository, "path": p.Workflow}},
			"internalParameters": object{"github": inner},
			"resolvedDependencies": []object{
				{"uri": "git+" + p.Repository + "@" + p.Ref, "digest": object{"gitCommit": p.Commit}},
			},
		},
		"runDetails": object{"builder": object{"id": p.Builder}, "metadata": metadata},
	}, p.Image, p.Subjects)
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) }

// Sign encodes and signs a statement.
func (s *Signer) Sign(st Statement) ([]byte, error) {
	b, err := st.JSON()
	if err != nil {
		return nil, err
	}
	return s.Envelope(b)
}
