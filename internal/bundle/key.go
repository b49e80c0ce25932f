// SPDX-License-Identifier: Apache-2.0

package bundle

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"

	"golang.org/x/crypto/ssh"

	"remit/internal/signing"
)

// PublicKey is an author's key: Ed25519, or ECDSA on P-256 or P-384.
type PublicKey struct {
	signing.Key
	Name string // who, as the configuration says
}

// ParsePublicKey reads PEM (PUBLIC KEY, as openssl pkey -pubout writes it) or a line of OpenSSH (ssh-ed25519 AAAA…).
func ParsePublicKey(name string, text []byte) (*PublicKey, error) {
	if block, _ := pem.Decode(text); block != nil {
		key, err := signing.Parse(text)
		if err != nil {
			return nil, err
		}
		return newPublicKey(name, key.Public())
	}
	line, _, _, rest, err := ssh.ParseAuthorizedKey(text)
	if err != nil || len(rest) > 0 {
		return nil, errors.New("this is neither one PEM public key nor one line of OpenSSH")
	}
	wrapped, ok := line.(ssh.CryptoPublicKey)
	if !ok {
		return nil, fmt.Errorf("a key of type %s is not taken: use Ed25519 or ECDSA", line.Type())
	}
	return newPublicKey(name, wrapped.CryptoPublicKey())
}

// newPublicKey takes no RSA: nothing makes such keys for authors.
func newPublicKey(name string, public crypto.PublicKey) (*PublicKey, error) {
	if _, ok := public.(*rsa.PublicKey); ok {
		return nil, errors.New("an RSA key is not taken: use Ed25519 or ECDSA")
	}
	key, err := signing.New(public)
	if err != nil {
		return nil, fmt.Errorf("%w: use Ed25519 or ECDSA on P-256 or P-384", err)
	}
	return &PublicKey{key, name}, nil
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
	pub, err := x509.MarshalPKIXPublicKey(k.Public())
	if err != nil {
		return nil, nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: pub}), nil
}

// sign hashes with SHA-384 for P-384, else SHA-256, as securesystemslib has it; Ed25519 hashes by itself.
func (k *PrivateKey) sign(text []byte) ([]byte, error) {
	public, ok := k.Public().(*ecdsa.PublicKey)
	if !ok {
		return k.signer.Sign(rand.Reader, text, crypto.Hash(0))
	}
	if public.Curve == elliptic.P384() {
		sum := sha512.Sum384(text)
		return k.signer.Sign(rand.Reader, sum[:], crypto.SHA384)
	}
	sum := sha256.Sum256(text)
	return k.signer.Sign(rand.Reader, sum[:], crypto.SHA256)
}

func encode(b []byte) string { return base64.StdEncoding.EncodeToString(b) }
