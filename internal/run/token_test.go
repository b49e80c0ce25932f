// SPDX-License-Identifier: Apache-2.0

package run_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"remit"
	"remit/internal/run"
)

// signer is a real ES256 signer whose keys can be withdrawn.
type signer struct {
	private *ecdsa.PrivateKey
	kid     string
	set     jose.JSONWebKeySet
}

func newSigner(t testing.TB, kid string) *signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	s := &signer{private: key, kid: kid}
	s.set.Keys = []jose.JSONWebKey{{Key: key.Public(), KeyID: kid, Algorithm: "ES256", Use: "sig"}}
	return s
}

func (s *signer) Keys() jose.JSONWebKeySet { return s.set }

func (s *signer) Sign(claims any, typ string) (string, error) {
	return sign(jose.SigningKey{Algorithm: jose.ES256, Key: s.private}, claims, typ, s.kid)
}

func sign(key jose.SigningKey, claims any, typ, kid string) (string, error) {
	opts := (&jose.SignerOptions{}).WithType(jose.ContentType(typ))
	if kid != "" {
		opts = opts.WithHeader("kid", kid)
	}
	signer, err := jose.NewSigner(key, opts)
	if err != nil {
		return "", err
	}
	payload, err := json.Marshal(claims)
	if err != nil {
		return "", err
	}
	jws, err := signer.Sign(payload)
	if err != nil {
		return "", err
	}
	return jws.CompactSerialize()
}

func newTokens(t testing.TB, s *signer) *run.Tokens {
	t.Helper()
	tokens, err := run.NewTokens(run.TokenConfig{Issuer: "https://remit.company.com", TrustDomain: td, Signer: s})
	if err != nil {
		t.Fatal(err)
	}
	return tokens
}

var (
	thumb  = strings.Repeat("a", 43)
	launch = remit.LaunchID("lnch-" + strings.Repeat("a", 26))
	deploy = spiffeid.RequireFromPath(td, "/agent/x")
)

func issue(t testing.TB, tokens *run.Tokens, r *remit.Run, h remit.Holder) string {
	t.Helper()
	token, err := tokens.Issue(r, h, deploy, noon)
	if err != nil {
		t.Fatal(err)
	}
	return token.Reveal()
}

func TestTokenHolder(t *testing.T) {
	s := newSigner(t, "k1")
	tokens := newTokens(t, s)
	r := start(t, flow())
	byCert := issue(t, tokens, &r, remit.Holder{Agent: "agent/x", Thumbprint: thumb})
	byLaunch := issue(t, tokens, &r, remit.Holder{Agent: "agent/x", Launch: launch})
	other := spiffeid.RequireFromPath(td, "/agent/y")
	for _, c := range []struct {
		name  string
		token string
		p     remit.Principal
		at    time.Time
		good  bool
	}{
		{"holder of the certificate", byCert, remit.Principal{ID: deploy, Thumbprint: thumb}, noon, true},
		{"holder of the launch", byLaunch, remit.Principal{ID: deploy, Launch: launch, Thumbprint: "other"}, noon, true},
		{"to the last second", byCert, remit.Principal{ID: deploy, Thumbprint: thumb}, r.Expires.Add(-time.Second), true},
		{"another certificate", byCert, remit.Principal{ID: deploy, Thumbprint: strings.Repeat("b", 43)}, noon, false},
		{"no certificate", byCert, remit.Principal{ID: deploy}, noon, false},
		{"a launch for a certificate", byCert, remit.Principal{ID: deploy, Launch: launch}, noon, false},
		{"another launch", byLaunch, remit.Principal{ID: deploy, Launch: "lnch-b"}, noon, false},
		{"no launch", byLaunch, remit.Principal{ID: deploy, Thumbprint: thumb}, noon, false},
		{"another agent", byCert, remit.Principal{ID: other, Thumbprint: thumb}, noon, false},
		{"a person", byCert, remit.Principal{Person: "operator/ci", Thumbprint: thumb}, noon, false},
		{"nobody", byCert, remit.Principal{Thumbprint: thumb}, noon, false},
		{"over", byCert, remit.Principal{ID: deploy, Thumbprint: thumb}, r.Expires, false},
		{"before it was made", byCert, remit.Principal{ID: deploy, Thumbprint: thumb}, noon.Add(-time.Minute), false},
	} {
		for range 2 { // the second time from memory
			id, err := tokens.RunToken(c.token, c.p, c.at)
			if (err == nil) != c.good || c.good && id != r.ID || !c.good && (id != "" || remit.CodeOf(err) != remit.CodeUnauthenticated) {
				t.Errorf("%s: %s, %v", c.name, id, err)
			}
		}
	}
}

func TestTokenClaims(t *testing.T) {
	r := start(t, flow())
	token := issue(t, newTokens(t, newSigner(t, "k1")), &r, remit.Holder{Agent: "agent/x", Thumbprint: thumb})
	payload, _ := base64.RawURLEncoding.DecodeString(strings.Split(token, ".")[1])
	want := fmt.Sprintf(`{"iss":"https://remit.company.com","aud":"company.com","iat":%d,"exp":%d,"txn":"%s","sub":"spiffe://company.com/agent/x",`+
		`"scope":"run","req_wl":"spiffe://company.com/agent/x","cnf":{"x5t#S256":"%s"},"tctx":{"workflow":"w","digest":"%s"}}`,
		noon.Unix(), r.Expires.Unix(), r.ID, thumb, r.Digest)
	if string(payload) != want {
		t.Errorf("got  %s\nwant %s", payload, want)
	}
	header, _ := base64.RawURLEncoding.DecodeString(strings.Split(token, ".")[0])
	if !strings.Contains(string(header), `"typ":"txntoken+jwt"`) {
		t.Error(string(header))
	}
}

// TestForgedTokens are tokens that somebody else made, or that were made for something else.
func TestForgedTokens(t *testing.T) {
	s := newSigner(t, "k1")
	tokens := newTokens(t, s)
	stranger := newSigner(t, "k1")
	good := func() map[string]any {
		return map[string]any{"iss": "https://remit.company.com", "aud": "company.com", "iat": noon.Unix(), "exp": noon.Add(time.Hour).Unix(),
			"txn": "run-" + strings.Repeat("a", 26), "sub": deploy.String(), "scope": "run", "req_wl": deploy.String(), "cnf": map[string]string{"x5t#S256": thumb}}
	}
	with := func(name string, value any) string {
		c := good()
		if c[name] = value; value == nil {
			delete(c, name)
		}
		token, err := s.Sign(c, run.TokenType)
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	must := func(token string, err error) string {
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	der, _ := x509.MarshalPKIXPublicKey(s.private.Public())
	b64 := func(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }
	body, _ := json.Marshal(good())
	whole := with("scope", "run")
	parts := strings.Split(whole, ".")
	p := remit.Principal{ID: deploy, Thumbprint: thumb, Launch: launch}
	if _, err := tokens.RunToken(whole, p, noon); err != nil {
		t.Fatal(err)
	}
	for name, token := range map[string]string{
		"longer than any of ours": with("pad", strings.Repeat("a", 5000)),
		"empty":                   "", "no token": "a.b.c", "too long": whole + strings.Repeat("a", 5000), "truncated": whole[:len(whole)-4],
		"none":                      b64(`{"alg":"none","typ":"txntoken+jwt","kid":"k1"}`) + "." + b64(string(body)) + ".",
		"none, with a signature":    b64(`{"alg":"none","typ":"txntoken+jwt","kid":"k1"}`) + "." + parts[1] + "." + parts[2],
		"HS256 with the public key": must(sign(jose.SigningKey{Algorithm: jose.HS256, Key: der}, good(), run.TokenType, "k1")),
		"another key, our kid":      must(stranger.Sign(good(), run.TokenType)),
		"unknown kid":               must(sign(jose.SigningKey{Algorithm: jose.ES256, Key: s.private}, good(), run.TokenType, "k2")),
		"no kid":                    must(sign(jose.SigningKey{Algorithm: jose.ES256, Key: s.private}, good(), run.TokenType, "")),
		"other claims":              parts[0] + "." + b64(strings.Replace(string(body), "run-a", "run-b", 1)) + "." + parts[2],
		"typ JWT":                   must(s.Sign(good(), "JWT")), "typ at+jwt": must(s.Sign(good(), "at+jwt")), "no typ": must(s.Sign(good(), "")),
		"another issuer": with("iss", "https://evil.example"), "no issuer": with("iss", nil),
		"another aud": with("aud", "evil.example"), "two auds": with("aud", []string{"company.com", "evil.example"}), "no aud": with("aud", nil),
		"no exp": with("exp", nil), "no iat": with("iat", nil), "exp as text": with("exp", "9999999999"), "exp before iat": with("exp", noon.Unix()-1),
		"no txn": with("txn", nil), "txn of another kind": with("txn", "dec-"+strings.Repeat("a", 26)), "no sub": with("sub", nil), "another sub": with("sub", "spiffe://evil.example/agent/x"),
		"no scope": with("scope", nil), "no req_wl": with("req_wl", nil), "no cnf": with("cnf", nil), "empty cnf": with("cnf", map[string]string{}),
		"cnf with another certificate, our launch": with("cnf", map[string]string{"x5t#S256": strings.Repeat("b", 43), "launch": string(launch)}),
		"cnf by key": with("cnf", map[string]string{"jkt": thumb}), "from the future": with("iat", noon.Add(time.Minute).Unix()),
	} {
		if id, err := tokens.RunToken(token, p, noon); err == nil || id != "" || remit.CodeOf(err) != remit.CodeUnauthenticated {
			t.Errorf("%s: %s, %v", name, id, err)
		}
	}
}

func TestWithdrawnKey(t *testing.T) {
	s := newSigner(t, "k1")
	tokens := newTokens(t, s)
	r := start(t, flow())
	token, p := issue(t, tokens, &r, remit.Holder{Agent: "agent/x", Thumbprint: thumb}), remit.Principal{ID: deploy, Thumbprint: thumb}
	if _, err := tokens.RunToken(token, p, noon); err != nil {
		t.Fatal(err)
	}
	s.set = newSigner(t, "k1").set // another key under the old name
	_, err := tokens.RunToken(token, p, noon)
	wantCode(t, "a remembered token of a withdrawn key", err, remit.CodeUnauthenticated)
}

func TestIssueRefuses(t *testing.T) {
	tokens := newTokens(t, newSigner(t, "k1"))
	w := flow()
	r := start(t, w)
	finished, _, _ := run.Finish(r, w, person("ci"), noon)
	for _, c := range []struct {
		name string
		r    *remit.Run
		h    remit.Holder
		id   spiffeid.ID
		at   time.Time
		want remit.Code
	}{
		{"finished", &finished, remit.Holder{Thumbprint: thumb}, deploy, noon, remit.CodeConflict},
		{"over", &r, remit.Holder{Thumbprint: thumb}, deploy, noon.Add(time.Hour), remit.CodeConflict},
		{"no holder", &r, remit.Holder{}, deploy, noon, remit.CodeInvalid},
		{"two holders", &r, remit.Holder{Thumbprint: thumb, Launch: launch}, deploy, noon, remit.CodeInvalid},
		{"no thumbprint", &r, remit.Holder{Thumbprint: "x"}, deploy, noon, remit.CodeInvalid},
		{"no launch", &r, remit.Holder{Launch: "lnch-1"}, deploy, noon, remit.CodeInvalid},
		{"nobody", &r, remit.Holder{Thumbprint: thumb}, spiffeid.ID{}, noon, remit.CodeInvalid},
	} {
		token, err := tokens.Issue(c.r, c.h, c.id, c.at)
		wantCode(t, c.name, err, c.want)
		if !token.IsZero() {
			t.Errorf("%s: a token", c.name)
		}
	}
}

func TestTokensTogether(t *testing.T) {
	tokens := newTokens(t, newSigner(t, "k1"))
	r := start(t, flow())
	var wg sync.WaitGroup
	for range 8 {
		token := issue(t, tokens, &r, remit.Holder{Agent: "agent/x", Thumbprint: thumb})
		wg.Go(func() {
			for range 200 {
				if _, err := tokens.RunToken(token, remit.Principal{ID: deploy, Thumbprint: thumb}, noon); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

func BenchmarkRunToken(b *testing.B) {
	tokens := newTokens(b, newSigner(b, "k1"))
	r := start(b, flow())
	token, p := issue(b, tokens, &r, remit.Holder{Agent: "agent/x", Thumbprint: thumb}), remit.Principal{ID: deploy, Thumbprint: thumb}
	for b.Loop() {
		if _, err := tokens.RunToken(token, p, noon); err != nil {
			b.Fatal(err)
		}
	}
}

// FuzzRunToken: nothing but what we issued is accepted.
func FuzzRunToken(f *testing.F) {
	tokens := newTokens(f, newSigner(f, "k1"))
	r := start(f, flow())
	token := issue(f, tokens, &r, remit.Holder{Agent: "agent/x", Thumbprint: thumb})
	f.Add(token)
	f.Add("eyJhbGciOiJub25lIn0.e30.")
	f.Add(`{"payload":"e30","signatures":[]}`)
	f.Fuzz(func(t *testing.T, s string) {
		id, err := tokens.RunToken(s, remit.Principal{ID: deploy, Thumbprint: thumb}, noon)
		if err == nil && (id != r.ID || s != token) {
			t.Fatalf("accepted %q", s)
		}
	})
}
