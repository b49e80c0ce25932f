// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"remit"
)

// Bundles are the keys of every trust domain that is trusted; a domain that is not among them is an error. Keys of two
// domains are never merged. Changed works as in Signal. Safe for concurrent use.
type Bundles interface {
	x509bundle.Source
	jwtbundle.Source
	Changed() <-chan struct{}
}

// Records answers from memory what was attested when an SVID of ours was issued: by certificate serial in hex, or jti (S8).
type Records interface {
	Issued(credential string) (remit.Issued, bool)
}

// Committer makes a change durable or fails; a moved epoch is a *remit.Error of CodeConflict.
type Committer interface {
	Commit(ctx context.Context, c remit.Change) (remit.Receipt, error)
}

// Names answers which agent has exactly this ID; Registry implements it.
type Names interface {
	Agent(id spiffeid.ID) (remit.Name, bool)
}

// Config is what a Verifier needs. Everything without a stated default is required.
type Config struct {
	TrustDomain spiffeid.TrustDomain // ours: records are believed only about its SVIDs
	Bundles     Bundles
	Records     Records
	Names       Names
	Store       Committer
	// Audience must be the sole audience of an assertion, byte for byte: the URL of the token endpoint's issuer.
	Audience string
	// Vouched is the level that the agent's file states for an SVID of another trust domain. Default: none.
	Vouched func(spiffeid.ID) remit.Level
	// MaxLifetime of an assertion, from iat to exp. Default 10 minutes.
	MaxLifetime time.Duration
	// Remembered is how many verified certificates are kept in memory. Default 4096.
	Remembered int
	// Now is the clock; default time.Now.
	Now func() time.Time
}

// Verifier makes principals out of SVIDs. It is safe for concurrent use. Every error of Certificate and Assertion is a
// *remit.Error of CodeUnauthenticated, or CodeUnavailable where the use of an assertion could not be recorded.
type Verifier struct {
	cfg  Config
	seen *memory
}

// New checks that every part is there.
func New(cfg Config) (*Verifier, error) {
	if cfg.TrustDomain.IsZero() || cfg.Bundles == nil || cfg.Records == nil || cfg.Names == nil || cfg.Store == nil || cfg.Audience == "" {
		return nil, errors.New("identity: trust domain, bundles, records, names, store and audience are required")
	}
	if cfg.MaxLifetime <= 0 {
		cfg.MaxLifetime = 10 * time.Minute
	}
	if cfg.Remembered <= 0 {
		cfg.Remembered = 4096
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Verifier{cfg: cfg, seen: newMemory(cfg.Remembered)}, nil
}

// Certificate verifies the X.509-SVID of a finished handshake's client. The handshake proved that the peer holds the key; the
// chain is verified here, whatever the TLS configuration did.
func (v *Verifier) Certificate(state *tls.ConnectionState) (remit.Principal, error) {
	//remit:guard S5 TestCertificate
	if state == nil || !state.HandshakeComplete || len(state.PeerCertificates) == 0 {
		return remit.Principal{}, unauthenticated("no client certificate", nil)
	}
	return v.Chain(state.PeerCertificates)
}

// InSandbox does the same for a handshake over the socket of the sandbox of a launch: only that sandbox's own identity counts there (S26).
func (v *Verifier) InSandbox(state *tls.ConnectionState, launch remit.LaunchID) (remit.Principal, error) {
	if state == nil || !state.HandshakeComplete || len(state.PeerCertificates) == 0 {
		return remit.Principal{}, unauthenticated("no client certificate", nil)
	}
	p, err := v.chain(state.PeerCertificates)
	if err != nil {
		return p, err
	}
	//remit:guard S26 TestIdentityInASandbox
	if launch == "" || p.Launch != launch || p.Level != remit.LevelSandbox {
		return remit.Principal{}, unauthenticated("this is a sandbox's socket, and the identity is not that sandbox's", nil)
	}
	return p, nil
}

// Chain verifies a leaf with its intermediates (X509-SVID specification, section 5) and returns who it stands for. The caller
// must have seen that the peer holds the key. What was verified is remembered until the certificate ends or a bundle changes.
func (v *Verifier) Chain(certs []*x509.Certificate) (remit.Principal, error) {
	p, err := v.chain(certs)
	if err != nil {
		return p, err
	}
	return v.outside(p)
}

func (v *Verifier) chain(certs []*x509.Certificate) (remit.Principal, error) {
	//remit:guard S35 TestCertificatesRefused
	if len(certs) == 0 || len(certs) > maxChain {
		return remit.Principal{}, unauthenticated("no certificate chain of acceptable length", nil)
	}
	leaf, now := certs[0], v.cfg.Now()
	sum := sha256.Sum256(leaf.Raw)
	changed := v.cfg.Bundles.Changed() // before the verification: a bundle that changes meanwhile makes the memory void
	p, ok := v.seen.get(sum, changed)
	//remit:guard S5 TestRememberedCertificates
	if !ok || now.Before(leaf.NotBefore) || !now.Before(p.Expires) {
		var err error
		if p, err = v.verifyChain(certs, now); err != nil {
			return remit.Principal{}, err
		}
		v.seen.put(sum, changed, p)
	}
	v.attested(&p)
	return p, nil
}

// outside refuses an identity that was given to a sandbox: it counts over that sandbox's own sockets and nowhere else, where its key
// may have been carried to (S27).
func (v *Verifier) outside(p remit.Principal) (remit.Principal, error) {
	//remit:guard S27 TestIdentityOfASandboxOutsideIt
	if p.Level == remit.LevelSandbox && p.Launch != "" {
		return remit.Principal{}, unauthenticated("this identity is a sandbox's, and counts over that sandbox's own socket only", nil)
	}
	return p, nil
}

// maxChain bounds the work that a stranger's chain can cause.
const maxChain = 5

func (v *Verifier) verifyChain(certs []*x509.Certificate, now time.Time) (remit.Principal, error) {
	leaf := certs[0]
	id, _, err := x509svid.Verify(certs, v.cfg.Bundles, x509svid.WithTime(now)) // exactly one URI SAN, no CA, own domain's bundle
	if err != nil {
		return remit.Principal{}, unauthenticated("the certificate is not a valid X.509-SVID", err)
	}
	//remit:guard S5 TestCertificate
	if !now.Before(leaf.NotAfter) { // crypto/x509 accepts the very last moment
		return remit.Principal{}, unauthenticated("the certificate has expired", nil)
	}
	//remit:guard S6 TestCertificatesRefused
	if id.Path() == "" {
		return remit.Principal{}, unauthenticated("the certificate names a trust domain, not a workload", nil)
	}
	//remit:guard S5 TestCertificatesRefused
	if leaf.KeyUsage&x509.KeyUsageDigitalSignature == 0 {
		return remit.Principal{}, unauthenticated("the certificate is not for signatures", nil)
	}
	return remit.Principal{ID: id, Method: remit.MethodX509, Credential: Serial(leaf), Expires: leaf.NotAfter,
		Thumbprint: remit.Thumbprint(leaf.Raw)}, nil
}

// Serial returns the certificate's serial number in lower-case hex, as records and the ledger write it.
func Serial(c *x509.Certificate) string { return c.SerialNumber.Text(16) }

// attested adds what was recorded when the SVID was issued (S8). A record counts only for our own trust domain and for the
// agent that the ID names: a foreign authority may choose any serial number or jti that it likes.
func (v *Verifier) attested(p *remit.Principal) {
	p.Level, p.Launch, p.Workload = remit.LevelNone, "", nil
	//remit:guard S8 TestForeignRecord
	if !p.ID.MemberOf(v.cfg.TrustDomain) {
		if v.cfg.Vouched != nil {
			p.Level = v.cfg.Vouched(p.ID)
		}
		return
	}
	rec, ok := v.cfg.Records.Issued(p.Credential)
	if !ok {
		return
	}
	//remit:guard S8 TestCertificate
	if name, known := v.cfg.Names.Agent(p.ID); !known || name != rec.Agent {
		return
	}
	p.Level, p.Launch, p.Workload = rec.Level, rec.Launch, rec.Workload
}

func unauthenticated(msg string, cause error) *remit.Error {
	return &remit.Error{Code: remit.CodeUnauthenticated, Msg: msg, Cause: cause,
		Hint: "fetch a fresh SVID from the Workload API and use it once"}
}
