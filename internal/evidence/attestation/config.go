// SPDX-License-Identifier: Apache-2.0

package attestation

import (
	"fmt"
	"slices"

	"remit"
	"remit/internal/evidence"
)

// Config is an evidence source of signed statements, as its file writes it:
//
//	signers:
//	- {name: trivy, key: {file: trivy.pub}}
//	kinds: [scan]
//	targets: [production-cluster]
type Config struct {
	// Signers are the only ones who vouch here. At least one; a statement needs the signature of one.
	Signers []Signer `yaml:"signers"`
	// Kinds the signers vouch for: scan, provenance, ci. Empty: all three. ci needs provenance statements.
	Kinds []string `yaml:"kinds"`
	// Targets for which the signers vouch (S14). Empty: all targets.
	Targets []string `yaml:"targets"`
	// Platforms "all": for an image index a statement counts when it is about the index itself or about every platform
	// manifest in it; the statements may be one for each platform. It needs a registry. Empty: only a statement about exactly
	// the asked digest counts.
	Platforms string `yaml:"platforms"`
	// Builders are the builder ids (runDetails.builder.id) whose provenance counts. Empty: any that the signers name.
	Builders []string `yaml:"builders"`
	// BuildTypes whose parameters count. Empty: any.
	BuildTypes []string `yaml:"build_types"`
	// ProtectedRefs are the refs that only reviewed changes reach, such as refs/heads/main or refs/tags/v*; * matches within
	// one path segment. A ci fact needs a ref that matches one, or a provenance that says ref_protected itself (S16).
	ProtectedRefs []string `yaml:"protected_refs"`
	// Repositories is the prefix that workflows leave out when they name a repository. Empty: https://github.com/
	Repositories string `yaml:"repositories"`
}

// Signer is one who vouches.
type Signer struct {
	// Name stands in decisions and in the ledger.
	Name string `yaml:"name"`
	// Key is the public key: ECDSA P-256 or P-384, Ed25519, or RSA of at least 2048 bits.
	Key Key `yaml:"key"`
	// KeyID is what the signer's software writes into envelopes as keyid. Name, and the SHA-256 of the key in hex, are known
	// without it. A key id only explains a refusal; trust comes from the key.
	KeyID string `yaml:"keyid"`
	// Holder is the agent, tool or operator that can sign with the key, if it is one of ours: it never vouches for a run
	// that it acts in (S14).
	Holder string `yaml:"holder"`
}

// Key says where a public key is; exactly one member is set.
type Key struct {
	// File holds the key in PEM ("BEGIN PUBLIC KEY").
	File string `yaml:"file"`
	// PEM is the same, inline.
	PEM string `yaml:"pem"`
}

const defaultRepositories = "https://github.com/"

// check reports the first thing in c that cannot be meant.
func (c *Config) check() error {
	if len(c.Signers) == 0 {
		return invalid("an attestation source needs signers", "list at least one {name, key: {file: PATH}}")
	}
	for _, k := range c.Kinds {
		switch remit.EvidenceKind(k) {
		case remit.EvidenceScan, remit.EvidenceProvenance, remit.EvidenceCI:
		default:
			return invalid(fmt.Sprintf("%.40q is not a kind of signed statement", k), "write scan, provenance or ci")
		}
	}
	if c.Platforms != "" && c.Platforms != "all" {
		return invalid(fmt.Sprintf("platforms: %.40q is not known", c.Platforms), "write all, or leave it out")
	}
	if err := evidence.CheckRefs(c.ProtectedRefs); err != nil {
		return err
	}
	seen := map[string]bool{}
	for _, s := range c.Signers {
		if s.Name == "" || seen[s.Name] {
			return invalid(fmt.Sprintf("signer name %.80q is empty or stands twice", s.Name), "give each signer a name of its own")
		}
		seen[s.Name] = true
		if s.Holder != "" {
			if _, err := remit.ParseName(s.Holder); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *Config) vouchesFor(kind remit.EvidenceKind) bool {
	return len(c.Kinds) == 0 || slices.Contains(c.Kinds, string(kind))
}

func invalid(msg, hint string) *remit.Error {
	return &remit.Error{Code: remit.CodeInvalid, Msg: msg, Hint: hint}
}
