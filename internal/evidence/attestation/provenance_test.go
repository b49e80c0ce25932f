// SPDX-License-Identifier: Apache-2.0

package attestation_test

import (
	"context"
	"errors"
	"maps"
	"strings"
	"testing"
	"time"

	"remit"
	"remit/internal/evidence/attestation"
	"remit/internal/evidence/evidencetest"
)

func provenance(content string) evidencetest.Provenance {
	return evidencetest.Provenance{Image: "foo", Subjects: []remit.Digest{image(content).Digest}, Finished: noon.Add(-3 * time.Hour),
		Repository: "https://github.com/company/foo", RepositoryID: "4711", Ref: "refs/tags/v1.2",
		Commit: "0123456789012345678901234567890123456789", Workflow: ".github/workflows/release.yml", Event: "push",
		Environment: "production", Protected: true, Invocation: "https://github.com/company/foo/actions/runs/1/attempts/1"}
}

func builds(of remit.Image, match map[string]string) remit.Need {
	return remit.Need{Kind: remit.EvidenceProvenance, Of: of, Match: match}
}

func TestProvenanceFields(t *testing.T) {
	d := newDesk(t, nil)
	d.add(provenance("foo").Statement())
	e := d.finds(builds(image("foo"), nil))
	want := map[string]string{"builder": "https://github.com/actions/runner/github-hosted", "build_type": attestation.BuildTypeGitHub,
		"repository": "company/foo", "repository_url": "https://github.com/company/foo", "ref": "refs/tags/v1.2", "version": "v1.2",
		"commit": "0123456789012345678901234567890123456789", "workflow": ".github/workflows/release.yml", "event": "push",
		"environment": "production", "repository_id": "4711", "repository_owner_id": "1", "ref_protected": "true",
		"invocation": "https://github.com/company/foo/actions/runs/1/attempts/1"}
	if !maps.Equal(e.Fields, want) {
		t.Errorf("fields %v\nwant %v", e.Fields, want)
	}
	if e.Kind != remit.EvidenceProvenance || e.Worst != remit.SeverityUnset || !e.Made.Equal(noon.Add(-3*time.Hour)) {
		t.Errorf("found %+v", e)
	}
}

func TestRepositoryCannotBeFeigned(t *testing.T) {
	for _, url := range []string{"company/foo", "https://evil.example/company/foo", "https://github.com.evil.example/company/foo"} {
		d := newDesk(t, nil)
		p := provenance("foo")
		p.Repository = url
		d.add(p.Statement())
		if e := d.finds(builds(image("foo"), nil)); e.Fields["repository"] == "company/foo" {
			t.Errorf("%s passes for company/foo", url)
		}
	}
	d := newDesk(t, nil)
	st := provenance("foo").Statement()
	st.Predicate.(map[string]any)["buildDefinition"].(map[string]any)["resolvedDependencies"] = []any{
		map[string]any{"uri": "git+https://github.com/other/fork@refs/heads/x", "digest": map[string]string{"gitCommit": provenance("").Commit}}}
	if _, _, err := hand(d.source, sign(t, d.signer, st), "operator/ci", noon); remit.CodeOf(err) != remit.CodeInvalid {
		t.Errorf("parameters that the resolved source contradicts: %v", err)
	}
}

func TestGenericProvenance(t *testing.T) {
	d := newDesk(t, nil)
	st := provenance("foo").Statement()
	st.Predicate = map[string]any{
		"buildDefinition": map[string]any{"buildType": "https://slsa.dev/container-based-build/v0.1",
			"externalParameters": map[string]any{"source": map[string]any{"uri": "git+https://github.com/company/foo@refs/tags/v1.2",
				"digest": map[string]string{"sha1": provenance("").Commit}}}},
		"runDetails": map[string]any{"builder": map[string]any{"id": "https://builder.example"}},
	}
	d.add(st)
	e := d.finds(builds(image("foo"), map[string]string{"repository": "company/foo", "version": "v1.2"}))
	if e.Fields["commit"] != provenance("").Commit || e.Fields["version"] != "v1.2" || !e.Made.Equal(noon) {
		t.Errorf("found %+v", e)
	}
	build := st.Predicate.(map[string]any)["buildDefinition"].(map[string]any)
	build["resolvedDependencies"] = []any{map[string]any{"uri": "git+https://github.com/company/foo@refs/tags/v1.2",
		"digest": map[string]string{"gitCommit": strings.Repeat("f", 40)}}}
	if _, _, err := hand(d.source, sign(t, d.signer, st), "operator/ci", noon); remit.CodeOf(err) != remit.CodeInvalid {
		t.Errorf("a source and its resolved dependency of two commits: %v", err)
	}
	// It has no time of its own: received a minute ago is not made a minute ago.
	d.refuses(remit.Need{Kind: remit.EvidenceProvenance, Of: image("foo"), Within: time.Hour}, remit.ReasonEvidenceStale)
}

func TestNewestProvenanceCounts(t *testing.T) {
	d := newDesk(t, nil)
	d.add(provenance("foo").Statement())
	newer := provenance("foo")
	newer.Repository, newer.Finished = "https://github.com/company/fork", noon.Add(-2*time.Hour)
	d.add(newer.Statement())
	e := d.finds(builds(image("foo"), map[string]string{"repository": "company/foo"}))
	if e.Fields["repository"] != "company/fork" {
		t.Errorf("the older provenance of the same signer counted: %v", e.Fields)
	}
}

func TestBuilderList(t *testing.T) {
	d := newDesk(t, func(c *attestation.Config, _ *attestation.Deps) { c.Builders = []string{"https://builder.example"} })
	d.plant(remit.EvidenceProvenance, "", sign(t, d.signer, provenance("foo").Statement()), image("foo").Digest)
	d.refuses(builds(image("foo"), nil), remit.ReasonEvidenceField)
	p := provenance("foo")
	p.Builder = "https://builder.example"
	d.add(p.Statement())
	d.finds(builds(image("foo"), nil))
	d = newDesk(t, func(c *attestation.Config, _ *attestation.Deps) { c.BuildTypes = []string{"https://type.example"} })
	d.plant(remit.EvidenceProvenance, "", sign(t, d.signer, provenance("foo").Statement()), image("foo").Digest)
	d.refuses(builds(image("foo"), nil), remit.ReasonEvidenceField)
}

func TestCI(t *testing.T) {
	ci := remit.Need{Kind: remit.EvidenceCI, Of: image("foo"), Match: map[string]string{"repository_id": "4711", "environment": "production"}}
	for name, row := range map[string]struct {
		change func(*evidencetest.Provenance)
		code   remit.ReasonCode
	}{
		"push to a protected ref": {func(*evidencetest.Provenance) {}, ""},
		"pull_request":            {func(p *evidencetest.Provenance) { p.Event = "pull_request" }, remit.ReasonEvidenceField},
		"pull_request_target":     {func(p *evidencetest.Provenance) { p.Event = "pull_request_target" }, remit.ReasonEvidenceField},
		"no event":                {func(p *evidencetest.Provenance) { p.Event = "" }, remit.ReasonEvidenceInvalid},
		"unprotected ref":         {func(p *evidencetest.Provenance) { p.Protected = false }, remit.ReasonEvidenceField},
		"ref protected by us":     {func(p *evidencetest.Provenance) { p.Protected, p.Ref = false, "refs/heads/main" }, ""},
		"no repository id":        {func(p *evidencetest.Provenance) { p.RepositoryID = "" }, remit.ReasonEvidenceInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDesk(t, func(c *attestation.Config, _ *attestation.Deps) { c.ProtectedRefs = []string{"refs/heads/main"} })
			p := provenance("foo")
			row.change(&p)
			d.add(p.Statement())
			if row.code != "" {
				d.refuses(ci, row.code)
				return
			}
			if e := d.finds(ci); e.Kind != remit.EvidenceCI || e.Fields["ref_protected"] != "true" {
				t.Errorf("found %+v", e)
			}
		})
	}
}

// index is an image index with two platforms.
func indexDesk(t *testing.T) (d *desk, whole, amd, arm remit.Image) {
	whole, amd, arm = image("index"), image("amd64"), image("arm64")
	return newDesk(t, func(c *attestation.Config, deps *attestation.Deps) {
		c.Platforms = "all"
		deps.Platforms = func(_ context.Context, i remit.Image) ([]remit.Digest, error) {
			if i.Digest != whole.Digest {
				return nil, nil
			}
			return []remit.Digest{amd.Digest, arm.Digest}, nil
		}
	}), whole, amd, arm
}

func TestEveryPlatformIsCovered(t *testing.T) {
	d, whole, amd, arm := indexDesk(t)
	d.refuses(need("", whole), remit.ReasonEvidenceMissing)
	d.add(scan("s", amd, noon.Add(-2*time.Hour), "low").Statement())
	d.refuses(need("", whole), remit.ReasonEvidenceSubject)
	if e := d.finds(need("s", whole)); e.About(whole.Digest) {
		t.Errorf("half of the platforms cover the index: %v", e.Subjects)
	}
	d.add(scan("s", arm, noon.Add(-3*time.Hour), "medium").Statement())
	for _, id := range []string{"", "s"} {
		e := d.finds(need(id, whole))
		if !e.About(whole.Digest) || e.Worst != remit.SeverityMedium || !e.Made.Equal(noon.Add(-3*time.Hour)) || e.Superseded != "" {
			t.Errorf("need %q found %+v", id, e)
		}
	}
	d.add(scan("t", arm, noon.Add(-time.Hour), "high").Statement())
	if e := d.finds(need("s", whole)); e.Superseded == "" {
		t.Error("a newer failing scan of one platform does not supersede")
	}
	if e := d.finds(need("", whole)); e.Worst != remit.SeverityHigh || !e.About(whole.Digest) {
		t.Errorf("a failing platform is not the answer: %+v", e)
	}
}

func TestIndexItselfIsCovered(t *testing.T) {
	d, whole, amd, _ := indexDesk(t)
	d.add(scan("s", whole, noon.Add(-2*time.Hour), "low").Statement())
	d.finds(need("s", whole))
	d.add(scan("t", amd, noon.Add(-time.Hour), "high").Statement())
	if e := d.finds(need("s", whole)); e.Superseded == "" {
		t.Error("a newer failing scan of one platform does not supersede the index's")
	}
	if e := d.finds(need("", whole)); e.Worst != remit.SeverityHigh || !e.About(whole.Digest) {
		t.Errorf("a failing platform is not the answer: %+v", e)
	}
}

func TestMergedProvenanceKeepsOnlySharedFields(t *testing.T) {
	d, whole, _, _ := indexDesk(t)
	d.add(provenance("amd64").Statement())
	other := provenance("arm64")
	other.Repository = "https://github.com/company/fork"
	d.add(other.Statement())
	for _, match := range []map[string]string{nil, {"repository": "company/foo"}, {"repository": "company/fork"}} {
		e := d.finds(builds(whole, match))
		if e.Fields["repository"] != "" || e.Fields["version"] != "v1.2" || !e.About(whole.Digest) {
			t.Errorf("one platform's repository stands for all: %v", e.Fields)
		}
	}
}

func TestRegistryDown(t *testing.T) {
	d := newDesk(t, func(c *attestation.Config, deps *attestation.Deps) {
		c.Platforms = "all"
		deps.Platforms = func(context.Context, remit.Image) ([]remit.Digest, error) { return nil, errors.New("down") }
	})
	d.add(scan("s", image("foo"), noon.Add(-time.Hour)).Statement())
	d.refuses(need("s", image("foo")), remit.ReasonEvidenceSource)
}
