// SPDX-License-Identifier: Apache-2.0

// Package gateway is what enforcement points share: the line they all enter at the top. Each enforcement point is a folder
// below; it parses its own protocol into a remit.Request, calls Line, and says the answer in its own protocol's words.
package gateway

import (
	"context"
	"crypto/tls"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

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

// Authenticator verifies who is calling; internal/identity implements it. Both methods are safe for concurrent use and
// return a *remit.Error of CodeUnauthenticated for whoever did not prove an identity.
type Authenticator interface {
	// Certificate verifies the peer's X.509-SVID of a finished handshake: chain to the bundle of its own trust domain,
	// exactly one URI SAN, a leaf, valid now. It is called once per connection and Recheck, not once per request.
	Certificate(state *tls.ConnectionState) (remit.Principal, error)
	// InSandbox does the same for a connection over the socket of a launch's sandbox, where only that sandbox's identity counts (S26).
	InSandbox(state *tls.ConnectionState, launch remit.LaunchID) (remit.Principal, error)
	// Assertion verifies a JWT-SVID whose only audience is this server, by the keys of its subject's trust domain, and uses
	// it up: the same assertion is refused the second time, also after a restart (S5).
	Assertion(ctx context.Context, jwt string) (remit.Principal, error)
}

// RunTokens verifies run tokens; internal/run implements it. It should remember verified tokens until they end: it is on
// the path of every decision.
type RunTokens interface {
	// RunToken returns the run that the token names if it is genuine, alive at the time given, and bound to p (S10).
	RunToken(token string, p remit.Principal, at time.Time) (remit.RunID, error)
}

// Directory answers from the active revision who is configured, in memory.
type Directory interface {
	Agent(id spiffeid.ID) (remit.Name, bool)
	EnforcementPoint(id spiffeid.ID) (remit.EnforcementPoint, bool)
}
