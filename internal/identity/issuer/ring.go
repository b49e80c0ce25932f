// SPDX-License-Identifier: Apache-2.0

package issuer

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"remit/internal/identity"
)

// ring is a series of keys in one file. It is safe for concurrent use; readers never wait.
type ring struct {
	name    string
	path    string
	policy  policy
	now     func() time.Time
	onEvent func(step, keyID string)
	certify func(key *ecdsa.PrivateKey, from, until time.Time) ([]*x509.Certificate, error) // nil: keys without certificate
	header  func(keyID string) string                                                       // nil: keys that sign no tokens
	signal  *identity.Signal
	keeper  Keeper // nil before open: plaintext

	mu    sync.Mutex // held by whoever changes the state
	state atomic.Pointer[state]
}

// open reads the ring's file and takes all steps that are due, so that there is a current key.
func (r *ring) open(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make key folder: %w", err)
	}
	if r.keeper == nil {
		r.keeper = plaintext{}
	}
	r.path = filepath.Join(dir, r.name+".json")
	st, err := load(r.path, r.keeper)
	if err != nil {
		return err
	}
	for i := range st.slots {
		if (r.certify != nil) != (len(st.slots[i].chain) > 0) {
			return fmt.Errorf("key file %s: key %s has no certificate, or one that it should not have", r.path, st.slots[i].id)
		}
		r.label(&st.slots[i])
	}
	r.state.Store(st)
	return r.turn()
}

func (r *ring) label(s *slot) {
	if r.header != nil {
		s.header = r.header(s.id)
	}
}

// turn takes every step that is due. On error the ring stays as it was before the step that failed; the next turn tries again.
func (r *ring) turn() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for range 2 * maxKeys {
		now := r.now()
		st, about, ok := r.policy.due(r.state.Load().slots, now)
		if !ok {
			return nil
		}
		if err := r.take(st, about, now); err != nil {
			return fmt.Errorf("%s a key of %s: %w", st, r.name, err)
		}
	}
	return fmt.Errorf("key ring %s does not come to rest", r.name)
}

// take makes one step durable, then lets it take effect, then reports it. r.mu is held.
func (r *ring) take(st step, about string, now time.Time) error {
	old := r.state.Load()
	next := &state{sequence: old.sequence + 1}
	retired := ""
	switch st {
	case stepPrepare:
		if len(old.slots) >= maxKeys {
			return errors.New("too many old keys: drop them, or wait until they end")
		}
		s, err := r.generate(now)
		if err != nil {
			return err
		}
		next.slots, about = append(slices.Clone(old.slots), s), s.id
	case stepActivate:
		next.slots, retired = activated(old.slots, about)
	case stepPrune:
		next.slots = without(old.slots, about)
	}
	if err := next.save(r.path, r.keeper); err != nil {
		return err
	}
	r.state.Store(next)
	if retired != "" {
		r.onEvent(string(stepRetire), r.name+"/"+retired)
	}
	r.onEvent(string(st), r.name+"/"+about)
	r.signal.Notify()
	return nil
}

// generate makes the next key. Where there is a current one, it takes over when that one hands over, with notice.
func (r *ring) generate(now time.Time) (slot, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return slot{}, fmt.Errorf("generate: %w", err)
	}
	now = now.UTC().Truncate(time.Second) // as certificates have it
	s := slot{id: keyID(&key.PublicKey), state: Next, created: now, notAfter: now.Add(r.policy.life), key: key}
	if r.certify != nil {
		if s.chain, err = r.certify(key, now, s.notAfter); err != nil {
			return slot{}, err
		}
		s.notAfter = s.chain[0].NotAfter
	}
	if cur := find(r.state.Load().slots, Current); cur != nil {
		s.activate = latest(r.policy.switchAt(cur), now.Add(r.policy.notice))
	}
	r.label(&s)
	return s, nil
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// prepare publishes a next key before its time; it then takes over after the ring's notice. A next key that is there already
// takes over then.
func (r *ring) prepare() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.now()
	if find(r.state.Load().slots, Next) == nil {
		if err := r.take(stepPrepare, "", now); err != nil {
			return fmt.Errorf("prepare a key of %s: %w", r.name, err)
		}
	}
	old := r.state.Load()
	next := &state{sequence: old.sequence, slots: slices.Clone(old.slots)}
	s := find(next.slots, Next)
	s.activate = latest(s.created.Add(r.policy.notice), now)
	if err := next.save(r.path, r.keeper); err != nil {
		return err
	}
	r.state.Store(next)
	return nil
}

// activate lets the next key sign now, without waiting for its time.
func (r *ring) activate() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := find(r.state.Load().slots, Next)
	if s == nil {
		return fmt.Errorf("key ring %s has no next key: prepare one first", r.name)
	}
	return r.take(stepActivate, s.id, r.now())
}

// drop forgets every key that is not the current one or the next one: what they signed is worth nothing from here on.
func (r *ring) drop() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	var errs []error
	for _, s := range r.state.Load().slots {
		if s.state == Old {
			errs = append(errs, r.take(stepPrune, s.id, r.now()))
		}
	}
	return errors.Join(errs...)
}

// forget removes one key that does not sign.
func (r *ring) forget(id string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.take(stepPrune, id, r.now())
}

// current returns the key that signs, if it has not ended.
func (r *ring) current() (*slot, error) {
	s := find(r.state.Load().slots, Current)
	if s == nil || !r.now().Before(s.notAfter) {
		return nil, fmt.Errorf("key ring %s has no key that is valid now", r.name)
	}
	return s, nil
}
