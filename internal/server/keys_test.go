// SPDX-License-Identifier: Apache-2.0

package server

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"remit"
	"remit/internal/api"
	"remit/internal/keyfile"
)

// secretsIn returns the names of files that hold key material in clear.
func secretsIn(t *testing.T, dir string) (out []string) {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, dirKeys, "*"))
	if err != nil || len(names) < 6 {
		t.Fatalf("%v %v", names, err)
	}
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(b, []byte("PRIVATE KEY")) || !keyfile.Wrapped(b) {
			out = append(out, filepath.Base(name))
		}
	}
	return out
}

// TestWrappedKeys: S7. With a passphrase no key file is in clear, from the first moment on and after rotation; without it, or with
// another, nothing starts.
func TestWrappedKeys(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "remit")
	passphrase := remit.NewSecret("six random words of a test")
	if err := Init(t.Context(), InitOptions{Dir: dir, TrustDomain: "company.com", Operator: "ci", HTTPS: "127.0.0.1:0", Passphrase: passphrase, Work: 10}); err != nil {
		t.Fatal(err)
	}
	if plain := secretsIn(t, dir); len(plain) > 0 {
		t.Errorf("in clear after init: %v", plain)
	}
	open := func(p remit.Secret) (*Server, error) {
		return New(t.Context(), Options{Dir: dir, Log: slog.New(slog.DiscardHandler), Version: "test", Passphrase: p})
	}
	for name, p := range map[string]remit.Secret{"none": {}, "another": remit.NewSecret("another six random words")} {
		if _, err := open(p); remit.CodeOf(err) != remit.CodeInvalid {
			t.Errorf("passphrase %s: %v", name, err)
		}
	}
	s, err := open(passphrase)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.ids.authority.Prepare(); err != nil {
		t.Fatal(err)
	}
	if plain := secretsIn(t, dir); len(plain) > 0 {
		t.Errorf("in clear after a rotation: %v", plain)
	}
	if c := s.checkKeys(); !c.OK || c.Warn {
		t.Errorf("doctor: %+v", c)
	}
	if err := s.store.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := RotateLedgerKey(t.Context(), dir, passphrase); err != nil {
		t.Fatal(err)
	}
	if plain := secretsIn(t, dir); len(plain) > 0 {
		t.Errorf("in clear after the ledger's key was rotated: %v", plain)
	}
}

// TestWrapKeys: an installation with plaintext keys gets wrapped ones when it is stopped; its identities stay.
func TestWrapKeys(t *testing.T) {
	f := setUp(t)
	passphrase := remit.NewSecret("six random words of a test")
	if _, err := WrapKeys(t.Context(), f.dir, passphrase, 10); remit.CodeOf(err) != remit.CodeConflict {
		t.Errorf("while it runs: %v", err)
	}
	var checks []api.Check
	if err := f.admin.Get(t.Context(), "/v1/doctor", nil, &checks); err != nil || checks[0].Name != "worth" || !strings.Contains(checks[0].Text, "key files") {
		t.Errorf("doctor: %+v %v", checks, err)
	}
	bundle, err := os.ReadFile(filepath.Join(f.dir, fileBundle))
	if err != nil {
		t.Fatal(err)
	}
	if err := f.stop(); err != nil {
		t.Fatal(err)
	}
	if n, err := WrapKeys(t.Context(), f.dir, passphrase, 10); err != nil || n < 6 {
		t.Errorf("%d wrapped: %v", n, err)
	}
	if plain := secretsIn(t, f.dir); len(plain) > 0 {
		t.Errorf("in clear: %v", plain)
	}
	if n, err := WrapKeys(t.Context(), f.dir, passphrase, 10); err != nil || n != 0 {
		t.Errorf("again: %d, %v", n, err)
	}
	if _, err := New(t.Context(), Options{Dir: f.dir, Log: slog.New(slog.DiscardHandler), Version: "test"}); remit.CodeOf(err) != remit.CodeInvalid {
		t.Errorf("without the passphrase: %v", err)
	}
	s, err := New(t.Context(), Options{Dir: f.dir, Log: slog.New(slog.DiscardHandler), Version: "test", Passphrase: passphrase})
	if err != nil {
		t.Fatal(err)
	}
	defer s.store.Close()
	pem, err := s.ids.authority.Bundle().X509Bundle().Marshal()
	if err != nil || !bytes.Equal(pem, bundle) {
		t.Errorf("the roots are others: %v", err)
	}
}
