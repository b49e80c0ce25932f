// SPDX-License-Identifier: Apache-2.0

// Package gatewaytest holds what tests of enforcement points need around them: a trust domain that issues real SVIDs, a
// verifier of them, run tokens and a directory. It is imported by tests only and starts no goroutine.
package gatewaytest

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"math/big"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"remit"
)

// World is a trust domain with its verifier, directory and run tokens. Fill the maps before use; it is then safe for
// concurrent use.
type World struct {
	Domain   spiffeid.TrustDomain
	Audience string
	Agents   map[spiffeid.ID]remit.Name
	Points   map[spiffeid.ID]remit.EnforcementPoint
	Runs     map[string]Run // by token

	Verified atomic.Int64 // how many certificates were verified

	t    testing.TB
	key  *ecdsa.PrivateKey
	root *x509.Certificate

	mu   sync.Mutex // guards used
	used map[string]bool
}

// Run is what a run token stands for; a Holder's zero Thumbprint and Launch bind to any certificate of its agent.
type Run struct {
	ID     remit.RunID
	Agent  spiffeid.ID
	Holder remit.Holder
}

// New makes a trust domain.
func New(t testing.TB, domain, audience string) *World {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	w := &World{Domain: spiffeid.RequireTrustDomainFromString(domain), Audience: audience, t: t, key: key,
		Agents: map[spiffeid.ID]remit.Name{}, Points: map[spiffeid.ID]remit.EnforcementPoint{}, Runs: map[string]Run{}, used: map[string]bool{}}
	w.root = w.sign(&x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		URIs: []*url.URL{w.Domain.ID().URL()}}, nil, key.Public())
	return w
}

func (w *World) sign(c, parent *x509.Certificate, public crypto.PublicKey) *x509.Certificate {
	c.SerialNumber, _ = rand.Int(rand.Reader, big.NewInt(1<<62))
	c.Subject = pkix.Name{CommonName: "test"}
	c.NotBefore, c.NotAfter = time.Now().Add(-time.Minute), time.Now().Add(time.Hour)
	if parent == nil {
		parent = c
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, public, w.key)
	if err != nil {
		w.t.Fatal(err)
	}
	out, err := x509.ParseCertificate(der)
	if err != nil {
		w.t.Fatal(err)
	}
	return out
}

// ID returns an identity of the domain.
func (w *World) ID(path string) spiffeid.ID { return spiffeid.RequireFromPath(w.Domain, path) }

// SVID issues an X.509-SVID for client and server use.
func (w *World) SVID(id spiffeid.ID) tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		w.t.Fatal(err)
	}
	leaf := w.sign(&x509.Certificate{URIs: []*url.URL{id.URL()}, DNSNames: []string{"localhost"}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}}, w.root, key.Public())
	return tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf}
}

// State is a finished handshake in which the peer showed cert.
func State(cert tls.Certificate) *tls.ConnectionState {
	return &tls.ConnectionState{HandshakeComplete: true, PeerCertificates: []*x509.Certificate{cert.Leaf}}
}

// Pool holds the domain's root.
func (w *World) Pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(w.root)
	return pool
}

// Thumbprint is the certificate's x5t#S256.
func Thumbprint(cert *x509.Certificate) string { return remit.Thumbprint(cert.Raw) }

// Certificate verifies with go-spiffe.
func (w *World) Certificate(state *tls.ConnectionState) (remit.Principal, error) {
	w.Verified.Add(1)
	id, _, err := x509svid.Verify(state.PeerCertificates, x509bundle.FromX509Authorities(w.Domain, []*x509.Certificate{w.root}))
	if err != nil {
		return remit.Principal{}, &remit.Error{Code: remit.CodeUnauthenticated, Msg: "no valid X.509-SVID", Cause: err}
	}
	leaf := state.PeerCertificates[0]
	return remit.Principal{ID: id, Method: remit.MethodX509, Level: remit.LevelUser, Credential: leaf.SerialNumber.Text(16),
		Thumbprint: Thumbprint(leaf), Expires: leaf.NotAfter}, nil
}

// InSandbox verifies as Certificate does, and says that it is of the launch.
func (w *World) InSandbox(state *tls.ConnectionState, launch remit.LaunchID) (remit.Principal, error) {
	p, err := w.Certificate(state)
	p.Launch, p.Level = launch, remit.LevelSandbox
	return p, err
}

// JWT issues a JWT-SVID.
func (w *World) JWT(id spiffeid.ID, audience ...string) string {
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: w.key, KeyID: "k"}}, (&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		w.t.Fatal(err)
	}
	jti := make([]byte, 12)
	_, _ = rand.Read(jti)
	out, err := jwt.Signed(signer).Claims(map[string]any{"sub": id.String(), "aud": audience, "iat": time.Now().Unix(),
		"exp": time.Now().Add(time.Minute).Unix(), "jti": base64.RawURLEncoding.EncodeToString(jti)}).Serialize()
	if err != nil {
		w.t.Fatal(err)
	}
	return out
}

// Assertion verifies with go-spiffe; the audience must be the only one, and each token counts once.
func (w *World) Assertion(_ context.Context, token string) (remit.Principal, error) {
	refused := &remit.Error{Code: remit.CodeUnauthenticated, Msg: "no valid JWT-SVID"}
	svid, err := jwtsvid.ParseAndValidate(token, jwtbundle.FromJWTAuthorities(w.Domain, map[string]crypto.PublicKey{"k": w.key.Public()}), []string{w.Audience})
	if err != nil || len(svid.Audience) != 1 {
		return remit.Principal{}, refused
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.used[token] {
		return remit.Principal{}, refused
	}
	w.used[token] = true
	jti, _ := svid.Claims["jti"].(string)
	return remit.Principal{ID: svid.ID, Method: remit.MethodJWT, Level: remit.LevelUser, Credential: jti, Expires: svid.Expiry}, nil
}

// RunToken looks the token up and compares its holder.
func (w *World) RunToken(token string, p remit.Principal, _ time.Time) (remit.RunID, error) {
	r, ok := w.Runs[token]
	if !ok || r.Agent != p.ID || r.Holder.Thumbprint != "" && r.Holder.Thumbprint != p.Thumbprint || r.Holder.Launch != p.Launch {
		return "", &remit.Error{Code: remit.CodeForbidden, Msg: "not this caller's run token"}
	}
	return r.ID, nil
}

// Agent looks up Agents.
func (w *World) Agent(id spiffeid.ID) (remit.Name, bool) {
	n, ok := w.Agents[id]
	return n, ok
}

// EnforcementPoint looks up Points.
func (w *World) EnforcementPoint(id spiffeid.ID) (remit.EnforcementPoint, bool) {
	p, ok := w.Points[id]
	return p, ok
}
