// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"context"
	"crypto/ecdsa"
	"crypto/rsa"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	josejson "github.com/go-jose/go-jose/v4/json"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"remit"
)

// Bounds on what a stranger can make us read.
const (
	maxToken = 8 << 10
	maxJTI   = 256
	skew     = 30 * time.Second // for iat and nbf of another host's clock; exp has none
	minRSA   = 2048             // bits
)

// SVIDAlgorithms are the signature algorithms of JWT-SVIDs (JWT-SVID specification, section 2.1). No HMAC, no EdDSA, no none.
func SVIDAlgorithms() []jose.SignatureAlgorithm {
	return []jose.SignatureAlgorithm{jose.ES256, jose.ES384, jose.ES512, jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512}
}

// JWT is a verified JWT-SVID.
type JWT struct {
	ID       spiffeid.ID
	Audience []string
	JTI      string // may be empty
	Issued   time.Time
	Expires  time.Time
	Claims   map[string]any // all of them
}

// VerifyJWT verifies a JWT-SVID at a time: header of exactly alg, kid and typ; the signature by the key that the bundle of the
// subject's own trust domain holds under kid; exp, nbf and iat. Audience and single use are the caller's to check.
func VerifyJWT(token string, bundles jwtbundle.Source, at time.Time) (JWT, error) {
	//remit:guard S35 TestAssertionsRefused
	if len(token) > maxToken {
		return JWT{}, errors.New("longer than 8 KiB")
	}
	tok, err := jwt.ParseSigned(token, SVIDAlgorithms())
	if err != nil {
		return JWT{}, fmt.Errorf("parse: %w", err)
	}
	//remit:guard S5 TestAssertionsRefused
	if err := CheckHeader(token, "", "JWT", "JOSE"); err != nil {
		return JWT{}, err
	}
	var unverified jwt.Claims
	if err := tok.UnsafeClaimsWithoutVerification(&unverified); err != nil {
		return JWT{}, fmt.Errorf("parse claims: %w", err)
	}
	id, err := spiffeid.FromString(unverified.Subject)
	//remit:guard S6 TestAssertionsRefused
	if err != nil || id.Path() == "" {
		return JWT{}, fmt.Errorf("the subject %.80q is no workload's SPIFFE ID", unverified.Subject)
	}
	key, err := signerOf(id.TrustDomain(), tok.Headers[0], bundles)
	if err != nil {
		return JWT{}, err
	}
	var claims jwt.Claims
	all := map[string]any{}
	if err := tok.Claims(key, &claims, &all); err != nil {
		return JWT{}, fmt.Errorf("verify: %w", err)
	}
	out := JWT{ID: id, Audience: claims.Audience, JTI: claims.ID, Claims: all}
	return out, out.times(&claims, at)
}

// signerOf returns the public key that the subject's trust domain published under the header's kid, if it fits the algorithm.
func signerOf(td spiffeid.TrustDomain, h jose.Header, bundles jwtbundle.Source) (any, error) {
	bundle, err := bundles.GetJWTBundleForTrustDomain(td)
	if err != nil {
		return nil, fmt.Errorf("trust domain %q is not trusted: %w", td, err)
	}
	key, ok := bundle.FindJWTAuthority(h.KeyID)
	if !ok || h.KeyID == "" {
		return nil, fmt.Errorf("trust domain %q has no key %.80q", td, h.KeyID)
	}
	switch k := key.(type) {
	case *ecdsa.PublicKey:
		bits := map[string]int{"ES256": 256, "ES384": 384, "ES512": 521}[h.Algorithm]
		if k.Curve.Params().BitSize != bits {
			return nil, fmt.Errorf("key %.80q is not for %s", h.KeyID, h.Algorithm)
		}
	case *rsa.PublicKey:
		//remit:guard S5 TestAssertionsRefused
		if strings.HasPrefix(h.Algorithm, "ES") || k.N.BitLen() < minRSA {
			return nil, fmt.Errorf("key %.80q is not for %s", h.KeyID, h.Algorithm)
		}
	default:
		return nil, fmt.Errorf("key %.80q is of no kind that JWT-SVIDs use", h.KeyID)
	}
	return key, nil
}

func (j *JWT) times(c *jwt.Claims, at time.Time) error {
	if c.Expiry == nil {
		return errors.New("no exp")
	}
	j.Expires = c.Expiry.Time()
	if c.IssuedAt != nil {
		j.Issued = c.IssuedAt.Time()
	}
	switch {
	//remit:guard S5 TestAssertionsRefused
	case !at.Before(j.Expires):
		return errors.New("expired")
	//remit:guard S5 TestAssertionsRefused
	case c.NotBefore != nil && at.Add(skew).Before(c.NotBefore.Time()):
		return errors.New("not valid yet")
	//remit:guard S5 TestAssertionsRefused
	case at.Add(skew).Before(j.Issued):
		return errors.New("issued in the future")
	}
	return nil
}

// CheckHeader refuses a compact JWS whose header holds anything but alg, kid and typ: a key or a place to fetch one (jwk, jku,
// x5c, x5u) is never looked at. typ must be one of typs, or absent, which "" in typs stands for.
func CheckHeader(token string, typs ...string) error {
	first, _, _ := strings.Cut(token, ".")
	raw, err := base64.RawURLEncoding.DecodeString(first)
	if err != nil {
		return errors.New("the header is not base64url")
	}
	var header map[string]josejson.RawMessage // this decoder refuses duplicate names
	if err := josejson.Unmarshal(raw, &header); err != nil {
		return errors.New("the header is not a JSON object")
	}
	for name := range header {
		//remit:guard S5 TestAssertionsRefused
		if name != "alg" && name != "kid" && name != "typ" {
			return fmt.Errorf("the header has the member %.40q; only alg, kid and typ are accepted", name)
		}
	}
	typ := ""
	if t, ok := header["typ"]; ok {
		if err := josejson.Unmarshal(t, &typ); err != nil || typ == "" {
			return errors.New("typ is not text")
		}
	}
	//remit:guard S5 TestAssertionsRefused
	if !slices.Contains(typs, typ) {
		return fmt.Errorf("typ %.40q is not accepted here", typ)
	}
	return nil
}

// Assertion verifies a JWT-SVID whose only audience is ours and uses it up: the second use is refused, also after a restart
// (S5). Nothing is written for a token that does not verify (S35).
func (v *Verifier) Assertion(ctx context.Context, token string) (remit.Principal, error) {
	now := v.cfg.Now()
	j, err := VerifyJWT(token, v.cfg.Bundles, now)
	if err != nil {
		return remit.Principal{}, unauthenticated("the assertion is not a valid JWT-SVID", err)
	}
	if err := v.acceptable(&j, now); err != nil {
		return remit.Principal{}, unauthenticated("the assertion is not for this server, or not for one use", err)
	}
	//remit:guard S5 TestAssertionOnce,TestManyReplaysAtOnce
	if err := v.use(ctx, &j); err != nil {
		return remit.Principal{}, err
	}
	p := remit.Principal{ID: j.ID, Method: remit.MethodJWT, Credential: j.JTI, Expires: j.Expires}
	v.attested(&p)
	return v.outside(p)
}

func (v *Verifier) acceptable(j *JWT, now time.Time) error {
	from := j.Issued
	if from.IsZero() || from.After(now) {
		from = now
	}
	switch {
	//remit:guard S5 TestAssertionsRefused
	case len(j.Audience) != 1 || j.Audience[0] != v.cfg.Audience:
		return fmt.Errorf("audience %.200q; it must be %q alone", j.Audience, v.cfg.Audience)
	//remit:guard S5 TestAssertionsRefused
	case j.JTI == "" || len(j.JTI) > maxJTI:
		return errors.New("no jti of acceptable length")
	//remit:guard S5 TestAssertionsRefused
	case j.Expires.Sub(from) > v.cfg.MaxLifetime:
		return fmt.Errorf("it lives longer than %s", v.cfg.MaxLifetime)
	}
	return nil
}

// use marks the assertion as used. The key is the trust domain, not iss, which is the token's own word.
func (v *Verifier) use(ctx context.Context, j *JWT) error {
	used := remit.Used{Issuer: j.ID.TrustDomain().IDString(), JTI: j.JTI, Until: j.Expires.Add(time.Minute)}
	_, err := v.cfg.Store.Commit(ctx, remit.Change{Rows: []remit.Row{used},
		Require: []remit.Precondition{{Key: used.EpochKey(), Epoch: 0}}})
	switch {
	case err == nil:
		return nil
	case remit.CodeOf(err) == remit.CodeConflict:
		return unauthenticated("the assertion was used before", err)
	}
	return &remit.Error{Code: remit.CodeUnavailable, Msg: "the use of the assertion could not be recorded", Cause: err, Hint: "try again with a fresh assertion"}
}
