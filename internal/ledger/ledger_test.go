// SPDX-License-Identifier: Apache-2.0

package ledger_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/transparency-dev/merkle/rfc6962"
	"github.com/transparency-dev/tessera/api"
	"github.com/transparency-dev/tessera/client"
	"github.com/transparency-dev/tessera/fsck"

	"remit"
	"remit/internal/ledger"
	"remit/internal/store"
)

// world is a store and its log, on disk.
type world struct {
	dir   string
	log   string
	key   *ledger.Key
	store *store.Store
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{dir: t.TempDir()}
	w.log = filepath.Join(w.dir, "ledger")
	key, err := ledger.CreateKey(filepath.Join(w.dir, "ledger.key"), "company.com/remit")
	if err != nil {
		t.Fatal(err)
	}
	w.key = key
	w.openStore(t)
	return w
}

func (w *world) openStore(t testing.TB) {
	t.Helper()
	s, err := store.Open(store.Config{Path: filepath.Join(w.dir, "remit.db"), Sign: w.key.SignBatch})
	if err != nil {
		t.Fatal(err)
	}
	w.store = s
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
}

// sequence runs a sequencer until stop is called.
func (w *world) sequence(t testing.TB) (stop func()) {
	t.Helper()
	seq, err := ledger.NewSequencer(ledger.SequencerConfig{Dir: w.log, Source: w.store, Key: w.key})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- seq.Run(ctx) }()
	return sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func (w *world) open(t testing.TB) *ledger.Log {
	t.Helper()
	l, err := ledger.OpenLog(w.log, w.key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// commit appends n events, one change each, from several goroutines, and returns the receipts in order.
func (w *world) commit(t testing.TB, n int) []remit.Receipt {
	t.Helper()
	out := make([]remit.Receipt, n)
	first := w.store.LastSeq() + 1
	var wg sync.WaitGroup
	for g := range 32 {
		wg.Go(func() {
			for i := g; i < n; i += 32 {
				r, err := w.store.Commit(context.Background(), remit.Change{Events: []remit.Event{testEvent(i)}})
				if err != nil {
					t.Error(err)
					return
				}
				out[r.Seq-first] = r
			}
		})
	}
	wg.Wait()
	return out
}

func testEvent(i int) remit.Event {
	return remit.Event{At: time.Now(), Kind: remit.EventDecision, Agent: "agent/deploy", Decision: remit.NewDecisionID(), By: "remit",
		Data: fmt.Appendf(nil, `{"n":%d,"text":"some decision, with its reasons and its evidence"}`, i)}
}

// published waits until the log vouches for n entries.
func (w *world) published(t testing.TB, n uint64) {
	t.Helper()
	l := w.open(t)
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if cp, err := l.Checkpoint(); err == nil && cp.Size >= n {
			return
		} else if time.Now().After(deadline) {
			t.Fatalf("the log has %d entries after 30 s, want %d (%v)", cp.Size, n, err)
		}
	}
}

func verify(t testing.TB, l *ledger.Log, opts ledger.VerifyOptions) ledger.Report {
	t.Helper()
	r, err := l.Verify(context.Background(), opts)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestWholeWay commits, sequences, restarts, and verifies with our verifier and with Tessera's own.
func TestWholeWay(t *testing.T) {
	w := newWorld(t)
	var receipts []remit.Receipt
	for _, n := range []int{1, 300, 2500} {
		stop := w.sequence(t)
		receipts = append(receipts, w.commit(t, n)...)
		w.published(t, w.store.LastSeq())
		stop()
	}
	l := w.open(t)
	report := verify(t, l, ledger.VerifyOptions{Receipts: receipts, Tail: w.store})
	if !report.Complete() || report.Size != 2801 || len(report.Strays) > 0 {
		t.Fatalf("%+v", report)
	}
	results, err := l.Audit(t.Context(), held(receipts))
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range results {
		if r.Status != ledger.AuditProven {
			t.Fatalf("%+v", r)
		}
	}
	entries, err := w.store.Entries(2000, 1)
	if err != nil {
		t.Fatal(err)
	}
	if e, err := l.Entry(t.Context(), 2001); err != nil || string(e.Body) != string(entries[0].Body) {
		t.Fatalf("%s, %v", e.Body, err)
	}
	judgeByTessera(t, w)
}

// judgeByTessera runs Tessera's unmodified fsck and client over the files.
func judgeByTessera(t *testing.T, w *world) {
	t.Helper()
	f := client.FileFetcher{Root: w.log}
	v := w.key.Public().Verifier()
	hashes := func(bundle []byte) ([][]byte, error) {
		var b api.EntryBundle
		if err := b.UnmarshalText(bundle); err != nil {
			return nil, err
		}
		var out [][]byte
		for _, e := range b.Entries {
			out = append(out, rfc6962.DefaultHasher.HashLeaf(e))
		}
		return out, nil
	}
	if err := fsck.New(v.Name(), v, f, hashes, fsck.Opts{N: 2}).Check(t.Context()); err != nil {
		t.Fatalf("Tessera's fsck: %v", err)
	}
	if _, _, _, err := client.FetchCheckpoint(t.Context(), f.ReadCheckpoint, v, v.Name()); err != nil {
		t.Fatalf("Tessera's client: %v", err)
	}
}

func TestProvableWithinTwoSeconds(t *testing.T) {
	w := newWorld(t)
	defer w.sequence(t)()
	w.published(t, 0)
	l := w.open(t)
	for range 3 {
		r := w.commit(t, 1)[0]
		committed := time.Now()
		for {
			if _, err := l.Prove(t.Context(), r.Seq); err == nil {
				break
			} else if remit.CodeOf(err) != remit.CodeUnavailable {
				t.Fatal(err)
			}
			if time.Since(committed) > 20*time.Second { // ten times the promise: a slow machine is no failure
				t.Fatal("not provable after 20 s")
			}
			time.Sleep(5 * time.Millisecond)
		}
		t.Logf("provable after %v", time.Since(committed).Round(time.Millisecond))
	}
}

func TestProofs(t *testing.T) {
	w := newWorld(t)
	stop := w.sequence(t)
	w.commit(t, 300)
	w.published(t, 300)
	stop()
	l := w.open(t)
	for _, seq := range []uint64{1, 2, 256, 257, 300} {
		p, err := l.Prove(t.Context(), seq)
		if err != nil {
			t.Fatal(err)
		}
		if err := ledger.VerifyProof(p, w.key.Public()); err != nil {
			t.Fatal(err)
		}
		for name, change := range map[string]func(*ledger.Proof){
			"entry":      func(p *ledger.Proof) { p.Entry = append([]byte(nil), p.Entry...); p.Entry[40] ^= 1 },
			"number":     func(p *ledger.Proof) { p.Seq++ },
			"path":       func(p *ledger.Proof) { p.Path = p.Path[1:] },
			"checkpoint": func(p *ledger.Proof) { p.Checkpoint = p.Checkpoint[1:] },
			"empty":      func(p *ledger.Proof) { *p = ledger.Proof{} },
		} {
			bad := p
			change(&bad)
			if ledger.VerifyProof(bad, w.key.Public()) == nil {
				t.Errorf("proof of %d with another %s verifies", seq, name)
			}
		}
	}
	if _, err := l.Prove(t.Context(), 301); remit.CodeOf(err) != remit.CodeUnavailable {
		t.Error(err)
	}
	if _, err := l.Prove(t.Context(), 0); remit.CodeOf(err) != remit.CodeInvalid {
		t.Error(err)
	}
}

func TestReceipts(t *testing.T) {
	w := newWorld(t)
	other, err := ledger.CreateKey(filepath.Join(w.dir, "other.key"), "company.com/remit")
	if err != nil {
		t.Fatal(err)
	}
	receipts := w.commit(t, 100)
	entries, err := w.store.Entries(0, 100)
	if err != nil {
		t.Fatal(err)
	}
	for i, r := range receipts {
		if err := ledger.VerifyReceipt(r, entries[i].Body, w.key.Public()); err != nil {
			t.Fatal(err)
		}
		for name, change := range map[string]func(*remit.Receipt){
			"number":    func(r *remit.Receipt) { r.Seq++ },
			"first":     func(r *remit.Receipt) { r.First++ },
			"size":      func(r *remit.Receipt) { r.Size++ },
			"leaf":      func(r *remit.Receipt) { r.Leaf = make([]byte, 32) },
			"path":      func(r *remit.Receipt) { r.Path = append(r.Path, make([]byte, 32)) },
			"key":       func(r *remit.Receipt) { r.Key = "other" },
			"signature": func(r *remit.Receipt) { r.Signature = make([]byte, 64) },
			"zero":      func(r *remit.Receipt) { *r = remit.Receipt{} },
		} {
			bad := r
			change(&bad)
			if ledger.VerifyReceipt(bad, nil, w.key.Public()) == nil {
				t.Errorf("receipt with another %s verifies", name)
			}
		}
		if ledger.VerifyReceipt(r, entries[(i+1)%100].Body, w.key.Public()) == nil {
			t.Error("receipt verifies another entry")
		}
		if changed := bytes.Replace(entries[i].Body, []byte(`"n":`), []byte(`"m":`), 1); ledger.VerifyReceipt(r, changed, w.key.Public()) == nil {
			t.Error("receipt verifies another entry of the same number")
		}
		if ledger.VerifyReceipt(r, nil, other.Public()) == nil || ledger.VerifyReceipt(r, nil, ledger.PublicKey{}) == nil {
			t.Error("receipt verifies with another key")
		}
	}
}

func TestKeys(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "key")
	key, err := ledger.CreateKey(path, "company.com/remit")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ledger.CreateKey(path, "company.com/remit"); err == nil {
		t.Error("a key was overwritten")
	}
	if _, err := ledger.CreateKey(filepath.Join(dir, "bad"), "two words"); remit.CodeOf(err) != remit.CodeInvalid {
		t.Error(err)
	}
	again, err := ledger.LoadKey(path)
	if err != nil || again.Public().String() != key.Public().String() {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Error(info.Mode(), err)
	}
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := ledger.LoadKey(path); remit.CodeOf(err) != remit.CodeInvalid {
		t.Errorf("a key that others can read is loaded: %v", err)
	}
	other, err := ledger.CreateKey(filepath.Join(dir, "other"), "company.com/remit")
	if err != nil {
		t.Fatal(err)
	}
	mixed := filepath.Join(dir, "mixed")
	private, err := os.ReadFile(filepath.Join(dir, "other"))
	if err != nil {
		t.Fatal(err)
	}
	private = private[:len(private)-len(other.Public().String())-1]
	if err := os.WriteFile(mixed, append(private, key.Public().String()...), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ledger.LoadKey(mixed); remit.CodeOf(err) != remit.CodeInvalid {
		t.Errorf("halves of two keys are loaded: %v", err)
	}
}

// A store from an older backup must not number entries anew that the log already has.
func TestSequencerRefusesAnOlderStore(t *testing.T) {
	w := newWorld(t)
	stop := w.sequence(t)
	w.commit(t, 10)
	w.published(t, 10)
	stop()
	for name, n := range map[string]int{"shorter": 5, "other": 20} {
		fresh := newWorld(t)
		fresh.commit(t, n)
		seq, err := ledger.NewSequencer(ledger.SequencerConfig{Dir: w.log, Source: fresh.store, Key: w.key})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		if err := seq.Run(ctx); err == nil {
			t.Errorf("%s store: sequenced into a log that is not its own", name)
		}
		cancel()
	}
	if r := verify(t, w.open(t), ledger.VerifyOptions{Tail: w.store}); !r.Complete() || r.Size != 10 {
		t.Errorf("%+v", r)
	}
}

func TestSecondSequencerIsRefused(t *testing.T) {
	w := newWorld(t)
	defer w.sequence(t)()
	w.commit(t, 1)
	w.published(t, 1)
	seq, err := ledger.NewSequencer(ledger.SequencerConfig{Dir: w.log, Source: w.store, Key: w.key})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	wantCode(t, seq.Run(ctx), remit.CodeUnavailable)
}

func wantCode(t *testing.T, err error, code remit.Code) {
	t.Helper()
	if remit.CodeOf(err) != code {
		t.Fatalf("error %v has code %q, want %q", err, remit.CodeOf(err), code)
	}
}
