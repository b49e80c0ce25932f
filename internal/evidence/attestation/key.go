// SPDX-License-Identifier: Apache-2.0

package attestation

import (
	"errors"
	"fmt"
	"io"
	"os"

	"remit"
	"remit/internal/signing"
)

const maxKeyBytes = 64 << 10

// signer is a Signer whose key was read.
type signer struct {
	name   string
	holder remit.Name
	key    signing.Key
	ids    []string // key ids that mean this key
}

func newSigner(s Signer) (signer, error) {
	key, err := readKey(s.Key)
	if err != nil {
		return signer{}, &remit.Error{Code: remit.CodeInvalid, Msg: fmt.Sprintf("key of signer %q", s.Name),
			Hint: "give the public key in PEM: ECDSA P-256 or P-384, Ed25519, or RSA of at least 2048 bits", Cause: err}
	}
	ids := []string{s.Name, key.ID()}
	if s.KeyID != "" {
		ids = append(ids, s.KeyID)
	}
	return signer{name: s.Name, holder: remit.Name(s.Holder), key: key, ids: ids}, nil
}

func readKey(k Key) (signing.Key, error) {
	text := []byte(k.PEM)
	switch {
	case (k.File == "") == (k.PEM == ""):
		return signing.Key{}, errors.New("write exactly one of file and pem")
	case k.File != "":
		var err error
		if text, err = readFile(k.File); err != nil {
			return signing.Key{}, err
		}
	}
	return signing.Parse(text)
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
