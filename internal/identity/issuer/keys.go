// SPDX-License-Identifier: Apache-2.0

package issuer

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/go-jose/go-jose/v4"

	"remit/internal/identity"
)

// KeysConfig describes a key ring for one kind of token.
type KeysConfig struct {
	Name string // of the ring and its file: "grant", "run-token". Required
	Dir  string // of the key files, mode 0700; made if absent. Required
	// Keeper wraps the key file. Default: it is plaintext.
	Keeper Keeper
	Type   string // the header's typ, which Verify requires: "JWT" (default), "txntoken+jwt"
	// Life of a key. Default 7 days. A next key is published at half of it, and signs after 5/6.
	Life time.Duration
	// MaxTTL is the longest life of a token. Default 1 hour; at most half of Life.
	MaxTTL time.Duration
	// Notice is how long a key is published at least before it signs, also when forced: at least the verifiers' refresh
	// interval. Default 10 minutes; at most a quarter of Life.
	Notice time.Duration
	// OnEvent is told each step after it took effect: prepare, activate, retire, prune, and NAME/KEYID. It must not call back.
	OnEvent func(step, keyID string)
	Log     *slog.Logger     // default: nothing is logged
	Now     func() time.Time // default time.Now
}

// Keys is a ring of ECDSA P-256 keys that sign tokens of one kind with ES256. It is safe for concurrent use.
type Keys struct {
	ring *ring
	cfg  KeysConfig
}

// OpenKeys reads the ring from its file, or makes one with a first key.
func OpenKeys(cfg KeysConfig) (*Keys, error) {
	if cfg.Type == "" {
		cfg.Type = "JWT"
	}
	setDefault(&cfg.Life, 7*24*time.Hour)
	setDefault(&cfg.MaxTTL, time.Hour)
	setDefault(&cfg.Notice, min(10*time.Minute, cfg.Life/4))
	if cfg.Name == "" || cfg.Dir == "" || cfg.MaxTTL > cfg.Life/2 || cfg.Notice > cfg.Life/4 {
		return nil, errors.New("issuer: a key ring needs a name, a folder, and a life of at least twice MaxTTL and four times Notice")
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
	k := &Keys{cfg: cfg, ring: &ring{name: cfg.Name, keeper: cfg.Keeper, now: cfg.Now, onEvent: cfg.OnEvent, signal: &identity.Signal{},
		policy: policy{life: cfg.Life, spare: cfg.MaxTTL, notice: cfg.Notice, keep: cfg.Notice}}}
	k.ring.header = func(id string) string {
		b, _ := json.Marshal(struct { // strings encode always
			Alg string `json:"alg"`
			Kid string `json:"kid"`
			Typ string `json:"typ"`
		}{"ES256", id, cfg.Type})
		return base64.RawURLEncoding.EncodeToString(b)
	}
	if err := k.ring.open(cfg.Dir); err != nil {
		return nil, err
	}
	return k, nil
}

func setDefault(d *time.Duration, v time.Duration) {
	if *d <= 0 {
		*d = v
	}
}

// Sign returns claims, which must encode to a JSON object with exp, as a compact JWS whose header is alg, kid and typ. A token
// that would live longer than MaxTTL, or than the key, is refused.
func (k *Keys) Sign(claims any) (string, error) {
	payload, err := json.Marshal(claims)
	if err != nil {
		return "", fmt.Errorf("encode claims: %w", err)
	}
	s, err := k.ring.current()
	if err != nil {
		return "", err
	}
	if err := k.ends(payload, s); err != nil {
		return "", fmt.Errorf("sign with ring %s: %w", k.cfg.Name, err)
	}
	return s.sign(payload)
}

func (k *Keys) ends(payload []byte, s *slot) error {
	var c struct {
		Exp json.Number `json:"exp"`
	}
	if err := json.Unmarshal(payload, &c); err != nil {
		return fmt.Errorf("the claims are no object with exp: %w", err)
	}
	seconds, err := c.Exp.Int64()
	if err != nil {
		return errors.New("exp is no whole number of seconds")
	}
	exp := time.Unix(seconds, 0)
	switch {
	case exp.After(k.cfg.Now().Add(k.cfg.MaxTTL)):
		return fmt.Errorf("it would live longer than %s", k.cfg.MaxTTL)
	case exp.After(s.notAfter):
		return errors.New("it would live longer than the key")
	}
	return nil
}

// sign makes a compact JWS (RFC 7515 section 7.1, RFC 7518 section 3.4).
func (s *slot) sign(payload []byte) (string, error) {
	b := make([]byte, 0, len(s.header)+len(payload)*4/3+96)
	b = append(append(b, s.header...), '.')
	b = base64.RawURLEncoding.AppendEncode(b, payload)
	sum := sha256.Sum256(b)
	r, t, err := ecdsa.Sign(rand.Reader, s.key, sum[:])
	if err != nil {
		return "", fmt.Errorf("sign with key %s: %w", s.id, err)
	}
	var sig [64]byte
	r.FillBytes(sig[:32])
	t.FillBytes(sig[32:])
	return string(base64.RawURLEncoding.AppendEncode(append(b, '.'), sig[:])), nil
}

// Verify returns the claims of a token that a key of this ring signed, of exactly this ring's type. It looks at the signature
// and the header only: exp and all other claims are the caller's to check, by its own clock.
func (k *Keys) Verify(token string) ([]byte, error) {
	if len(token) > 16<<10 {
		return nil, errors.New("longer than 16 KiB")
	}
	if err := identity.CheckHeader(token, k.cfg.Type); err != nil {
		return nil, err
	}
	jws, err := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		return nil, fmt.Errorf("parse: %w", err)
	}
	for _, s := range k.ring.state.Load().slots {
		if s.id == jws.Signatures[0].Header.KeyID {
			payload, err := jws.Verify(&s.key.PublicKey)
			if err != nil {
				return nil, fmt.Errorf("verify: %w", err)
			}
			return payload, nil
		}
	}
	return nil, errors.New("no key of this ring signed it")
}

// Public returns the published keys by id: next, current and old.
func (k *Keys) Public() map[string]crypto.PublicKey {
	out := map[string]crypto.PublicKey{}
	for _, s := range k.ring.state.Load().slots {
		out[s.id] = &s.key.PublicKey
	}
	return out
}

// JWKS returns the published keys as a JSON Web Key Set with use "sig", as OpenID Connect and OAuth clients want them.
func (k *Keys) JWKS() []byte {
	set := jose.JSONWebKeySet{Keys: []jose.JSONWebKey{}}
	for _, s := range k.ring.state.Load().slots {
		set.Keys = append(set.Keys, jose.JSONWebKey{Key: &s.key.PublicKey, KeyID: s.id, Algorithm: "ES256", Use: "sig"})
	}
	b, _ := json.Marshal(set) // public P-256 keys encode always
	return b
}

// Changed works as in identity.Signal: it is closed at the next change of what is published or signs.
func (k *Keys) Changed() <-chan struct{} { return k.ring.signal.Changed() }

// Turn takes all steps that are due by the clock. On error nothing is lost: the step is tried again at the next Turn.
func (k *Keys) Turn() error { return k.ring.turn() }

// Rotate publishes a next key now; it takes over after Notice, at a Turn.
func (k *Keys) Rotate() error { return k.ring.prepare() }

// Activate lets the next key sign at once. Verifiers that have not refreshed since it was published refuse what it signs.
func (k *Keys) Activate() error { return k.ring.activate() }

// Drop forgets all old keys: tokens that they signed verify no more.
func (k *Keys) Drop() error { return k.ring.drop() }

// Run turns the ring until ctx ends, and returns nil then.
func (k *Keys) Run(ctx context.Context) error { return turn(ctx, k.cfg.Log, k.Turn) }

// turnEvery is how often Run looks at the clock. Steps are due by the hour; only a forced rotation notices the difference.
const turnEvery = 10 * time.Second

func turn(ctx context.Context, log *slog.Logger, step func() error) error {
	ticker := time.NewTicker(turnEvery)
	defer ticker.Stop()
	for {
		if err := step(); err != nil {
			log.Error("key rotation: will try again", "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}
