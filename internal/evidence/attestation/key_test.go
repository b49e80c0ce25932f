// SPDX-License-Identifier: Apache-2.0

package attestation_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/secure-systems-lab/go-securesystemslib/dsse"

	"remit"
	"remit/internal/evidence/attestation"
	"remit/internal/evidence/evidencetest"
)

func makeKey(t *testing.T, kind string) crypto.Signer {
	t.Helper()
	var key crypto.Signer
	var err error
	switch kind {
	case "P-224":
		key, err = ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	case "P-384":
		key, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case "Ed25519":
		_, key, err = ed25519.GenerateKey(rand.Reader)
	case "RSA 1024":
		t.Setenv("GODEBUG", "rsa1024min=0")
		key, err = rsa.GenerateKey(rand.Reader, 1024)
	default:
		key, err = rsa.GenerateKey(rand.Reader, 2048)
	}
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func TestKeyKinds(t *testing.T) {
	for kind, ok := range map[string]bool{"P-384": true, "Ed25519": true, "RSA 2048": true, "P-224": false, "RSA 1024": false} {
		t.Run(kind, func(t *testing.T) {
			s, err := evidencetest.NewSignerFromKey("trivy", makeKey(t, kind))
			if err != nil {
				t.Fatal(err)
			}
			file := filepath.Join(t.TempDir(), "trivy.pub")
			if err := os.WriteFile(file, []byte(s.PublicPEM()), 0o600); err != nil {
				t.Fatal(err)
			}
			cfg := attestation.Config{Signers: []attestation.Signer{{Name: "trivy", Key: attestation.Key{File: file}}}}
			source, err := attestation.New(cfg, attestation.Deps{Name: "trivy-ci", Statements: &rows{}})
			if (err == nil) != ok {
				t.Fatalf("New = %v", err)
			}
			if !ok {
				return
			}
			env := sign(t, s, scan("s", image("foo"), noon.Add(-time.Hour)).Statement())
			if _, _, err := hand(source, env, "operator/ci", noon); err != nil {
				t.Error(err)
			}
			if _, _, err := hand(source, flip(t, env, "sig"), "operator/ci", noon); err == nil {
				t.Error("a flipped bit in the signature is taken")
			}
		})
	}
}

// TestCosignRSA: cosign signs with RSA keys by PKCS #1 v1.5.
func TestCosignRSA(t *testing.T) {
	key := makeKey(t, "RSA 2048")
	s, err := evidencetest.NewSignerFromKey("cosign", key)
	if err != nil {
		t.Fatal(err)
	}
	d := newDesk(t, func(c *attestation.Config, _ *attestation.Deps) { c.Signers[0].Key.PEM = s.PublicPEM() })
	payload, err := scan("s", image("foo"), noon.Add(-time.Hour)).CosignStatement().JSON()
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(dsse.PAE(attestation.PayloadType, payload))
	sig, err := key.Sign(rand.Reader, sum[:], crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	env, err := json.Marshal(dsse.Envelope{PayloadType: attestation.PayloadType, Payload: base64.StdEncoding.EncodeToString(payload),
		Signatures: []dsse.Signature{{Sig: base64.StdEncoding.EncodeToString(sig)}}})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := hand(d.source, env, "operator/ci", noon); err != nil {
		t.Error(err)
	}
}

func TestConfigIsChecked(t *testing.T) {
	pem := newSigner(t, "x").PublicPEM()
	good := func() attestation.Config {
		return attestation.Config{Signers: []attestation.Signer{{Name: "x", Key: attestation.Key{PEM: pem}}}}
	}
	for name, change := range map[string]func(*attestation.Config){
		"no signers":   func(c *attestation.Config) { c.Signers = nil },
		"no key":       func(c *attestation.Config) { c.Signers[0].Key = attestation.Key{} },
		"two keys":     func(c *attestation.Config) { c.Signers[0].Key.File = "x.pub" },
		"no such file": func(c *attestation.Config) { c.Signers[0].Key = attestation.Key{File: "no-such-file.pub"} },
		"private key": func(c *attestation.Config) {
			c.Signers[0].Key.PEM = "-----BEGIN PRIVATE KEY-----\nAA==\n-----END PRIVATE KEY-----\n"
		},
		"two blocks":      func(c *attestation.Config) { c.Signers[0].Key.PEM = pem + pem },
		"unnamed":         func(c *attestation.Config) { c.Signers[0].Name = "" },
		"named twice":     func(c *attestation.Config) { c.Signers = append(c.Signers, c.Signers[0]) },
		"odd holder":      func(c *attestation.Config) { c.Signers[0].Holder = "deploy" },
		"odd kind":        func(c *attestation.Config) { c.Kinds = []string{"ticket"} },
		"odd platforms":   func(c *attestation.Config) { c.Platforms = "amd64" },
		"platforms alone": func(c *attestation.Config) { c.Platforms = "all" },
		"odd ref":         func(c *attestation.Config) { c.ProtectedRefs = []string{"main"} },
		"holder alone":    func(c *attestation.Config) { c.Signers[0].Holder = "agent/deploy" },
	} {
		cfg := good()
		change(&cfg)
		if _, err := attestation.New(cfg, attestation.Deps{Name: "s", Statements: &rows{}}); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	if _, err := attestation.New(good(), attestation.Deps{}); err == nil {
		t.Error("taken without statements")
	}
}

// Two signatures: one listed signer is enough, and an agent of the run is passed over for the other.
func TestSeveralSignatures(t *testing.T) {
	agent := newSigner(t, "agent")
	d := newDesk(t, func(c *attestation.Config, deps *attestation.Deps) {
		c.Signers = append([]attestation.Signer{{Name: "agent", Holder: "agent/deploy", Key: attestation.Key{PEM: agent.PublicPEM()}}}, c.Signers...)
		deps.Acting = func(remit.RunID) []remit.Name { return nil }
	})
	st := scan("s", image("foo"), noon.Add(-time.Hour)).Statement()
	var a, b dsse.Envelope
	if err := json.Unmarshal(sign(t, agent, st), &a); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(sign(t, d.signer, st), &b); err != nil {
		t.Fatal(err)
	}
	a.Signatures = append(a.Signatures, b.Signatures...)
	env, err := json.Marshal(a)
	if err != nil {
		t.Fatal(err)
	}
	row, _, err := hand(d.source, env, "operator/ci", noon)
	if err != nil {
		t.Fatal(err)
	}
	d.all = append(d.all, row)
	if e := d.finds(need("s", image("foo"))); e.Signer != "trivy" {
		t.Errorf("signer %s", e.Signer)
	}
}
