// SPDX-License-Identifier: Apache-2.0

// Package keyfile keeps key files wrapped. A Keeper turns the bytes of a key file into what is stored and back; the parts that have
// keys know nothing else of it, so that a TPM or a KMS can follow as another Keeper.
//
// The one Keeper here is a passphrase, in the format of age (age-encryption.org/v1): the file keeper.age holds an X25519 identity
// that is encrypted by scrypt of the passphrase, and every key file is encrypted to that identity. So the passphrase costs its
// second once, and changing it rewrites one file. Both can be read with the age command.
//
// The package starts no goroutine. An unlocked Keeper holds the identity in memory.
package keyfile

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"filippo.io/age"

	"remit"
	"remit/internal/durable"
)

// File is the name of the keeper in the folder of the keys.
const File = "keeper.age"

// minPassphrase is in bytes. A passphrase that people choose should be six random words.
const minPassphrase = 16

// maxFile bounds what is read of a stored file.
const maxFile = 2 << 20

const magic = "age-encryption.org/v1\n"

// Age keeps key files by an age identity. It is safe for concurrent use.
type Age struct{ identity *age.X25519Identity }

// Wrapped reports whether stored bytes are a wrapped file.
func Wrapped(stored []byte) bool { return bytes.HasPrefix(stored, []byte(magic)) }

// Wrap implements Keeper of the packages that have keys.
func (a *Age) Wrap(plain []byte) ([]byte, error) { return encrypt(plain, a.identity.Recipient()) }

// Unwrap is the reverse. A file that is not wrapped is refused: somebody put it there.
func (a *Age) Unwrap(stored []byte) ([]byte, error) {
	//remit:guard S7 TestPlainFileIsRefused
	if !Wrapped(stored) {
		return nil, errors.New("it is not wrapped, although the keys here are: was it put there by somebody else?")
	}
	return decrypt(stored, a.identity)
}

func encrypt(plain []byte, to age.Recipient) ([]byte, error) {
	var b bytes.Buffer
	w, err := age.Encrypt(&b, to)
	if err != nil {
		return nil, fmt.Errorf("wrap key file: %w", err)
	}
	_, err = w.Write(plain)
	if err := errors.Join(err, w.Close()); err != nil {
		return nil, fmt.Errorf("wrap key file: %w", err)
	}
	return b.Bytes(), nil
}

func decrypt(stored []byte, by age.Identity) ([]byte, error) {
	r, err := age.Decrypt(bytes.NewReader(stored), by)
	if err != nil {
		return nil, fmt.Errorf("unwrap key file: %w", err)
	}
	b, err := io.ReadAll(io.LimitReader(r, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("unwrap key file: %w", err)
	}
	if len(b) > maxFile {
		return nil, errors.New("unwrap key file: too long")
	}
	return b, nil
}

// check refuses passphrases that can be tried out.
func check(passphrase remit.Secret) error {
	//remit:guard S7 TestPassphrases
	if len(passphrase.Reveal()) < minPassphrase {
		return &remit.Error{Code: remit.CodeInvalid, Msg: fmt.Sprintf("the passphrase has fewer than %d bytes", minPassphrase),
			Hint: "take six random words, or openssl rand -base64 24"}
	}
	return nil
}

// Create makes a keeper in dir, which must have none. work is the cost of a guess, as age counts it; 0: about a second.
func Create(dir string, passphrase remit.Secret, work int) (*Age, error) {
	if err := check(passphrase); err != nil {
		return nil, err
	}
	id, err := age.GenerateX25519Identity()
	if err != nil {
		return nil, fmt.Errorf("make a keeper of keys: %w", err)
	}
	to, err := age.NewScryptRecipient(passphrase.Reveal())
	if err != nil {
		return nil, fmt.Errorf("make a keeper of keys: %w", err)
	}
	if work > 0 {
		to.SetWorkFactor(work)
	}
	b, err := encrypt([]byte(id.String()+"\n"), to)
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(dir, File), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, fmt.Errorf("make a keeper of keys: %w", err)
	}
	_, err = f.Write(b)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return nil, errors.Join(fmt.Errorf("make a keeper of keys: %w", err), os.Remove(f.Name()))
	}
	if err := durable.SyncFolder(dir); err != nil {
		return nil, fmt.Errorf("make a keeper of keys: %w", err)
	}
	return &Age{id}, nil
}

// Open unlocks the keeper in dir; without one it returns nil: the keys are plaintext. A keeper without its passphrase is an error,
// and so is a passphrase without a keeper: whoever gives one believes the keys to be wrapped.
func Open(dir string, passphrase remit.Secret) (*Age, error) {
	b, err := os.ReadFile(filepath.Join(dir, File))
	switch {
	case errors.Is(err, fs.ErrNotExist) && passphrase.IsZero():
		return nil, nil
	case errors.Is(err, fs.ErrNotExist):
		return nil, &remit.Error{Code: remit.CodeInvalid, Msg: "a passphrase is given, and the key files are not wrapped",
			Hint: "wrap them: remit keys wrap --passphrase-file FILE"}
	case err != nil:
		return nil, fmt.Errorf("read the keeper of keys: %w", err)
	case passphrase.IsZero():
		return nil, &remit.Error{Code: remit.CodeInvalid, Msg: "the key files are wrapped by a passphrase, and none is given",
			Hint: "--passphrase-file FILE, or the systemd credential remit-passphrase"}
	}
	by, err := age.NewScryptIdentity(passphrase.Reveal())
	if err != nil {
		return nil, fmt.Errorf("unlock the keys: %w", err)
	}
	plain, err := decrypt(b, by)
	if err != nil {
		return nil, &remit.Error{Code: remit.CodeInvalid, Msg: "the passphrase does not open " + filepath.Join(dir, File), Cause: err}
	}
	id, err := age.ParseX25519Identity(string(bytes.TrimSpace(plain)))
	if err != nil {
		return nil, errors.New("unlock the keys: the keeper's content is no age identity") // no cause: it may quote it
	}
	return &Age{id}, nil
}

// Rewrite wraps every key file of a folder in place: each is replaced whole, and one that is wrapped already is left alone, so that
// a run that was cut short can be repeated.
func (a *Age) Rewrite(dir string) (n int, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0, err
	}
	for _, e := range entries {
		name := filepath.Join(dir, e.Name())
		if !e.Type().IsRegular() || e.Name() == File {
			continue
		}
		b, err := os.ReadFile(name)
		if err != nil {
			return n, err
		}
		if Wrapped(b) {
			continue
		}
		if b, err = a.Wrap(b); err == nil {
			err = durable.Replace(name, b, 0o600)
		}
		if err != nil {
			return n, fmt.Errorf("wrap %s: %w", name, err)
		}
		n++
	}
	return n, nil
}

// Plain returns the names of the files in a folder that are not wrapped.
func Plain(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, e := range entries {
		if !e.Type().IsRegular() {
			continue
		}
		f, err := os.Open(filepath.Join(dir, e.Name()))
		if err != nil {
			return nil, err
		}
		head := make([]byte, len(magic))
		_, err = io.ReadFull(f, head)
		_ = f.Close() // only read
		if err != nil || !Wrapped(head) {
			out = append(out, e.Name())
		}
	}
	return out, nil
}
