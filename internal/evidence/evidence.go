// SPDX-License-Identifier: Apache-2.0

// Package evidence turns claims into facts: it finds what a Need asks for, verifies who vouches for it, and answers with
// the fact or with the reason why there is none. It never judges what a fact says: that is policy's.
//
// The folders below are the sources: attestation (signed statements: scans, provenance, the CI run), citoken (the tokens of CI
// jobs), ticket (a change desk
// over HTTPS), and registry, which resolves image names for them. Collector asks the sources; it owns the goroutines that do
// so, and Close waits for them.
package evidence

import (
	"context"
	"time"

	"remit"
)

// Source is one configured place that vouches for facts. It is safe for concurrent use, honours the context's deadline, and
// never returns a fact whose origin it did not verify during this call or, for a cached one, within the age it documents.
type Source interface {
	// Find answers one need for req, as of req.At. It returns exactly one of the two: a fact, whatever it says, or a reason
	// of the evidence_* kinds. A source that cannot be reached is remit.ReasonEvidenceSource. From req a source reads who
	// asks, for which run and target: who vouches must not be who profits (S14, S15). It does not change req.
	Find(ctx context.Context, need remit.Need, req *remit.Request) (*remit.Evidence, *remit.Reason)
}

// Adder is a source whose facts arrive as signed statements that somebody hands in. Collector looks for it once, in New.
type Adder interface {
	// Add verifies what was handed in as Find would, and returns what to store. What no signer of the source signed, or what is of a
	// kind that the source does not vouch for, is an error of CodeForbidden or CodeInvalid. A statement that is already stored is
	// returned as it stands, so adding twice is harmless, unless it counts once. Nothing is stored here.
	Add(ctx context.Context, envelope []byte, by string, at time.Time) (Added, error)
	// Read judges a stored statement by the configuration of the source, as Find would: the fact, or why it is none.
	Read(row *remit.Statement) (*remit.Evidence, error)
}

// Added is what a source made of a statement that was handed in.
type Added struct {
	Row  remit.Statement
	Fact *remit.Evidence
	Once *remit.Used // what must be stored with the row, and must not be there yet; nil: the statement may come again
}

// Fresher is a source whose facts can change without anything arriving here. Collector looks for it once, in New.
type Fresher interface {
	// Fresh reports why e, a fact of this source, does not hold any more; nil: it does, by a reading as young as Find's.
	Fresh(ctx context.Context, e *remit.Evidence) *remit.Reason
}

// Statements is what sources of signed statements read; the store implements it.
type Statements interface {
	// Statements returns the stored envelopes of a source and kind whose subjects include subject, or whose name is name;
	// either may be empty. Newest first by Added, at most limit.
	Statements(source string, kind remit.EvidenceKind, subject remit.Digest, name string, limit int) []remit.Statement
}
