// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"errors"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"remit"
	"remit/internal/ledger"
	"remit/internal/ledger/witness"
)

// S34: rotate a stopped server's key; from then on only the new one signs, and who pinned the old one verifies all.
func TestRotateLedgerKey(t *testing.T) {
	f := setUp(t)
	f.startRun()
	if _, err := RotateLedgerKey(t.Context(), f.dir, remit.Secret{}); remit.CodeOf(err) != remit.CodeConflict {
		t.Errorf("the key of a running server is rotated: %v", err)
	}
	first := f.stopAndVerify().Key()
	key, err := RotateLedgerKey(t.Context(), f.dir, remit.Secret{})
	if err != nil {
		t.Fatal(err)
	}
	f.start()
	f.startRun()
	if f.srv.key.Public().String() != key || f.events(remit.EventAuthority) == 0 {
		t.Error("the server does not use the new key, or the rotation is not on record")
	}
	f.stopAndVerify()
	log, err := ledger.OpenLog(filepath.Join(f.dir, dirLedger), first)
	if err != nil {
		t.Fatal(err)
	}
	if r, err := log.Verify(t.Context(), ledger.VerifyOptions{}); err != nil || !r.Complete() {
		t.Errorf("from the first key: %v %+v", err, r)
	}
	if err := os.RemoveAll(filepath.Join(f.dir, dirLedger, "rotation")); err != nil {
		t.Fatal(err)
	}
	if log, err = ledger.OpenLog(filepath.Join(f.dir, dirLedger), first); err != nil {
		t.Fatal(err)
	}
	if r, _ := log.Verify(t.Context(), ledger.VerifyOptions{}); r.Intact() {
		t.Error("without the chain the new key is believed")
	}
}

// A rotation that a crash cuts short is finished or undone by the next start: the old key signs nothing after the chain names the
// new one.
func TestRotationIsFinished(t *testing.T) {
	for _, named := range []bool{false, true} {
		f := setUp(t)
		f.startRun()
		old := f.stopAndVerify().Key()
		next, err := ledger.CreateKey(filepath.Join(f.dir, fileNextLedgerKey), old.Name())
		if err != nil {
			t.Fatal(err)
		}
		if named {
			present, err := ledger.LoadKey(filepath.Join(f.dir, fileLedgerKey))
			if err != nil {
				t.Fatal(err)
			}
			text, err := ledger.NewRotation(present, next, 1<<20)
			if err = errors.Join(err, ledger.AddRotation(filepath.Join(f.dir, dirLedger), text)); err != nil {
				t.Fatal(err)
			}
		}
		f.start()
		want := old.String()
		if named {
			want = next.Public().String()
		}
		if got := f.srv.key.Public().String(); got != want {
			t.Errorf("named %v: the server signs with %s", named, got)
		}
		if _, err := os.Stat(filepath.Join(f.dir, fileNextLedgerKey)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("named %v: the next key is still there: %v", named, err)
		}
	}
}

// S34: a server with a witness publishes only what it cosigned; while it is away, decisions go on, and what is not in the log is
// named.
func TestWitnessedLog(t *testing.T) {
	dir, err := os.MkdirTemp("", "witness-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	public, err := witness.CreateKey(filepath.Join(dir, "key"), "witness.company.com")
	if err != nil {
		t.Fatal(err)
	}
	signer, err := witness.LoadKey(filepath.Join(dir, "key"))
	if err != nil {
		t.Fatal(err)
	}
	key, _ := witness.ParseKey(public)
	front := httptest.NewUnstartedServer(nil)
	url := "http://" + front.Listener.Addr().String()
	f := setUp(t, "trust_domain: company.com", "witnesses: {list: [{url: '"+url+"', key: '"+public+"'}]}\ntrust_domain: company.com")
	f.startRun()
	f.eventually("the empty log is there", func() bool { _, err := f.log().Checkpoint(); return err == nil })
	// Nobody answers at the witness's address yet.
	if cp, err := f.log().Checkpoint(); err != nil || cp.Size != 0 {
		t.Errorf("published without a witness: %v, %d entries", err, cp.Size)
	}
	r, err := f.log().Verify(t.Context(), ledger.VerifyOptions{Tail: f.srv.store})
	if err != nil || r.Complete() || r.Unsequenced == nil || r.Unsequenced.First != 1 {
		t.Errorf("the gap is not named: %v %+v", err, r)
	}
	w, err := witness.NewServer(witness.Config{Dir: filepath.Join(dir, "state"), Key: signer, Logs: []note.Verifier{f.srv.key.Public().Verifier()}})
	if err != nil {
		t.Fatal(err)
	}
	front.Config.Handler = w
	front.Start()
	defer front.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for {
		if cp, err := f.log().Checkpoint(); err == nil && cp.Size > 0 {
			break
		}
		if ctx.Err() != nil {
			t.Fatal("nothing is published")
		}
		time.Sleep(20 * time.Millisecond)
	}
	if r, err = f.log().Verify(t.Context(), ledger.VerifyOptions{Witnesses: []note.Verifier{key}, Quorum: 1}); err != nil || !r.Intact() || len(r.Witnesses) != 1 {
		t.Errorf("%v %+v", err, r)
	}
	other, err := witness.CreateKey(filepath.Join(dir, "other"), "other.company.com")
	if err != nil {
		t.Fatal(err)
	}
	stranger, _ := witness.ParseKey(other)
	if r, _ = f.log().Verify(t.Context(), ledger.VerifyOptions{Witnesses: []note.Verifier{stranger}, Quorum: 1}); r.Intact() {
		t.Error("a log that the witness did not cosign is intact")
	}
}
