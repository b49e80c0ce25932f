// SPDX-License-Identifier: Apache-2.0

package ledger_test

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"remit"
	"remit/internal/ledger"
)

func fuzzKey(f *testing.F) *ledger.Key {
	f.Helper()
	key, err := ledger.CreateKey(filepath.Join(f.TempDir(), "key"), "company.com/remit")
	if err != nil {
		f.Fatal(err)
	}
	return key
}

func FuzzParseReceipt(f *testing.F) {
	key := fuzzKey(f)
	good, err := json.Marshal(remit.Receipt{Seq: 1, Leaf: make([]byte, 32), First: 1, Size: 1, Path: [][]byte{}, Key: key.Name(),
		Signature: make([]byte, 64)})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{"seq":18446744073709551615,"first":18446744073709551615,"size":2,"leaf":"","path":null}`))
	f.Add([]byte("{}\n{}"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if r, err := ledger.ParseReceipt(b); err == nil && ledger.VerifyReceipt(r, nil, key.Public()) == nil {
			t.Fatalf("a receipt that nobody signed verifies: %s", b)
		}
		_, _ = ledger.ReadReceipts(bytes.NewReader(b))
	})
}

func FuzzParseCheckpoint(f *testing.F) {
	key := fuzzKey(f)
	f.Add([]byte("company.com/remit\n1\nAAAA\n\n— company.com/remit AAAA\n"))
	f.Add([]byte(""))
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := ledger.ParseCheckpoint(b, key.Public()); err == nil {
			t.Fatalf("a checkpoint that nobody signed verifies: %s", b)
		}
	})
}

// FuzzEntryBundle puts any bytes into the place of a log's only bundle: they are refused unless they are the bundle.
func FuzzEntryBundle(f *testing.F) {
	w := newWorld(f)
	stop := w.sequence(f)
	w.commit(f, 3)
	w.published(f, 3)
	stop()
	path := filepath.Join(w.log, "tile/entries/000.p/3")
	good, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good[:40])
	f.Add([]byte{0, 5, '{', '"', 'v', '"', ':'})
	f.Fuzz(func(t *testing.T, b []byte) {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := w.open(t).Verify(context.Background(), ledger.VerifyOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if r.Intact() != bytes.Equal(b, good) {
			t.Fatalf("%x: %+v", b, r)
		}
	})
}
