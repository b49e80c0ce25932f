// SPDX-License-Identifier: Apache-2.0

// Package credentialtest is the suite that every credential driver passes at its real target. It is test support and part of
// no product path; what it starts, it waits for.
package credentialtest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"remit"
	"remit/internal/credential"
)

// Live is a driver at a running target, and the target seen with the administrator's own eyes: no function of it asks the
// driver. All functions but Hold are required.
type Live struct {
	// Driver is the driver under test.
	Driver credential.Driver
	// Lease returns a fresh pending lease that the target can hold: Issued now, MintBefore some seconds ahead.
	Lease func() remit.Lease
	// Act does what the lease is for with the credential.
	Act func(ctx context.Context, l remit.Lease, c remit.Credential) error
	// Forbidden are acts outside the lease, by name; each must fail.
	Forbidden map[string]func(ctx context.Context, l remit.Lease, c remit.Credential) error
	// Standing returns what stands at the target for the lease: names of objects, in any order.
	Standing func(ctx context.Context, l remit.Lease) ([]string, error)
	// Hold makes the last request that Mint sends, the one that gives authority, arrive at the target only after d, and lets
	// its sender go as soon as the sender's context ends; the returned function waits until it arrived and ends the holding.
	// nil: the driver makes nothing at the target.
	Hold func(d time.Duration) (arrived func())
	// Widen gives the holder of a lease more at the target than the lease says, with the administrator's rights, and Snapshot
	// shows all that a trial could have changed. Both are required of drivers that implement credential.Prober.
	Widen    func(ctx context.Context, l remit.Lease) error
	Snapshot func(ctx context.Context) (string, error)
	// Dead is how soon after Revoke the credential must be refused. 0: one second.
	Dead time.Duration
}

// Test runs the suite. start is called once for each part and makes a target of its own.
func Test(t *testing.T, start func(t *testing.T) Live) {
	for _, part := range []struct {
		name string
		run  func(context.Context, Live) error
	}{
		{"mint does the act", mintActs},
		{"mint does nothing wider", mintNothingWider},
		{"revoke ends it from the lease alone", revokeEnds},
		{"revoke twice, and what never was", revokeAgain},
		{"revoke during mint", revokeDuringMint},
		{"create arrives after its revoke", lateCreate},
		{"list shows what stands", listShows},
		{"trials show the bounds", trialsShow},
		{"trials notice what is wider", trialsNotice},
	} {
		t.Run(part.name, func(t *testing.T) {
			if err := part.run(t.Context(), start(t)); err != nil && !errors.Is(err, errNotApplicable) {
				t.Error(err)
			}
		})
	}
}

// MustFail runs the suite's parts against a driver that is known to be broken and fails t unless at least one part notices.
func MustFail(t *testing.T, start func(t *testing.T) Live) {
	t.Helper()
	for _, run := range []func(context.Context, Live) error{revokeEnds, revokeAgain, lateCreate} {
		if err := run(t.Context(), start(t)); err == nil {
			t.Error("a part of the suite passed with a broken driver")
		} else if !errors.Is(err, errNotApplicable) {
			t.Logf("noticed: %v", err)
		}
	}
}

// BlindMustFail runs the suite's trials against a driver whose trials see nothing, and fails t unless that is noticed.
func BlindMustFail(t *testing.T, start func(t *testing.T) Live) {
	t.Helper()
	err := trialsNotice(t.Context(), start(t))
	if err == nil || errors.Is(err, errNotApplicable) {
		t.Errorf("trials that see nothing passed: %v", err)
		return
	}
	t.Logf("noticed: %v", err)
}

var errNotApplicable = errors.New("not applicable to this driver")

// settle tries until f returns nil: a target may need a moment to see what was just made.
func settle(ctx context.Context, f func() error) error {
	deadline := time.Now().Add(2 * time.Second)
	for {
		err := f()
		if err == nil || time.Now().After(deadline) || ctx.Err() != nil {
			return err
		}
	}
}

func mintAndAct(ctx context.Context, v Live) (remit.Lease, remit.Credential, error) {
	l := v.Lease()
	c, err := v.Driver.Mint(ctx, l)
	if err != nil {
		return l, c, fmt.Errorf("mint: %w", err)
	}
	if err := settle(ctx, func() error { return v.Act(ctx, l, c) }); err != nil {
		return l, c, fmt.Errorf("the act that the lease is for: %w", err)
	}
	return l, c, nil
}

func mintActs(ctx context.Context, v Live) error {
	l, c, err := mintAndAct(ctx, v)
	switch {
	case err != nil:
		return err
	case c.Secret.IsZero() || c.Type == "" || len(c.IDs) == 0:
		return errors.New("the credential lacks secret, type or ids")
	case c.Expires.After(l.Expires) || c.Native.Before(c.Expires.Add(-time.Second)):
		return fmt.Errorf("expires %v, native %v, lease %v", c.Expires, c.Native, l.Expires)
	}
	return v.Driver.Revoke(ctx, l)
}

func mintNothingWider(ctx context.Context, v Live) error {
	l, c, err := mintAndAct(ctx, v)
	if err != nil {
		return err
	}
	if len(v.Forbidden) == 0 {
		return errors.New("no forbidden act is named")
	}
	var errs []error
	for name, act := range v.Forbidden {
		if act(ctx, l, c) == nil {
			errs = append(errs, fmt.Errorf("forbidden act %q was done", name))
		}
	}
	return errors.Join(append(errs, v.Driver.Revoke(ctx, l))...)
}

func revokeEnds(ctx context.Context, v Live) error {
	l, c, err := mintAndAct(ctx, v)
	if err != nil {
		return err
	}
	// From the lease alone: as it was recorded before minting, by a driver that remembers nothing.
	if err := v.Driver.Revoke(ctx, remit.Lease{ID: l.ID, Target: l.Target, Action: l.Action, Scope: l.Scope, Expires: l.Expires}); err != nil {
		return fmt.Errorf("revoke: %w", err)
	}
	return dead(ctx, v, l, c)
}

func dead(ctx context.Context, v Live, l remit.Lease, c remit.Credential) error {
	limit := v.Dead
	if limit == 0 {
		limit = time.Second
	}
	start := time.Now()
	for v.Act(ctx, l, c) == nil {
		if time.Since(start) > limit {
			return fmt.Errorf("the credential still works %v after its revocation", time.Since(start))
		}
	}
	return nothingStands(ctx, v, l)
}

func nothingStands(ctx context.Context, v Live, l remit.Lease) error {
	left, err := v.Standing(ctx, l)
	if err != nil {
		return err
	}
	if len(left) > 0 {
		return fmt.Errorf("left at the target: %v", left)
	}
	return nil
}

func revokeAgain(ctx context.Context, v Live) error {
	if err := v.Driver.Revoke(ctx, v.Lease()); err != nil {
		return fmt.Errorf("revoke of what never was: %w", err)
	}
	l, c, err := mintAndAct(ctx, v)
	if err != nil {
		return err
	}
	for range 2 {
		if err := v.Driver.Revoke(ctx, l); err != nil {
			return fmt.Errorf("revoke: %w", err)
		}
	}
	return dead(ctx, v, l, c)
}

// revokeDuringMint races the two and then revokes once more, as the broker does for an unknown outcome.
func revokeDuringMint(ctx context.Context, v Live) error {
	for range 5 {
		l := v.Lease()
		var wg sync.WaitGroup
		wg.Go(func() { _, _ = v.Driver.Mint(ctx, l) })
		first := v.Driver.Revoke(ctx, l)
		wg.Wait()
		if err := errors.Join(first, v.Driver.Revoke(ctx, l)); err != nil {
			return fmt.Errorf("revoke: %w", err)
		}
		if err := nothingStands(ctx, v, l); err != nil {
			return err
		}
	}
	return nil
}

// lateCreate is S18: the request that gives authority is on its way when its sender gives up; the lease is revoked; five
// seconds later the request arrives. List must show it, and another Revoke must end it.
func lateCreate(ctx context.Context, v Live) error {
	lister, ok := v.Driver.(credential.Lister)
	if v.Hold == nil || !ok {
		return errNotApplicable
	}
	l := v.Lease()
	arrived := v.Hold(5 * time.Second)
	short, cancel := context.WithTimeout(ctx, time.Second)
	_, err := v.Driver.Mint(short, l)
	cancel()
	if err == nil {
		arrived()
		return errors.New("mint did not say that its last request had no answer")
	}
	if err := v.Driver.Revoke(ctx, l); err != nil {
		return fmt.Errorf("revoke: %w", err)
	}
	arrived()
	var left []string
	_ = settle(ctx, func() error { // what arrived may take its time to come to be, and need not
		if left, err = v.Standing(ctx, l); err == nil && len(left) == 0 {
			return errors.New("nothing yet")
		}
		return err
	})
	if err != nil {
		return err
	}
	listed, err := lister.List(ctx)
	if err != nil {
		return err
	}
	if len(left) > 0 && !contains(listed, l.ID) {
		return fmt.Errorf("list does not show what arrived late: %v", left)
	}
	if err := v.Driver.Revoke(ctx, l); err != nil {
		return fmt.Errorf("revoke again: %w", err)
	}
	return nothingStands(ctx, v, l)
}

func listShows(ctx context.Context, v Live) error {
	lister, ok := v.Driver.(credential.Lister)
	if !ok {
		return errNotApplicable
	}
	l, _, err := mintAndAct(ctx, v)
	if err != nil {
		return err
	}
	made, err := v.Standing(ctx, l)
	if err != nil {
		return err
	}
	before, err := lister.List(ctx)
	if err != nil {
		return err
	}
	if len(made) > 0 && !contains(before, l.ID) {
		return errors.New("list does not show a live lease")
	}
	if err := v.Driver.Revoke(ctx, l); err != nil {
		return err
	}
	after, err := lister.List(ctx)
	if err == nil && contains(after, l.ID) {
		err = errors.New("list shows a revoked lease")
	}
	return err
}

func proberOf(v Live) (credential.Prober, error) {
	prober, ok := v.Driver.(credential.Prober)
	if !ok {
		return nil, errNotApplicable
	}
	if v.Widen == nil || v.Snapshot == nil {
		return nil, errors.New("a driver with trials needs Widen and Snapshot")
	}
	return prober, nil
}

// trialsShow tries a lease before and after its act, since an object that stands is tried otherwise than a new one.
func trialsShow(ctx context.Context, v Live) error {
	prober, err := proberOf(v)
	if err != nil {
		return err
	}
	l := v.Lease()
	c, err := v.Driver.Mint(ctx, l)
	if err != nil {
		return fmt.Errorf("mint: %w", err)
	}
	for _, when := range []string{"before the act", "after it"} {
		before, err := v.Snapshot(ctx)
		if err != nil {
			return err
		}
		trials, err := prober.Try(ctx, l, c)
		if err != nil {
			return fmt.Errorf("try %s: %w", when, err)
		}
		after, err := v.Snapshot(ctx)
		if err != nil {
			return err
		}
		if before != after {
			return fmt.Errorf("the trials %s had an effect: %s, then %s", when, before, after)
		}
		r := remit.Verification{Trials: trials}
		if r.Conclude(); !r.Holds {
			return fmt.Errorf("%s the bounds do not show: %+v", when, trials)
		}
		if err := settle(ctx, func() error { return v.Act(ctx, l, c) }); err != nil {
			return err
		}
	}
	if err := v.Driver.Revoke(ctx, l); err != nil {
		return err
	}
	ectx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	if t := prober.TryEnded(ectx, l, c); t.Outcome != remit.TrialRefused {
		return fmt.Errorf("after its end: %+v", t)
	}
	return nil
}

// trialsNotice is what the trials are for: a holder who can do more than the lease says is found out, and a dead credential,
// which is refused everything, proves nothing.
func trialsNotice(ctx context.Context, v Live) error {
	prober, err := proberOf(v)
	if err != nil {
		return err
	}
	l, c, err := mintAndAct(ctx, v)
	if err != nil {
		return err
	}
	if err := v.Widen(ctx, l); err != nil {
		return err
	}
	err = settle(ctx, func() error {
		trials, err := prober.Try(ctx, l, c)
		for i := range trials {
			if trials[i].Wrong() {
				return err
			}
		}
		return errors.Join(err, errors.New("the trials do not notice that the holder can do more"))
	})
	if err := errors.Join(err, v.Driver.Revoke(ctx, l)); err != nil {
		return err
	}
	dead := v.Lease()
	if c, err = v.Driver.Mint(ctx, dead); err != nil {
		return err
	}
	if err := v.Driver.Revoke(ctx, dead); err != nil {
		return err
	}
	short, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	trials, err := prober.Try(short, dead, c)
	r := remit.Verification{Trials: trials}
	if r.Conclude(); err == nil && r.Holds {
		return errors.New("a dead credential passed for a bounded one")
	}
	return nil
}

func contains(ids []remit.LeaseID, id remit.LeaseID) bool {
	for _, i := range ids {
		if i == id {
			return true
		}
	}
	return false
}
