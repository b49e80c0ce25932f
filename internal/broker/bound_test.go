// SPDX-License-Identifier: Apache-2.0

package broker_test

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"time"

	"remit"
	"remit/internal/broker"
)

// TestShortestEndCounts: a lease ends at the earliest of everything that it rests on (S12), and one that would be dead on
// arrival is not planned.
func TestShortestEndCounts(t *testing.T) {
	f := setUp(t)
	now := f.clock.now()
	const short = 90 * time.Second
	for name, cut := range map[string]func(time.Time, *remit.Decision, *remit.Request, *remit.Run){
		"ttl":      func(_ time.Time, d *remit.Decision, _ *remit.Request, _ *remit.Run) { d.TTL = short },
		"run":      func(end time.Time, _ *remit.Decision, _ *remit.Request, r *remit.Run) { r.Expires = end },
		"stage":    func(end time.Time, _ *remit.Decision, _ *remit.Request, r *remit.Run) { r.StageExpires = end },
		"SVID":     func(end time.Time, _ *remit.Decision, q *remit.Request, _ *remit.Run) { q.Caller.Expires = end },
		"evidence": func(end time.Time, d *remit.Decision, _ *remit.Request, _ *remit.Run) { d.Evidence[1].Until = end },
	} {
		plan := func(left time.Duration) (remit.Lease, error) {
			d := &remit.Decision{ID: remit.NewDecisionID(), At: now, Agent: "agent/deploy", Run: remit.NewRunID(), Target: "cluster",
				TTL: 5 * time.Minute, Evidence: []remit.Evidence{{}, {Until: now.Add(time.Hour)}}}
			run := &remit.Run{ID: d.Run, State: remit.RunActive, Expires: now.Add(time.Hour), StageExpires: now.Add(time.Hour)}
			req := &remit.Request{At: now, Caller: remit.Principal{Expires: now.Add(time.Hour)}}
			cut(now.Add(left), d, req, run)
			if name == "ttl" {
				d.TTL = left
			}
			_, l, err := f.broker.Prepare(t.Context(), d, req, run)
			return l, err
		}
		if l, err := plan(short); err != nil || !l.Expires.Equal(now.Add(short)) {
			t.Errorf("%s: the lease ends at %s, not %s (%v)", name, l.Expires, now.Add(short), err)
		}
		if _, err := plan(time.Second); err == nil {
			t.Errorf("%s: a lease of one second was planned", name)
		}
	}
}

// unfit is a target whose guards are gone.
type unfit struct{}

// Check implements credential.Checker.
func (unfit) Check(context.Context) error { return errors.New("its admission policy is gone") }

// TestUnfitTarget: what the target needs to hold a grant's bounds is looked at before every grant (S19).
func TestUnfitTarget(t *testing.T) {
	f := setUp(t)
	b, err := broker.New(broker.Config{Store: f.store, Log: slog.New(slog.DiscardHandler), Now: f.clock.now,
		Targets: func(string) (broker.Target, bool) { return broker.Target{Driver: f.target, Checker: unfit{}}, true },
		Names:   func() []string { return nil }, AgentID: func(remit.Name) string { return "" }})
	if err != nil {
		t.Fatal(err)
	}
	now := f.clock.now()
	d := &remit.Decision{ID: remit.NewDecisionID(), At: now, Agent: "agent/deploy", Run: remit.NewRunID(), Target: "cluster", TTL: 5 * time.Minute}
	run := &remit.Run{ID: d.Run, State: remit.RunActive, Expires: now.Add(time.Hour), StageExpires: now.Add(time.Hour)}
	if _, _, err := b.Prepare(t.Context(), d, &remit.Request{At: now}, run); err == nil {
		t.Fatal("a grant was planned at a target without its guards")
	}
}

// TestShortCredential: the answer and the record say when the credential ends, where that is before the lease.
func TestShortCredential(t *testing.T) {
	f := setUp(t)
	f.target.lasts = time.Minute
	g, l, cred := f.mint(t)
	stored, _ := f.store.Lease(l.ID)
	if want := l.Issued.Add(time.Minute); !cred.Expires.Equal(want) || !g.Expires.Equal(want) || !stored.Expires.Equal(want) {
		t.Errorf("credential until %s, grant %s, lease on record %s; want %s", cred.Expires, g.Expires, stored.Expires, want)
	}
}

// TestRevokedDuringMint: a revocation that has begun and is not confirmed yet makes a mint in flight useless (S20).
func TestRevokedDuringMint(t *testing.T) {
	f := setUp(t)
	g, l := f.grant(t)
	began, answer := make(chan struct{}), make(chan struct{})
	var once sync.Once
	f.target.inRevoke = func() {
		first := false
		once.Do(func() { first = true })
		if first {
			close(began)
			<-answer
		}
	}
	done := make(chan error, 1)
	f.target.inMint = func(l remit.Lease) {
		go func() { done <- f.broker.Revoke(context.Background(), l.Grant, "test", "operator/ci") }()
		<-began
	}
	_, cred, err := f.broker.Mint(t.Context(), g, l, nil)
	if err == nil || !cred.Secret.IsZero() {
		t.Error("a credential was handed over while its grant was being revoked")
	}
	close(answer)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// TestListingDecides: a lease whose mint had an unknown outcome is not called ended while its object stands at the target
// (S18).
func TestListingDecides(t *testing.T) {
	f := setUp(t)
	f.target.failMint, f.target.lazy = true, true
	g, l := f.grant(t)
	if _, _, err := f.broker.Mint(t.Context(), g, l, nil); err == nil {
		t.Fatal("a failed mint succeeded")
	}
	f.clock.add(2 * time.Minute)
	f.running(t, f.broker, func() {
		eventually(t, "it was revoked again and again", func() bool {
			f.clock.add(time.Second)
			f.target.mu.Lock()
			defer f.target.mu.Unlock()
			return f.target.revokes > 3
		})
		if s := f.state(t, l.ID); s != remit.GrantRevoking {
			t.Errorf("its object is still there, and the lease is %s", s)
		}
		f.target.mu.Lock()
		f.target.lazy = false
		f.target.mu.Unlock()
		eventually(t, "the lease ended", func() bool { f.clock.add(time.Second); return f.state(t, l.ID) == remit.GrantFailed })
	})
}
