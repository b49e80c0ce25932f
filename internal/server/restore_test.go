// SPDX-License-Identifier: Apache-2.0

package server

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"remit"
	"remit/internal/api"
	"remit/internal/ledger"
	"remit/internal/store"
)

func (f *fixture) backup() string {
	f.t.Helper()
	file := filepath.Join(f.dir, "state.bak")
	f.must("/v1/backup", map[string]string{"path": file}, nil)
	return file
}

// A backup beside a log that went on: refused unless asked for; then the state starts at the log's head, nothing lives on, a
// suspension of the time between holds, and the gap is on record.
func TestRestoreBesideNewerLog(t *testing.T) {
	f := setUp(t)
	r := f.startRun()
	w := f.agent("agent/deploy", f.shared()).enter(r)
	if w.ask("write").Secret == "" {
		t.Fatal("no credential")
	}
	file := f.backup()
	if w.ask("write").Secret == "" || f.backend.count() != 2 { // the backup does not know this one
		t.Fatal("no second credential")
	}
	later := f.startRun()
	f.must("/v1/agents/agent/build/suspend", api.Reasoned{Reason: "test"}, nil)
	f.must("/v1/runs/"+string(later.ID)+"/finish", nil, nil)
	f.stopAndVerify()
	if _, err := Restore(t.Context(), f.dir, file, remit.Secret{}, false); remit.CodeOf(err) != remit.CodeConflict || !strings.Contains(err.Error(), "went on") {
		t.Fatalf("restored beside a newer log: %v", err)
	}
	// Both are put back at the backend, as if the server had died: the leases of backup and gap have to end there.
	got, err := Restore(t.Context(), f.dir, file, remit.Secret{}, true)
	if err != nil || got.Gap == nil || got.Gap.First != got.Backup+1 || got.Gap.Last != got.Log || got.Gap.EndedLeases == 0 {
		t.Fatalf("%v %+v", err, got)
	}
	f.start()
	f.backend.waitEmpty(t)
	if back, ok := f.srv.store.Run(r.ID); !ok || back.State != remit.RunExpired {
		t.Errorf("the run lives on: %+v", back)
	}
	if !f.srv.store.Posture("agent/build").Suspended {
		t.Error("a suspension of the gap is forgotten")
	}
	if g := f.agent("agent/deploy", f.shared()); g.ask("write").Secret != "" {
		t.Error("a grant without a run")
	}
	entries, _, err := f.srv.store.Events(store.EventFilter{Kind: remit.EventRestored}, 0, 10)
	var event struct{ Data Gap }
	if err != nil || len(entries) != 1 || json.Unmarshal(entries[0].Body, &event) != nil || event.Data.First != got.Gap.First || entries[0].Seq <= got.Log {
		t.Errorf("the gap is not on record: %v %+v", err, entries)
	}
	f.stopAndVerify()
}

func TestRestoreRefuses(t *testing.T) {
	f, other := setUp(t), setUp(t)
	f.startRun()
	other.startRun()
	file, foreign := f.backup(), other.backup()
	if _, err := Restore(t.Context(), f.dir, file, remit.Secret{}, true); remit.CodeOf(err) != remit.CodeConflict {
		t.Errorf("under a running server: %v", err)
	}
	f.startRun() // the log goes on
	f.stopAndVerify()
	before, err := os.ReadFile(filepath.Join(f.dir, fileState))
	if err != nil {
		t.Fatal(err)
	}
	garbage := filepath.Join(f.dir, "garbage")
	if err := os.WriteFile(garbage, []byte("hello"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, bak := range map[string]string{"another log's": foreign, "garbage": garbage, "nothing": filepath.Join(f.dir, "nowhere")} {
		if _, err := Restore(t.Context(), f.dir, bak, remit.Secret{}, true); remit.CodeOf(err) != remit.CodeInvalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Restore(t.Context(), f.dir, file, remit.Secret{}, false); remit.CodeOf(err) != remit.CodeConflict {
		t.Errorf("beside a newer log: %v", err)
	}
	checkpoint := filepath.Join(f.dir, dirLedger, "checkpoint")
	good, err := os.ReadFile(checkpoint)
	if err == nil {
		err = os.WriteFile(checkpoint, []byte(strings.Replace(string(good), "\n", "\n1", 1)), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Restore(t.Context(), f.dir, file, remit.Secret{}, true); remit.CodeOf(err) != remit.CodeInvalid {
		t.Errorf("beside a damaged log: %v", err)
	}
	after, err := os.ReadFile(filepath.Join(f.dir, fileState))
	if err != nil || string(after) != string(before) {
		t.Error("a refused restore changed the state")
	}
	if left, _ := filepath.Glob(filepath.Join(f.dir, fileState+".restore*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	if err := os.WriteFile(checkpoint, good, 0o600); err != nil {
		t.Fatal(err)
	}
	f.start()
	if r, err := f.log().Verify(t.Context(), ledger.VerifyOptions{}); err != nil || !r.Intact() {
		t.Error(errors.Join(err), r)
	}
}

// TestRestoreEndsLogins: who was logged in when the backup was made may have logged out since, so nobody is.
func TestRestoreEndsLogins(t *testing.T) {
	f := setUp(t)
	login := remit.Session{ID: remit.NewSessionID(), Person: "operator/alice", Started: time.Now(), Expires: time.Now().Add(time.Hour)}
	if _, err := f.srv.store.Commit(t.Context(), remit.Change{Rows: []remit.Row{login}}); err != nil {
		t.Fatal(err)
	}
	file := f.backup()
	f.startRun() // the log goes on
	f.stopAndVerify()
	got, err := Restore(t.Context(), f.dir, file, remit.Secret{}, true)
	if err != nil || got.Gap == nil || got.Gap.EndedLogins != 1 {
		t.Errorf("%v %+v", err, got.Gap)
	}
	f.start()
	if back, ok := f.srv.store.Session(login.ID); !ok || back.Ended.IsZero() {
		t.Errorf("the login lives on: %+v", back)
	}
}

// TestRestoreKeepsHalt: S13. A jump of the clock in the gap waits for its confirmation after a restore, too.
func TestRestoreKeepsHalt(t *testing.T) {
	f := setUp(t)
	file := f.backup()
	f.jumped.Store(int64(time.Minute))
	f.eventually("the jump is on record", func() bool { return f.events(remit.EventClockJumped) == 1 && f.srv.halted.Load() == 0 })
	f.jumped.Store(0)
	f.stopAndVerify()
	if got, err := Restore(t.Context(), f.dir, file, remit.Secret{}, true); err != nil || got.Gap == nil {
		t.Fatalf("%v %+v", err, got)
	}
	f.start()
	if !f.srv.store.Posture(remit.Installation).Suspended {
		t.Error("a halt of the gap is forgotten")
	}
	f.must("/v1/clock/confirm", api.Reasoned{Reason: "looked at it"}, nil)
	x := newSeen()
	for _, kind := range []remit.EventKind{remit.EventClockJumped, remit.EventClockConfirmed} {
		x.add(&remit.Entry{Body: fmt.Appendf(nil, `{"kind":%q}`, kind)})
	}
	if x.suspended[remit.Installation] {
		t.Error("a jump that was confirmed in the gap halts again")
	}
}

// TestStateKeyIsNotMadeAnew: S33. A restore or a rotation without the key of the state is refused: what it encrypted would be lost.
func TestStateKeyIsNotMadeAnew(t *testing.T) {
	f := setUp(t)
	file := f.backup()
	f.stopAndVerify()
	key := filepath.Join(f.dir, fileStateKey)
	if err := os.Remove(key); err != nil {
		t.Fatal(err)
	}
	_, restored := Restore(t.Context(), f.dir, file, remit.Secret{}, true)
	_, there := os.Stat(key)
	_ = os.Remove(key)
	_, rotated := RotateLedgerKey(t.Context(), f.dir, remit.Secret{})
	for name, err := range map[string]error{"restore": restored, "rotation": rotated} {
		if e, ok := errors.AsType[*remit.Error](err); !ok || e.Code != remit.CodeInvalid || !strings.Contains(e.Hint, "where it was kept") {
			t.Errorf("%s without the key: %v", name, err)
		}
	}
	if !errors.Is(there, os.ErrNotExist) {
		t.Error("a refused restore made a key")
	}
}
