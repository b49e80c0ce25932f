// SPDX-License-Identifier: Apache-2.0

package ledger_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/transparency-dev/merkle/rfc6962"
	"github.com/transparency-dev/tessera/api"
	"github.com/transparency-dev/tessera/api/layout"

	"remit"
	"remit/internal/ledger"
)

// tampered is a real log of 600 entries that each case damages in its own copy.
type tampered struct {
	dir        string
	receipts   []remit.Receipt
	remembered []byte // the checkpoint at 300 entries
	old        string // a copy of the log at 300 entries
	world      *world
}

func newTampered(t *testing.T) *tampered {
	t.Helper()
	w := newWorld(t)
	stop := w.sequence(t)
	receipts := w.commit(t, 300)
	w.published(t, 300)
	stop()
	cp, err := w.open(t).Checkpoint()
	if err != nil {
		t.Fatal(err)
	}
	old := copyLog(t, w.log)
	stop = w.sequence(t)
	receipts = append(receipts, w.commit(t, 300)...)
	w.published(t, 600)
	stop()
	return &tampered{dir: w.log, receipts: receipts, remembered: cp.Note, old: old, world: w}
}

func copyLog(t *testing.T, dir string) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "copy")
	if err := os.CopyFS(out, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	return out
}

func (x *tampered) verify(t *testing.T, dir string, opts ledger.VerifyOptions) ledger.Report {
	t.Helper()
	l, err := ledger.OpenLog(dir, x.world.key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return verify(t, l, opts)
}

// bundle rewrites the entries of a bundle file.
func editBundle(t *testing.T, dir string, index uint64, partial uint8, edit func([][]byte) [][]byte) {
	t.Helper()
	path := filepath.Join(dir, layout.EntriesPath(index, partial))
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var b api.EntryBundle
	if err := b.UnmarshalText(raw); err != nil {
		t.Fatal(err)
	}
	var out []byte
	for _, e := range edit(b.Entries) {
		out = append(binary.BigEndian.AppendUint16(out, uint16(len(e))), e...)
	}
	if err := os.WriteFile(path, out, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestTampering(t *testing.T) {
	x := newTampered(t)
	if r := x.verify(t, x.dir, ledger.VerifyOptions{Remembered: [][]byte{x.remembered}, Receipts: x.receipts, Tail: x.world.store}); !r.Complete() {
		t.Fatalf("the log itself: %+v", r)
	}
	for _, c := range []struct {
		name string
		do   func(t *testing.T, dir string)
		kind ledger.ProblemKind
		seq  uint64
	}{
		{"entry changed", func(t *testing.T, dir string) {
			editBundle(t, dir, 0, 0, func(es [][]byte) [][]byte {
				es[6] = bytes.Replace(es[6], []byte(`"n":`), []byte(`"m":`), 1)
				return es
			})
		}, ledger.ProblemEntry, 7},
		{"entry removed", func(t *testing.T, dir string) {
			editBundle(t, dir, 1, 0, func(es [][]byte) [][]byte { return slices.Delete(es, 4, 5) })
		}, ledger.ProblemNumber, 261},
		{"last entry removed", func(t *testing.T, dir string) {
			editBundle(t, dir, 2, 88, func(es [][]byte) [][]byte { return es[:87] })
		}, ledger.ProblemMissing, 513},
		{"entry inserted", func(t *testing.T, dir string) {
			editBundle(t, dir, 0, 0, func(es [][]byte) [][]byte { return slices.Insert(es, 9, es[9]) })
		}, ledger.ProblemNumber, 11},
		{"entries reordered", func(t *testing.T, dir string) {
			editBundle(t, dir, 0, 0, func(es [][]byte) [][]byte { es[20], es[21] = es[21], es[20]; return es })
		}, ledger.ProblemNumber, 21},
		{"lowest tile changed", func(t *testing.T, dir string) { flip(t, filepath.Join(dir, layout.TilePath(0, 1, 0)), 32*3) },
			ledger.ProblemTile, 260},
		{"upper tile changed", func(t *testing.T, dir string) { flip(t, filepath.Join(dir, layout.TilePath(1, 0, 2)), 32) },
			ledger.ProblemTile, 257},
		{"entry and every hash above it changed", rewriteEntry, ledger.ProblemRoot, 0},
		{"bundle gone", func(t *testing.T, dir string) { remove(t, filepath.Join(dir, layout.EntriesPath(1, 0))) },
			ledger.ProblemMissing, 257},
		{"tile gone", func(t *testing.T, dir string) { remove(t, filepath.Join(dir, layout.TilePath(0, 0, 0))) },
			ledger.ProblemMissing, 1},
		{"checkpoint gone", func(t *testing.T, dir string) { remove(t, filepath.Join(dir, "checkpoint")) }, ledger.ProblemCheckpoint, 0},
		{"checkpoint size changed", func(t *testing.T, dir string) {
			path := filepath.Join(dir, "checkpoint")
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, bytes.Replace(b, []byte("\n600\n"), []byte("\n599\n"), 1), 0o600); err != nil {
				t.Fatal(err)
			}
		}, ledger.ProblemCheckpoint, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := copyLog(t, x.dir)
			c.do(t, dir)
			r := x.verify(t, dir, ledger.VerifyOptions{})
			i := slices.IndexFunc(r.Problems, func(p ledger.Problem) bool { return p.Kind == c.kind && p.Seq == c.seq })
			if i < 0 {
				t.Fatalf("no %s at %d: %+v", c.kind, c.seq, r.Problems)
			}
			t.Log(r.Problems[i].What)
		})
	}
}

// rewriteEntry changes an entry as somebody would who can write all files but has no key: with every hash above it.
func rewriteEntry(t *testing.T, dir string) {
	t.Helper()
	var hashes [][]byte
	editBundle(t, dir, 0, 0, func(es [][]byte) [][]byte {
		es[6] = bytes.Replace(es[6], []byte(`"n":`), []byte(`"m":`), 1)
		for _, e := range es {
			hashes = append(hashes, rfc6962.DefaultHasher.HashLeaf(e))
		}
		return es
	})
	write := func(path string, nodes [][]byte) {
		if err := os.WriteFile(filepath.Join(dir, path), bytes.Join(nodes, nil), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(layout.TilePath(0, 0, 0), hashes)
	for len(hashes) > 1 {
		for i := range len(hashes) / 2 {
			hashes[i] = rfc6962.DefaultHasher.HashChildren(hashes[2*i], hashes[2*i+1])
		}
		hashes = hashes[:len(hashes)/2]
	}
	path := layout.TilePath(1, 0, 2)
	upper, err := os.ReadFile(filepath.Join(dir, path))
	if err != nil {
		t.Fatal(err)
	}
	write(path, [][]byte{hashes[0], upper[32:]})
}

// Every bit counts: one flipped in any place of any file that is part of the log is found.
func TestOneFlippedBit(t *testing.T) {
	x := newTampered(t)
	dir := copyLog(t, x.dir)
	var files []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && !strings.Contains(path, "/.") {
			files = append(files, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for n, path := range files {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		for k := range 12 {
			at := int64((k*7919+n*104729)%int(info.Size())) * 1
			flip(t, path, at)
			r := x.verify(t, dir, ledger.VerifyOptions{})
			if r.Intact() {
				t.Errorf("a flipped bit at byte %d of %s is not found", at, filepath.Base(path))
			}
			flip(t, path, at)
		}
	}
	if r := x.verify(t, dir, ledger.VerifyOptions{}); !r.Intact() {
		t.Fatalf("%+v", r)
	}
	t.Logf("%d files", len(files))
}

func flip(t *testing.T, path string, at int64) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[at] ^= 1 << (at % 7)
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(path + ".p"); err != nil {
		t.Fatal(err)
	}
}

func TestRollBack(t *testing.T) {
	x := newTampered(t)
	l := x.world.open(t)
	file := filepath.Join(t.TempDir(), "remembered")
	if _, err := l.Remember(t.Context(), file); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Remember(t.Context(), file); err != nil {
		t.Fatalf("the same checkpoint again: %v", err)
	}
	newest, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	old, err := ledger.OpenLog(x.old, x.world.key.Public())
	if err != nil {
		t.Fatal(err)
	}
	// The old log is a perfect log: only memory, or a receipt, tells.
	if r := verify(t, old, ledger.VerifyOptions{}); !r.Complete() {
		t.Fatalf("%+v", r)
	}
	r := verify(t, old, ledger.VerifyOptions{Remembered: [][]byte{newest}})
	if len(r.Problems) != 1 || r.Problems[0].Kind != ledger.ProblemRollback || r.Problems[0].Seq != 301 {
		t.Fatalf("%+v", r)
	}
	_, err = old.Remember(t.Context(), file)
	wantCode(t, err, remit.CodeInvalid)
	if again, _ := os.ReadFile(file); !bytes.Equal(again, newest) {
		t.Fatal("the remembered checkpoint was lost")
	}
	r = verify(t, old, ledger.VerifyOptions{Receipts: x.receipts})
	if r.Complete() || r.Unsequenced == nil || *r.Unsequenced != (ledger.Gap{First: 301, Last: 600}) {
		t.Fatalf("%+v", r)
	}
	// Without receipts beyond it the store names the gap.
	r = verify(t, old, ledger.VerifyOptions{Tail: x.world.store})
	if !r.Intact() || r.Unsequenced == nil || *r.Unsequenced != (ledger.Gap{First: 301, Last: 600}) {
		t.Fatalf("%+v", r)
	}
	forward, err := os.ReadFile(filepath.Join(x.old, "checkpoint"))
	if err != nil {
		t.Fatal(err)
	}
	cp, err := ledger.ParseCheckpoint(forward, x.world.key.Public())
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Consistent(t.Context(), cp); err != nil {
		t.Fatalf("the log that grew: %v", err)
	}
}

// A log that was written anew with the true key is perfect in itself, and still not the one that was remembered.
func TestRewritten(t *testing.T) {
	x := newTampered(t)
	other := newWorld(t)
	forged := &world{dir: other.dir, log: other.log, key: x.world.key, store: other.store}
	stop := forged.sequence(t)
	forged.commit(t, 700)
	forged.published(t, 700)
	stop()
	l := forged.open(t)
	if r := verify(t, l, ledger.VerifyOptions{}); !r.Complete() {
		t.Fatalf("%+v", r)
	}
	has := func(r ledger.Report, kind ledger.ProblemKind) bool {
		return slices.ContainsFunc(r.Problems, func(p ledger.Problem) bool { return p.Kind == kind })
	}
	if r := verify(t, l, ledger.VerifyOptions{Remembered: [][]byte{x.remembered}}); !has(r, ledger.ProblemRewritten) {
		t.Fatalf("%+v", r)
	}
	if r := verify(t, l, ledger.VerifyOptions{Receipts: x.receipts[:5]}); !has(r, ledger.ProblemReceipt) {
		t.Fatalf("%+v", r)
	}
	results, err := l.Audit(t.Context(), held(x.receipts[:5]))
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range results {
		if a.Status != ledger.AuditMissing {
			t.Fatalf("%+v", a)
		}
	}
	cp, err := ledger.ParseCheckpoint(x.remembered, x.world.key.Public())
	if err != nil {
		t.Fatal(err)
	}
	if l.Consistent(t.Context(), cp) == nil {
		t.Fatal("a rewritten log is consistent")
	}
	now, err := l.Checkpoint()
	if err != nil {
		t.Fatal(err)
	}
	twoHeads := now
	twoHeads.Root[0] ^= 1
	if l.Consistent(t.Context(), twoHeads) == nil {
		t.Fatal("two heads of one size are consistent")
	}
}

// An entry with a receipt that is in neither log nor store was dropped; the gap is never called complete.
func TestDroppedEntry(t *testing.T) {
	w := newWorld(t)
	stop := w.sequence(t)
	receipts := w.commit(t, 20)
	w.published(t, 20)
	stop()
	receipts = append(receipts, w.commit(t, 5)...)
	r := verify(t, w.open(t), ledger.VerifyOptions{Receipts: receipts, Tail: w.store})
	if !r.Intact() || r.Complete() || *r.Unsequenced != (ledger.Gap{First: 21, Last: 25}) {
		t.Fatalf("%+v", r)
	}
	r = verify(t, w.open(t), ledger.VerifyOptions{Receipts: receipts, Tail: short{w, 23}})
	if r.Intact() || r.Problems[0].Seq != 24 || r.Problems[0].Kind != ledger.ProblemReceipt {
		t.Fatalf("%+v", r)
	}
	results, err := w.open(t).Audit(t.Context(), held(receipts))
	if err != nil {
		t.Fatal(err)
	}
	for i, a := range results {
		want := ledger.AuditProven
		if i >= 20 {
			want = ledger.AuditUnsequenced
		}
		if a.Status != want {
			t.Fatalf("receipt %d: %+v", i, a)
		}
	}
	results, err = w.open(t).Audit(t.Context(), held([]remit.Receipt{{Seq: 1}}))
	if err != nil || results[0].Status != ledger.AuditFalse {
		t.Fatal(results, err)
	}
}

// held are receipts whose answers nobody wrote down.
func held(receipts []remit.Receipt) []ledger.Promise {
	out := make([]ledger.Promise, len(receipts))
	for i, r := range receipts {
		out[i].Receipt = r
	}
	return out
}

// A server that answers allow with the receipt of a denial is found out.
func TestReceiptOfAnotherAnswer(t *testing.T) {
	w := newWorld(t)
	stop := w.sequence(t)
	id := remit.NewDecisionID()
	r, err := w.store.Commit(t.Context(), remit.Change{Events: []remit.Event{
		{Kind: remit.EventDecision, At: testEvent(1).At, Decision: id, By: "remit", Data: []byte(`{"id":"` + string(id) + `","effect":"deny"}`)}}})
	if err != nil {
		t.Fatal(err)
	}
	w.published(t, 1)
	stop()
	for want, p := range map[ledger.AuditStatus][]ledger.Promise{
		ledger.AuditProven: {{Receipt: r, Decision: id, Effect: "deny"}, {Receipt: r}},
		ledger.AuditOther:  {{Receipt: r, Decision: id, Effect: "allow"}, {Receipt: r, Decision: remit.NewDecisionID(), Effect: "deny"}},
	} {
		results, err := w.open(t).Audit(t.Context(), p)
		if err != nil || results[0].Status != want || results[1].Status != want {
			t.Errorf("want %s: %+v, %v", want, results, err)
		}
	}
}

// short is a store that lost its last entries.
type short struct {
	w    *world
	last uint64
}

func (s short) Entries(after uint64, limit int) ([]remit.Entry, error) {
	es, err := s.w.store.Entries(after, limit)
	return slices.DeleteFunc(es, func(e remit.Entry) bool { return e.Seq > s.last }), err
}

// A store whose tail was changed behind the receipts' back is found.
func TestChangedTail(t *testing.T) {
	w := newWorld(t)
	defer w.sequence(t)()
	w.published(t, 0)
	other := newWorld(t)
	receipts := other.commit(t, 3)
	l, err := ledger.OpenLog(w.log, other.key.Public())
	if err != nil {
		t.Fatal(err)
	}
	if r := verify(t, l, ledger.VerifyOptions{}); r.Intact() {
		t.Fatal("another key's checkpoint verifies")
	}
	r := verify(t, w.open(t), ledger.VerifyOptions{Receipts: receipts})
	if r.Intact() {
		t.Fatal("another key's receipts verify")
	}
	if fmt.Sprint(r.Problems[0].Kind) != string(ledger.ProblemReceipt) {
		t.Fatalf("%+v", r)
	}
}

// forged is a store that answers whatever it likes.
type forged []remit.Entry

func (f forged) Entries(after uint64, _ int) ([]remit.Entry, error) {
	return slices.DeleteFunc(slices.Clone(f), func(e remit.Entry) bool { return e.Seq <= after }), nil
}

// A store's tail is not believed either: a hole, a number that is not the entry's, and an entry that a receipt does not
// vouch for are named.
func TestForgedTail(t *testing.T) {
	w := newWorld(t)
	stop := w.sequence(t)
	w.commit(t, 3)
	w.published(t, 3)
	stop()
	receipts := w.commit(t, 3)
	tail, err := w.store.Entries(3, 10)
	if err != nil || len(tail) != 3 {
		t.Fatal(len(tail), err)
	}
	changed := slices.Clone(tail)
	changed[1].Body = bytes.Replace(changed[1].Body, []byte(`"n":`), []byte(`"m":`), 1)
	renumbered := slices.Clone(tail)
	renumbered[2].Body = tail[1].Body
	for name, c := range map[string]struct {
		tail     forged
		receipts []remit.Receipt
		kind     ledger.ProblemKind
		seq      uint64
	}{
		"a hole":                 {forged{tail[0], tail[2]}, nil, ledger.ProblemMissing, 5},
		"another's number":       {renumbered, nil, ledger.ProblemNumber, 6},
		"not the receipt's":      {changed, receipts, ledger.ProblemReceipt, 5},
		"nothing wrong with it ": {tail, receipts, "", 0},
	} {
		r := verify(t, w.open(t), ledger.VerifyOptions{Tail: c.tail, Receipts: c.receipts})
		if c.kind == "" && !r.Intact() || c.kind != "" && !slices.ContainsFunc(r.Problems, func(p ledger.Problem) bool { return p.Kind == c.kind && p.Seq == c.seq }) {
			t.Errorf("%s: %+v", name, r.Problems)
		}
	}
}
