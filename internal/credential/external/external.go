// SPDX-License-Identifier: Apache-2.0

// Package external is the driver of targets for which Remit decides and somebody else enforces: an enforcement point asks by
// AuthZEN and acts on the answer. It mints nothing, so a request for a grant is denied before anything is on record.
package external

import (
	"context"
	"errors"
	"time"

	"remit"
	"remit/internal/credential"
)

// Driver mints nothing. Its zero value is ready and safe for concurrent use.
type Driver struct{}

var (
	_ credential.Driver  = Driver{}
	_ credential.Planner = Driver{}
)

var errNothing = errors.New("this target gives decisions, not credentials")

// Plan refuses every scope.
func (Driver) Plan(remit.Lease) (bounds, notBounded []string, worstCase time.Duration, err error) {
	return nil, nil, 0, errNothing
}

// Mint refuses.
func (Driver) Mint(context.Context, remit.Lease) (remit.Credential, error) {
	return remit.Credential{}, errNothing
}

// Revoke has nothing to end.
func (Driver) Revoke(context.Context, remit.Lease) error { return nil }
