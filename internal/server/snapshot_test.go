// SPDX-License-Identifier: Apache-2.0

package server

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"os"
	"strings"
	"testing"

	"remit"
	"remit/internal/api"
)

// followers makes new ones, as a start does.
func (f *fixture) followers() []*follower {
	return []*follower{f.srv.hardRules(), f.srv.baselines()}
}

// knows is what the follower knows after the ledger's last entry, from its snapshot or from the first entry on.
func (f *fixture) knows(of *follower, after uint64) []byte {
	f.t.Helper()
	for {
		list, err := of.read(after, followed)
		if err != nil {
			f.t.Fatal(err)
		}
		if len(list) == 0 {
			break
		}
		for _, e := range list {
			of.detector.Next(e)
			after = e.Seq
		}
	}
	var b bytes.Buffer
	if err := of.detector.Save(&b); err != nil {
		f.t.Fatal(err)
	}
	return b.Bytes()
}

// worked is an installation that was at work, found a theft and stopped, so that there are snapshots.
func worked(t *testing.T) *fixture {
	f := setUp(t)
	w := f.agent("agent/deploy", f.shared()).enter(f.startRun())
	for range 3 {
		if g := w.ask("write"); g.Secret == "" {
			t.Fatalf("%+v", g)
		}
	}
	f.stolen(f.startRun())
	f.found(remit.FindingStolenToken)
	f.eventually("the suspension is on record", func() bool { return f.events(remit.EventSuspended) == 1 })
	f.restart()
	return f
}

// TestSnapshotGoesOn: from a snapshot and what came after it, each follower knows the same to the byte as from the whole ledger; also
// when the process was killed and the snapshot is an older one. Nothing is found twice, and nothing is missed.
func TestSnapshotGoesOn(t *testing.T) {
	f := worked(t)
	same := func() {
		t.Helper()
		for i, of := range f.followers() {
			seq := f.srv.recall(of)
			if seq == 0 || seq > f.srv.store.LastSeq() {
				t.Fatalf("%s: goes on from %d", of.name, seq)
			}
			whole := f.followers()[i]
			whole.detector = whole.make()
			if a, b := f.knows(of, seq), f.knows(whole, 0); !bytes.Equal(a, b) || len(a) < 3 {
				t.Errorf("%s: from %d on %d bytes, whole %d, which differ", of.name, seq, len(a), len(b))
			}
		}
	}
	same()
	old := map[string][]byte{}
	for _, of := range f.followers() {
		path := snapshotPath(f.srv.cfg.Data, of.name)
		b, err := os.ReadFile(path)
		info, _ := os.Stat(path)
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Fatal(err, info)
		}
		old[path] = b
	}
	f.agent("agent/deploy", f.shared()).enter(f.startRun()).ask("write")
	same()
	if err := f.stop(); err != nil {
		t.Fatal(err)
	}
	for path, b := range old { // as if it had been killed
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	f.start()
	same()
	f.must("/v1/agents/agent/build/reinstate", api.Reasoned{Reason: "a copied environment"}, nil)
	f.stolenOnce()
	if n := f.events(remit.EventRaised); n != 2 {
		t.Errorf("%d findings", n)
	}
	same()
}

// retold changes the snapshot's head, and makes its digest right.
func retold(t *testing.T, b []byte, change func(*snapshotHead)) []byte {
	t.Helper()
	line, rest, _ := bytes.Cut(b[:len(b)-sha256.Size], []byte("\n"))
	var head snapshotHead
	if err := json.Unmarshal(line, &head); err != nil {
		t.Fatal(err)
	}
	change(&head)
	line, err := json.Marshal(head)
	if err != nil {
		t.Fatal(err)
	}
	out := append(append(line, '\n'), rest...)
	sum := sha256.Sum256(out)
	return append(out, sum[:]...)
}

// TestSnapshotIsDropped: S36. A snapshot that is damaged, or of another configuration, version, follower or ledger, or ahead of this one, is
// not gone on from: the ledger is read again, and what is found then is found.
func TestSnapshotIsDropped(t *testing.T) {
	f := worked(t)
	flip := func(at int) func([]byte) []byte {
		return func(b []byte) []byte { b[(at+len(b))%len(b)] ^= 1; return b }
	}
	with := func(change func(*snapshotHead)) func([]byte) []byte {
		return func(b []byte) []byte { return retold(t, b, change) }
	}
	for what, spoil := range map[string]func([]byte) []byte{
		"a bit of what it knows": flip(-sha256.Size - 1), "a bit of its digest": flip(-1), "its first byte": flip(0),
		"cut":             func(b []byte) []byte { return b[:len(b)-1] },
		"a byte more":     func(b []byte) []byte { return append(b, 0) },
		"empty":           func([]byte) []byte { return nil },
		"another config":  with(func(h *snapshotHead) { h.Config = strings.Repeat("0", 64) }),
		"another reader":  with(func(h *snapshotHead) { h.Follower = "another" }),
		"another ledger":  with(func(h *snapshotHead) { h.Entry = strings.Repeat("0", 64) }),
		"ahead of it":     with(func(h *snapshotHead) { h.Seq += 1000 }),
		"of no entry":     with(func(h *snapshotHead) { h.Seq = 0 }),
		"a head too long": with(func(h *snapshotHead) { h.Config += strings.Repeat("0", maxSnapshotHead) }),
	} {
		for i, of := range f.followers() {
			path := snapshotPath(f.srv.cfg.Data, of.name)
			good, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, spoil(bytes.Clone(good)), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := f.srv.loadSnapshot(f.followers()[i]); err == nil {
				t.Errorf("%s: %s: gone on from", of.name, what)
			}
			whole := f.followers()[i]
			whole.detector = whole.make()
			if seq := f.srv.recall(of); seq != 0 || !bytes.Equal(f.knows(of, 0), f.knows(whole, 0)) {
				t.Errorf("%s: %s: from %d", of.name, what, seq)
			}
			if err := os.WriteFile(path, good, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	other := f.srv.hardRules()
	cfg := f.srv.rules()
	cfg.Denials++
	other.config = cfg.Digest()
	if _, err := f.srv.loadSnapshot(other); err == nil {
		t.Error("another number of denials, and gone on from")
	}
}

// TestSnapshotForgets: S33. What was learned from values that were erased since is not gone on from; what was erased before is not in it.
func TestSnapshotForgets(t *testing.T) {
	f := setUp(t)
	r := f.startWith("secret-of-somebody")
	f.agent("agent/deploy", f.shared()).enter(r).ask("write")
	f.must("/v1/runs/"+string(r.ID)+"/finish", nil, nil)
	f.backend.waitEmpty(t)
	f.restart()
	if _, err := f.srv.loadSnapshot(f.srv.baselines()); err != nil {
		t.Fatal(err)
	}
	f.eventually("no lease lives", func() bool {
		return f.post("/v1/ledger/erase", api.Erase{Run: r.ID, Reason: "asked to"}, nil) == ""
	})
	if _, err := f.srv.loadSnapshot(f.srv.baselines()); err == nil || !strings.Contains(err.Error(), "erased") {
		t.Errorf("gone on from: %v", err)
	}
	if _, err := f.srv.loadSnapshot(f.srv.hardRules()); err != nil {
		t.Errorf("the rules learn no values: %v", err)
	}
	f.restart()
	f.eventually("it is read again", func() bool {
		seq, _, err := f.srv.store.Followed(baselinesName)
		return err == nil && seq > 0
	})
	f.restart()
	of, whole := f.srv.baselines(), f.srv.baselines()
	seq := f.srv.recall(of)
	whole.detector = whole.make()
	if seq == 0 || !bytes.Equal(f.knows(of, seq), f.knows(whole, 0)) {
		t.Errorf("from %d on it is not what the ledger says now", seq)
	}
}

// TestRestoreDropsSnapshots: a restored state knows less than what followers saved.
func TestRestoreDropsSnapshots(t *testing.T) {
	f := worked(t)
	file := f.backup()
	f.stopAndVerify()
	if _, err := Restore(t.Context(), f.dir, file, remit.Secret{}, true); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{followerName, baselinesName} {
		if _, err := os.Stat(snapshotPath(f.srv.cfg.Data, name)); !os.IsNotExist(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
