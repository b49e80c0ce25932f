// SPDX-License-Identifier: Apache-2.0

package ledger_test

import (
	"bytes"
	"path/filepath"
	"testing"

	"remit/internal/ledger"
)

func newKey(t *testing.T, name string) *ledger.Key {
	t.Helper()
	k, err := ledger.CreateKey(filepath.Join(t.TempDir(), "key"), name)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func rotate(t *testing.T, old, next *ledger.Key, upTo uint64) []byte {
	t.Helper()
	text, err := ledger.NewRotation(old, next, upTo)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// S34: after rotations the log verifies from the first key, from the last, and from one between; the first key signs nothing
// more.
func TestRotation(t *testing.T) {
	w := newWorld(t)
	first := w.key
	stop := w.sequence(t)
	receipts := w.commit(t, 5)
	w.published(t, 5)
	stop()
	old := verify(t, w.open(t), ledger.VerifyOptions{})
	remembered, err := w.open(t).Checkpoint()
	if err != nil || !old.Complete() {
		t.Fatal(err, old)
	}
	second, third := newKey(t, first.Name()), newKey(t, first.Name())
	for _, text := range [][]byte{rotate(t, first, second, 5), rotate(t, second, third, 5)} {
		if err := ledger.AddRotation(w.log, text); err != nil {
			t.Fatal(err)
		}
	}
	if r := verify(t, w.open(t), ledger.VerifyOptions{}); !r.Complete() {
		t.Fatalf("before the next checkpoint: %+v", r)
	}
	if err := w.store.Close(); err != nil {
		t.Fatal(err)
	}
	w.key = third
	w.openStore(t)
	stop = w.sequence(t)
	receipts = append(receipts, w.commit(t, 7)...)
	w.published(t, 12)
	stop()
	for name, key := range map[string]*ledger.Key{"first": first, "second": second, "third": third} {
		log, err := ledger.OpenLog(w.log, key.Public())
		if err != nil {
			t.Fatal(name, err)
		}
		r := verify(t, log, ledger.VerifyOptions{Receipts: receipts, Remembered: [][]byte{remembered.Note}})
		if !r.Complete() || r.Size != 12 || log.Key().String() != third.Public().String() {
			t.Errorf("from the %s key: %+v", name, r)
		}
	}
	// What the first key signs about entries after its end counts for nothing.
	chain, err := first.Public().Follow([][]byte{rotate(t, first, second, 5)})
	if err != nil {
		t.Fatal(err)
	}
	forged := receipts[len(receipts)-1]
	_, sig, err := first.SignBatch(forged.First, forged.Size, [32]byte(forged.Leaf))
	if err != nil {
		t.Fatal(err)
	}
	forged.Signature, forged.Path, forged.First, forged.Size = sig, nil, forged.Seq, 1
	if _, sig, err = first.SignBatch(forged.First, 1, [32]byte(forged.Leaf)); err != nil {
		t.Fatal(err)
	}
	forged.Signature = sig
	if err := ledger.VerifyReceipt(forged, nil, first.Public()); err != nil {
		t.Fatalf("the receipt is no good to begin with: %v", err)
	}
	if err := ledger.VerifyReceipt(forged, nil, chain); err == nil {
		t.Error("a key that was replaced still signs")
	}
}

func TestRotationNeedsBothKeys(t *testing.T) {
	a, b, c, other := newKey(t, "company.com/remit"), newKey(t, "company.com/remit"), newKey(t, "company.com/remit"), newKey(t, "other.com/remit")
	ab, bc, ac := rotate(t, a, b, 5), rotate(t, b, c, 9), rotate(t, a, c, 9)
	if _, err := ledger.NewRotation(a, other, 5); err == nil {
		t.Error("a key of another name is taken")
	}
	last := func(text []byte) []byte { // without its last signature
		return text[:bytes.LastIndex(bytes.TrimSuffix(text, []byte("\n")), []byte("\n"))+1]
	}
	for name, notes := range map[string][][]byte{
		"one signature":        {last(ab)},
		"a changed size":       {bytes.Replace(ab, []byte("\n5\n"), []byte("\n6\n"), 1)},
		"a gap":                {ab, ac},
		"reversed":             {bc, ab},
		"smaller than before":  {ab, rotate(t, b, c, 4)},
		"garbage":              {[]byte("hello\n")},
		"another's chain":      {rotate(t, b, c, 5)},
		"the same key again":   {rotate(t, a, a, 5)},
		"a line more":          {append(bytes.Clone(ab), "x\n"...)},
		"a chain that goes on": {ab, bc, ab},
	} {
		if key, err := a.Public().Follow(notes); err == nil {
			t.Errorf("%s: %s", name, key)
		}
	}
	if key, err := a.Public().Follow([][]byte{ab, bc}); err != nil || key.String() != c.Public().String() {
		t.Errorf("%v", err)
	}
}
