// SPDX-License-Identifier: Apache-2.0

// Package evidencetest plays those who vouch, for tests and for the demo: it makes real keys, in-toto statements as scanners
// and builders write them, and DSSE envelopes signed over them. It checks nothing, and nothing in the product imports it.
package evidencetest

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"

	"github.com/secure-systems-lab/go-securesystemslib/dsse"
)

// PayloadType is the DSSE payload type of in-toto statements.
const PayloadType = "application/vnd.in-toto+json"

// Signer holds a key of its own. It is safe for concurrent use.
type Signer struct {
	Name string
	// NoKeyID leaves keyid out of envelopes, as cosign does.
	NoKeyID bool

	key   crypto.Signer
	pem   string
	keyID string
}

// NewSigner makes a signer with a fresh ECDSA P-256 key.
func NewSigner(name string) (*Signer, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make key of %s: %w", name, err)
	}
	return NewSignerFromKey(name, key)
}

// NewSignerFromKey takes an ECDSA, Ed25519 or RSA key.
func NewSignerFromKey(name string, key crypto.Signer) (*Signer, error) {
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, fmt.Errorf("encode key of %s: %w", name, err)
	}
	sum := sha256.Sum256(der)
	return &Signer{Name: name, key: key, keyID: hex.EncodeToString(sum[:]),
		pem: string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))}, nil
}

// PublicPEM returns the public key, as an EvidenceSource's file takes it.
func (s *Signer) PublicPEM() string { return s.pem }

// Envelope signs a statement.
func (s *Signer) Envelope(statement []byte) ([]byte, error) {
	return s.EnvelopeOf(PayloadType, statement)
}

// EnvelopeOf signs any payload: the DSSE envelope in JSON.
func (s *Signer) EnvelopeOf(payloadType string, payload []byte) ([]byte, error) {
	es, err := dsse.NewEnvelopeSigner(dsseSigner{s})
	if err != nil {
		return nil, fmt.Errorf("sign as %s: %w", s.Name, err)
	}
	env, err := es.SignPayload(context.Background(), payloadType, payload)
	if err != nil {
		return nil, fmt.Errorf("sign as %s: %w", s.Name, err)
	}
	return json.Marshal(env)
}

// dsseSigner is a Signer with the methods that DSSE's library asks for.
type dsseSigner struct{ s *Signer }

func (d dsseSigner) KeyID() (string, error) {
	if d.s.NoKeyID {
		return "", nil
	}
	return d.s.keyID, nil
}

// Sign signs the pre-authentication encoding: Ed25519 the bytes, RSA (PSS) and ECDSA their SHA-256.
func (d dsseSigner) Sign(_ context.Context, data []byte) ([]byte, error) {
	switch d.s.key.(type) {
	case ed25519.PrivateKey:
		return d.s.key.Sign(rand.Reader, data, crypto.Hash(0))
	case *rsa.PrivateKey:
		sum := sha256.Sum256(data)
		return d.s.key.Sign(rand.Reader, sum[:], &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: crypto.SHA256})
	}
	sum := sha256.Sum256(data)
	return d.s.key.Sign(rand.Reader, sum[:], crypto.SHA256)
}
