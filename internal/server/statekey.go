// SPDX-License-Identifier: Apache-2.0

package server

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strings"

	"remit"
)

// fileStateKey encrypts what workflows mark sensitive in the stored state. Backups of the state do not hold it.
const fileStateKey = "keys/state.key"

// openStateKey reads the key, or makes one where there is none yet. A file that others may read or write is refused.
func openStateKey(path string, keeper keeper) (cipher.AEAD, error) {
	key, err := readStateKey(path, keeper)
	if errors.Is(err, os.ErrNotExist) {
		key, err = createStateKey(path, keeper)
	}
	return stateCipher(key, err)
}

// readStateCipher reads the key of a state that exists: a new one would lose what the old one encrypted.
func readStateCipher(path string, keeper keeper) (cipher.AEAD, error) {
	key, err := readStateKey(path, keeper)
	//remit:guard S33 TestStateKeyIsNotMadeAnew
	if errors.Is(err, os.ErrNotExist) {
		return nil, &remit.Error{Code: remit.CodeInvalid, Msg: "the key of the state is missing: " + path, Hint: "restore it from where it was kept"}
	}
	return stateCipher(key, err)
}

func stateCipher(key []byte, err error) (cipher.AEAD, error) {
	if err != nil {
		return nil, fmt.Errorf("open the key of the state: %w", err)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("open the key of the state: %w", err)
	}
	return cipher.NewGCMWithRandomNonce(block)
}

func readStateKey(path string, keeper keeper) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Mode().Perm()&0o077 != 0 || info.Size() > 1<<10 {
		return nil, &remit.Error{Code: remit.CodeInvalid, Msg: fmt.Sprintf("%s is open to others (mode %04o), or no key", path, info.Mode().Perm()),
			Hint: "chmod 600 it"}
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	if keeper != nil {
		if text, err = keeper.Unwrap(text); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
	}
	key, err := hex.DecodeString(strings.TrimSpace(string(text)))
	if err != nil || len(key) != 32 {
		return nil, &remit.Error{Code: remit.CodeInvalid, Msg: path + " is no key of a state", Hint: "restore it from where it was kept"} // no cause: it may quote the key
	}
	return key, nil
}

func createStateKey(path string, keeper keeper) ([]byte, error) {
	key := make([]byte, 32)
	_, _ = rand.Read(key) // never fails
	text := fmt.Appendln(nil, hex.EncodeToString(key))
	if keeper != nil {
		var err error
		if text, err = keeper.Wrap(text); err != nil {
			return nil, err
		}
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	_, err = f.Write(text)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return nil, errors.Join(err, os.Remove(path))
	}
	return key, nil
}
