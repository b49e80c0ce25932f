// SPDX-License-Identifier: Apache-2.0

package signal_test

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"remit"
	"remit/internal/signal"
)

func keyPEM(t *testing.T, key any) remit.Secret {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return remit.NewSecret(string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})))
}

func entry(kind, agent, by, data string) (remit.EventKind, remit.Entry) {
	return remit.EventKind(kind), remit.Entry{Seq: 7, Body: []byte(remit.EntryHead + `7,"at":"2026-11-30T10:00:00Z","kind":"` + kind + `","agent":"` + agent + `","by":"` + by + `","data":` + data + `}`)}
}

// TestSigningKeys: what is weak, or no key, signs nothing, and the error does not show it.
func TestSigningKeys(t *testing.T) {
	t.Setenv("GODEBUG", "rsa1024min=0")
	weak, err1 := rsa.GenerateKey(rand.Reader, 1024)
	other, err2 := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	_, edwards, err3 := ed25519.GenerateKey(rand.Reader)
	if err1 != nil || err2 != nil || err3 != nil {
		t.Fatal(err1, err2, err3)
	}
	for name, k := range map[string]remit.Secret{"weak": keyPEM(t, weak), "curve": keyPEM(t, other), "ed25519": keyPEM(t, edwards), "text": remit.NewSecret("a-secret"),
		"der": remit.NewSecret("-----BEGIN PRIVATE KEY-----\nYS1zZWNyZXQ=\n-----END PRIVATE KEY-----\n")} {
		if _, err := signal.NewSigner(k, "https://remit", "aud"); err == nil || strings.Contains(err.Error(), "a-secret") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestTokens: a receiver verifies the signature, and finds one event, no sub and no exp, about the agent; it is the same id each time.
func TestTokens(t *testing.T) {
	strong, err1 := rsa.GenerateKey(rand.Reader, 2048)
	curve, err2 := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	for alg, key := range map[jose.SignatureAlgorithm]any{jose.RS256: strong, jose.ES256: curve} {
		k, err := signal.NewSigner(keyPEM(t, key), "https://remit.company.com", "https://idp.company.com")
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range []struct{ kind, by, data, event, level string }{
			{"agent.suspended", "remit", `{"reason":"touched the canary"}`, "session-revoked", ""},
			{"agent.reinstated", "operator/ci", `{"reason":"settled"}`, "risk-level-change", "LOW"},
			{"finding.raised", "remit", `{"kind":"canary_touched","severity":"critical"}`, "risk-level-change", "HIGH"},
			{"lease.active", "remit", `{"expires":"2026-11-30T10:05:00Z"}`, "credential-change", ""},
			{"lease.ended", "operator/ci", `{"ms":1,"early":true}`, "credential-change", ""},
			{"finding.raised", "remit", `{"kind":"denial_burst","severity":"medium"}`, "risk-level-change", "MEDIUM"},
		} {
			s, ok := signal.Of(entry(c.kind, "agent/mail", c.by, c.data))
			if !ok {
				t.Fatal(c.kind)
			}
			token, ok, err := k.SET(&s, "spiffe://company.com/agent/mail", s.ID("idp"), time.Unix(1, 0))
			if err != nil || !ok {
				t.Fatal(err)
			}
			parsed, err := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{alg})
			if err != nil {
				t.Fatal(err)
			}
			public := k.Public()
			body, err := parsed.Verify(public.Key)
			if err != nil || parsed.Signatures[0].Header.KeyID != public.KeyID || parsed.Signatures[0].Header.ExtraHeaders[jose.HeaderType] != "secevent+jwt" {
				t.Errorf("%v %+v", err, parsed.Signatures[0].Header)
			}
			var v map[string]any
			if err := json.Unmarshal(body, &v); err != nil || v["sub"] != nil || v["exp"] != nil || v["jti"] != s.ID("idp") || v["aud"] != "https://idp.company.com" {
				t.Errorf("%v %s", err, body)
			}
			events := v["events"].(map[string]any)
			event, ok := events["https://schemas.openid.net/secevent/caep/event-type/"+c.event].(map[string]any)
			if !ok || len(events) != 1 || c.level != "" && event["current_level"] != c.level || !strings.Contains(string(body), `"uri":"spiffe://company.com/agent/mail"`) {
				t.Errorf("%s: %s", c.kind, body)
			}
		}
	}
}

// TestExpiredIsNoChange: a credential that ends when it was to end is no event.
func TestExpiredIsNoChange(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	k, err := signal.NewSigner(keyPEM(t, key), "https://remit", "aud")
	if err != nil {
		t.Fatal(err)
	}
	s, _ := signal.Of(entry("lease.ended", "agent/mail", "remit", `{"ms":1}`))
	if token, ok, err := k.SET(&s, "spiffe://company.com/agent/mail", "id", time.Unix(1, 0)); ok || err != nil {
		t.Errorf("%s %v", token, err)
	}
}

// TestTold: only these kinds are told; other receivers and other entries have other ids.
func TestTold(t *testing.T) {
	for _, kind := range []string{"action", "admin", "finding", "run.started", "approval.given", ""} {
		if _, ok := signal.Of(entry(kind, "agent/mail", "remit", `{}`)); ok {
			t.Errorf("%s is told", kind)
		}
	}
	s, ok := signal.Of(entry("finding.closed", "agent/mail", "operator/ci", `{"kind":"canary_touched"}`))
	again := s
	if !ok || s.ID("a") != again.ID("a") || s.ID("a") == s.ID("b") || !strings.Contains(string(s.Webhook()), `"type":"finding.closed"`) {
		t.Errorf("%+v %s", s, s.Webhook())
	}
}
