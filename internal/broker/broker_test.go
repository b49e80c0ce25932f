// SPDX-License-Identifier: Apache-2.0

package broker_test

import (
	"context"
	"crypto/ed25519"
	"errors"
	"log/slog"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"remit"
	"remit/internal/broker"
	"remit/internal/store"
)

// target is a backend in memory: objects by lease, with faults on demand. It obeys the driver contract unless told not to.
type target struct {
	mu       sync.Mutex
	objects  map[remit.LeaseID]bool
	failMint bool
	late     bool          // Mint fails and its create arrives when release is closed
	release  chan struct{} // see late
	failEnd  map[remit.LeaseID]bool
	inMint   func(remit.Lease)
	inRevoke func()        // called outside the lock
	lasts    time.Duration // of credentials; 0: as long as the lease
	lazy     bool          // Revoke succeeds and removes nothing yet
	revokes  int
}

func newTarget() *target {
	return &target{objects: map[remit.LeaseID]bool{}, failEnd: map[remit.LeaseID]bool{}, release: make(chan struct{})}
}

func (g *target) Mint(_ context.Context, l remit.Lease) (remit.Credential, error) {
	if g.inMint != nil {
		g.inMint(l)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.late {
		go func() { <-g.release; g.mu.Lock(); g.objects[l.ID] = true; g.mu.Unlock() }()
		return remit.Credential{}, errors.New("connection reset")
	}
	g.objects[l.ID] = true
	if g.failMint {
		return remit.Credential{}, errors.New("half-way")
	}
	if g.lasts > 0 {
		l.Expires = l.Issued.Add(g.lasts)
	}
	return remit.Credential{Secret: remit.NewSecret("s3cret-" + string(l.ID)), Expires: l.Expires, IDs: []string{"JTI=" + string(l.ID)}}, nil
}

func (g *target) Revoke(_ context.Context, l remit.Lease) error {
	if g.inRevoke != nil {
		g.inRevoke()
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.revokes++
	if g.lazy {
		return nil
	}
	if g.failEnd[l.ID] {
		return errors.New("target down")
	}
	delete(g.objects, l.ID)
	return nil
}

func (g *target) List(context.Context) ([]remit.LeaseID, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	var ids []remit.LeaseID
	for id := range g.objects {
		ids = append(ids, id)
	}
	return ids, nil
}

func (g *target) count() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.objects)
}

// leases adapts the real store.
type leases struct{ *store.Store }

type clock struct {
	mu sync.Mutex
	t  time.Time
}

func (c *clock) now() time.Time { c.mu.Lock(); defer c.mu.Unlock(); return c.t }
func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

type fixture struct {
	store  *store.Store
	target *target
	clock  *clock
	broker *broker.Broker
}

func setUp(t *testing.T) *fixture {
	t.Helper()
	_, key, _ := ed25519.GenerateKey(nil)
	s, err := store.Open(store.Config{Path: filepath.Join(t.TempDir(), "db"), Sign: func(_, _ uint64, root [32]byte) (string, []byte, error) {
		return "test", ed25519.Sign(key, root[:]), nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	f := &fixture{store: s, target: newTarget(), clock: &clock{t: time.Now()}}
	f.broker = f.newBroker(t)
	return f
}

func (f *fixture) newBroker(t *testing.T) *broker.Broker {
	t.Helper()
	b, err := broker.New(broker.Config{Store: leases{f.store}, Log: slog.New(slog.DiscardHandler), Now: f.clock.now, Tick: time.Millisecond,
		Targets: func(string) (broker.Target, bool) { return broker.Target{Driver: f.target, Lister: f.target}, true },
		Names:   func() []string { return []string{"cluster"} },
		AgentID: func(n remit.Name) string { return "spiffe://example.org/" + string(n) }})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// grant prepares and commits a pending grant as the authorizer does.
func (f *fixture) grant(t *testing.T) (remit.Grant, remit.Lease) {
	t.Helper()
	now := f.clock.now()
	d := &remit.Decision{ID: remit.NewDecisionID(), At: now, Agent: "agent/deploy", Run: remit.NewRunID(), Target: "cluster", TTL: 5 * time.Minute}
	run := &remit.Run{ID: d.Run, State: remit.RunActive, Expires: now.Add(time.Hour), StageExpires: now.Add(time.Hour)}
	g, l, err := f.broker.Prepare(t.Context(), d, &remit.Request{At: now}, run)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.store.Commit(t.Context(), remit.Change{Rows: []remit.Row{g, l}}); err != nil {
		t.Fatal(err)
	}
	return g, l
}

func (f *fixture) mint(t *testing.T) (remit.Grant, remit.Lease, remit.Credential) {
	t.Helper()
	g, l := f.grant(t)
	g, cred, err := f.broker.Mint(t.Context(), g, l, nil)
	if err != nil {
		t.Fatal(err)
	}
	return g, l, cred
}

func (f *fixture) state(t *testing.T, id remit.LeaseID) remit.GrantState {
	t.Helper()
	l, ok := f.store.Lease(id)
	if !ok {
		t.Fatalf("lease %s is not in the store", id)
	}
	return l.State
}

// running runs the broker's loop during f.
func (f *fixture) running(t *testing.T, b *broker.Broker, during func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- b.Run(ctx) }()
	during()
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("not in ten seconds: %s", what)
}

func TestMintAndRevoke(t *testing.T) {
	f := setUp(t)
	g, l, cred := f.mint(t)
	if g.State != remit.GrantActive || cred.Secret.IsZero() || f.state(t, l.ID) != remit.GrantActive {
		t.Fatalf("grant %+v", g)
	}
	if _, live := f.broker.Live(l.ID); !live {
		t.Error("an active lease is not live")
	}
	for range 2 { // ending what has ended succeeds
		if err := f.broker.Revoke(t.Context(), g.ID, "test", "operator/ci"); err != nil {
			t.Fatal(err)
		}
	}
	if f.target.count() != 0 || f.state(t, l.ID) != remit.GrantEnded {
		t.Errorf("%d objects left, lease %s", f.target.count(), f.state(t, l.ID))
	}
	if _, live := f.broker.Live(l.ID); live {
		t.Error("a revoked lease is live")
	}
}

// S11: an epoch that moves while the driver mints makes the credential useless before it is handed over.
func TestStateMovedDuringMint(t *testing.T) {
	for name, move := range map[string]func(*fixture, remit.Lease){
		"agent suspended": func(f *fixture, l remit.Lease) { f.store.Tighten(remit.AgentKey(l.Agent)) },
		"lease revoked": func(f *fixture, l remit.Lease) {
			_ = f.broker.Revoke(context.Background(), l.Grant, "test", "operator/ci")
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := setUp(t)
			g, l := f.grant(t)
			require := []remit.Precondition{{Key: remit.AgentKey(l.Agent), Epoch: f.store.Epoch(remit.AgentKey(l.Agent))}}
			f.target.inMint = func(l remit.Lease) { move(f, l) }
			_, cred, err := f.broker.Mint(t.Context(), g, l, require)
			if err == nil || !cred.Secret.IsZero() {
				t.Fatal("a credential was handed over")
			}
			if f.target.count() != 0 {
				t.Error("its objects are left at the target")
			}
		})
	}
}

// S18: the create arrives after its revoke.
func TestLateCreate(t *testing.T) {
	f := setUp(t)
	f.target.late = true
	g, l := f.grant(t)
	if _, _, err := f.broker.Mint(t.Context(), g, l, nil); err == nil {
		t.Fatal("a failed mint succeeded")
	}
	if s := f.state(t, l.ID); s != remit.GrantRevoking {
		t.Fatalf("the lease is %s, not revoking", s)
	}
	f.running(t, f.broker, func() {
		close(f.target.release)
		eventually(t, "the late object arrived or was swept", func() bool {
			f.clock.add(100 * time.Millisecond)
			f.target.mu.Lock()
			defer f.target.mu.Unlock()
			return f.target.revokes > 2
		})
		f.clock.add(2 * time.Minute)
		eventually(t, "the lease ended", func() bool { f.clock.add(time.Second); return f.state(t, l.ID) == remit.GrantFailed })
	})
	if f.target.count() != 0 {
		t.Error("the late object is left")
	}
}

func TestExpiryAndFailingRevoke(t *testing.T) {
	f := setUp(t)
	_, bad, _ := f.mint(t)
	_, good, _ := f.mint(t)
	f.target.failEnd[bad.ID] = true
	f.clock.add(6 * time.Minute)
	f.running(t, f.broker, func() {
		eventually(t, "the other lease ended", func() bool { return f.state(t, good.ID) == remit.GrantEnded })
		eventually(t, "the bad one was tried again", func() bool {
			f.clock.add(time.Second)
			f.target.mu.Lock()
			defer f.target.mu.Unlock()
			return f.target.revokes > 2
		})
		if f.state(t, bad.ID) != remit.GrantActive {
			t.Error("a lease that could not be revoked counts as ended")
		}
		f.target.mu.Lock()
		delete(f.target.failEnd, bad.ID)
		f.target.mu.Unlock()
		eventually(t, "it ended when the target came back", func() bool { f.clock.add(time.Second); return f.state(t, bad.ID) == remit.GrantEnded })
	})
}

// A process that died between the two commits leaves a pending lease; the next one removes what it may have made.
func TestCrashBetweenCommits(t *testing.T) {
	f := setUp(t)
	g, l := f.grant(t)
	f.target.objects[l.ID] = true // made, and then the process died
	f.clock.add(time.Second)
	next := f.newBroker(t)
	f.running(t, next, func() {
		eventually(t, "its object is gone", func() bool { return f.target.count() == 0 })
		f.clock.add(2 * time.Minute)
		eventually(t, "the lease ended", func() bool { f.clock.add(time.Second); return f.state(t, l.ID) == remit.GrantFailed })
	})
	if got, _ := f.store.Grant(g.ID); got.State != remit.GrantFailed {
		t.Errorf("the grant is %s", got.State)
	}
}

func TestReconcileRemovesOrphans(t *testing.T) {
	f := setUp(t)
	_, kept, _ := f.mint(t)
	f.target.objects[remit.NewLeaseID()] = true
	f.running(t, f.broker, func() {
		eventually(t, "the orphan is gone", func() bool { return f.target.count() == 1 })
	})
	if !f.target.objects[kept.ID] {
		t.Error("a live lease's object was removed")
	}
}
