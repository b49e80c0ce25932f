// SPDX-License-Identifier: Apache-2.0

package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// forge NAME from=TOKEN [header.X=V…] [claims.X=V…] [key=keep|own|none|public] [raw.header=JSON] [raw.claims=JSON]: a JWT that differs from a genuine one
// in exactly what is said. keep leaves the genuine signature; own signs by a key of the attacker's; none leaves the signature empty; public
// signs by HMAC with the server's public certificate as the key. A value of - takes a member away; numbers stay numbers.
func (a *attack) forge(ts *testscript.TestScript, args []string) error {
	m, err := pairs(args[1:])
	if err != nil {
		return err
	}
	parts := strings.Split(m["from"], ".")
	if len(parts) != 3 {
		return fmt.Errorf("from is no JWT")
	}
	var text [2]string
	for i, name := range []string{"header", "claims"} {
		if text[i], err = altered(parts[i], name, m); err != nil {
			return err
		}
	}
	signed := encode([]byte(text[0])) + "." + encode([]byte(text[1]))
	signature := parts[2]
	switch m["key"] {
	case "", "keep":
	case "none":
		signature = ""
	case "public":
		public, err := os.ReadFile(a.profile.Bundle)
		if err != nil {
			return err
		}
		mac := hmac.New(sha256.New, public)
		mac.Write([]byte(signed))
		signature = encode(mac.Sum(nil))
	case "own":
		if signature, err = signOwn(signed); err != nil {
			return err
		}
	default:
		return fmt.Errorf("no such key: %s", m["key"])
	}
	ts.Setenv(args[0], signed+"."+signature)
	return nil
}

func encode(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

func altered(part, name string, m map[string]string) (string, error) {
	b, err := base64.RawURLEncoding.DecodeString(part)
	if err != nil {
		return "", err
	}
	if raw, ok := m["raw."+name]; ok {
		return raw, nil
	}
	var v map[string]any
	dec := json.NewDecoder(strings.NewReader(string(b)))
	dec.UseNumber()
	if err := dec.Decode(&v); err != nil {
		return "", err
	}
	changed := false
	for k, to := range m {
		key, ok := strings.CutPrefix(k, name+".")
		if !ok {
			continue
		}
		changed = true
		if to == "-" {
			delete(v, key)
			continue
		}
		v[key] = value(to)
		if n, err := strconv.ParseInt(to, 10, 64); err == nil {
			v[key] = n
		}
	}
	if !changed {
		return string(b), nil // byte for byte: a kept signature stays good
	}
	b, err = json.Marshal(v)
	return string(b), err
}

func signOwn(signed string) (string, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256([]byte(signed))
	r, s, err := ecdsa.Sign(rand.Reader, key, sum[:])
	if err != nil {
		return "", err
	}
	sig := make([]byte, 64)
	r.FillBytes(sig[:32])
	s.FillBytes(sig[32:])
	return encode(sig), nil
}

// certificate NAME id=SPIFFE-ID[||SPIFFE-ID] [by=own|HOLDER] [ca=true]: a client certificate that the attacker signs himself: by an authority with the
// names of the real one, or with a key that he holds, such as that of an SVID.
func (a *attack) certificate(_ *testscript.TestScript, args []string) error {
	m, err := pairs(args[1:])
	if err != nil {
		return err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	leaf := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "agent"}, NotBefore: time.Now().Add(-time.Minute),
		NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, BasicConstraintsValid: true}
	for id := range strings.SplitSeq(m["id"], "||") {
		u, err := url.Parse(id)
		if err != nil {
			return err
		}
		leaf.URIs = append(leaf.URIs, u)
	}
	parent, signer, chain, err := a.authority(m["by"])
	if err != nil {
		return err
	}
	der, err := x509.CreateCertificate(rand.Reader, leaf, parent, &key.PublicKey, signer)
	if err != nil {
		return err
	}
	first, _, _ := strings.Cut(m["id"], "||")
	return a.hold(args[0], fetched{ID: first}, &tls.Certificate{Certificate: append([][]byte{der}, chain...), PrivateKey: key})
}

// authority is the attacker's: one that has the subject and key id of the real root, or a stolen leaf.
func (a *attack) authority(by string) (*x509.Certificate, any, [][]byte, error) {
	if h, ok := a.holders[by]; ok {
		c, err := x509.ParseCertificate(h.cert.Certificate[0])
		return c, h.cert.PrivateKey, h.cert.Certificate, err
	}
	b, err := os.ReadFile(a.profile.Bundle)
	if err != nil {
		return nil, nil, nil, err
	}
	block, _ := pem.Decode(b)
	if block == nil {
		return nil, nil, nil, fmt.Errorf("%s holds no certificate", a.profile.Bundle)
	}
	root, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, nil, nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, nil, err
	}
	twin := &x509.Certificate{SerialNumber: root.SerialNumber, RawSubject: root.RawSubject, SubjectKeyId: root.SubjectKeyId, NotBefore: root.NotBefore,
		NotAfter: root.NotAfter, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, URIs: root.URIs}
	der, err := x509.CreateCertificate(rand.Reader, twin, twin, &key.PublicKey, key)
	if err != nil {
		return nil, nil, nil, err
	}
	parent, err := x509.ParseCertificate(der)
	return parent, key, [][]byte{der}, err
}
