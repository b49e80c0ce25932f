// SPDX-License-Identifier: Apache-2.0

package attestation

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"remit"
	"remit/internal/evidence"
)

// Build types of GitHub Actions, whose parameters have a shape of their own.
const (
	BuildTypeGitHub     = "https://actions.github.io/buildtypes/workflow/v1"
	buildTypeGitHubSLSA = "https://slsa-framework.github.io/github-actions-buildtypes/workflow/v1"
)

// parseProvenance reads SLSA provenance v1. The fields of the fact:
//
//	builder, build_type     runDetails.builder.id, buildDefinition.buildType
//	repository              of the source, without the source's configured prefix; repository_url in full
//	ref, commit             of the source
//	version                 what a tag ref proves: refs/tags/v1.2 is v1.2
//	workflow                path of the workflow file (GitHub Actions)
//	event, repository_id, repository_owner_id, environment, ref_protected    of the run (GitHub Actions)
//	invocation              runDetails.metadata.invocationId
//
// Made is finishedOn. GitHub's own statements have none: then Made is when the statement was added, and no `within` is met.
func (f *fact) parseProvenance(p evidence.Node, cfg *Config) *remit.Reason {
	f.kind = remit.EvidenceProvenance
	build, run := p.Get("buildDefinition"), p.Get("runDetails")
	builder, buildType := run.Get("builder", "id").Text(), build.Get("buildType").Text()
	if builder == "" || buildType == "" {
		return bad("provenance: builder.id or buildType is missing")
	}
	//remit:guard S14 TestBuilderList
	if len(cfg.Builders) > 0 && !slices.Contains(cfg.Builders, builder) {
		return &remit.Reason{Code: remit.ReasonEvidenceField, Want: "a listed builder", Got: clip(builder)}
	}
	//remit:guard S14 TestBuilderList
	if len(cfg.BuildTypes) > 0 && !slices.Contains(cfg.BuildTypes, buildType) {
		return &remit.Reason{Code: remit.ReasonEvidenceField, Want: "a listed build type", Got: clip(buildType)}
	}
	if finished := run.Get("metadata", "finishedOn").Text(); finished != "" {
		made, err := time.Parse(time.RFC3339Nano, finished)
		if err != nil {
			return bad("provenance: metadata.finishedOn %s is not a time", clip(finished))
		}
		f.made = made.UTC()
	}
	fields := map[string]string{"builder": builder, "build_type": buildType, "invocation": run.Get("metadata", "invocationId").Text()}
	var reason *remit.Reason
	if buildType == BuildTypeGitHub || buildType == buildTypeGitHubSLSA {
		reason = githubSource(build, fields)
	} else {
		reason = genericSource(build, fields)
	}
	if reason != nil {
		return reason
	}
	evidence.Refs{Repositories: cmp.Or(cfg.Repositories, defaultRepositories), Protected: cfg.ProtectedRefs}.Derive(fields)
	f.name = fields["invocation"]
	for name, value := range fields {
		if reason := f.set(name, value); reason != nil {
			return reason
		}
	}
	return nil
}

// githubSource reads the GitHub Actions build types. Their external parameters are what the builder itself recorded, and the
// dependency that was resolved from them must agree.
func githubSource(build evidence.Node, fields map[string]string) *remit.Reason {
	workflow := build.Get("externalParameters", "workflow")
	repository, ref := workflow.Get("repository").Text(), workflow.Get("ref").Text()
	if repository == "" || ref == "" {
		return bad("provenance: externalParameters.workflow has no repository or ref")
	}
	fields["repository_url"], fields["ref"], fields["workflow"] = repository, ref, workflow.Get("path").Text()
	commit, ok := resolved(build, "git+"+repository+"@"+ref)
	//remit:guard S16 TestRepositoryCannotBeFeigned
	if !ok {
		return bad("provenance: no resolved dependency is the workflow's source %s", clip(repository+"@"+ref))
	}
	fields["commit"] = commit
	inner := build.Get("internalParameters", "github")
	for field, names := range map[string][]string{
		"event": {"event_name", "GITHUB_EVENT_NAME"}, "repository_id": {"repository_id", "GITHUB_REPOSITORY_ID"},
		"repository_owner_id": {"repository_owner_id", "GITHUB_REPOSITORY_OWNER_ID"},
		"environment":         {"environment"}, "ref_protected": {"ref_protected", "GITHUB_REF_PROTECTED"},
	} {
		for _, name := range names {
			if v := inner.Get(name).Scalar(); v != "" && fields[field] == "" {
				fields[field] = v
			}
		}
	}
	return nil
}

// genericSource reads every other build type by the custom that externalParameters.source is the source: a URI
// git+URL@REF, or an object with uri and digest (as in container-based-build/v0.1). Without one there is no repository, and
// no need that asks for one is met.
func genericSource(build evidence.Node, fields map[string]string) *remit.Reason {
	source := build.Get("externalParameters", "source")
	uri := source.Text()
	if uri == "" {
		uri = source.Get("uri").Text()
	}
	if uri == "" {
		return nil
	}
	repository, ref, _ := strings.Cut(strings.TrimPrefix(uri, "git+"), "@")
	fields["repository_url"], fields["ref"] = repository, ref
	commit := gitCommit(source.Get("digest"))
	if dependency, ok := resolved(build, uri); ok {
		//remit:guard S16 TestGenericProvenance
		if commit != "" && dependency != commit {
			return bad("provenance: the source and its resolved dependency are two commits")
		}
		commit = dependency
	}
	fields["commit"] = commit
	return nil
}

// resolved returns the commit of the resolved dependency with exactly this URI.
func resolved(build evidence.Node, uri string) (commit string, ok bool) {
	list, _ := build.Get("resolvedDependencies").List()
	for _, d := range list {
		if d.Get("uri").Text() == uri {
			return gitCommit(d.Get("digest")), true
		}
	}
	return "", false
}

func gitCommit(digest evidence.Node) string {
	for _, name := range []string{"gitCommit", "sha1"} {
		if c := digest.Get(name).Text(); isCommit(c) {
			return c
		}
	}
	return ""
}
