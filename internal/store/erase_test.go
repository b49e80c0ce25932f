// SPDX-License-Identifier: Apache-2.0

package store_test

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"encoding/base64"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"remit"
	"remit/internal/store"
)

func aead(t *testing.T, first byte) cipher.AEAD {
	t.Helper()
	block, err := aes.NewCipher(append([]byte{first}, make([]byte, 31)...))
	if err != nil {
		t.Fatal(err)
	}
	c, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// sealed is an event that commits to a value.
func sealed(value string, sensitive bool) remit.Event {
	s := &remit.Seal{Sensitive: map[string]bool{"customer": sensitive}}
	data := append(s.Append([]byte(`{"args":{"customer":`), "args", "customer", remit.AppendJSONString(nil, value)), "}}"...)
	return remit.Event{At: time.Unix(1, 0), Kind: remit.EventDecision, Run: "run-a", Data: data, Payload: s.Payload, Private: s.Private}
}

// inFiles reports whether the store's files hold a text, as it is or in base64 at any alignment.
func inFiles(t *testing.T, path, text string) bool {
	t.Helper()
	var needles [][]byte
	for i := range 3 {
		enc := base64.RawURLEncoding.EncodeToString(append(make([]byte, i), text...))
		needles = append(needles, []byte(enc[4:len(enc)-4]))
	}
	needles = append(needles, []byte(text))
	for _, suffix := range []string{"", "-wal"} {
		b, err := os.ReadFile(path + suffix)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		for _, n := range needles {
			if bytes.Contains(b, n) {
				return true
			}
		}
	}
	return false
}

// S33: what was erased is in no file of the store; its entry is as it was.
func TestErasedIsInNoFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	s := open(t, store.Config{Path: path})
	secret := "customer-" + string(bytes.Repeat([]byte("0123456789"), 2000)) // over several pages
	var events []remit.Event
	for range 20 {
		events = append(events, sealed("another value of another person", false))
	}
	events[7] = sealed(secret, false)
	if _, err := s.Commit(t.Context(), remit.Change{Events: events}); err != nil {
		t.Fatal(err)
	}
	before, _, err := s.Entry(8)
	if err != nil || len(before.Disclosures()) != 1 || !inFiles(t, path, secret[:60]) {
		t.Fatalf("%v: the value is not there to begin with", err)
	}
	if _, err := s.Commit(t.Context(), remit.Change{Rows: []remit.Row{remit.Erasure{Entries: []uint64{8}}}}); err != nil {
		t.Fatal(err)
	}
	after, _, err := s.Entry(8)
	if err != nil || !bytes.Equal(after.Body, before.Body) || len(after.Payload) != 0 || len(after.Open().Erased) != 1 {
		t.Fatalf("%v: %+v", err, after)
	}
	for end := time.Now().Add(20 * time.Second); inFiles(t, path, secret[:60]); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the erased value is still in the store's files")
		}
	}
	if other, _, err := s.Entry(9); err != nil || len(other.Disclosures()) != 1 {
		t.Errorf("%v: another entry's payload is gone, too", err)
	}
}

// S33: rows and payloads with sensitive values are encrypted, and cannot be read or written without the key.
func TestSensitiveRowsAreEncrypted(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	s := open(t, store.Config{Path: path, Cipher: aead(t, 1)})
	const secret = "customer-0123456789-0123456789-0123456789"
	value := map[string]remit.Value{"customer": remit.StringValue(secret)}
	r := remit.Run{ID: remit.NewRunID(), State: remit.RunActive, Params: value, Sensitive: []string{"customer"}}
	g := remit.Grant{ID: remit.NewGrantID(), State: remit.GrantActive, Scope: value, Sensitive: true}
	l := remit.Lease{ID: remit.NewLeaseID(), Grant: g.ID, State: remit.GrantActive, Scope: value, Sensitive: true}
	_, err := s.Commit(t.Context(), remit.Change{Rows: []remit.Row{r, g, l}, Events: []remit.Event{sealed(secret, true)}})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if inFiles(t, path, secret) {
		t.Error("the value is in the store's files")
	}
	s = open(t, store.Config{Path: path, Cipher: aead(t, 1)})
	back, ok := s.Run(r.ID)
	grant, _ := s.Grant(g.ID)
	lease, _ := s.Lease(l.ID)
	e, _, err := s.Entry(1)
	if err != nil || !ok || back.Params["customer"].Text() != secret || grant.Scope["customer"].Text() != secret || lease.Scope["customer"].Text() != secret {
		t.Errorf("%v: the rows cannot be read", err)
	}
	if d := e.Reveal().Disclosures(); len(d) != 1 || len(e.Disclosures()) != 0 {
		t.Errorf("disclosures %v", d)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := store.Open(store.Config{Path: path, Sign: signBatch, Cipher: aead(t, 2)}); err == nil {
		t.Error("another key opens the rows")
	}
	s = open(t, store.Config{Path: filepath.Join(t.TempDir(), "db")})
	if _, err := s.Commit(t.Context(), remit.Change{Events: []remit.Event{sealed(secret, true)}}); remit.CodeOf(err) != remit.CodeInvalid {
		t.Errorf("without a key: %v", err)
	}
}
