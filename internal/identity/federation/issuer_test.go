// SPDX-License-Identifier: Apache-2.0

package federation_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"remit"
	"remit/internal/evidence/evidencetest"
	"remit/internal/identity/federation"
)

const audience = "https://remit.company.com"

type tokens struct {
	*evidencetest.Issuer
	t      *testing.T
	issuer *federation.Issuer
	now    time.Time
}

func newTokens(t *testing.T) *tokens {
	t.Helper()
	server, err := evidencetest.NewIssuer()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)
	f := &tokens{Issuer: server, t: t, now: time.Now().Truncate(time.Second)}
	if f.issuer, err = federation.NewIssuer(server.URL, server.Client(), func() time.Time { return f.now }); err != nil {
		t.Fatal(err)
	}
	return f
}

func (f *tokens) token(claims map[string]any, h evidencetest.Header, with *ecdsa.PrivateKey) string {
	f.t.Helper()
	token, err := f.Token(claims, h, with)
	if err != nil {
		f.t.Fatal(err)
	}
	return token
}

func (f *tokens) verify(token string) error {
	_, err := f.issuer.Verify(f.t.Context(), token, audience)
	return err
}

func TestTokenVerifies(t *testing.T) {
	f := newTokens(t)
	got, err := f.issuer.Verify(t.Context(), f.token(f.GitHubRun(audience, f.now), nil, nil), audience)
	if err != nil {
		t.Fatal(err)
	}
	var claims map[string]string
	if json.Unmarshal(got, &claims); claims["repository_id"] != "4711" {
		t.Errorf("claims %s", got)
	}
	if err := f.verify(f.token(f.GitLabJob(audience, f.now), nil, nil)); err != nil {
		t.Error(err)
	}
	if n := f.Asked("/keys"); n != 1 {
		t.Errorf("keys were fetched %d times", n)
	}
}

func TestTokensRefused(t *testing.T) {
	own, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	set := func(name string, v any) func(*tokens) string {
		return func(f *tokens) string {
			c := f.GitHubRun(audience, f.now)
			c[name] = v
			if v == nil {
				delete(c, name)
			}
			return f.token(c, nil, nil)
		}
	}
	at := func(name string, d time.Duration) func(*tokens) string {
		return func(f *tokens) string {
			c := f.GitHubRun(audience, f.now)
			c[name] = f.now.Add(d).Unix()
			return f.token(c, nil, nil)
		}
	}
	header := func(h evidencetest.Header) func(*tokens) string {
		return func(f *tokens) string { return f.token(f.GitHubRun(audience, f.now), h, nil) }
	}
	for name, row := range map[string]struct {
		token func(*tokens) string
		why   string
	}{
		"another issuer":       {set("iss", "https://elsewhere.example"), "issuer"},
		"no issuer":            {set("iss", nil), "issuer"},
		"another audience":     {set("aud", "https://else.company.com"), "audience"},
		"two audiences":        {set("aud", []string{audience, "https://else.company.com"}), "audience"},
		"no audience":          {set("aud", nil), "audience"},
		"no exp":               {set("exp", nil), "no exp"},
		"no iat":               {set("iat", nil), "no exp or no iat"},
		"expired":              {at("exp", 0), "expired"},
		"not yet":              {at("nbf", time.Minute), "not valid yet"},
		"of the future":        {at("iat", time.Minute), "in the future"},
		"old, though it lives": {at("iat", -11*time.Minute), "more than 10m0s ago"},
		"another key":          {func(f *tokens) string { return f.token(f.GitHubRun(audience, f.now), nil, own) }, "its signature is not of the issuer's key"},
		"unknown key":          {header(evidencetest.Header{"kid": "k9"}), "has no key"},
		"no key id":            {header(evidencetest.Header{"kid": nil}), "has no key"},
		"brings a key":         {header(evidencetest.Header{"jwk": map[string]any{"kty": "EC"}}), "its header has jwk"},
		"names a key":          {header(evidencetest.Header{"jku": "https://elsewhere.example/keys"}), "its header has jku"},
		"none": {func(f *tokens) string {
			token := f.token(f.GitHubRun(audience, f.now), evidencetest.Header{"alg": "none"}, nil)
			return token[:strings.LastIndex(token, ".")+1]
		}, `algorithm "none" is not accepted`},
		"HS256": {func(f *tokens) string {
			token := f.token(f.GitHubRun(audience, f.now), evidencetest.Header{"alg": "HS256"}, nil)
			signed := token[:strings.LastIndex(token, ".")]
			mac := hmac.New(sha256.New, f.CA)
			mac.Write([]byte(signed))
			return signed + "." + base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
		}, `algorithm "HS256" is not accepted`},
		"another algorithm than the key's": {header(evidencetest.Header{"alg": "RS256"}), "is for ES256"},
		"too long":                         {func(*tokens) string { return strings.Repeat("x", 17<<10) }, "longer than"},
		"nothing":                          {func(*tokens) string { return "" }, "its header is no JSON object"},
		"no JWT":                           {func(*tokens) string { return "a.b" }, "it is no JWT"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newTokens(t)
			err := f.verify(row.token(f))
			if remit.CodeOf(err) != remit.CodeUnauthenticated || !strings.Contains(err.Error(), row.why) {
				t.Errorf("%v, want %q", err, row.why)
			}
		})
	}
}

func TestKeysAreNotFetchedOnAndOn(t *testing.T) {
	f := newTokens(t)
	for range 5 {
		if err := f.verify(f.token(f.GitHubRun(audience, f.now), evidencetest.Header{"kid": "made-up"}, nil)); err == nil {
			t.Fatal("a token of no key verifies")
		}
	}
	if n := f.Asked("/keys"); n != 1 {
		t.Errorf("five tokens of unknown keys had the keys fetched %d times", n)
	}
	if err := f.Rotate("k2"); err != nil {
		t.Fatal(err)
	}
	f.now = f.now.Add(31 * time.Second)
	if err := f.verify(f.token(f.GitHubRun(audience, f.now), nil, nil)); err != nil {
		t.Errorf("after a rotation: %v", err)
	}
}

func TestWithdrawnKey(t *testing.T) {
	f := newTokens(t)
	old := f.GitHubRun(audience, f.now)
	if err := f.verify(f.token(old, nil, nil)); err != nil {
		t.Fatal(err)
	}
	f.now = f.now.Add(25 * time.Hour)
	f.Close()
	err := f.verify(f.token(f.GitHubRun(audience, f.now), nil, nil))
	if remit.CodeOf(err) != remit.CodeUnavailable {
		t.Errorf("keys of yesterday, whose issuer is away: %v", err)
	}
}

func TestDiscoveryOfAnotherIssuer(t *testing.T) {
	f := newTokens(t)
	f.Change(func(path string, doc map[string]any) {
		if strings.HasPrefix(path, "/.well-known") {
			doc["issuer"] = "https://elsewhere.example"
		}
	})
	if err := f.verify(f.token(f.GitHubRun(audience, f.now), nil, nil)); remit.CodeOf(err) != remit.CodeUnavailable {
		t.Errorf("%v", err)
	}
}

func TestKeysComeByTLS(t *testing.T) {
	f := newTokens(t)
	f.Change(func(path string, doc map[string]any) {
		if uri, ok := doc["jwks_uri"].(string); ok {
			doc["jwks_uri"] = strings.Replace(uri, "https", "http", 1)
		}
	})
	err := f.verify(f.token(f.GitHubRun(audience, f.now), nil, nil))
	if e, ok := errors.AsType[*remit.Error](err); !ok || e.Code != remit.CodeUnavailable || !strings.Contains(e.Cause.Error(), "no https URL") {
		t.Errorf("%v", err)
	}
}

func TestIssuerIsAnHTTPSAddress(t *testing.T) {
	f := newTokens(t)
	for _, u := range []string{"http://ci.example", "https://", "https://a:b@ci.example", "https://ci.example?x=1", "ci.example"} {
		if _, err := federation.NewIssuer(u, f.Client(), nil); remit.CodeOf(err) != remit.CodeInvalid {
			t.Errorf("%s: %v", u, err)
		}
	}
}
