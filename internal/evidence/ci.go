// SPDX-License-Identifier: Apache-2.0

package evidence

import (
	"fmt"
	"path"
	"strings"

	"remit"
)

// Refs says how the source that a statement names is read.
type Refs struct {
	Repositories string   // the prefix that workflows leave out
	Protected    []string // patterns of refs that only reviewed changes reach; * matches within one path segment
}

// Derive adds to fields what follows from repository_url and ref: the short name, the version that a tag proves, whether the ref is
// protected.
func (r Refs) Derive(fields map[string]string) {
	repository := strings.TrimSuffix(fields["repository_url"], ".git")
	if short, ok := strings.CutPrefix(repository, r.Repositories); ok {
		fields["repository"] = short
	} else if strings.Contains(repository, "://") { // without a scheme it could pass for a short name
		fields["repository"] = repository
	}
	if tag, ok := strings.CutPrefix(fields["ref"], "refs/tags/"); ok {
		fields["version"] = tag
	}
	for _, pattern := range r.Protected {
		if ok, err := path.Match(pattern, fields["ref"]); err == nil && ok {
			fields["ref_protected"] = "true"
		}
	}
}

// CheckRefs reports the first pattern that cannot be meant.
func CheckRefs(patterns []string) error {
	for _, p := range patterns {
		if _, err := path.Match(p, ""); err != nil || !strings.HasPrefix(p, "refs/") {
			return &remit.Error{Code: remit.CodeInvalid, Msg: fmt.Sprintf("protected_refs: %.80q is not a pattern of a full ref", p),
				Hint: "write refs/heads/main or refs/tags/v*"}
		}
	}
	return nil
}

// CIReason says why what is known of a CI run is no CI context (S16): it must name its repository by id, must not be of a pull or
// merge request, whose author chooses what runs, and its ref must be protected.
func CIReason(fields map[string]string) *remit.Reason {
	bad := func(got string) *remit.Reason { return &remit.Reason{Code: remit.ReasonEvidenceInvalid, Got: got} }
	switch event := fields["event"]; {
	//remit:guard S16 TestCI internal/evidence/attestation
	case event == "":
		return bad("ci: it is not said which event started the run")
	//remit:guard S16 TestCI internal/evidence/attestation
	//remit:guard S16 TestWrongRunHasItsOwnReason internal/evidence/citoken
	case strings.Contains(event, "pull_request") || strings.Contains(event, "merge_request"):
		return &remit.Reason{Code: remit.ReasonEvidenceField, Want: "a run of no pull request", Got: "event " + event}
	//remit:guard S16 TestCI internal/evidence/attestation
	case fields["repository_id"] == "":
		return bad("ci: there is no repository id")
	//remit:guard S16 TestCI internal/evidence/attestation
	//remit:guard S16 TestWrongRunHasItsOwnReason internal/evidence/citoken
	case fields["ref_protected"] != "true":
		return &remit.Reason{Code: remit.ReasonEvidenceField, Want: "a protected ref", Got: fmt.Sprintf("%.120q", fields["ref"])}
	}
	return nil
}
