// SPDX-License-Identifier: Apache-2.0

package citoken

import (
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"

	"remit"
	"remit/internal/evidence"
)

const maxText = 512 // bytes of a field

// shape is how a CI system's tokens say it: field to claim, and what needs more than copying.
type shape struct {
	repositories string
	claims       map[string]string
	more         func(claims evidence.Node, fields map[string]string)
}

var shapes = map[string]shape{
	"github": {"https://github.com/", map[string]string{"repository": "repository", "repository_id": "repository_id",
		"repository_owner_id": "repository_owner_id", "ref": "ref", "ref_protected": "ref_protected", "event": "event_name",
		"environment": "environment", "commit": "sha"}, github},
	"gitlab": {"https://gitlab.com/", map[string]string{"repository": "project_path", "repository_id": "project_id",
		"repository_owner_id": "namespace_id", "ref": "ref_path", "ref_protected": "ref_protected", "event": "pipeline_source",
		"environment": "environment", "commit": "sha"}, gitlab},
}

// github reads the workflow's file and the run. A workflow of another repository, as an organisation can demand one, keeps its whole ref.
func github(c evidence.Node, fields map[string]string) {
	text := func(name string) string { return c.Get(name).Scalar() }
	fields["workflow"] = within(text("workflow_ref"), text("repository")+"/", "@"+text("ref"))
	if job := text("job_workflow_ref"); job != "" { // that of the reusable workflow, if the job is one of those
		fields["builder"] = "https://github.com/" + job
	}
	if run := text("run_id"); run != "" && fields["repository_url"] != "" {
		fields["invocation"] = fields["repository_url"] + "/actions/runs/" + run + "/attempts/" + text("run_attempt")
	}
}

func gitlab(c evidence.Node, fields map[string]string) {
	text := func(name string) string { return c.Get(name).Scalar() }
	_, rest, _ := strings.Cut(text("ci_config_ref_uri"), "/")
	fields["workflow"] = within(rest, text("project_path")+"//", "@"+text("ref_path"))
	if uri := text("ci_config_ref_uri"); uri != "" {
		fields["builder"] = "https://" + uri
	}
	if job := text("job_id"); job != "" && fields["repository_url"] != "" {
		fields["invocation"] = fields["repository_url"] + "/-/jobs/" + job
	}
}

// within returns what stands between prefix and suffix, or all of s if they are not there.
func within(s, prefix, suffix string) string {
	if path, ok := strings.CutPrefix(s, prefix); ok {
		if path, ok = strings.CutSuffix(path, suffix); ok {
			return path
		}
	}
	return s
}

// run is what a verified token says.
type run struct {
	jti     string
	issued  time.Time
	expires time.Time
	fields  map[string]string
}

// read understands verified claims, and refuses whose job it is not and what is no CI context (S16).
func (c *Config) read(claims []byte) (run, *remit.Reason) {
	doc, err := evidence.ParseJSON(claims, maxClaims)
	if err != nil {
		return run{}, bad("claims: %v", err)
	}
	r := run{jti: doc.Get("jti").Text(), fields: map[string]string{}}
	//remit:guard S16 TestWrongRunHasItsOwnReason
	if r.jti == "" || len(r.jti) > maxText {
		return run{}, bad("claims: no jti of acceptable length: such a token could be used again")
	}
	if r.issued, err = instant(doc.Get("iat")); err != nil {
		return run{}, bad("claims: iat: %v", err)
	}
	if r.expires, err = instant(doc.Get("exp")); err != nil {
		return run{}, bad("claims: exp: %v", err)
	}
	//remit:guard S16 TestAnotherIssuerNow
	if iss := doc.Get("iss").Text(); iss != c.Issuer {
		return run{}, &remit.Reason{Code: remit.ReasonEvidenceSigner, Want: "issuer " + c.Issuer, Got: fmt.Sprintf("%.120q", iss)}
	}
	s := shapes[c.System]
	for field, claim := range s.claims {
		r.fields[field] = doc.Get(claim).Scalar()
	}
	if name := r.fields["repository"]; name != "" {
		r.fields["repository_url"] = c.Repositories + name
	}
	s.more(doc, r.fields)
	evidence.Refs{Repositories: c.Repositories, Protected: c.ProtectedRefs}.Derive(r.fields)
	for name, v := range r.fields {
		switch {
		case v == "":
			delete(r.fields, name)
		//remit:guard S14 TestWrongRunHasItsOwnReason
		case len(v) > maxText || strings.ContainsFunc(v, func(r rune) bool { return !unicode.IsPrint(r) }):
			return run{}, bad("claims: %s is too long or not printable", name)
		}
	}
	if reason := c.mine(r.fields); reason != nil {
		return run{}, reason
	}
	return r, evidence.CIReason(r.fields)
}

// mine refuses the jobs of strangers: the issuer signs for everybody who uses the CI system.
func (c *Config) mine(fields map[string]string) *remit.Reason {
	//remit:guard S16 TestWrongRunHasItsOwnReason
	if id := fields["repository_owner_id"]; len(c.OwnerIDs) > 0 && !slices.Contains(c.OwnerIDs, id) {
		return &remit.Reason{Code: remit.ReasonEvidenceSigner, Want: "a job of a listed owner", Got: fmt.Sprintf("owner id %.80q", id)}
	}
	//remit:guard S16 TestWrongRunHasItsOwnReason
	if id := fields["repository_id"]; len(c.RepositoryIDs) > 0 && !slices.Contains(c.RepositoryIDs, id) {
		return &remit.Reason{Code: remit.ReasonEvidenceSigner, Want: "a job of a listed repository", Got: fmt.Sprintf("repository id %.80q", id)}
	}
	return nil
}

// instant reads a time in seconds.
func instant(n evidence.Node) (time.Time, error) {
	var seconds float64
	if _, err := fmt.Sscan(n.Scalar(), &seconds); err != nil || seconds < 1 || seconds > 1e11 {
		return time.Time{}, fmt.Errorf("%.40q is no time", n.Scalar())
	}
	return time.Unix(int64(seconds), 0).UTC(), nil
}

// bad is a reason of evidence_invalid.
func bad(format string, args ...any) *remit.Reason {
	return &remit.Reason{Code: remit.ReasonEvidenceInvalid, Got: fmt.Sprintf(format, args...)}
}
