// SPDX-License-Identifier: Apache-2.0

package store

import (
	"encoding/json"
	"fmt"

	"zombiezen.com/go/sqlite"

	"remit"
)

// What a ciphertext is for, as its additional data: one cannot stand in the other's place.
const (
	rowUse     = "remit state row"
	privateUse = "remit ledger payload"
)

// encryptedMark begins an encrypted row; every other one begins with {.
const encryptedMark = 1

// sensitive reports whether a row holds values that a workflow marks sensitive.
func sensitive(r remit.Row) bool {
	switch v := r.(type) {
	case remit.Run:
		return len(v.Sensitive) > 0
	case remit.Grant:
		return v.Sensitive
	case remit.Lease:
		return v.Sensitive
	case remit.Held:
		return true // its digest is of few possible values
	}
	return false
}

// encrypt returns the mark, the nonce and the ciphertext; nothing for nothing.
func (s *Store) encrypt(b []byte, use string) ([]byte, error) {
	if len(b) == 0 {
		return nil, nil
	}
	if s.cfg.Cipher == nil {
		return nil, &remit.Error{Code: remit.CodeInvalid, Msg: "sensitive values cannot be stored: the store has no key for them"}
	}
	nonce := make([]byte, s.cfg.Cipher.NonceSize()) // none where the cipher draws its own
	return s.cfg.Cipher.Seal([]byte{encryptedMark}, nonce, b, []byte(use)), nil
}

// decrypt reads what encrypt wrote; what is in clear comes back as it is.
func (s *Store) decrypt(b []byte, use string) ([]byte, error) {
	if len(b) == 0 || b[0] != encryptedMark {
		return b, nil
	}
	if s.cfg.Cipher == nil {
		return nil, &remit.Error{Code: remit.CodeInvalid, Msg: "sensitive values cannot be read: the store has no key for them"}
	}
	out, err := s.cfg.Cipher.Open(nil, nil, b[1:], []byte(use))
	if err != nil {
		return nil, &remit.Error{Code: remit.CodeInvalid, Msg: "sensitive values cannot be read with this key",
			Hint: "restore the key that they were written with: keys/state.key", Cause: err}
	}
	return out, nil
}

// decodeSealed reads the JSON body in a column, which may be encrypted.
func decodeSealed[T any](s *Store, st *sqlite.Stmt, col int) (*T, error) {
	body, err := s.decrypt(columnBytes(st, col), rowUse)
	if err != nil {
		return nil, err
	}
	row := new(T)
	if err := json.Unmarshal(body, row); err != nil {
		return nil, fmt.Errorf("stored %T is damaged: %w", *row, err)
	}
	return row, nil
}
