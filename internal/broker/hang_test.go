// SPDX-License-Identifier: Apache-2.0

package broker_test

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"remit"
	"remit/internal/broker"
)

// hanging is a target that never answers.
type hanging struct{}

func (hanging) Mint(ctx context.Context, l remit.Lease) (remit.Credential, error) {
	return remit.Credential{Secret: remit.NewSecret("s3cret"), Expires: l.Expires}, nil
}

func (hanging) Revoke(ctx context.Context, _ remit.Lease) error {
	<-ctx.Done()
	return ctx.Err()
}

// panicking is a driver with a fault that a lease's own values set off.
type panicking struct{ hanging }

func (panicking) Revoke(context.Context, remit.Lease) error { panic("a fault of the driver") }

// beside is a broker over three targets: one good, one that hangs, one whose driver panics.
func (f *fixture) beside(t *testing.T) *broker.Broker {
	t.Helper()
	b, err := broker.New(broker.Config{Store: f.store, Log: slog.New(slog.DiscardHandler), Now: f.clock.now, Tick: time.Millisecond,
		Targets: func(name string) (broker.Target, bool) {
			switch name {
			case "hanging":
				return broker.Target{Driver: hanging{}}, true
			case "panicking":
				return broker.Target{Driver: panicking{}}, true
			}
			return broker.Target{Driver: f.target, Lister: f.target}, true
		},
		Names:   func() []string { return []string{"cluster"} },
		AgentID: func(n remit.Name) string { return "spiffe://example.org/" + string(n) }})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// active makes an active lease at a target.
func (f *fixture) active(t *testing.T, b *broker.Broker, target string) remit.Lease {
	t.Helper()
	now := f.clock.now()
	d := &remit.Decision{ID: remit.NewDecisionID(), At: now, Agent: "agent/deploy", Run: remit.NewRunID(), Target: target, TTL: 5 * time.Minute}
	run := &remit.Run{ID: d.Run, State: remit.RunActive, Expires: now.Add(time.Hour), StageExpires: now.Add(time.Hour)}
	g, l, err := b.Prepare(t.Context(), d, &remit.Request{At: now}, run)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.store.Commit(t.Context(), remit.Change{Rows: []remit.Row{g, l}}); err != nil {
		t.Fatal(err)
	}
	if _, _, err := b.Mint(t.Context(), g, l, nil); err != nil {
		t.Fatal(err)
	}
	return l
}

// TestHungTargetDelaysNobody: forty leases at a target that hangs are more than may be ended at once, and stand first in line.
func TestHungTargetDelaysNobody(t *testing.T) {
	f := setUp(t)
	b := f.beside(t)
	for range 40 {
		f.active(t, b, "hanging")
	}
	l := f.active(t, b, "cluster")
	f.clock.add(6 * time.Minute) // all have expired
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- b.Run(ctx) }()
	defer func() { cancel(); <-ended }()
	for end := time.Now().Add(3 * time.Second); f.target.count() > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("lease %s stands while another target hangs", l.ID)
		}
	}
}

// TestEndDoesNotWaitForOthers: the same for one call that ends all of an agent.
func TestEndDoesNotWaitForOthers(t *testing.T) {
	f := setUp(t)
	b := f.beside(t)
	for range 40 {
		f.active(t, b, "hanging")
	}
	f.active(t, b, "cluster")
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- b.End(ctx, func(*remit.Lease) bool { return true }, "suspended", "operator/ann") }()
	defer func() { cancel(); <-ended }()
	for end := time.Now().Add(3 * time.Second); f.target.count() > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the good target's lease stands while another target hangs")
		}
	}
}

// TestDriverPanicEndsNoServer: it would end the next one, too, which finds the same lease due.
func TestDriverPanicEndsNoServer(t *testing.T) {
	f := setUp(t)
	b := f.beside(t)
	l := f.active(t, b, "panicking")
	if err := b.End(t.Context(), func(*remit.Lease) bool { return true }, "suspended", "operator/ann"); err == nil {
		t.Fatal("an end that was not confirmed is none")
	}
	if _, live := b.Live(l.ID); live {
		t.Fatal("the lease is live for our own enforcement points")
	}
}

// TestProductionNeedsLaunch: a target that was marked after the request was let in (S3).
func TestProductionNeedsLaunch(t *testing.T) {
	f := setUp(t)
	b, err := broker.New(broker.Config{Store: f.store, Log: slog.New(slog.DiscardHandler), Now: f.clock.now,
		Targets: func(string) (broker.Target, bool) { return broker.Target{Driver: f.target, Production: true}, true },
		Names:   func() []string { return nil }, AgentID: func(remit.Name) string { return "" }})
	if err != nil {
		t.Fatal(err)
	}
	now := f.clock.now()
	d := &remit.Decision{ID: remit.NewDecisionID(), At: now, Agent: "agent/deploy", Run: remit.NewRunID(), Target: "cluster", TTL: 5 * time.Minute}
	run := &remit.Run{ID: d.Run, State: remit.RunActive, Expires: now.Add(time.Hour), StageExpires: now.Add(time.Hour)}
	for level, want := range map[remit.Level]bool{remit.LevelNone: false, remit.LevelUser: false, remit.LevelLaunched: true, remit.LevelNode: true} {
		_, _, err := b.Prepare(t.Context(), d, &remit.Request{At: now, Caller: remit.Principal{Level: level}}, run)
		if (err == nil) != want {
			t.Errorf("level %s: %v", level, err)
		}
	}
}
