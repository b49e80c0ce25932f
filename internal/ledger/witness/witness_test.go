// SPDX-License-Identifier: Apache-2.0

package witness_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	tlog "github.com/transparency-dev/formats/log"
	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
	"github.com/transparency-dev/tessera"
	"github.com/transparency-dev/tessera/storage/posix"
	"golang.org/x/mod/sumdb/note"

	"remit"
	"remit/internal/ledger/witness"
)

// tree is a log in memory.
type tree struct {
	signer note.Signer
	key    note.Verifier
	leaves [][]byte
}

func newTree(t *testing.T, origin string, n int) *tree {
	t.Helper()
	private, public, err := note.GenerateKey(rand.Reader, origin)
	if err != nil {
		t.Fatal(err)
	}
	s, _ := note.NewSigner(private)
	v, _ := note.NewVerifier(public)
	x := &tree{signer: s, key: v}
	for i := range n {
		x.leaves = append(x.leaves, rfc6962.DefaultHasher.HashLeaf(fmt.Appendf(nil, "entry %d", i)))
	}
	return x
}

func (x *tree) root(n uint64) []byte {
	f := compact.RangeFactory{Hash: rfc6962.DefaultHasher.HashChildren}
	r := f.NewEmptyRange(0)
	for _, l := range x.leaves[:n] {
		_ = r.Append(l, nil)
	}
	if n == 0 {
		return rfc6962.DefaultHasher.EmptyRoot()
	}
	root, _ := r.GetRootHash(nil)
	return root
}

func (x *tree) checkpoint(n uint64) []byte {
	text := tlog.Checkpoint{Origin: x.key.Name(), Size: n, Hash: x.root(n)}.Marshal()
	signed, _ := note.Sign(&note.Note{Text: string(text)}, x.signer)
	return signed
}

// prove computes a consistency proof from all nodes.
func (x *tree) prove(from, to uint64) [][]byte {
	nodes, err := proof.Consistency(from, to)
	if err != nil {
		return nil
	}
	hashes := make([][]byte, len(nodes.IDs))
	for i, id := range nodes.IDs {
		first := id.Index << id.Level
		f := compact.RangeFactory{Hash: rfc6962.DefaultHasher.HashChildren}
		r := f.NewEmptyRange(0)
		for _, l := range x.leaves[first : first+1<<id.Level] {
			_ = r.Append(l, nil)
		}
		hashes[i], _ = r.GetRootHash(nil)
	}
	out, _ := nodes.Rehash(hashes, rfc6962.DefaultHasher.HashChildren)
	return out
}

func (x *tree) prover(to uint64) witness.Prove {
	return func(_ context.Context, from uint64) ([][]byte, error) { return x.prove(from, to), nil }
}

// running is a witness that can be asked.
type running struct {
	dir    string
	key    note.Verifier
	signer note.Signer
	server *witness.Server
	url    *url.URL
}

func start(t *testing.T, dir string, logs ...note.Verifier) *running {
	t.Helper()
	file := filepath.Join(t.TempDir(), "key")
	public, err := witness.CreateKey(file, "witness.company.com-"+filepath.Base(filepath.Dir(file)))
	if err != nil {
		t.Fatal(err)
	}
	r := &running{dir: dir}
	if r.key, err = witness.ParseKey(public); err != nil {
		t.Fatal(err)
	}
	if r.signer, err = witness.LoadKey(file); err != nil {
		t.Fatal(err)
	}
	r.serve(t, logs...)
	return r
}

func (r *running) serve(t *testing.T, logs ...note.Verifier) {
	t.Helper()
	s, err := witness.NewServer(witness.Config{Dir: r.dir, Key: r.signer, Logs: logs})
	if err != nil {
		t.Fatal(err)
	}
	http := httptest.NewServer(s)
	t.Cleanup(func() { http.Close(); _ = s.Close() })
	r.server = s
	r.url, _ = url.Parse(http.URL)
}

func (r *running) post(t *testing.T, body []byte) (int, string, http.Header) {
	t.Helper()
	res, err := http.Post(r.url.String()+"/add-checkpoint", "", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	var b bytes.Buffer
	_, _ = b.ReadFrom(res.Body)
	return res.StatusCode, b.String(), res.Header
}

func body(old uint64, path [][]byte, checkpoint []byte) []byte {
	b := fmt.Appendf(nil, "old %d\n", old)
	for _, h := range path {
		b = fmt.Appendf(b, "%s\n", base64.StdEncoding.EncodeToString(h))
	}
	return append(append(b, '\n'), checkpoint...)
}

// S34: the protocol's refusals, each by its own status; none moves the witness.
func TestWitnessRefuses(t *testing.T) {
	x, stranger, thief := newTree(t, "log.company.com", 20), newTree(t, "other.company.com", 20), newTree(t, "log.company.com", 20)
	w := start(t, t.TempDir(), x.key)
	if code, got, _ := w.post(t, body(0, nil, x.checkpoint(7))); code != 200 || !strings.HasPrefix(got, "— "+w.key.Name()+" ") {
		t.Fatalf("%d %s", code, got)
	}
	good := x.prove(7, 12)
	bad := x.prove(7, 12)
	bad[0] = make([]byte, 32)
	for name, c := range map[string]struct {
		body []byte
		want int
	}{
		"unknown log":           {body(0, nil, stranger.checkpoint(7)), 404},
		"another's signature":   {body(7, good, thief.checkpoint(12)), 403},
		"unsigned":              {body(7, good, []byte("log.company.com\n12\nAAAA\n\n")), 403},
		"old above new":         {body(7, nil, x.checkpoint(5)), 400},
		"not where it stands":   {body(3, x.prove(3, 12), x.checkpoint(12)), 409},
		"from nothing again":    {body(0, nil, x.checkpoint(12)), 409},
		"false proof":           {body(7, bad, x.checkpoint(12)), 422},
		"no proof":              {body(7, nil, x.checkpoint(12)), 422},
		"garbage":               {[]byte("hello"), 400},
		"size with a zero":      {append([]byte("old 07\n\n"), x.checkpoint(12)...), 400},
		"too many hashes":       {body(7, make([][]byte, 64), x.checkpoint(12)), 400},
		"more than 64 KiB":      {append(body(7, good, x.checkpoint(12)), make([]byte, 70<<10)...), 413},
		"a hash of other width": {body(7, [][]byte{{1}}, x.checkpoint(12)), 400},
	} {
		code, got, h := w.post(t, c.body)
		if code != c.want {
			t.Errorf("%s: %d %s", name, code, got)
		}
		if code == 409 && (got != "7\n" || h.Get("Content-Type") != "text/x.tlog.size") {
			t.Errorf("%s: the answer does not say where it stands: %q %v", name, got, h)
		}
	}
	if code, got, _ := w.post(t, body(7, good, x.checkpoint(12))); code != 200 {
		t.Errorf("the refusals moved the witness: %d %s", code, got)
	}
}

// S34: a second head of one size is not cosigned, not even by a witness that was started again.
func TestSplitView(t *testing.T) {
	x := newTree(t, "log.company.com", 12)
	w := start(t, t.TempDir(), x.key)
	if code, got, _ := w.post(t, body(0, nil, x.checkpoint(12))); code != 200 {
		t.Fatalf("%d %s", code, got)
	}
	fork := *x
	fork.leaves = append([][]byte{}, x.leaves...)
	fork.leaves[11] = rfc6962.DefaultHasher.HashLeaf([]byte("another"))
	if code, _, _ := w.post(t, body(12, nil, fork.checkpoint(12))); code != 409 {
		t.Errorf("another head of size 12: %d", code)
	}
	_ = w.server.Close()
	again := &running{dir: w.dir, key: w.key, signer: w.signer}
	again.serve(t, x.key)
	if code, _, _ := again.post(t, body(12, nil, fork.checkpoint(12))); code != 409 {
		t.Errorf("after a restart: %d", code)
	}
	if code, got, _ := again.post(t, body(12, nil, x.checkpoint(12))); code != 200 {
		t.Errorf("the same checkpoint once more: %d %s", code, got)
	}
	if _, err := witness.NewServer(witness.Config{Dir: w.dir, Key: w.signer, Logs: []note.Verifier{x.key}}); remit.CodeOf(err) != remit.CodeUnavailable {
		t.Errorf("two witnesses on one folder: %v", err)
	}
}

// S34: once a checkpoint of the next key was cosigned, the key that it replaced counts no more, also after a restart.
func TestReplacedKeyIsOver(t *testing.T) {
	x, next := newTree(t, "log.company.com", 12), newTree(t, "log.company.com", 12)
	w := start(t, t.TempDir(), x.key, next.key)
	if code, got, _ := w.post(t, body(0, nil, x.checkpoint(5))); code != 200 {
		t.Fatalf("the first key: %d %s", code, got)
	}
	if code, got, _ := w.post(t, body(5, x.prove(5, 7), x.checkpoint(7))); code != 200 {
		t.Fatalf("the first key goes on until it is replaced: %d %s", code, got)
	}
	if code, got, _ := w.post(t, body(7, next.prove(7, 8), next.checkpoint(8))); code != 200 {
		t.Fatalf("the next key: %d %s", code, got)
	}
	_ = w.server.Close()
	w.serve(t, x.key, next.key)
	if code, got, _ := w.post(t, body(8, x.prove(8, 9), x.checkpoint(9))); code != 403 || strings.Contains(got, "—") {
		t.Errorf("the replaced key: %d %s", code, got)
	}
	if code, got, _ := w.post(t, body(8, next.prove(8, 9), next.checkpoint(9))); code != 200 {
		t.Errorf("the next key goes on: %d %s", code, got)
	}
}

// A witness that cannot keep its state cosigns nothing.
func TestStateIsDurableFirst(t *testing.T) {
	x := newTree(t, "log.company.com", 12)
	dir := filepath.Join(t.TempDir(), "state")
	w := start(t, dir, x.key)
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if code, got, _ := w.post(t, body(0, nil, x.checkpoint(12))); code != 500 || strings.Contains(got, "—") {
		t.Errorf("%d %s", code, got)
	}
}

// S34: a checkpoint has the cosignatures of a quorum, or it is none; a false witness counts for nothing.
func TestQuorum(t *testing.T) {
	x := newTree(t, "log.company.com", 20)
	a, b := start(t, t.TempDir(), x.key), start(t, t.TempDir(), x.key)
	liar := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = fmt.Fprintf(w, "— %s AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n— evil AAAA\n", b.key.Name())
	}))
	defer liar.Close()
	lying, _ := url.Parse(liar.URL)
	ask := func(quorum int, peers ...witness.Peer) ([]byte, error) {
		c, err := witness.NewClient(witness.ClientConfig{Peers: peers, Quorum: quorum, Timeout: 20 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		var out []byte
		for _, n := range []uint64{6, 6, 13, 20} { // 409 first, for a client that begins anew
			if out, err = c.Cosign(t.Context(), x.checkpoint(n), x.prover(n)); err != nil {
				return nil, err
			}
		}
		return out, nil
	}
	out, err := ask(2, witness.Peer{URL: a.url, Key: a.key}, witness.Peer{URL: b.url, Key: b.key})
	if err != nil {
		t.Fatal(err)
	}
	n, err := note.Open(out, note.VerifierList(x.key, a.key, b.key))
	if err != nil || len(n.Sigs) != 3 || len(n.UnverifiedSigs) != 0 {
		t.Errorf("%v: %s", err, out)
	}
	x = newTree(t, "log.company.com", 20)
	a = start(t, t.TempDir(), x.key)
	if _, err := ask(2, witness.Peer{URL: a.url, Key: a.key}, witness.Peer{URL: lying, Key: b.key}); remit.CodeOf(err) != remit.CodeUnavailable {
		t.Errorf("a false cosignature counts: %v", err)
	}
	c, _ := witness.NewClient(witness.ClientConfig{Peers: []witness.Peer{{URL: a.url, Key: a.key}}, Timeout: 20 * time.Second})
	if _, err := c.Cosign(t.Context(), x.checkpoint(3), x.prover(3)); err == nil || !strings.Contains(err.Error(), "rolled back") {
		t.Errorf("a log that was rolled back: %v", err)
	}
	if _, err := witness.NewClient(witness.ClientConfig{Peers: []witness.Peer{{URL: a.url, Key: a.key}}, Quorum: 2}); err == nil {
		t.Error("a quorum that cannot be reached is taken")
	}
}

// Tessera's own client and log take our witness.
func TestTesseraAsksOurWitness(t *testing.T) {
	private, public, err := note.GenerateKey(rand.Reader, "log.company.com")
	if err != nil {
		t.Fatal(err)
	}
	signer, _ := note.NewSigner(private)
	verifier, _ := note.NewVerifier(public)
	file := filepath.Join(t.TempDir(), "key")
	vkey, err := witness.CreateKey(file, "witness.company.com")
	if err != nil {
		t.Fatal(err)
	}
	w := &running{dir: t.TempDir()}
	if w.signer, err = witness.LoadKey(file); err != nil {
		t.Fatal(err)
	}
	w.serve(t, verifier)
	peer, err := tessera.NewWitness(vkey, w.url)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	driver, err := posix.New(ctx, posix.Config{Path: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	group := tessera.NewWitnessGroup(1, peer)
	appender, shutdown, reader, err := tessera.NewAppender(ctx, driver, tessera.NewAppendOptions().WithCheckpointSigner(signer).
		WithBatching(4, 10*time.Millisecond).WithCheckpointInterval(100*time.Millisecond).WithWitnesses(group, &tessera.WitnessOptions{Timeout: 20 * time.Second}))
	if err != nil {
		t.Fatal(err)
	}
	awaiter := tessera.NewPublicationAwaiter(ctx, reader.ReadCheckpoint, 20*time.Millisecond)
	for i := range 10 {
		_, cp, err := awaiter.Await(ctx, appender.Add(ctx, tessera.NewEntry(fmt.Appendf(nil, "entry %d", i))))
		if err != nil || !group.Satisfied(cp) {
			t.Fatalf("%v: %s", err, cp)
		}
	}
	if err := shutdown(ctx); err != nil {
		t.Error(err)
	}
}

func FuzzRequest(f *testing.F) {
	private, public, _ := note.GenerateKey(rand.Reader, "log.company.com")
	signer, _ := note.NewSigner(private)
	verifier, _ := note.NewVerifier(public)
	x := &tree{signer: signer, key: verifier, leaves: [][]byte{make([]byte, 32), make([]byte, 32)}}
	f.Add(body(0, nil, x.checkpoint(2)))
	f.Add(body(1, x.prove(1, 2), x.checkpoint(2)))
	key, _, _ := note.GenerateKey(rand.Reader, "w")
	file := filepath.Join(f.TempDir(), "key")
	_ = os.WriteFile(file, []byte(key), 0o600)
	w, err := witness.LoadKey(file)
	if err != nil {
		f.Fatal(err)
	}
	s, err := witness.NewServer(witness.Config{Dir: f.TempDir(), Key: w, Logs: []note.Verifier{verifier}})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		rec := httptest.NewRecorder()
		s.ServeHTTP(rec, httptest.NewRequest(http.MethodPost, "/add-checkpoint", bytes.NewReader(b)))
		if rec.Code == 200 && !bytes.Contains(b, []byte("log.company.com\n")) {
			t.Errorf("cosigned %q", b)
		}
	})
}
