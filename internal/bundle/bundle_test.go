// SPDX-License-Identifier: Apache-2.0

package bundle_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"remit"
	"remit/internal/bundle"
)

var files = map[string][]byte{"agents.yaml": []byte("kind: Agent\nname: deploy\n"), "rules/freeze.rego": []byte("package x\n")}

func newKey(t testing.TB) *bundle.PrivateKey {
	t.Helper()
	k, err := bundle.NewPrivateKey()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func public(t testing.TB, name string, k *bundle.PrivateKey) *bundle.PublicKey {
	t.Helper()
	_, pub, err := k.PEM()
	if err != nil {
		t.Fatal(err)
	}
	p, err := bundle.ParsePublicKey(name, pub)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func make1(t testing.TB, before *bundle.Bundle, files map[string][]byte, by ...*bundle.PrivateKey) *bundle.Bundle {
	t.Helper()
	b, err := bundle.New(bundle.OfConfiguration, "company.com", files, before)
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range by {
		if err := b.Sign(k); err != nil {
			t.Fatal(err)
		}
	}
	return parse(t, b.Bytes())
}

func parse(t testing.TB, raw []byte) *bundle.Bundle {
	t.Helper()
	b, err := bundle.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// refused wants a refusal of its own with a next step.
func refused(t *testing.T, err error, want bundle.Refusal) {
	t.Helper()
	e, ok := errors.AsType[*remit.Error](err)
	if !errors.Is(err, want) || !ok || e.Code != remit.CodeInvalid || e.Hint == "" {
		t.Errorf("%v (%+v); want %s with a next step", err, e, want)
	}
}

func TestSignedBundle(t *testing.T) {
	alice, bob := newKey(t), newKey(t)
	authors := bundle.Authors{Keys: []*bundle.PublicKey{public(t, "alice", alice), public(t, "bob", bob)}, Threshold: 2}
	b := make1(t, nil, files, bob, alice)
	names, err := authors.Verify(b)
	if err != nil || !slices.Equal(names, []string{"alice", "bob"}) {
		t.Fatalf("%v, %v", names, err)
	}
	if err := errors.Join(b.Covers(files), b.IsFor(bundle.OfConfiguration, "company.com"), b.Follows(bundle.Active{})); err != nil {
		t.Error(err)
	}
	next := make1(t, b, files)
	if next.Version != 2 || next.Previous != b.Digest() {
		t.Errorf("next: %+v", next.Manifest)
	}
}

// edit returns an envelope whose members were changed.
func edit(t *testing.T, raw []byte, change func(map[string]any)) []byte {
	t.Helper()
	var e map[string]any
	if err := json.Unmarshal(raw, &e); err != nil {
		t.Fatal(err)
	}
	change(e)
	out, err := json.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestVerifyRefuses(t *testing.T) {
	alice, bob, mallory := newKey(t), newKey(t), newKey(t)
	authors := bundle.Authors{Keys: []*bundle.PublicKey{public(t, "alice", alice), public(t, "bob", bob)}, Threshold: 2}
	both := make1(t, nil, files, alice, bob).Bytes()
	for name, c := range map[string]struct {
		raw  []byte
		want bundle.Refusal
	}{
		"nobody":                 {make1(t, nil, files).Bytes(), bundle.Missing},
		"one":                    {make1(t, nil, files, alice).Bytes(), bundle.Missing},
		"stranger":               {make1(t, nil, files, alice, mallory).Bytes(), bundle.Unknown},
		"stranger beside enough": {make1(t, nil, files, alice, bob, mallory).Bytes(), bundle.Unknown},
		"twice": {edit(t, both, func(e map[string]any) {
			s := e["signatures"].([]any)
			e["signatures"] = []any{s[0], s[0]}
		}), bundle.Twice},
		"signature of another manifest": {edit(t, both, func(e map[string]any) {
			e["signatures"] = edited(t, make1(t, nil, map[string][]byte{"a.yaml": nil}, alice, bob).Bytes())["signatures"]
		}), bundle.BadSigning},
		"manifest of another": {edit(t, both, func(e map[string]any) {
			e["payload"] = edited(t, make1(t, nil, map[string][]byte{"a.yaml": nil}).Bytes())["payload"]
		}), bundle.BadSigning},
		"key id of another": {edit(t, both, func(e map[string]any) {
			s := e["signatures"].([]any)
			s[0].(map[string]any)["sig"] = s[1].(map[string]any)["sig"]
		}), bundle.BadSigning},
		"flipped": {edit(t, both, func(e map[string]any) {
			s := e["signatures"].([]any)[0].(map[string]any)
			sig, _ := base64.StdEncoding.DecodeString(s["sig"].(string))
			sig[7] ^= 1
			s["sig"] = base64.StdEncoding.EncodeToString(sig)
		}), bundle.BadSigning},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := authors.Verify(parse(t, c.raw))
			refused(t, err, c.want)
		})
	}
	// One person with two keys counts once, and a signing tool says so at once.
	two := bundle.Authors{Keys: []*bundle.PublicKey{public(t, "alice", alice), public(t, "alice", bob)}, Threshold: 2}
	_, err := two.Verify(parse(t, both))
	refused(t, err, bundle.Twice)
	refused(t, parse(t, both).Sign(alice), bundle.Twice)
}

// TestStandingForgetsRemovedKeys: what is active stays active without a removed key when the others are enough, and no longer.
func TestStandingForgetsRemovedKeys(t *testing.T) {
	alice, bob := newKey(t), newKey(t)
	b := make1(t, nil, files, alice, bob)
	left := bundle.Authors{Keys: []*bundle.PublicKey{public(t, "bob", bob)}, Threshold: 1}
	if names, err := left.Standing(b); err != nil || !slices.Equal(names, []string{"bob"}) {
		t.Errorf("%v, %v", names, err)
	}
	_, err := left.Standing(make1(t, nil, files, alice))
	refused(t, err, bundle.Missing)
}

func edited(t *testing.T, raw []byte) map[string]any {
	t.Helper()
	var e map[string]any
	if err := json.Unmarshal(raw, &e); err != nil {
		t.Fatal(err)
	}
	return e
}

func TestCovers(t *testing.T) {
	b := make1(t, nil, files)
	for name, change := range map[string]func(map[string][]byte){
		"changed": func(m map[string][]byte) { m["agents.yaml"] = []byte("kind: Agent\nname: other\n") },
		"added":   func(m map[string][]byte) { m["more.yaml"] = nil },
		"removed": func(m map[string][]byte) { delete(m, "agents.yaml") },
		"renamed": func(m map[string][]byte) { m["b.yaml"] = m["agents.yaml"]; delete(m, "agents.yaml") },
	} {
		t.Run(name, func(t *testing.T) {
			m := maps.Clone(files)
			change(m)
			refused(t, b.Covers(m), bundle.Changed)
		})
	}
}

func TestOfAnother(t *testing.T) {
	b := make1(t, nil, files)
	refused(t, b.IsFor(bundle.OfCeiling, "company.com"), bundle.OfAnother)
	refused(t, b.IsFor(bundle.OfConfiguration, "other.com"), bundle.OfAnother)
}

func TestFollows(t *testing.T) {
	one := make1(t, nil, files)
	two := make1(t, one, map[string][]byte{"a.yaml": nil})
	three := make1(t, two, files)
	active := bundle.Active{Version: 2, Manifest: two.Digest()}
	if err := errors.Join(two.Follows(active), three.Follows(active)); err != nil {
		t.Error(err)
	}
	refused(t, one.Follows(active), bundle.Replayed)
	refused(t, make1(t, one, map[string][]byte{"b.yaml": nil}).Follows(active), bundle.Taken)
	refused(t, make1(t, make1(t, one, files), files).Follows(active), bundle.NotNext)
	refused(t, make1(t, three, files).Follows(active), bundle.NotNext)
	leap := parse(t, edit(t, three.Bytes(), func(e map[string]any) {
		e["payload"] = base64.StdEncoding.EncodeToString([]byte(`{"of":"configuration","for":"company.com","version":9,"previous":"` + string(two.Digest()) + `","files":{}}`))
	}))
	refused(t, leap.Follows(active), bundle.NotNext)
}

func TestParseRefuses(t *testing.T) {
	good := make1(t, nil, files, newKey(t)).Bytes()
	payload := func(text string) []byte {
		return edit(t, good, func(e map[string]any) { e["payload"] = base64.StdEncoding.EncodeToString([]byte(text)) })
	}
	for name, raw := range map[string][]byte{
		"empty":             nil,
		"no JSON":           []byte("kind: Bundle"),
		"too long":          bytes.Repeat([]byte(" "), bundle.MaxEnvelope+1),
		"payload type":      edit(t, good, func(e map[string]any) { e["payloadType"] = "application/vnd.in-toto+json" }),
		"payload":           edit(t, good, func(e map[string]any) { e["payload"] = "%" }),
		"signature":         edit(t, good, func(e map[string]any) { e["signatures"].([]any)[0].(map[string]any)["sig"] = "%" }),
		"many signatures":   edit(t, good, func(e map[string]any) { e["signatures"] = slices.Repeat(e["signatures"].([]any), 33) }),
		"unknown member":    payload(`{"of":"configuration","for":"a","version":1,"previous":"","files":{},"more":1}`),
		"member twice":      payload(`{"of":"configuration","for":"a","version":1,"version":2,"previous":"","files":{}}`),
		"other case":        payload(`{"Of":"configuration","for":"a","version":1,"previous":"","files":{}}`),
		"spaces":            payload(`{"of":"configuration","for":"a","version":1,"previous":"","files":{} }`),
		"more behind":       payload(`{"of":"configuration","for":"a","version":1,"previous":"","files":{}}{}`),
		"version 0":         payload(`{"of":"configuration","for":"a","version":0,"previous":"","files":{}}`),
		"version too great": payload(`{"of":"configuration","for":"a","version":18446744073709551615,"previous":"","files":{}}`),
		"negative":          payload(`{"of":"configuration","for":"a","version":-1,"previous":"","files":{}}`),
	} {
		t.Run(name, func(t *testing.T) {
			_, err := bundle.Parse(raw)
			refused(t, err, bundle.Malformed)
		})
	}
}

// TestKeys: what openssl and ssh-keygen write is read; weak and foreign keys are not.
func TestKeys(t *testing.T) {
	for name, curve := range map[string]elliptic.Curve{"P-256": elliptic.P256(), "P-384": elliptic.P384()} {
		t.Run(name, func(t *testing.T) {
			raw, err := ecdsa.GenerateKey(curve, rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			der, _ := x509.MarshalECPrivateKey(raw)
			k, err := bundle.ParsePrivateKey(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), nil)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := (bundle.Authors{Keys: []*bundle.PublicKey{public(t, "a", k)}, Threshold: 1}).Verify(make1(t, nil, files, k)); err != nil {
				t.Error(err)
			}
			line, err := ssh.NewPublicKey(&raw.PublicKey)
			if err != nil {
				t.Fatal(err)
			}
			if p, err := bundle.ParsePublicKey("a", ssh.MarshalAuthorizedKey(line)); err != nil || p.ID() != k.ID() {
				t.Errorf("OpenSSH: %v", err)
			}
			block, err := ssh.MarshalPrivateKeyWithPassphrase(raw, "", []byte("secret"))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := bundle.ParsePrivateKey(pem.EncodeToMemory(block), nil); err == nil || !strings.Contains(err.Error(), "REMIT_PASSPHRASE") {
				t.Errorf("without the passphrase: %v", err)
			}
			if p, err := bundle.ParsePrivateKey(pem.EncodeToMemory(block), []byte("secret")); err != nil || p.ID() != k.ID() {
				t.Errorf("with the passphrase: %v", err)
			}
		})
	}
	k := newKey(t)
	private, _, _ := k.PEM()
	if again, err := bundle.ParsePrivateKey(private, nil); err != nil || again.ID() != k.ID() {
		t.Errorf("PKCS #8: %v", err)
	}
	p521, _ := ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	weak, _ := rsa.GenerateKey(rand.Reader, 2048)
	for name, key := range map[string]any{"P-521": &p521.PublicKey, "RSA": &weak.PublicKey} {
		der, _ := x509.MarshalPKIXPublicKey(key)
		if _, err := bundle.ParsePublicKey("a", pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
	for _, text := range [][]byte{nil, []byte("key"), private} {
		if _, err := bundle.ParsePublicKey("a", text); err == nil {
			t.Errorf("%.20q is taken for a public key", text)
		}
	}
}

func FuzzParse(f *testing.F) {
	k := newKey(f)
	f.Add(make1(f, nil, files, k).Bytes())
	f.Fuzz(func(t *testing.T, raw []byte) {
		b, err := bundle.Parse(raw)
		if err != nil {
			return
		}
		again, err := bundle.Parse(b.Bytes())
		if err != nil || again.Digest() != b.Digest() {
			t.Errorf("not the same again: %v", err)
		}
	})
}
