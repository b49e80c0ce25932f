// SPDX-License-Identifier: Apache-2.0

// Package evidence turns claims into facts: it finds what a Need asks for, verifies who vouches for it, and answers with
// the fact or with the reason why there is none. It never judges what a fact says: that is policy's.
package evidence

import (
	"context"
	"time"

	"remit"
)

// Source is one configured place that vouches for facts. It is safe for concurrent use, honours the context's deadline, and
// never returns a fact whose origin it did not verify during this call or, for a cached one, within the age it documents.
type Source interface {
	// Find answers one need at time at. It returns exactly one of the two: a fact, whatever it says, or a reason of the
	// evidence_* kinds. A source that cannot be reached is remit.ReasonEvidenceSource.
	Find(ctx context.Context, need remit.Need, at time.Time) (*remit.Evidence, *remit.Reason)
}

// Statements is what sources of signed statements read; the store implements it.
type Statements interface {
	// Statements returns the stored envelopes of a source and kind whose subjects include subject, or whose name is name;
	// either may be empty. Newest first by Added, at most limit.
	Statements(source string, kind remit.EvidenceKind, subject remit.Digest, name string, limit int) []remit.Statement
}
