// SPDX-License-Identifier: Apache-2.0

// Package credential is the contract of the drivers that mint at targets. It holds no driver: each is a folder below, and
// stands in the table of server/drivers.go. credentialtest is the suite that every driver passes.
package credential

import (
	"context"
	"time"

	"remit"
)

// Driver makes and ends credentials at one target. It is safe for concurrent use, keeps no state and no log of its own, and
// honours the context's deadline.
//
// Mint makes a credential for l and nothing wider. Everything made at the target is named after l.ID, and no request that
// makes something is sent after l.MintBefore.
//
// Revoke ends all that was ever made for l.ID, from the lease alone, even if Mint never returned. Revoking twice, or what
// never was, succeeds. Authority goes first, then the rest; errors are joined, and one failure does not stop the others.
type Driver interface {
	Mint(ctx context.Context, l remit.Lease) (remit.Credential, error)
	Revoke(ctx context.Context, l remit.Lease) error
}

// Lister is for reconciliation: what stands at the target, by lease. It is looked up once, when the target is configured.
type Lister interface {
	// List returns the ids of leases of this installation for which anything exists at the target.
	List(ctx context.Context) ([]remit.LeaseID, error)
}

// Checker says whether the target is fit to receive grants now: reachable, guard objects present and unchanged. Mint checks
// the same by itself and mints nothing at an unfit target. Beside that, the broker asks before it records a grant while it has
// no reason to believe that the target is fit: at first, and after a mint that failed; and doctor asks. The error's text is
// for operators.
type Checker interface {
	Check(ctx context.Context) error
}

// Planner states the bounds before anything is minted, and refuses a scope that the target cannot hold; looked up once.
type Planner interface {
	// Plan returns bounds, what is not bounded, and how long a credential may outlive its lease if Remit is dead.
	Plan(l remit.Lease) (bounds, notBounded []string, worstCase time.Duration, err error)
}

// Prober tries what a credential can do and cannot, so that bounds are shown and not only claimed (S21); looked up once. The
// broker mints a twin lease for it that nobody else holds, and ends it after.
//
// Nothing that is tried may have an effect, whether it passes or not: dry runs, access reviews, rolled-back transactions,
// objects that do not exist. What cannot be tried so is listed as not tried; so is every answer that is neither a clear refusal
// nor a clear pass. A driver tries at least one granted act, for a dead credential would be refused everything, and, for each
// bound that Plan states, at least one act beyond it.
type Prober interface {
	// Try tries c, which was minted for l and is live. It waits for a fresh credential to work, within ctx. An error means
	// that nothing could be tried.
	Try(ctx context.Context, l remit.Lease, c remit.Credential) ([]remit.Trial, error)
	// TryEnded tries a granted act after Revoke confirmed, until it is refused or ctx ends, and says how long it still passed.
	TryEnded(ctx context.Context, l remit.Lease, c remit.Credential) remit.Trial
}
