// SPDX-License-Identifier: Apache-2.0

// Package signing is the public keys with which signed statements and bundles are verified: which kinds are taken, how strong they must be,
// and what a signature over a text is. The key decides the algorithm, never the envelope. It signs nothing and starts no goroutine.
package signing

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
)

const minRSABits = 2048

// Key is a public key that may verify: ECDSA on P-256 or P-384, Ed25519, or RSA of at least 2048 bits. The zero Key verifies nothing.
type Key struct {
	public crypto.PublicKey
	id     string
}

// Parse reads exactly one PEM block of type PUBLIC KEY, as openssl pkey -pubout writes it.
func Parse(text []byte) (Key, error) {
	block, rest := pem.Decode(text)
	if block == nil || block.Type != "PUBLIC KEY" || len(bytes.TrimSpace(rest)) > 0 {
		return Key{}, errors.New("not exactly one PEM block of type PUBLIC KEY")
	}
	public, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return Key{}, fmt.Errorf("parse public key: %w", err)
	}
	return New(public)
}

// New takes a key that is strong enough.
func New(public crypto.PublicKey) (Key, error) {
	if err := strongEnough(public); err != nil {
		return Key{}, err
	}
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return Key{}, fmt.Errorf("encode public key: %w", err)
	}
	sum := sha256.Sum256(der)
	return Key{public, hex.EncodeToString(sum[:])}, nil
}

// ID is the SHA-256 of the key's SubjectPublicKeyInfo in hex.
func (k Key) ID() string { return k.id }

// Public returns the key itself.
func (k Key) Public() crypto.PublicKey { return k.public }

func strongEnough(public crypto.PublicKey) error {
	switch k := public.(type) {
	case *ecdsa.PublicKey:
		//remit:guard S14 TestKeyKinds internal/evidence/attestation
		if k.Curve != elliptic.P256() && k.Curve != elliptic.P384() {
			return fmt.Errorf("curve %s is not P-256 or P-384", k.Curve.Params().Name)
		}
	case ed25519.PublicKey:
	case *rsa.PublicKey:
		//remit:guard S14 TestKeyKinds internal/evidence/attestation
		if k.N.BitLen() < minRSABits {
			return fmt.Errorf("an RSA key of %d bits is too short", k.N.BitLen())
		}
	default:
		return fmt.Errorf("a key of type %T is not supported", public)
	}
	return nil
}

// Verifies reports whether sig is a signature over text. ECDSA P-384 takes SHA-384 (securesystemslib) or SHA-256 (cosign); RSA takes PSS
// (securesystemslib) or PKCS #1 v1.5 (cosign), SHA-256.
func (k Key) Verifies(text, sig []byte) bool {
	sum := sha256.Sum256(text)
	switch p := k.public.(type) {
	case *ecdsa.PublicKey:
		if ecdsa.VerifyASN1(p, sum[:], sig) {
			return true
		}
		long := sha512.Sum384(text)
		return p.Curve == elliptic.P384() && ecdsa.VerifyASN1(p, long[:], sig)
	case ed25519.PublicKey:
		return len(sig) == ed25519.SignatureSize && ed25519.Verify(p, text, sig)
	case *rsa.PublicKey:
		return rsa.VerifyPSS(p, crypto.SHA256, sum[:], sig, nil) == nil || rsa.VerifyPKCS1v15(p, crypto.SHA256, sum[:], sig) == nil
	}
	return false
}
