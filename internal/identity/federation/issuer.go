// SPDX-License-Identifier: Apache-2.0

package federation

import (
	"context"
	"crypto/ecdsa"
	"crypto/rsa"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
	josejson "github.com/go-jose/go-jose/v4/json"
	"github.com/go-jose/go-jose/v4/jwt"

	"remit"
	"remit/internal/identity"
)

// Bounds on tokens, and on what an issuer can make us read.
const (
	maxToken     = 16 << 10
	maxDocument  = 1 << 20
	maxAge       = 10 * time.Minute // since iat, whatever exp says
	skew         = 30 * time.Second // for iat and nbf of another host's clock; exp has none
	minRSA       = 2048             // bits
	keysFor      = time.Hour        // then they are fetched anew, so that a withdrawn key dies
	keysAtMost   = 24 * time.Hour   // if they cannot be
	betweenFetch = 30 * time.Second // strangers must not make us ask the issuer on and on
)

// Issuer verifies OpenID Connect tokens of one issuer elsewhere, such as a CI system's, by the keys that its discovery document names
// (OpenID Connect Discovery 1.0). Which issuer it is, configuration says, never the token. It is safe for concurrent use.
type Issuer struct {
	url  string
	http *http.Client
	now  func() time.Time

	fetching sync.Mutex // held while keys are fetched

	mu      sync.Mutex // guards the rest
	keys    []jose.JSONWebKey
	fetched time.Time // when keys came
	tried   time.Time // when they were last asked for
}

// NewIssuer makes an Issuer of an https URL. The client verifies the issuer's certificate and follows no redirects. Nothing is fetched.
func NewIssuer(issuer string, client *http.Client, now func() time.Time) (*Issuer, error) {
	u, err := url.Parse(issuer)
	//remit:guard S16 TestIssuerIsAnHTTPSAddress
	if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return nil, &remit.Error{Code: remit.CodeInvalid, Msg: fmt.Sprintf("issuer: %.120q is not an https URL without user, query and fragment", issuer),
			Hint: "write it exactly as the tokens' iss has it"}
	}
	if client == nil {
		return nil, errors.New("federation: an issuer needs a client")
	}
	if now == nil {
		now = time.Now
	}
	return &Issuer{url: issuer, http: client, now: now}, nil
}

// Verify returns the claims of a token, as they were signed. The token is of this issuer, for exactly this audience, signed by a key of
// the issuer's with an asymmetric algorithm, valid now, and at most ten minutes old. Single use is the caller's to see to. An error is
// of CodeUnauthenticated and says what is wrong, or of CodeUnavailable when the issuer's keys cannot be had.
func (i *Issuer) Verify(ctx context.Context, token, audience string) ([]byte, error) {
	alg, kid, err := readHeader(token)
	if err != nil {
		return nil, err
	}
	tok, err := jwt.ParseSigned(token, []jose.SignatureAlgorithm{alg})
	if err != nil {
		return nil, refused("it is no signed JWT: %v", err)
	}
	var claims jwt.Claims
	if err := tok.UnsafeClaimsWithoutVerification(&claims); err != nil {
		return nil, refused("its claims cannot be read: %v", err)
	}
	if err := i.meant(&claims, audience); err != nil { // before anything is fetched for it
		return nil, err
	}
	key, err := i.key(ctx, kid, alg)
	if err != nil {
		return nil, err
	}
	var payload josejson.RawMessage
	//remit:guard S16 TestTokensRefused
	if err := tok.Claims(key, &payload); err != nil {
		return nil, refused("its signature is not of the issuer's key %.80q", kid)
	}
	return payload, nil
}

// readHeader refuses what is not signed by a key that others can verify with, and a token that brings its key along.
func readHeader(token string) (alg jose.SignatureAlgorithm, kid string, err error) {
	//remit:guard S35 TestTokensRefused
	if len(token) > maxToken {
		return "", "", refused("it is longer than %d bytes", maxToken)
	}
	first, _, _ := strings.Cut(token, ".")
	raw, err := base64.RawURLEncoding.DecodeString(first)
	if err != nil {
		return "", "", refused("it is no JWT")
	}
	var h map[string]josejson.RawMessage // this decoder refuses duplicate names
	if err := josejson.Unmarshal(raw, &h); err != nil {
		return "", "", refused("its header is no JSON object")
	}
	for _, name := range []string{"jwk", "jku", "x5c", "x5u", "crit"} {
		//remit:guard S16 TestTokensRefused
		if _, ok := h[name]; ok {
			return "", "", refused("its header has %s: only the issuer's own keys are looked at", name)
		}
	}
	_ = josejson.Unmarshal(h["alg"], &alg) // what is no text stays empty, and is refused
	_ = josejson.Unmarshal(h["kid"], &kid)
	//remit:guard S16 TestTokensRefused
	if !slices.Contains(identity.SVIDAlgorithms(), alg) {
		return "", "", refused("algorithm %.40q is not accepted: only asymmetric ones are", alg)
	}
	return alg, kid, nil
}

// meant checks from whom, for whom and for when the token is.
func (i *Issuer) meant(c *jwt.Claims, audience string) error {
	now := i.now()
	switch {
	//remit:guard S16 TestTokensRefused
	case c.Issuer != i.url:
		return refused("issuer %.120q, want %s", c.Issuer, i.url)
	//remit:guard S16 TestTokensRefused
	//remit:guard S16 TestTokenIsBoundToItsImage internal/evidence/citoken
	case len(c.Audience) != 1 || c.Audience[0] != audience:
		return refused("audience %.200q, want %q alone", c.Audience, audience)
	//remit:guard S16 TestTokensRefused
	case c.Expiry == nil || c.IssuedAt == nil:
		return refused("it has no exp or no iat")
	//remit:guard S16 TestTokensRefused
	case !now.Before(c.Expiry.Time()):
		return refused("it expired %s", c.Expiry.Time().UTC().Format(time.RFC3339))
	//remit:guard S16 TestTokensRefused
	case c.NotBefore != nil && now.Add(skew).Before(c.NotBefore.Time()):
		return refused("it is not valid yet")
	//remit:guard S16 TestTokensRefused
	case now.Add(skew).Before(c.IssuedAt.Time()):
		return refused("it was issued in the future")
	//remit:guard S16 TestTokensRefused
	case now.Sub(c.IssuedAt.Time()) > maxAge:
		return refused("it was issued %s, more than %s ago", c.IssuedAt.Time().UTC().Format(time.RFC3339), maxAge)
	}
	return nil
}

// key returns the issuer's key of that name, and fetches the keys when they are old or have no such.
func (i *Issuer) key(ctx context.Context, kid string, alg jose.SignatureAlgorithm) (any, error) {
	k, fresh := i.known(kid)
	if k == nil || !fresh {
		err := i.fetch(ctx)
		if k, _ = i.known(kid); k == nil && err != nil {
			return nil, &remit.Error{Code: remit.CodeUnavailable, Msg: "the keys of " + i.url + " cannot be had", Cause: err, Hint: "try again in a minute"}
		}
	}
	//remit:guard S16 TestTokensRefused
	if k == nil {
		return nil, refused("its issuer has no key %.80q", kid)
	}
	//remit:guard S16 TestTokensRefused
	if k.Algorithm != "" && k.Algorithm != string(alg) {
		return nil, refused("key %.80q is for %s, not for %s", kid, k.Algorithm, alg)
	}
	return k.Key, nil
}

func (i *Issuer) known(kid string) (k *jose.JSONWebKey, fresh bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	age := i.now().Sub(i.fetched)
	//remit:guard S16 TestWithdrawnKey
	if age > keysAtMost {
		return nil, false
	}
	for n := range i.keys {
		if kid != "" && i.keys[n].KeyID == kid {
			return &i.keys[n], age <= keysFor
		}
	}
	return nil, age <= keysFor
}

// fetch asks the issuer for its keys, unless that was done just now.
func (i *Issuer) fetch(ctx context.Context) error {
	i.fetching.Lock()
	defer i.fetching.Unlock()
	i.mu.Lock()
	now := i.now()
	since := now.Sub(i.tried)
	recent := !i.tried.IsZero() && since >= 0 && since < betweenFetch
	if !recent {
		i.tried = now
	}
	i.mu.Unlock()
	//remit:guard S35 TestKeysAreNotFetchedOnAndOn
	if recent {
		return errors.New("they were asked for less than 30 s ago")
	}
	keys, err := i.discover(ctx)
	if err != nil {
		return err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.keys, i.fetched = keys, now
	return nil
}

func (i *Issuer) discover(ctx context.Context) ([]jose.JSONWebKey, error) {
	var doc struct {
		Issuer string `json:"issuer"`
		Keys   string `json:"jwks_uri"`
	}
	if err := i.get(ctx, strings.TrimSuffix(i.url, "/")+"/.well-known/openid-configuration", &doc); err != nil {
		return nil, err
	}
	//remit:guard S16 TestDiscoveryOfAnotherIssuer
	if doc.Issuer != i.url {
		return nil, fmt.Errorf("the discovery document is of issuer %.120q", doc.Issuer)
	}
	//remit:guard S16 TestKeysComeByTLS
	if !strings.HasPrefix(doc.Keys, "https://") {
		return nil, fmt.Errorf("jwks_uri %.120q is no https URL", doc.Keys)
	}
	var set struct {
		Keys []josejson.RawMessage `json:"keys"`
	}
	if err := i.get(ctx, doc.Keys, &set); err != nil {
		return nil, err
	}
	var out []jose.JSONWebKey
	for _, raw := range set.Keys {
		var k jose.JSONWebKey
		if err := josejson.Unmarshal(raw, &k); err != nil || k.KeyID == "" || k.Use != "" && k.Use != "sig" || !public(k.Key) {
			continue // a kind of key that is not for us
		}
		out = append(out, k)
	}
	if len(out) == 0 {
		return nil, errors.New("there is no key to verify with among its keys")
	}
	return out, nil
}

// public accepts the keys with which the accepted algorithms verify.
func public(key any) bool {
	switch k := key.(type) {
	case *ecdsa.PublicKey:
		return true
	case *rsa.PublicKey:
		return k.N.BitLen() >= minRSA
	}
	return false
}

func (i *Issuer) get(ctx context.Context, address string, into any) (err error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, http.NoBody)
	if err != nil {
		return err
	}
	req.Header.Set("Accept", "application/json")
	resp, err := i.http.Do(req)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, resp.Body.Close()) }()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("get %s: status %d", address, resp.StatusCode)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxDocument+1))
	if err != nil {
		return fmt.Errorf("get %s: %w", address, err)
	}
	if len(body) > maxDocument {
		return fmt.Errorf("get %s: more than %d bytes", address, maxDocument)
	}
	if err := josejson.Unmarshal(body, into); err != nil {
		return fmt.Errorf("get %s: %w", address, err)
	}
	return nil
}

func refused(format string, args ...any) error {
	return &remit.Error{Code: remit.CodeUnauthenticated, Msg: "the token is refused: " + fmt.Sprintf(format, args...)}
}
