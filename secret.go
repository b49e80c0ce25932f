// SPDX-License-Identifier: Apache-2.0

package remit

import (
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"log/slog"
)

// Secret holds credential material: a token, a password, a private key. It shows itself in no log, error, format verb or
// JSON. The pointer matters: fmt prints unexported fields by reflection, past every method; with a plain string a struct
// that embeds a Secret would leak it. The zero Secret is empty.
type Secret struct{ value *string }

// NewSecret wraps value. The caller should keep no other copy.
func NewSecret(value string) Secret { return Secret{value: &value} }

// Reveal returns the material. Every call is a place to review.
func (s Secret) Reveal() string {
	if s.value == nil {
		return ""
	}
	return *s.value
}

// IsZero reports whether there is no material.
func (s Secret) IsZero() bool { return s.value == nil || *s.value == "" }

// Equal compares in time that depends only on the lengths.
func (s Secret) Equal(o Secret) bool {
	return subtle.ConstantTimeCompare([]byte(s.Reveal()), []byte(o.Reveal())) == 1
}

// Format writes a placeholder for every verb.
func (Secret) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "[secret]") }

// LogValue writes a placeholder.
func (Secret) LogValue() slog.Value { return slog.StringValue("[secret]") }

// MarshalText writes a placeholder, also inside JSON and YAML.
func (Secret) MarshalText() ([]byte, error) { return []byte("[secret]"), nil }

// UnmarshalText refuses: configuration names where a secret is, never the secret itself (S7).
func (*Secret) UnmarshalText([]byte) error {
	return errors.New("a secret cannot be written here: use {file: PATH} or {env: NAME}")
}
