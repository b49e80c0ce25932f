// SPDX-License-Identifier: Apache-2.0

package server

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"remit"
	"remit/internal/api"
	"remit/internal/ledger"
)

// startWith starts a run whose one parameter has the value.
func (f *fixture) startWith(app string) (r remit.Run) {
	f.t.Helper()
	f.must("/v1/runs", api.StartRun{Workflow: "deploy", Params: map[string]string{"app": app}}, &r)
	return r
}

// whereIs lists the files of the server's directory that hold a text in clear: as it is, or in base64 at any alignment.
func (f *fixture) whereIs(text string, but ...string) (found []string) {
	f.t.Helper()
	needles := [][]byte{[]byte(text)}
	for i := range 3 {
		enc := base64.RawURLEncoding.EncodeToString(append(make([]byte, i), text...))
		needles = append(needles, []byte(enc[4:len(enc)-4]))
	}
	err := filepath.WalkDir(f.dir, func(path string, d fs.DirEntry, err error) error {
		name := strings.TrimPrefix(path, f.dir+"/")
		if err != nil || !d.Type().IsRegular() || slices.Contains(but, name) {
			return nil // a file that a running server renamed
		}
		b, _ := os.ReadFile(path)
		for _, n := range needles {
			if bytes.Contains(b, n) {
				found = append(found, name)
				break
			}
		}
		return nil
	})
	if err != nil {
		f.t.Fatal(err)
	}
	return found
}

func (f *fixture) entry(seq uint64) (e api.Entry) {
	f.t.Helper()
	if err := f.admin.Get(f.t.Context(), fmt.Sprintf("/v1/ledger/%d", seq), nil, &e); err != nil {
		f.t.Fatal(err)
	}
	return e
}

// entriesOf lists the ledger's entries of a run.
func (f *fixture) entriesOf(run remit.RunID) (list api.List[api.Entry]) {
	f.t.Helper()
	if err := f.admin.Get(f.t.Context(), "/v1/ledger", map[string][]string{"run": {string(run)}, "limit": {"1000"}}, &list); err != nil {
		f.t.Fatal(err)
	}
	return list
}

// S33: a sensitive value decides, and stands in clear in no file and no answer: not while the run lives, and not when a request
// without a run, or for another workflow, brings it in.
func TestSensitiveValueIsNowhereInClear(t *testing.T) {
	f := setUp(t)
	f.write(strings.Replace(f.files, "{app: {type: name}}", "{app: {type: name, sensitive: true}}", 1))
	f.must("/v1/apply", nil, nil)
	const value = "customer-0123456789-abcdefghij-0123456789"
	r := f.startWith(value)
	w := f.agent("agent/deploy", f.shared()).enter(r)
	if w.ask("write").Secret == "" {
		t.Fatal("the sensitive parameter does not decide")
	}
	w.call("/access/v1/evaluation", "application/json", strings.NewReader(`{"subject":{"type":"agent","id":"agent/deploy"},"action":{"name":"memory.write"},
		"resource":{"type":"target","id":"cluster","properties":{"other":"x `+value+`","app":"`+value+`"}}}`), nil)
	w.token = "" // no run, so no workflow
	w.call("/access/v1/evaluation", "application/json", strings.NewReader(`{"subject":{"type":"agent","id":"agent/deploy"},"action":{"name":"memory.write"},
		"resource":{"type":"target","id":"cluster","properties":{"app":"`+value+`"}}}`), nil)
	var answers []byte
	for _, path := range []string{"/v1/runs", "/v1/runs/" + string(r.ID), "/v1/grants", "/v1/ledger"} {
		var raw []byte
		if err := f.admin.Get(t.Context(), path, nil, &raw); err != nil {
			t.Fatal(err)
		}
		answers = append(answers, raw...)
	}
	if bytes.Contains(answers, []byte(value)) {
		t.Errorf("an answer shows the value: %s", answers)
	}
	if found := f.whereIs(value); found != nil {
		t.Errorf("the value is in clear in %v", found)
	}
	f.restart() // and it still decides
	if f.agent("agent/deploy", f.shared()).enter(r).ask("write").Secret == "" {
		t.Error("after a restart the run's sensitive parameter is gone")
	}
	decisions := f.events(remit.EventDecision)
	f.write(f.files) // another workflow now: what is live is judged again, denied, and that is recorded
	f.must("/v1/apply", nil, nil)
	f.backend.waitEmpty(t)
	for end := time.Now().Add(20 * time.Second); f.events(remit.EventDecision) == decisions && time.Now().Before(end); {
		time.Sleep(5 * time.Millisecond)
	}
	if f.events(remit.EventDecision) == decisions {
		t.Error("the second judgement is not on record")
	}
	if found := f.whereIs(value); found != nil {
		t.Errorf("after a second judgement the value is in clear in %v", found)
	}
}

// S33: an erased run leaves no value in the store's files, says so wherever it is shown, and the log verifies as before.
func TestErase(t *testing.T) {
	f := setUp(t)
	const value, other = "customer-0123456789-abcdefghij-0123456789", "customer-9876543210-abcdefghij-9876543210"
	r, keep := f.startWith(value), f.startWith(other)
	for _, run := range []remit.Run{r, keep} {
		if f.agent("agent/deploy", f.shared()).enter(run).ask("write").Secret == "" {
			t.Fatal("no credential")
		}
	}
	for _, live := range []remit.Run{r, f.startRun()} { // with a lease, and without
		if code := f.post("/v1/ledger/erase", api.Erase{Run: live.ID, Reason: "asked by the person"}, nil); code != remit.CodeConflict {
			t.Errorf("the values of a live run are erased: %q", code)
		}
	}
	if code := f.post("/v1/ledger/erase", api.Erase{Run: r.ID, Value: value, Reason: "x"}, nil); code != remit.CodeInvalid {
		t.Errorf("two things at once: %q", code)
	}
	f.must("/v1/agents/agent/build/suspend", api.Reasoned{Reason: "test"}, nil)
	if got, _ := f.srv.store.Run(keep.ID); got.State != remit.RunFrozen {
		t.Fatalf("the run is not frozen: %+v", got)
	}
	if code := f.post("/v1/ledger/erase", api.Erase{Entry: f.entriesOf(keep.ID).Items[0].Seq, Reason: "x"}, nil); code != remit.CodeConflict {
		t.Errorf("an entry of a frozen run is erased: %q", code)
	}
	f.must("/v1/runs/"+string(r.ID)+"/finish", nil, nil)
	before := f.entriesOf(r.ID)
	disclosed := f.entry(before.Items[0].Seq).Disclosures
	var out api.Erased
	f.must("/v1/ledger/erase", api.Erase{Value: value, Reason: "asked by the person"}, &out)
	f.must("/v1/ledger/erase", api.Erase{Run: r.ID, Reason: "asked by the person"}, nil)
	if out.Entries == 0 || !slices.Equal(out.Runs, []remit.RunID{r.ID}) {
		t.Errorf("%+v", out)
	}
	for end := time.Now().Add(20 * time.Second); len(f.whereIs(value)) > 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("the erased value is still in %v", f.whereIs(value))
		}
	}
	if len(f.whereIs(other)) == 0 {
		t.Error("another run's value is erased, too")
	}
	after := f.entriesOf(r.ID)
	shown, _ := json.Marshal(after)
	if len(after.Items) != len(before.Items) || !strings.Contains(string(shown), "[erased]") || f.events(remit.EventErased) != 2 {
		t.Errorf("%s", shown)
	}
	var why api.Why
	for _, e := range after.Items {
		var h struct{ Decision string }
		if _ = json.Unmarshal(e.Event, &h); h.Decision != "" {
			if err := f.admin.Get(t.Context(), "/v1/why/"+h.Decision, nil, &why); err != nil {
				t.Fatal(err)
			}
			break
		}
	}
	if len(why.Erased) == 0 || !strings.Contains(why.Text, "erased") {
		t.Errorf("why does not say what is erased: %+v", why)
	}
	f.stopAndVerify()
	leaf := remit.Entry{Body: f.leaf(after.Items[0].Seq)}
	if d, err := leaf.Check(disclosed[0]); err != nil || string(d.Value) != `"`+value+`"` {
		t.Errorf("who kept the disclosure cannot prove it any more: %v", err)
	}
}

// stopAndVerify stops the server and verifies its log from the files and the key.
func (f *fixture) stopAndVerify() *ledger.Log {
	f.t.Helper()
	if err := f.stop(); err != nil {
		f.t.Fatal(err)
	}
	log := f.log()
	report, err := log.Verify(f.t.Context(), ledger.VerifyOptions{})
	if err != nil || !report.Complete() {
		f.t.Fatalf("%v: %+v", err, report)
	}
	return log
}

func (f *fixture) log() *ledger.Log {
	f.t.Helper()
	pub, err := os.ReadFile(filepath.Join(f.dir, fileLedgerPub))
	if err != nil {
		f.t.Fatal(err)
	}
	key, err := ledger.ParsePublicKey(string(pub))
	if err != nil {
		f.t.Fatal(err)
	}
	log, err := ledger.OpenLog(filepath.Join(f.dir, dirLedger), key)
	if err != nil {
		f.t.Fatal(err)
	}
	return log
}

func (f *fixture) leaf(seq uint64) []byte {
	f.t.Helper()
	e, err := f.log().Entry(f.t.Context(), seq)
	if err != nil {
		f.t.Fatal(err)
	}
	return e.Body
}

// TestEraseWaitsForLeases: S33, S22. A lease that the target has not ended yet needs its scope to be ended, also when its run is over.
func TestEraseWaitsForLeases(t *testing.T) {
	f := setUp(t)
	r := f.startRun()
	if f.agent("agent/deploy", f.shared()).enter(r).ask("write").Secret == "" {
		t.Fatal("no credential")
	}
	over, _ := f.srv.store.Run(r.ID)
	over.State = remit.RunFinished // and the target does not answer
	if _, err := f.srv.store.Commit(t.Context(), remit.Change{Rows: []remit.Row{over}}); err != nil {
		t.Fatal(err)
	}
	if code := f.post("/v1/ledger/erase", api.Erase{Run: r.ID, Reason: "asked"}, nil); code != remit.CodeConflict {
		t.Errorf("its lease lives: %q", code)
	}
	live := f.srv.store.LiveLeases(func(l *remit.Lease) bool { return l.Run == r.ID })
	if len(live) != 1 || live[0].Scope["app"].Text() == "[erased]" {
		t.Fatalf("%+v", live)
	}
	f.must("/v1/grants/"+string(live[0].Grant)+"/revoke", api.Reasoned{Reason: "over"}, nil)
	f.backend.waitEmpty(t)
	f.must("/v1/ledger/erase", api.Erase{Run: r.ID, Reason: "asked"}, nil)
}

// TestEraseSetsNothingBack: S33. A grant that moves after it was read for an erasure keeps its new state: nothing is written.
func TestEraseSetsNothingBack(t *testing.T) {
	f := setUp(t)
	r := f.startRun()
	w := f.agent("agent/deploy", f.shared()).enter(r)
	for _, moved := range []func(remit.Grant, remit.Lease) remit.Row{
		func(g remit.Grant, _ remit.Lease) remit.Row { return g },
		func(_ remit.Grant, l remit.Lease) remit.Row { return l },
	} {
		id := w.ask("write").Grant
		rows, err := f.srv.withoutValues(map[remit.RunID]bool{r.ID: true})
		if err != nil {
			t.Fatal(err)
		}
		g, _ := f.srv.store.Grant(id)
		l, _ := f.srv.store.Lease(f.leaseOf(id))
		g.State, l.State = remit.GrantEnded, remit.GrantEnded
		row := moved(g, l)
		if _, err := f.srv.store.Commit(t.Context(), remit.Change{Rows: []remit.Row{row}}); err != nil {
			t.Fatal(err)
		}
		if err := f.srv.erase(t.Context(), remit.Principal{}, "run", "asked", nil, rows, nil); remit.CodeOf(err) != remit.CodeConflict {
			t.Errorf("a %T moved: %v", row, err)
		}
		g, _ = f.srv.store.Grant(id)
		l, _ = f.srv.store.Lease(l.ID)
		if g.State != remit.GrantEnded && l.State != remit.GrantEnded {
			t.Errorf("set back: %s, %s", g.State, l.State)
		}
	}
}
