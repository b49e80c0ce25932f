// SPDX-License-Identifier: Apache-2.0

package broker_test

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"remit"
	"remit/internal/broker"
	"remit/internal/store"
)

// probed is the target in memory with trials: a holder can do what the lease says while its object stands, and more if wide.
type probed struct {
	*target
	wide   bool
	fails  bool
	during func()
}

func (p *probed) Try(_ context.Context, l remit.Lease, _ remit.Credential) ([]remit.Trial, error) {
	if p.during != nil {
		p.during()
	}
	if p.fails {
		return nil, errors.New("no answer")
	}
	granted, secrets := remit.TrialRefused, remit.TrialRefused
	if p.stands(l.ID) {
		granted = remit.TrialPassed
	}
	if p.wide {
		secrets = remit.TrialPassed
	}
	return []remit.Trial{{Act: "apply", Granted: true, Outcome: granted}, {Act: "read secrets", Outcome: secrets}}, nil
}

func (p *probed) TryEnded(_ context.Context, l remit.Lease, _ remit.Credential) remit.Trial {
	t := remit.Trial{Act: "after the end", Outcome: remit.TrialRefused}
	if p.stands(l.ID) {
		t.Outcome = remit.TrialPassed
	}
	return t
}

func (p *probed) stands(id remit.LeaseID) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.objects[id]
}

// verifier is a fixture whose target can be tried.
func verifier(t *testing.T) (*fixture, *probed) {
	t.Helper()
	f := setUp(t)
	p := &probed{target: f.target}
	b, err := broker.New(broker.Config{Store: f.store, Log: slog.New(slog.DiscardHandler), Now: f.clock.now,
		Targets: func(string) (broker.Target, bool) {
			return broker.Target{Driver: p, Lister: p, Prober: p}, true
		},
		Names: func() []string { return nil }, AgentID: func(n remit.Name) string { return "spiffe://example.org/" + string(n) }})
	if err != nil {
		t.Fatal(err)
	}
	f.broker = b
	return f, p
}

// recorded are the events of a kind.
func (f *fixture) recorded(t *testing.T, kind remit.EventKind) []string {
	t.Helper()
	entries, _, err := f.store.Events(store.EventFilter{Kind: kind}, 0, 100)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		out = append(out, string(e.Open().Body))
	}
	return out
}

func TestVerifyRecordsAndEndsItsTwin(t *testing.T) {
	for _, wide := range []bool{false, true} {
		f, p := verifier(t)
		p.wide = wide
		g, l, _ := f.mint(t)
		v, err := f.broker.Verify(t.Context(), g.ID, "operator/ann")
		if err != nil {
			t.Fatal(err)
		}
		if v.Holds == wide || len(v.Trials) != 3 {
			t.Errorf("wide %v: %+v", wide, v)
		}
		twin, ok := f.store.Grant(v.Twin)
		if !ok || twin.TwinOf != g.ID || twin.State != remit.GrantEnded || twin.Decision != g.Decision || twin.Expires.After(g.Expires) {
			t.Errorf("the twin on record: %+v", twin)
		}
		if f.state(t, l.ID) != remit.GrantActive || p.count() != 1 {
			t.Errorf("the live lease is %s, %d objects stand", f.state(t, l.ID), p.count())
		}
		events := f.recorded(t, remit.EventVerified)
		if len(events) != 1 || !strings.Contains(events[0], string(v.Twin)) || !strings.Contains(events[0], "operator/ann") || !strings.Contains(events[0], "read secrets") {
			t.Errorf("recorded: %v", events)
		}
	}
}

func TestVerifyNeedsALiveGrant(t *testing.T) {
	f, p := verifier(t)
	g, _, _ := f.mint(t)
	if err := f.broker.Revoke(t.Context(), g.ID, "test", "operator/ann"); err != nil {
		t.Fatal(err)
	}
	pending, _ := f.grant(t)
	for what, id := range map[string]remit.GrantID{"ended": g.ID, "pending": pending.ID} {
		if _, err := f.broker.Verify(t.Context(), id, "operator/ann"); remit.CodeOf(err) != remit.CodeConflict {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := f.broker.Verify(t.Context(), remit.NewGrantID(), "operator/ann"); remit.CodeOf(err) != remit.CodeNotFound {
		t.Errorf("unknown: %v", err)
	}
	if p.count() != 0 || len(f.recorded(t, remit.EventVerified)) != 0 {
		t.Errorf("%d objects were made", p.count())
	}
}

// A twin is authority: whatever ends its grant, agent or run while it is minted keeps it from being used (S11).
func TestVerifyStopsWhenStateMoves(t *testing.T) {
	f, p := verifier(t)
	g, l, _ := f.mint(t)
	p.inMint = func(remit.Lease) { f.store.Tighten(remit.LeaseKey(l.ID)) }
	if _, err := f.broker.Verify(t.Context(), g.ID, "operator/ann"); remit.CodeOf(err) != remit.CodeConflict {
		t.Errorf("revoked meanwhile: %v", err)
	}
	if p.count() != 1 || len(f.recorded(t, remit.EventVerified)) != 0 {
		t.Errorf("%d objects stand", p.count())
	}
}

// TestNoTwinDuringAHalt: S13. A halted installation mints nothing, no twin either, and a halt during its minting keeps it from use.
func TestNoTwinDuringAHalt(t *testing.T) {
	f, p := verifier(t)
	g, _, _ := f.mint(t)
	p.inMint = func(remit.Lease) { f.store.SetSuspended(remit.Installation, "the clock jumped") }
	if _, err := f.broker.Verify(t.Context(), g.ID, "operator/ann"); remit.CodeOf(err) != remit.CodeConflict {
		t.Errorf("halted meanwhile: %v", err)
	}
	p.inMint = nil
	if v, err := f.broker.Verify(t.Context(), g.ID, "operator/ann"); remit.CodeOf(err) != remit.CodeConflict || v.Twin != "" {
		t.Errorf("halted: %v, twin %q", err, v.Twin)
	}
	if p.count() != 1 || len(f.recorded(t, remit.EventVerified)) != 0 {
		t.Errorf("%d objects stand", p.count())
	}
}

func TestVerifyEndsItsTwinAfterAFault(t *testing.T) {
	f, p := verifier(t)
	g, _, _ := f.mint(t)
	for what, fault := range map[string]func(){"trials fail": func() { p.fails = true }, "the driver panics": func() { p.during = func() { panic("x") } },
		"the caller goes": nil} {
		p.fails, p.during = false, nil
		ctx, cancel := context.WithCancel(t.Context())
		if fault == nil {
			p.during = cancel
		} else {
			fault()
		}
		v, err := f.broker.Verify(ctx, g.ID, "operator/ann")
		cancel()
		if (err == nil) != (fault == nil) || p.count() != 1 {
			t.Errorf("%s: %v, %d objects stand", what, err, p.count())
		}
		if twin, _ := f.store.Grant(v.Twin); twin.State != remit.GrantEnded {
			t.Errorf("%s: the twin is %s", what, twin.State)
		}
	}
}

// fitness counts how often a target is asked whether it is fit.
type fitness struct {
	asked int
	err   error
}

func (f *fitness) Check(context.Context) error { f.asked++; return f.err }

// A target whose last mint went well is not asked before the grant is recorded: the mint checks it. One whose mint failed is.
func TestUnfitTargetIsAskedFirst(t *testing.T) {
	f := setUp(t)
	fit := &fitness{}
	b, err := broker.New(broker.Config{Store: f.store, Log: slog.New(slog.DiscardHandler), Now: f.clock.now,
		Targets: func(string) (broker.Target, bool) {
			return broker.Target{Driver: f.target, Lister: f.target, Checker: fit}, true
		},
		Names: func() []string { return nil }, AgentID: func(n remit.Name) string { return "spiffe://example.org/" + string(n) }})
	if err != nil {
		t.Fatal(err)
	}
	f.broker = b
	f.mint(t)
	f.mint(t)
	if fit.asked != 1 {
		t.Errorf("asked %d times before two mints that went well", fit.asked)
	}
	fit = &fitness{} // the target is configured otherwise
	f.mint(t)
	if fit.asked != 1 {
		t.Errorf("asked %d times after the target was changed", fit.asked)
	}
	f.target.failMint, fit.err = true, errors.New("policy absent")
	g, l := f.grant(t)
	if _, _, err := b.Mint(t.Context(), g, l, nil); err == nil {
		t.Fatal("minted")
	}
	d := &remit.Decision{ID: remit.NewDecisionID(), At: f.clock.now(), Agent: "agent/deploy", Run: remit.NewRunID(), Target: "cluster", TTL: time.Minute}
	run := &remit.Run{ID: d.Run, State: remit.RunActive, Expires: d.At.Add(time.Hour), StageExpires: d.At.Add(time.Hour)}
	if _, _, err := b.Prepare(t.Context(), d, &remit.Request{At: d.At}, run); err == nil || !strings.Contains(err.Error(), "policy absent") {
		t.Errorf("an unfit target: %v", err)
	}
}
