// SPDX-License-Identifier: Apache-2.0

package remit

import (
	"crypto/rand"
	"encoding/base32"
	"fmt"
	"strings"
)

// IDs are a kind, a hyphen and 26 characters of [a-z2-7] from crypto/rand: at most 32 characters, legal as a DNS-1123
// label, so that every object at a target can carry the ID of its lease. Each kind is a type of its own: two IDs in one
// signature cannot be swapped.
type (
	// RunID names one execution of a workflow.
	RunID string
	// DecisionID names one recorded answer.
	DecisionID string
	// GrantID names one grant, which users see.
	GrantID string
	// LeaseID names one live credential under a grant, and every object made for it at the target.
	LeaseID string
	// EvidenceID names one stored statement or looked-up fact.
	EvidenceID string
	// LaunchID names one launched agent process; its Workload API socket and run token are bound to it (S4, S10).
	LaunchID string
	// SandboxID names one sandbox, from before it exists until everything of it is gone.
	SandboxID string
)

const idAlphabet = "abcdefghijklmnopqrstuvwxyz234567"

var idEncoding = base32.NewEncoding(idAlphabet).WithPadding(base32.NoPadding)

func newID(kind string) string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails since Go 1.24
	return kind + "-" + idEncoding.EncodeToString(b[:])
}

func parseID(kind, s string) error {
	rest, ok := strings.CutPrefix(s, kind+"-")
	if !ok || len(rest) != 26 || strings.Trim(rest, idAlphabet) != "" {
		return &Error{Code: CodeInvalid, Msg: fmt.Sprintf("%.40q is not a %s id", s, kind),
			Hint: fmt.Sprintf("an id looks like %s-%s", kind, strings.Repeat("a", 26))}
	}
	return nil
}

// NewRunID returns a fresh random ID; likewise the other constructors.
func NewRunID() RunID { return RunID(newID("run")) }

// NewDecisionID returns a fresh random ID.
func NewDecisionID() DecisionID { return DecisionID(newID("dec")) }

// NewGrantID returns a fresh random ID.
func NewGrantID() GrantID { return GrantID(newID("grant")) }

// NewLeaseID returns a fresh random ID.
func NewLeaseID() LeaseID { return LeaseID(newID("lease")) }

// NewEvidenceID returns a fresh random ID.
func NewEvidenceID() EvidenceID { return EvidenceID(newID("evid")) }

// NewLaunchID returns a fresh random ID.
func NewLaunchID() LaunchID { return LaunchID(newID("lnch")) }

// NewSandboxID returns a fresh random ID.
func NewSandboxID() SandboxID { return SandboxID(newID("box")) }

// ParseRunID parses what a caller wrote; the error is of CodeInvalid. Likewise the other parsers.
func ParseRunID(s string) (RunID, error) { return RunID(s), parseID("run", s) }

// ParseDecisionID parses what a caller wrote.
func ParseDecisionID(s string) (DecisionID, error) { return DecisionID(s), parseID("dec", s) }

// ParseGrantID parses what a caller wrote.
func ParseGrantID(s string) (GrantID, error) { return GrantID(s), parseID("grant", s) }

// ParseLeaseID parses what a caller or a target wrote.
func ParseLeaseID(s string) (LeaseID, error) { return LeaseID(s), parseID("lease", s) }

// ParseEvidenceID parses what a caller wrote.
func ParseEvidenceID(s string) (EvidenceID, error) { return EvidenceID(s), parseID("evid", s) }

// ParseSandboxID parses what a caller or the name of a folder says.
func ParseSandboxID(s string) (SandboxID, error) { return SandboxID(s), parseID("box", s) }
