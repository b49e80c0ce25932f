// SPDX-License-Identifier: Apache-2.0

// Package gateway is what enforcement points share: the line they all enter at the top. Each enforcement point is a folder
// below; it parses its own protocol into a remit.Request, calls Line, and says the answer in its own protocol's words.
package gateway

import (
	"context"

	"remit"
)

// Line is the authorizer as enforcement points see it. An error means that no answer could be recorded; the enforcement
// point denies. It is safe for concurrent use.
type Line interface {
	Decide(ctx context.Context, req *remit.Request) (remit.Decision, error)
	Grant(ctx context.Context, req *remit.Request) (Granted, error)
}

// Granted is a decision and, only if it allowed, a grant with its live credential.
type Granted struct {
	Decision   remit.Decision
	Grant      remit.Grant
	Credential remit.Credential
}
