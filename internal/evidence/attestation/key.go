// SPDX-License-Identifier: Apache-2.0

package attestation

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
	"io"
	"os"

	"remit"
)

const (
	maxKeyBytes = 64 << 10
	minRSABits  = 2048
)

// signer is a Signer whose key was read.
type signer struct {
	name   string
	holder remit.Name
	key    crypto.PublicKey
	ids    []string // key ids that mean this key
}

func newSigner(s Signer) (signer, error) {
	key, der, err := readKey(s.Key)
	if err != nil {
		return signer{}, &remit.Error{Code: remit.CodeInvalid, Msg: fmt.Sprintf("key of signer %q", s.Name),
			Hint: "give the public key in PEM: ECDSA P-256 or P-384, Ed25519, or RSA of at least 2048 bits", Cause: err}
	}
	sum := sha256.Sum256(der)
	ids := []string{s.Name, hex.EncodeToString(sum[:])}
	if s.KeyID != "" {
		ids = append(ids, s.KeyID)
	}
	return signer{name: s.Name, holder: remit.Name(s.Holder), key: key, ids: ids}, nil
}

func readKey(k Key) (key crypto.PublicKey, der []byte, err error) {
	text := []byte(k.PEM)
	switch {
	case (k.File == "") == (k.PEM == ""):
		return nil, nil, errors.New("write exactly one of file and pem")
	case k.File != "":
		if text, err = readFile(k.File); err != nil {
			return nil, nil, err
		}
	}
	block, rest := pem.Decode(text)
	if block == nil || block.Type != "PUBLIC KEY" || len(bytes.TrimSpace(rest)) > 0 {
		return nil, nil, errors.New("not exactly one PEM block of type PUBLIC KEY")
	}
	key, err = x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, nil, fmt.Errorf("parse public key: %w", err)
	}
	return key, block.Bytes, strongEnough(key)
}

func readFile(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("open key file: %w", err)
	}
	defer func() { _ = f.Close() }() // only read
	b, err := io.ReadAll(io.LimitReader(f, maxKeyBytes+1))
	if err != nil {
		return nil, fmt.Errorf("read key file: %w", err)
	}
	if len(b) > maxKeyBytes {
		return nil, fmt.Errorf("key file is over %d bytes", maxKeyBytes)
	}
	return b, nil
}

func strongEnough(key crypto.PublicKey) error {
	switch k := key.(type) {
	case *ecdsa.PublicKey:
		//remit:guard S14 TestKeyKinds
		if k.Curve != elliptic.P256() && k.Curve != elliptic.P384() {
			return fmt.Errorf("curve %s is not P-256 or P-384", k.Curve.Params().Name)
		}
	case ed25519.PublicKey:
	case *rsa.PublicKey:
		//remit:guard S14 TestKeyKinds
		if k.N.BitLen() < minRSABits {
			return fmt.Errorf("an RSA key of %d bits is too short", k.N.BitLen())
		}
	default:
		return fmt.Errorf("a key of type %T is not supported", key)
	}
	return nil
}

// signed reports whether sig is s's signature over text. The key decides the algorithm, never the envelope. ECDSA P-384
// takes SHA-384 (securesystemslib) or SHA-256 (cosign); RSA takes PSS (securesystemslib) or PKCS #1 v1.5 (cosign), SHA-256.
func (s *signer) signed(text, sig []byte) bool {
	sum := sha256.Sum256(text)
	switch k := s.key.(type) {
	case *ecdsa.PublicKey:
		if ecdsa.VerifyASN1(k, sum[:], sig) {
			return true
		}
		long := sha512.Sum384(text)
		return k.Curve == elliptic.P384() && ecdsa.VerifyASN1(k, long[:], sig)
	case ed25519.PublicKey:
		return len(sig) == ed25519.SignatureSize && ed25519.Verify(k, text, sig)
	case *rsa.PublicKey:
		return rsa.VerifyPSS(k, crypto.SHA256, sum[:], sig, nil) == nil || rsa.VerifyPKCS1v15(k, crypto.SHA256, sum[:], sig) == nil
	}
	return false
}
