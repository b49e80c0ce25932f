// SPDX-License-Identifier: Apache-2.0

package citoken

import (
	"fmt"
	"slices"

	"remit"
	"remit/internal/evidence"
)

// Config is an evidence source of CI jobs' own tokens, as its file writes it:
//
//	issuer: https://token.actions.githubusercontent.com
//	audience: https://remit.company.com
//	owner_ids: ["9919"]
type Config struct {
	// Issuer of the tokens, exactly as their iss has it.
	Issuer string `yaml:"issuer"`
	// Audience that tokens must be for; with binds: audience, a slash and the image's digest follow. No other service may have it.
	Audience string `yaml:"audience"`
	// System whose claims are read: github (GitHub Actions) or gitlab. Empty: github.
	System string `yaml:"system"`
	// OwnerIDs are the immutable ids of the owners (GitLab: top namespaces) whose repositories may vouch. An issuer that serves many
	// companies signs for all of them: one of owner_ids and repository_ids is needed.
	OwnerIDs []string `yaml:"owner_ids"`
	// RepositoryIDs are the immutable ids of the only repositories that may vouch. Empty: all of the owners.
	RepositoryIDs []string `yaml:"repository_ids"`
	// Binds says what binds a token to an image. audience: the token's audience names the digest, so a stolen token says nothing else.
	// sender: the job names the digest beside its token, for systems whose jobs cannot choose an audience while they run. Empty: audience.
	Binds string `yaml:"binds"`
	// Targets for which the jobs vouch (S14). Empty: all targets.
	Targets []string `yaml:"targets"`
	// ProtectedRefs are refs that only reviewed changes reach, beside those that the token itself says are protected; * matches within
	// one path segment.
	ProtectedRefs []string `yaml:"protected_refs"`
	// Repositories is where the repositories are. Empty: https://github.com/ or https://gitlab.com/
	Repositories string `yaml:"repositories"`
	// CA is a PEM file with the roots that the issuer's certificate must lead to. Empty: the host's roots.
	CA string `yaml:"ca"`
}

// check reports the first thing in c that cannot be meant, and fills in defaults.
func (c *Config) check() error {
	if c.System == "" {
		c.System = "github"
	}
	shape, ok := shapes[c.System]
	if !ok {
		return invalid(fmt.Sprintf("system: %.40q is not known", c.System), "write github or gitlab")
	}
	if c.Repositories == "" {
		c.Repositories = shape.repositories
	}
	if c.Binds == "" {
		c.Binds = "audience"
	}
	if c.Binds != "audience" && c.Binds != "sender" {
		return invalid(fmt.Sprintf("binds: %.40q is not known", c.Binds), "write audience or sender")
	}
	if c.Audience == "" {
		return invalid("audience is missing", "write a URL of this server's, for which the jobs ask their CI system for tokens")
	}
	//remit:guard S16 TestConfigIsChecked
	if len(c.OwnerIDs)+len(c.RepositoryIDs) == 0 || slices.Contains(append(slices.Clone(c.OwnerIDs), c.RepositoryIDs...), "") {
		return invalid("owner_ids and repository_ids are empty, or have an empty id", "list whose jobs may vouch, by id: a name can be taken over")
	}
	return evidence.CheckRefs(c.ProtectedRefs)
}

// audience is what a token about the image must be for.
func (c *Config) audience(image remit.Digest) string {
	if c.Binds == "sender" {
		return c.Audience
	}
	return c.Audience + "/" + string(image)
}

func invalid(msg, hint string) *remit.Error {
	return &remit.Error{Code: remit.CodeInvalid, Msg: msg, Hint: hint}
}
