// SPDX-License-Identifier: Apache-2.0

// Package ledger is the tamper-evident log: it moves the store's durable events, in order, into a Merkle log on disk (C2SP
// tlog-tiles), signs checkpoints and receipts with one Ed25519 key, and proves and verifies from files and the public key
// alone.
//
// It never writes to the store, never decides what is recorded, and never calls a log complete that has a gap. It starts no
// goroutine; its one loop is Sequencer.Run.
package ledger

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/mod/sumdb/note"

	"remit"
)

// Key is the ledger's Ed25519 signing key in the form of a signed note (golang.org/x/mod/sumdb/note). Its name is the log's
// origin. It is safe for concurrent use.
type Key struct {
	signer note.Signer
	public PublicKey
}

// PublicKey verifies checkpoints and receipts. The zero PublicKey verifies nothing.
type PublicKey struct {
	verifier note.Verifier
	text     string
	former   []former // keys that it replaced, the oldest first (Follow)
}

// maxKeyFile bounds key files, in bytes.
const maxKeyFile = 1 << 12

// Keeper turns the bytes of a key file into what is stored and back: a passphrase, a TPM, a KMS.
type Keeper interface {
	Wrap(plain []byte) ([]byte, error)
	Unwrap(stored []byte) ([]byte, error)
}

// CreateKey makes a plaintext key file; see CreateKeyBy.
func CreateKey(path, name string) (*Key, error) { return CreateKeyBy(nil, path, name) }

// CreateKeyBy makes a key and writes it, wrapped by the keeper (nil: plaintext), to path, which must not exist, with mode 0600,
// durably. The name is the log's origin, such as "company.com/remit": no spaces, no "+".
func CreateKeyBy(keeper Keeper, path, name string) (*Key, error) {
	private, public, err := note.GenerateKey(rand.Reader, name)
	if err != nil {
		return nil, &remit.Error{Code: remit.CodeInvalid, Msg: fmt.Sprintf("%.80q cannot name a ledger key", name),
			Hint: "use the trust domain and a word, such as company.com/remit", Cause: err}
	}
	b := fmt.Appendf(nil, "%s\n%s\n", private, public)
	if keeper != nil {
		if b, err = keeper.Wrap(b); err != nil {
			return nil, fmt.Errorf("create the ledger key: %w", err)
		}
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, fmt.Errorf("create the ledger key: %w", err)
	}
	_, err = f.Write(b)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return nil, errors.Join(fmt.Errorf("create the ledger key: %w", err), os.Remove(path))
	}
	return newKey(private, public)
}

// LoadKey reads a plaintext key that CreateKey wrote; see LoadKeyBy.
func LoadKey(path string) (*Key, error) { return LoadKeyBy(nil, path) }

// LoadKeyBy reads a key that CreateKeyBy wrote. A file that others may read or write is refused.
func LoadKeyBy(keeper Keeper, path string) (*Key, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("load the ledger key: %w", err)
	}
	defer f.Close() //nolint:errcheck // only read
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("load the ledger key: %w", err)
	}
	//remit:guard S7 TestKeys
	if info.Mode().Perm()&0o077 != 0 {
		return nil, &remit.Error{Code: remit.CodeInvalid, Msg: fmt.Sprintf("the ledger key %s is open to others (mode %04o)", path,
			info.Mode().Perm()), Hint: "chmod 600 it, and replace the key if others could read it"}
	}
	b, err := io.ReadAll(io.LimitReader(f, maxKeyFile))
	if err != nil {
		return nil, fmt.Errorf("load the ledger key: %w", err)
	}
	if keeper != nil {
		if b, err = keeper.Unwrap(b); err != nil {
			return nil, fmt.Errorf("load the ledger key %s: %w", path, err)
		}
	}
	private, public, ok := strings.Cut(strings.TrimSuffix(string(b), "\n"), "\n")
	if !ok {
		return nil, &remit.Error{Code: remit.CodeInvalid, Msg: fmt.Sprintf("%s is not a ledger key", path)}
	}
	return newKey(private, public)
}

func newKey(private, public string) (*Key, error) {
	signer, err := note.NewSigner(private)
	if err != nil {
		return nil, &remit.Error{Code: remit.CodeInvalid, Msg: "the ledger's private key is malformed"} // no cause: it may quote the key
	}
	k := &Key{signer: signer}
	if k.public, err = ParsePublicKey(public); err != nil {
		return nil, err
	}
	probe := []byte("remit ledger key\n")
	sig, err := signer.Sign(probe)
	//remit:guard S7 TestKeys
	if err != nil || k.public.verifier.Name() != signer.Name() || !k.public.verifier.Verify(probe, sig) {
		return nil, &remit.Error{Code: remit.CodeInvalid, Msg: "the two halves of the ledger key do not belong together"}
	}
	return k, nil
}

// ParsePublicKey parses "NAME+HASH+BASE64", the form that Public prints and that auditors are given.
func ParsePublicKey(s string) (PublicKey, error) {
	s = strings.TrimSpace(s)
	v, err := note.NewVerifier(s)
	if err != nil {
		return PublicKey{}, &remit.Error{Code: remit.CodeInvalid, Msg: fmt.Sprintf("%.80q is not a ledger's public key", s),
			Hint: "it looks like NAME+HASH+BASE64; remit init prints it", Cause: err}
	}
	return PublicKey{verifier: v, text: s}, nil
}

// Name is the key's name and the log's origin.
func (k *Key) Name() string { return k.signer.Name() }

// Public returns the half that verifies.
func (k *Key) Public() PublicKey { return k.public }

// SignBatch signs the root over one batch of entries, for store.Config.Sign.
func (k *Key) SignBatch(first, size uint64, root [32]byte) (key string, signature []byte, err error) {
	signature, err = k.signer.Sign(batchText(k.Name(), first, size, root[:]))
	return k.Name(), signature, err
}

// Name is the key's name and the log's origin; empty for the zero PublicKey.
func (p PublicKey) Name() string {
	if p.verifier == nil {
		return ""
	}
	return p.verifier.Name()
}

// String returns the form that ParsePublicKey reads.
func (p PublicKey) String() string { return p.text }

// Verifier returns the key for tools that read signed notes.
func (p PublicKey) Verifier() note.Verifier { return p.verifier }

// verifies reports whether the key, or one that it replaced after a log of this size, signed text.
func (p PublicKey) verifies(text, signature []byte, size uint64) bool {
	for _, v := range p.verifiers(size) {
		if v.Verify(text, signature) {
			return true
		}
	}
	return false
}
