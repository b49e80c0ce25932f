// SPDX-License-Identifier: Apache-2.0

package server

import (
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"remit"
)

// TestReplayOfMany times a replay of REMIT_REPLAY recorded decisions of a real ledger, through the server: a million take about 2 GB of disk.
func TestReplayOfMany(t *testing.T) {
	n, _ := strconv.Atoi(os.Getenv("REMIT_REPLAY"))
	if n == 0 {
		n = 500
	}
	f := setUp(t)
	f.files += mailStory
	f.write(f.files)
	f.must("/v1/apply", nil, nil)
	w := f.agent("agent/deploy", f.shared()).enter(f.mailRun("7"))
	w.send(`["ada@company.com"]`, "7", "10", "The printer works again.")
	w.send(`["ada@company.com"]`, "7", "9000", "Too much of it.")
	f.grow("mail", n)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "story.yaml"), []byte(f.files), 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := NewReplay(dir, f.admin)
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if err := r.Read(t.Context(), "", nil, nil); err != nil {
		t.Fatal(err)
	}
	took := time.Since(began)
	got := r.Report()
	if got.Same != n+2 || got.Decisions != n+2 {
		t.Errorf("%+v", got)
	}
	t.Logf("%d decisions in %s: %.0f a second", got.Decisions, took.Round(time.Millisecond), float64(got.Decisions)/took.Seconds())
}

// grow records n more decisions of the workflow, or of any, that differ from those that are there only in id and time.
func (f *fixture) grow(workflow string, n int) {
	f.t.Helper()
	have := f.decisions(workflow)
	for n > 0 {
		var c remit.Change
		for range min(n, 500) {
			d := have[n%len(have)]
			d.ID = remit.NewDecisionID()
			var s remit.Seal
			data := d.AppendSealed(nil, &s)
			c.Events = append(c.Events, remit.Event{At: d.At, Kind: remit.EventDecision, Agent: d.Agent, Run: d.Run, Decision: d.ID, By: d.Caller, Data: data, Payload: s.Payload})
			n--
		}
		if _, err := f.srv.store.Commit(f.t.Context(), c); err != nil {
			f.t.Fatal(err)
		}
	}
}
