// SPDX-License-Identifier: Apache-2.0

package run

import (
	"crypto"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"remit"
)

// TokenType is the `typ` of run tokens (draft-ietf-oauth-transaction-tokens, section 8.1).
const TokenType = "txntoken+jwt"

const (
	maxTokenBytes = 4096
	maxRemembered = 16384
	clockSkew     = 5 * time.Second // how far `iat` may lie ahead: replicas, S13
)

// Signer holds the run-token keys, which are keys for nothing else (S7). It is safe for concurrent use.
type Signer interface {
	// Sign returns claims, which encode to a JSON object, as a compact JWS with the given typ and a kid.
	Sign(claims any, typ string) (string, error)
	// Keys are the public keys whose signatures are accepted now, each with its kid. Called for every token; from memory.
	Keys() jose.JSONWebKeySet
}

// TokenConfig says who issues run tokens. All fields are required.
type TokenConfig struct {
	Issuer      string // `iss`
	TrustDomain spiffeid.TrustDomain
	Signer      Signer
}

// Tokens issues and verifies run tokens: OAuth Transaction Tokens, each bound to one holder (S10). It is safe for concurrent
// use. A verified token is remembered until it ends or its key is withdrawn, so that its signature is checked once.
type Tokens struct {
	cfg TokenConfig

	mu         sync.RWMutex // guards remembered
	remembered map[[sha256.Size]byte]remembered
}

// remembered is what a genuine token says, and the key that says so.
type remembered struct {
	claims claims
	key    jose.JSONWebKey
}

// claims are those of the draft, sections 8.2 and 8.3, with the confirmation of RFC 7800.
type claims struct {
	Issuer   string   `json:"iss"`
	Audience string   `json:"aud"`
	IssuedAt int64    `json:"iat"`
	Expires  int64    `json:"exp"`
	Txn      string   `json:"txn"`
	Subject  string   `json:"sub"`
	Scope    string   `json:"scope"`
	Workload string   `json:"req_wl"`
	Confirm  confirm  `json:"cnf"`
	Context  workflow `json:"tctx"`
}

type confirm struct {
	Thumbprint string `json:"x5t#S256,omitempty"` // RFC 8705 section 3.1
	Launch     string `json:"launch,omitempty"`   // of our own: the launch whose socket gave the SVID
}

type workflow struct {
	Workflow string       `json:"workflow"`
	Digest   remit.Digest `json:"digest"`
}

// NewTokens checks cfg.
func NewTokens(cfg TokenConfig) (*Tokens, error) {
	if cfg.Issuer == "" || cfg.TrustDomain.IsZero() || cfg.Signer == nil {
		return nil, errors.New("run tokens: issuer, trust domain and signer are required")
	}
	return &Tokens{cfg: cfg, remembered: map[[sha256.Size]byte]remembered{}}, nil
}

var (
	thumbprintPattern = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[A-Za-z0-9_-]{43}$`) })
	launchPattern     = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^lnch-[a-z2-7]{26}$`) })
)

// Issue returns a token for a live run, which ends with the run. Whoever asks must have checked that the holder's agent is
// Active in the run.
func (t *Tokens) Issue(r *remit.Run, holder remit.Holder, agent spiffeid.ID, at time.Time) (remit.Secret, error) {
	//remit:guard S10 TestIssueRefuses
	if !r.Live(at) {
		return remit.Secret{}, conflict("run %s is not live", "start another", r.ID)
	}
	byThumbprint := thumbprintPattern().MatchString(holder.Thumbprint) && holder.Launch == ""
	byLaunch := launchPattern().MatchString(string(holder.Launch)) && holder.Thumbprint == ""
	//remit:guard S10 TestIssueRefuses
	if agent.IsZero() || !byThumbprint && !byLaunch {
		return remit.Secret{}, &remit.Error{Code: remit.CodeInvalid, Msg: "a run token needs an agent and one holder",
			Hint: "give the x5t#S256 thumbprint of its certificate, or its launch"}
	}
	token, err := t.cfg.Signer.Sign(claims{Issuer: t.cfg.Issuer, Audience: t.cfg.TrustDomain.Name(), IssuedAt: at.Unix(),
		Expires: r.Expires.Unix(), Txn: string(r.ID), Subject: agent.String(), Scope: "run", Workload: agent.String(),
		Confirm: confirm{holder.Thumbprint, string(holder.Launch)}, Context: workflow{r.Workflow, r.Digest}}, TokenType)
	if err != nil {
		return remit.Secret{}, fmt.Errorf("sign run token: %w", err)
	}
	return remit.NewSecret(token), nil
}

// RunToken returns the run that a token names, if it is genuine, not over at `at`, of p and in the hands of its holder (S10).
// Whether the run is still live and p active in its stage is for the line to decide. Errors are of CodeUnauthenticated.
func (t *Tokens) RunToken(token string, p remit.Principal, at time.Time) (remit.RunID, error) {
	c, err := t.genuine(token)
	if err != nil {
		return "", err
	}
	switch {
	//remit:guard S10 TestTokenHolder
	case at.Unix() >= c.Expires:
		t.forget(token)
		return "", refused("the run token is over")
	//remit:guard S10 TestForgedTokens
	case c.IssuedAt > at.Add(clockSkew).Unix():
		return "", refused("the run token is from the future")
	//remit:guard S10 TestTokenHolder
	case p.Person != "" || p.ID.IsZero() || c.Subject != p.ID.String():
		return "", misused("the run token is of another agent", c.Txn, remit.ErrOtherAgent)
	//remit:guard S10 TestTokenHolder
	case !c.Confirm.holds(p):
		return "", misused("the run token is bound to another holder", c.Txn, remit.ErrOtherHolder)
	}
	return remit.RunID(c.Txn), nil
}

// holds compares the one confirmation that stands with what the connection proved.
func (c confirm) holds(p remit.Principal) bool {
	//remit:guard S10 TestForgedTokens
	if (c.Thumbprint == "") == (c.Launch == "") {
		return false
	}
	return equal(c.Thumbprint, p.Thumbprint) || equal(c.Launch, string(p.Launch))
}

func equal(want, got string) bool {
	return want != "" && subtle.ConstantTimeCompare([]byte(want), []byte(got)) == 1
}

// genuine returns the claims of a token with a good signature and the right form.
func (t *Tokens) genuine(token string) (claims, error) {
	//remit:guard S35 TestForgedTokens
	if len(token) > maxTokenBytes {
		return claims{}, refused("the run token is too long")
	}
	sum := sha256.Sum256([]byte(token))
	t.mu.RLock()
	known, ok := t.remembered[sum]
	t.mu.RUnlock()
	if ok && t.accepted(known.key) {
		return known.claims, nil
	}
	c, key, err := t.verify(token)
	if err != nil {
		return claims{}, err
	}
	t.remember(sum, remembered{c, key})
	return c, nil
}

// accepted reports whether the very key, not only its name, still counts.
func (t *Tokens) accepted(key jose.JSONWebKey) bool {
	set := t.cfg.Signer.Keys()
	for _, k := range set.Keys {
		if k.KeyID == key.KeyID && sameKey(k.Key, key.Key) {
			return true
		}
	}
	return false
}

func sameKey(a, b any) bool {
	k, ok := a.(interface{ Equal(x crypto.PublicKey) bool }) // as all public keys of the standard library
	return ok && k.Equal(b)
}

func (t *Tokens) remember(sum [sha256.Size]byte, r remembered) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for k := range t.remembered {
		if len(t.remembered) < maxRemembered {
			break
		}
		delete(t.remembered, k) // any: the next use checks its signature again
	}
	t.remembered[sum] = r
}

func (t *Tokens) forget(token string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.remembered, sha256.Sum256([]byte(token)))
}

// verify checks a token from scratch. Only asymmetric algorithms are parsed at all, the key is chosen by kid among ours, and
// go-jose uses a key only for its own algorithm: neither `none` nor HS256 with a public key gets past.
func (t *Tokens) verify(token string) (claims, jose.JSONWebKey, error) {
	fail := func(msg string) (claims, jose.JSONWebKey, error) { return claims{}, jose.JSONWebKey{}, refused(msg) }
	jws, err := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{jose.ES256, jose.EdDSA})
	if err != nil || len(jws.Signatures) != 1 {
		return fail("this is not a run token")
	}
	header := jws.Signatures[0].Protected
	//remit:guard S7 TestForgedTokens
	if typ, _ := header.ExtraHeaders[jose.HeaderType].(string); typ != TokenType {
		return fail("this is not a run token: its typ is not " + TokenType)
	}
	set := t.cfg.Signer.Keys()
	keys := set.Key(header.KeyID)
	//remit:guard S7 TestForgedTokens
	if header.KeyID == "" || len(keys) != 1 || !keys[0].IsPublic() {
		return fail("the run token is signed by a key that is not ours")
	}
	if alg := keys[0].Algorithm; alg != "" && alg != header.Algorithm {
		return fail("the run token is signed by another algorithm than its key's")
	}
	payload, err := jws.Verify(keys[0].Key)
	if err != nil {
		return fail("the run token's signature is wrong")
	}
	var c claims
	if err := json.Unmarshal(payload, &c); err != nil {
		return fail("the run token's claims cannot be read")
	}
	if err := t.form(&c); err != nil {
		return claims{}, jose.JSONWebKey{}, err
	}
	return c, keys[0], nil
}

func (t *Tokens) form(c *claims) error {
	_, err := remit.ParseRunID(c.Txn)
	switch {
	//remit:guard S10 TestForgedTokens
	case c.Issuer != t.cfg.Issuer:
		return refused("the run token is of another issuer")
	//remit:guard S10 TestForgedTokens
	case c.Audience != t.cfg.TrustDomain.Name():
		return refused("the run token is for another trust domain")
	//remit:guard S10 TestForgedTokens
	case err != nil || c.Subject == "" || c.Scope == "" || c.Workload == "" || c.IssuedAt <= 0 || c.Expires <= c.IssuedAt:
		return refused("the run token lacks a claim")
	}
	return nil
}

// misused says of a good token that it is in the wrong hands, and which run it is for.
func misused(msg, run string, how error) error {
	return &remit.Error{Code: remit.CodeUnauthenticated, Msg: msg, Hint: "get a token for this run and this holder", ID: run, Cause: how}
}

func refused(msg string) error {
	return &remit.Error{Code: remit.CodeUnauthenticated, Msg: msg, Hint: "get a token for this run and this holder"}
}
