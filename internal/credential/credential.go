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

// Checker says whether the target is fit to receive grants now: reachable, guard objects present and unchanged. It is
// called by the broker before each mint's first commit, and by doctor. The error's text is for operators.
type Checker interface {
	Check(ctx context.Context) error
}

// Planner states the bounds before anything is minted, and refuses a scope that the target cannot hold; looked up once.
type Planner interface {
	// Plan returns bounds, what is not bounded, and how long a credential may outlive its lease if Remit is dead.
	Plan(l remit.Lease) (bounds, notBounded []string, worstCase time.Duration, err error)
}
