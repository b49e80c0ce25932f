// SPDX-License-Identifier: Apache-2.0

package bundle

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"

	"golang.org/x/crypto/ssh"
)

// PublicKey is an author's key: Ed25519, or ECDSA on P-256 or P-384.
type PublicKey struct {
	Name string // who, as the configuration says
	key  crypto.PublicKey
	id   string
}

// ID is the SHA-256 of the key's SubjectPublicKeyInfo in hex, the key id in envelopes.
func (k *PublicKey) ID() string { return k.id }

// ParsePublicKey reads PEM (PUBLIC KEY, as openssl pkey -pubout writes it) or a line of OpenSSH (ssh-ed25519 AAAA…).
func ParsePublicKey(name string, text []byte) (*PublicKey, error) {
	var key crypto.PublicKey
	block, _ := pem.Decode(text)
	switch {
	case block == nil:
		line, _, _, rest, err := ssh.ParseAuthorizedKey(text)
		if err != nil || len(rest) > 0 {
			return nil, errors.New("this is neither one PEM public key nor one line of OpenSSH")
		}
		wrapped, ok := line.(ssh.CryptoPublicKey)
		if !ok {
			return nil, fmt.Errorf("a key of type %s is not taken: use Ed25519 or ECDSA", line.Type())
		}
		key = wrapped.CryptoPublicKey()
	case block.Type != "PUBLIC KEY":
		return nil, fmt.Errorf("this is PEM of type %.40s, not a PUBLIC KEY", block.Type)
	default:
		var err error
		if key, err = x509.ParsePKIXPublicKey(block.Bytes); err != nil {
			return nil, fmt.Errorf("parse the public key: %w", err)
		}
	}
	return newPublicKey(name, key)
}

func newPublicKey(name string, key crypto.PublicKey) (*PublicKey, error) {
	switch k := key.(type) {
	case ed25519.PublicKey:
	case *ecdsa.PublicKey:
		if k.Curve != elliptic.P256() && k.Curve != elliptic.P384() {
			return nil, fmt.Errorf("curve %s is not taken: use P-256 or P-384", k.Curve.Params().Name)
		}
	default:
		return nil, fmt.Errorf("a key of type %T is not taken: use Ed25519 or ECDSA", key)
	}
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode the public key: %w", err)
	}
	sum := sha256.Sum256(der)
	return &PublicKey{Name: name, key: key, id: hex.EncodeToString(sum[:])}, nil
}

// verifies reports whether sig is a signature over text. The key decides the algorithm, never the envelope.
func (k *PublicKey) verifies(text, sig []byte) bool {
	switch key := k.key.(type) {
	case ed25519.PublicKey:
		return len(sig) == ed25519.SignatureSize && ed25519.Verify(key, text, sig)
	case *ecdsa.PublicKey:
		return ecdsa.VerifyASN1(key, hashFor(key.Curve, text), sig)
	}
	return false
}

// hashFor is SHA-256 for P-256 and SHA-384 for P-384, as securesystemslib has it.
func hashFor(curve elliptic.Curve, text []byte) []byte {
	if curve == elliptic.P384() {
		sum := sha512.Sum384(text)
		return sum[:]
	}
	sum := sha256.Sum256(text)
	return sum[:]
}

// PrivateKey signs for an author. It exists only in the author's own process, never in a server.
type PrivateKey struct {
	PublicKey
	signer crypto.Signer
}

// ParsePrivateKey reads what openssl and ssh-keygen write: PKCS #8, EC or OpenSSH PEM, without a passphrase or, for OpenSSH and the
// old PEM encryption, with it.
func ParsePrivateKey(text, passphrase []byte) (*PrivateKey, error) {
	raw, err := ssh.ParseRawPrivateKey(text)
	if _, wrapped := errors.AsType[*ssh.PassphraseMissingError](err); wrapped {
		if len(passphrase) == 0 {
			return nil, errors.New("the key is wrapped by a passphrase: set REMIT_PASSPHRASE")
		}
		raw, err = ssh.ParseRawPrivateKeyWithPassphrase(text, passphrase)
	}
	if err != nil {
		return nil, fmt.Errorf("parse the private key: %w", err)
	}
	if k, ok := raw.(*ed25519.PrivateKey); ok {
		raw = *k
	}
	signer, ok := raw.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("a key of type %T is not taken: use Ed25519 or ECDSA", raw)
	}
	pub, err := newPublicKey("", signer.Public())
	if err != nil {
		return nil, err
	}
	return &PrivateKey{*pub, signer}, nil
}

// NewPrivateKey makes an Ed25519 key.
func NewPrivateKey() (*PrivateKey, error) {
	_, signer, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	pub, err := newPublicKey("", signer.Public())
	if err != nil {
		return nil, err
	}
	return &PrivateKey{*pub, signer}, nil
}

// PEM returns the private key in PKCS #8 and the public one, as openssl reads them.
func (k *PrivateKey) PEM() (private, public []byte, err error) {
	der, err := x509.MarshalPKCS8PrivateKey(k.signer)
	if err != nil {
		return nil, nil, err
	}
	pub, err := x509.MarshalPKIXPublicKey(k.key)
	if err != nil {
		return nil, nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: pub}), nil
}

func (k *PrivateKey) sign(text []byte) ([]byte, error) {
	switch key := k.key.(type) {
	case *ecdsa.PublicKey:
		hash := crypto.SHA256
		if key.Curve == elliptic.P384() {
			hash = crypto.SHA384
		}
		return k.signer.Sign(rand.Reader, hashFor(key.Curve, text), hash)
	default:
		return k.signer.Sign(rand.Reader, text, crypto.Hash(0))
	}
}

func encode(b []byte) string { return base64.StdEncoding.EncodeToString(b) }
