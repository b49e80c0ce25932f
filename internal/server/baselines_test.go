// SPDX-License-Identifier: Apache-2.0

package server

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"remit"
	"remit/internal/behaviour"
)

// TestYoungBaselineOnlyTells: S36. What a young baseline finds is told, whatever the file says; what a grown one finds is answered.
func TestYoungBaselineOnlyTells(t *testing.T) {
	f := setUp(t, findingsOf("{respond: {unusual_behaviour: suspend}}")...)
	found := &remit.Finding{Kind: remit.FindingUnusual, Agent: "agent/build", Young: true, Events: []uint64{1}}
	if r, held := f.srv.responseTo(found); r != remit.RespondNotice || held == "" {
		t.Errorf("%s %q", r, held)
	}
	found.Young = false
	if r, held := f.srv.responseTo(found); r != remit.RespondSuspend || held != "" {
		t.Errorf("%s %q", r, held)
	}
}

// TestBaselinesSeeArguments: what the follower reads has the arguments, which are sealed in the entries, and folding it again leaves the
// same baselines. Without them another memory is left.
func TestBaselinesSeeArguments(t *testing.T) {
	f := setUp(t)
	w := f.agent("agent/deploy", f.shared()).enter(f.startRun())
	for range 3 {
		if g := w.ask("write"); g.Secret == "" {
			t.Fatalf("%+v", g)
		}
	}
	open, err := f.srv.store.OpenEntries(0, 4096)
	if err != nil {
		t.Fatal(err)
	}
	closed, err := f.srv.store.Entries(0, 4096)
	if err != nil || len(open) != len(closed) {
		t.Fatalf("%d and %d entries: %v", len(open), len(closed), err)
	}
	fold := func(list []remit.Entry) []byte {
		b := behaviour.NewBaselines(behaviour.Learning{Budget: 0.05, Shadow: 24 * time.Hour})
		for i := range list {
			b.Next(&list[i])
		}
		return b.AppendState(nil)
	}
	if !bytes.Equal(fold(open), fold(open)) {
		t.Error("folding again leaves something else")
	}
	if bytes.Equal(fold(open), fold(closed)) {
		t.Error("the arguments make no difference")
	}
	if page, err := f.srv.store.OpenEntries(2, 1); err != nil || len(page) != 1 || page[0].Seq != 3 || page[0].Private != nil {
		t.Errorf("%+v %v", page, err)
	}
}

// TestShortMemoryIsSaid: S36. One agent more than baselines remember is said once, and nothing is before that.
func TestShortMemoryIsSaid(t *testing.T) {
	var log bytes.Buffer
	s := &Server{log: slog.New(slog.NewTextHandler(&log, nil))}
	f := &follower{detector: behaviour.New(behaviour.Config{Learn: &behaviour.Learning{Budget: 0.05}})}
	at := time.Date(2026, 3, 2, 9, 0, 0, 0, time.UTC)
	for i := range uint64(100_001) {
		if i == 100_000 {
			if s.sayShort(f); log.Len() > 0 {
				t.Errorf("said too early: %s", log.String())
			}
		}
		d := remit.Decision{At: at, Effect: remit.Allow, Agent: remit.Name(fmt.Sprint("agent/", i)), Action: "a", Target: "b"}
		e := remit.Event{At: at, Kind: remit.EventDecision, Agent: d.Agent, Data: d.AppendSealed(nil, &remit.Seal{})}
		f.detector.Next(remit.Entry{Seq: i + 1, Body: e.AppendJSON(nil, i+1)})
	}
	for range 2 {
		s.sayShort(f)
	}
	if text := log.String(); strings.Count(text, "forgotten=1\n") != 1 || strings.Count(text, "\n") != 1 {
		t.Errorf("said: %q", text)
	}
}
