// SPDX-License-Identifier: Apache-2.0

package issuer

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"remit"
	"remit/internal/identity"
)

// Config describes an Authority.
type Config struct {
	TrustDomain spiffeid.TrustDomain // required; permanent
	Dir         string               // of the key files, mode 0700; made if absent. Required
	// Keeper wraps the key files. Default: they are plaintext.
	Keeper Keeper
	// Issuer is the `iss` of JWT-SVIDs: the URL under which OIDC serves their keys, byte for byte. Empty: no iss.
	Issuer string
	// RootLife and IssuingLife are those of the two certificate authorities. Defaults 1 year and 24 hours.
	RootLife, IssuingLife time.Duration
	// JWTKeyLife is that of the keys of JWT-SVIDs. Default 48 hours.
	JWTKeyLife time.Duration
	// MaxTTL is the longest life of an SVID; longer ones are cut. Default 1 hour; at most a sixth of IssuingLife.
	MaxTTL time.Duration
	// RefreshHint tells who fetches the bundle how often to do so. Default 5 minutes. A new root or JWT key is published at
	// least twice as long before it signs.
	RefreshHint time.Duration
	// OnEvent is told each step after it took effect: prepare, activate, retire, prune, and root|issuing|jwt/KEYID, so that the
	// ledger has it. It must not call back.
	OnEvent func(step, keyID string)
	Log     *slog.Logger     // default: nothing is logged
	Now     func() time.Time // default time.Now
}

// Authority is the embedded SPIFFE authority of one trust domain. It is safe for concurrent use; minting waits for no disk. It
// implements identity.Bundles and spiffebundle.Source.
type Authority struct {
	cfg     Config
	root    *ring
	issuing *ring
	jwt     *Keys

	mu sync.Mutex // held while roots and issuing certificates are brought into line
}

var (
	_ identity.Bundles    = (*Authority)(nil)
	_ spiffebundle.Source = (*Authority)(nil)
)

// New reads the authority from its files, or founds it.
func New(cfg Config) (*Authority, error) {
	setDefault(&cfg.RootLife, 365*24*time.Hour)
	setDefault(&cfg.IssuingLife, 24*time.Hour)
	setDefault(&cfg.JWTKeyLife, 48*time.Hour)
	setDefault(&cfg.MaxTTL, min(time.Hour, cfg.IssuingLife/6))
	setDefault(&cfg.RefreshHint, min(5*time.Minute, cfg.JWTKeyLife/8, cfg.RootLife/8))
	if cfg.TrustDomain.IsZero() || cfg.Dir == "" || cfg.RootLife < 2*cfg.IssuingLife || cfg.MaxTTL > cfg.IssuingLife/6 {
		return nil, errors.New("issuer: an authority needs a trust domain, a folder, and lives of root, issuer and SVID that fit into each other")
	}
	if cfg.OnEvent == nil {
		cfg.OnEvent = func(string, string) {}
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	a := &Authority{cfg: cfg}
	notice := 2 * cfg.RefreshHint
	var err error
	if a.jwt, err = OpenKeys(KeysConfig{Name: "jwt", Dir: cfg.Dir, Keeper: cfg.Keeper, Life: cfg.JWTKeyLife, MaxTTL: cfg.MaxTTL, Notice: notice,
		OnEvent: cfg.OnEvent, Log: cfg.Log, Now: cfg.Now}); err != nil {
		return nil, err
	}
	signal := a.jwt.ring.signal // one for all that is published
	a.root = &ring{name: "root", keeper: cfg.Keeper, now: cfg.Now, onEvent: cfg.OnEvent, signal: signal, certify: a.certifyRoot,
		policy: policy{life: cfg.RootLife, spare: cfg.IssuingLife, notice: notice, keep: 24 * time.Hour}}
	a.issuing = &ring{name: "issuing", keeper: cfg.Keeper, now: cfg.Now, onEvent: cfg.OnEvent, signal: signal, certify: a.certifyIssuing,
		policy: policy{life: cfg.IssuingLife, spare: cfg.MaxTTL}}
	if err := errors.Join(a.root.open(cfg.Dir), a.issuing.open(cfg.Dir)); err != nil {
		return nil, err
	}
	return a, a.Turn()
}

// Turn takes all steps that are due by the clock. On error nothing is lost: the step is tried again at the next Turn.
func (a *Authority) Turn() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return errors.Join(a.root.turn(), a.jwt.Turn(), a.issuing.turn(), a.align())
}

// align gives the current root an issuing certificate, if the one in use is another root's. Nobody needs to learn an issuing
// certificate first: it travels with each SVID. a.mu is held.
func (a *Authority) align() error {
	root, err := a.root.current()
	if err != nil {
		return err
	}
	for _, want := range []State{Current, Next} { // a next key of another root is of no use either
		s := find(a.issuing.state.Load().slots, want)
		if s == nil || s.chain[0].CheckSignatureFrom(root.chain[0]) == nil {
			continue
		}
		if want == Next {
			return a.issuing.forget(s.id)
		}
		if err := a.replaceIssuing(); err != nil {
			return err
		}
	}
	return nil
}

func (a *Authority) replaceIssuing() error {
	if s := find(a.issuing.state.Load().slots, Next); s != nil {
		if err := a.issuing.forget(s.id); err != nil {
			return err
		}
	}
	return errors.Join(a.issuing.prepare(), a.issuing.activate())
}

// Prepare publishes a next root and a next JWT key now. They take over after twice the refresh hint, at a Turn; the issuing
// certificate follows the root. It is a forced rotation.
func (a *Authority) Prepare() error { return errors.Join(a.root.prepare(), a.jwt.Rotate()) }

// Activate lets the next root and JWT key sign now. Who has not refreshed the bundle since Prepare refuses what they sign.
func (a *Authority) Activate() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return errors.Join(a.root.activate(), a.jwt.Activate(), a.align())
}

// Drop forgets all old roots, issuing certificates and JWT keys: what they signed verifies no more, and the Workload API gives
// everybody new SVIDs. With Prepare and Activate before it, this is how a stolen key is got rid of.
func (a *Authority) Drop() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return errors.Join(a.align(), a.root.drop(), a.jwt.Drop(), a.issuing.drop())
}

// Run turns the authority until ctx ends, and returns nil then.
func (a *Authority) Run(ctx context.Context) error { return turn(ctx, a.cfg.Log, a.Turn) }

// Changed works as in identity.Signal: it is closed at the next change of what is published or signs.
func (a *Authority) Changed() <-chan struct{} { return a.jwt.Changed() }

// TrustDomain returns the authority's trust domain.
func (a *Authority) TrustDomain() spiffeid.TrustDomain { return a.cfg.TrustDomain }

// Bundle returns the trust domain's bundle: roots and JWT keys, sequence number and refresh hint. It is the caller's own.
func (a *Authority) Bundle() *spiffebundle.Bundle {
	roots, keys := a.root.state.Load(), a.jwt.ring.state.Load()
	b := spiffebundle.New(a.cfg.TrustDomain)
	for _, s := range roots.slots {
		b.AddX509Authority(s.chain[0])
	}
	for _, s := range keys.slots {
		_ = b.AddJWTAuthority(s.id, &s.key.PublicKey) // fails only without id
	}
	b.SetSequenceNumber(roots.sequence + keys.sequence)
	b.SetRefreshHint(a.cfg.RefreshHint)
	return b
}

// GetBundleForTrustDomain implements spiffebundle.Source; every other trust domain is an error.
func (a *Authority) GetBundleForTrustDomain(td spiffeid.TrustDomain) (*spiffebundle.Bundle, error) {
	if td != a.cfg.TrustDomain {
		return nil, fmt.Errorf("trust domain %q is not known", td)
	}
	return a.Bundle(), nil
}

// GetX509BundleForTrustDomain implements x509bundle.Source; every other trust domain is an error.
func (a *Authority) GetX509BundleForTrustDomain(td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	b, err := a.GetBundleForTrustDomain(td)
	if err != nil {
		return nil, err
	}
	return b.X509Bundle(), nil
}

// GetJWTBundleForTrustDomain implements jwtbundle.Source; every other trust domain is an error.
func (a *Authority) GetJWTBundleForTrustDomain(td spiffeid.TrustDomain) (*jwtbundle.Bundle, error) {
	if td != a.cfg.TrustDomain {
		return nil, fmt.Errorf("trust domain %q is not known", td)
	}
	return jwtbundle.FromJWTAuthorities(td, a.jwt.Public()), nil
}

// X509SVID makes a key and an SVID for it, which lives for ttl, at most MaxTTL. Nothing is recorded here: whoever hands it out
// records it first.
func (a *Authority) X509SVID(id spiffeid.ID, ttl time.Duration) (*x509svid.SVID, error) {
	if err := a.mayHave(id); err != nil {
		return nil, err
	}
	return a.mintX509(id, ttl, nil, nil)
}

func (a *Authority) mintX509(id spiffeid.ID, ttl time.Duration, names []string, ips []net.IP) (*x509svid.SVID, error) {
	ca, err := a.issuing.current()
	if err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("generate key: %w", err)
	}
	now := a.cfg.Now()
	cert, err := signLeaf(ca, leaf{id: id, names: names, ips: ips, from: now, until: now.Add(a.ttl(ttl)), key: &key.PublicKey})
	if err != nil {
		return nil, fmt.Errorf("sign certificate of %s: %w", id, err)
	}
	return &x509svid.SVID{ID: id, Certificates: append([]*x509.Certificate{cert}, ca.chain...), PrivateKey: crypto.Signer(key)}, nil
}

func (a *Authority) ttl(asked time.Duration) time.Duration {
	if asked <= 0 || asked > a.cfg.MaxTTL {
		return a.cfg.MaxTTL
	}
	return asked
}

// mayHave refuses identities that are not this authority's to give, or nobody's: another trust domain, no path, Remit's own.
func (a *Authority) mayHave(id spiffeid.ID) error {
	reserved, err := spiffeid.FromPath(a.cfg.TrustDomain, identity.ReservedPath)
	if err != nil {
		return fmt.Errorf("issuer: %w", err)
	}
	//remit:guard S1 TestNoSVIDForOthers
	if !id.MemberOf(a.cfg.TrustDomain) || id.Path() == "" || spiffeid.MatchIDPrefix(reserved)(id) == nil {
		return &remit.Error{Code: remit.CodeInvalid, Msg: fmt.Sprintf("no SVID is made for %q", id)}
	}
	return nil
}

// JWTSVID makes a JWT-SVID that lives for ttl, at most MaxTTL, with a random jti. It returns the token, and beside it what is in
// it. Nothing is recorded here: whoever hands it out records it first.
func (a *Authority) JWTSVID(id spiffeid.ID, audience []string, ttl time.Duration) (string, identity.JWT, error) {
	if err := a.mayHave(id); err != nil {
		return "", identity.JWT{}, err
	}
	if len(audience) == 0 {
		return "", identity.JWT{}, &remit.Error{Code: remit.CodeInvalid, Msg: "a JWT-SVID needs an audience"}
	}
	now := a.cfg.Now()
	j := identity.JWT{ID: id, Audience: audience, JTI: "jwt-" + rand.Text(), Issued: now.Truncate(time.Second), Expires: now.Add(a.ttl(ttl)).Truncate(time.Second)}
	token, err := a.jwt.Sign(struct {
		Issuer   string      `json:"iss,omitempty"`
		Subject  string      `json:"sub"`
		Audience audiences   `json:"aud"`
		Issued   json.Number `json:"iat"`
		Expires  json.Number `json:"exp"`
		JTI      string      `json:"jti"`
	}{a.cfg.Issuer, id.String(), audience, unix(j.Issued), unix(j.Expires), j.JTI})
	if err != nil {
		return "", identity.JWT{}, fmt.Errorf("sign JWT-SVID of %s: %w", id, err)
	}
	return token, j, nil
}

// audiences encodes one audience as a string, which every consumer reads, and several as a list (RFC 7519 section 4.1.3).
type audiences []string

func (a audiences) MarshalJSON() ([]byte, error) {
	if len(a) == 1 {
		return json.Marshal(a[0])
	}
	return json.Marshal([]string(a))
}

func unix(t time.Time) json.Number { return json.Number(fmt.Sprint(t.Unix())) }
