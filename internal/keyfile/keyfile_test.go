// SPDX-License-Identifier: Apache-2.0

package keyfile_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"remit"
	"remit/internal/keyfile"
)

const work = 10 // cheap guesses

var passphrase = remit.NewSecret("six random words of a test")

func TestWrap(t *testing.T) {
	dir := t.TempDir()
	if k, err := keyfile.Open(dir, remit.Secret{}); k != nil || err != nil {
		t.Fatalf("nothing there: %v %v", k, err)
	}
	k, err := keyfile.Create(dir, passphrase, work)
	if err != nil {
		t.Fatal(err)
	}
	stored, err := k.Wrap([]byte("a key"))
	if err != nil || bytes.Contains(stored, []byte("a key")) || !keyfile.Wrapped(stored) {
		t.Fatalf("%q %v", stored, err)
	}
	again, err := keyfile.Open(dir, passphrase)
	if err != nil {
		t.Fatal(err)
	}
	if plain, err := again.Unwrap(stored); err != nil || string(plain) != "a key" {
		t.Errorf("%q %v", plain, err)
	}
	stored[len(stored)-1] ^= 1
	if plain, err := again.Unwrap(stored); err == nil {
		t.Errorf("one flipped bit: %q", plain)
	}
	if _, err := keyfile.Create(dir, passphrase, work); err == nil {
		t.Error("a second keeper in the place of the first")
	}
	if info, err := os.Stat(filepath.Join(dir, keyfile.File)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info.Mode(), err)
	}
}

// TestPassphrases: wrong, absent, short, needless: each is an error, and none quotes a passphrase.
func TestPassphrases(t *testing.T) {
	dir, empty := t.TempDir(), t.TempDir()
	if _, err := keyfile.Create(dir, passphrase, work); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]func() (*keyfile.Age, error){
		"wrong":    func() (*keyfile.Age, error) { return keyfile.Open(dir, remit.NewSecret("another six random words")) },
		"absent":   func() (*keyfile.Age, error) { return keyfile.Open(dir, remit.Secret{}) },
		"needless": func() (*keyfile.Age, error) { return keyfile.Open(empty, passphrase) },
		"short":    func() (*keyfile.Age, error) { return keyfile.Create(empty, remit.NewSecret("secret-word"), work) },
	} {
		k, err := c()
		if k != nil || remit.CodeOf(err) != remit.CodeInvalid || strings.Contains(err.Error(), "random words") && name != "short" {
			t.Errorf("%s: %v %v", name, k, err)
		}
	}
}

// TestPlainFileIsRefused: where keys are wrapped, a plaintext key file was put there by somebody who does not know the keeper.
func TestPlainFileIsRefused(t *testing.T) {
	k, err := keyfile.Create(t.TempDir(), passphrase, work)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := k.Unwrap([]byte(`{"v":1}`)); err == nil || !strings.Contains(err.Error(), "put there by somebody") {
		t.Errorf("%q %v", b, err)
	}
}

func TestRewrite(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"one", "two"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("key "+name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if plain, err := keyfile.Plain(dir); err != nil || len(plain) != 2 {
		t.Errorf("%v %v", plain, err)
	}
	k, err := keyfile.Create(dir, passphrase, work)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []int{2, 0} {
		n, err := k.Rewrite(dir)
		if err != nil || n != want {
			t.Errorf("%d %v", n, err)
		}
	}
	b, err := os.ReadFile(filepath.Join(dir, "one"))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := k.Unwrap(b); err != nil || string(got) != "key one" {
		t.Errorf("%q %v", got, err)
	}
	if plain, err := keyfile.Plain(dir); err != nil || len(plain) != 0 {
		t.Errorf("%v %v", plain, err)
	}
}
