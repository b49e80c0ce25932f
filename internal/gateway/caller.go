// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"remit"
)

// Recheck is how long a connection's verified certificate is remembered: a bundle that lost a key is noticed after it at
// the latest. Suspension does not wait for it: the line looks at the agent's posture on every request.
const Recheck = 5 * time.Second

type connectionKey struct{}

// connection is what is remembered for one connection; it goes away with it.
type connection struct {
	seen   atomic.Pointer[seen]
	launch remit.LaunchID // whose sandbox's socket it came over; empty: it came over an address
}

type seen struct {
	principal remit.Principal
	until     time.Time
}

// Connection is for http.Server.ConnContext: it gives each connection a place where Caller keeps the verified principal.
// A server without it verifies the certificate on every request.
func Connection(ctx context.Context, _ net.Conn) context.Context {
	return context.WithValue(ctx, connectionKey{}, &connection{})
}

// SandboxConnection does what Connection does, for the socket of the sandbox of a launch.
func SandboxConnection(launch remit.LaunchID) func(context.Context, net.Conn) context.Context {
	return func(ctx context.Context, _ net.Conn) context.Context {
		return context.WithValue(ctx, connectionKey{}, &connection{launch: launch})
	}
}

// Caller returns the principal that the connection's client certificate proves at time at. A request without a client
// certificate is a *remit.Error of CodeUnauthenticated.
func Caller(r *http.Request, auth Authenticator, at time.Time) (remit.Principal, error) {
	if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
		return remit.Principal{}, &remit.Error{Code: remit.CodeUnauthenticated, Msg: "no client certificate",
			Hint: "connect by TLS with the agent's X.509-SVID"}
	}
	conn, _ := r.Context().Value(connectionKey{}).(*connection)
	if conn != nil {
		if s := conn.seen.Load(); s != nil && at.Before(s.until) {
			return s.principal, nil
		}
	}
	verify := auth.Certificate
	if conn != nil && conn.launch != "" {
		verify = func(state *tls.ConnectionState) (remit.Principal, error) { return auth.InSandbox(state, conn.launch) }
	}
	p, err := verify(r.TLS)
	if err != nil {
		return remit.Principal{}, err
	}
	//remit:guard S5 TestCallerIsVerifiedOncePerConnectionAndRecheck
	if p.IsZero() || p.Person != "" || !at.Before(p.Expires) {
		return remit.Principal{}, &remit.Error{Code: remit.CodeUnauthenticated, Msg: "the client certificate proves no workload now"}
	}
	if conn != nil {
		until := at.Add(Recheck)
		//remit:guard S12 TestCallerIsVerifiedOncePerConnectionAndRecheck
		if p.Expires.Before(until) {
			until = p.Expires
		}
		conn.seen.Store(&seen{principal: p, until: until})
	}
	return p, nil
}

// Speaks reports whether the enforcement point is enrolled for the action and for subjects of the trust domain (S6).
func Speaks(p *remit.EnforcementPoint, action string, td spiffeid.TrustDomain) bool {
	known := false
	for _, d := range p.TrustDomains {
		known = known || d == td
	}
	//remit:guard S6 TestSpeaks
	if !known {
		return false
	}
	for _, a := range p.Actions {
		prefix, wild := strings.CutSuffix(a, "*")
		switch {
		case a == action:
			return true
		case wild && strings.HasSuffix(prefix, ".") && len(action) > len(prefix) && strings.HasPrefix(action, prefix):
			return true
		}
	}
	return false
}
