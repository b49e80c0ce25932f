// SPDX-License-Identifier: Apache-2.0

// Package federation lets SVIDs of other trust domains count here: it fetches their bundles from the endpoints that the server's
// file names (SPIFFE Federation, section 5), each authenticated by the web's roots (https_web) or by the endpoint's SPIFFE ID
// (https_spiffe). Keys of two domains are never merged, and a domain that is not listed is an error.
//
// Only X.509-SVIDs count: the jti of a foreign JWT-SVID need not be unique, so none can be single-use (S5). What a foreign authority
// says of its workloads is unknown here (S8); an agent's file states what its federation vouches for.
//
// A bundle that could not be refreshed for a day counts no more, and an older sequence number than the last is refused: whoever keeps
// us from the endpoint must not keep a withdrawn root alive. Run owns all goroutines.
package federation

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	upstream "github.com/spiffe/go-spiffe/v2/federation"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"remit/internal/identity"
)

// Domain is another trust domain and where its bundle is.
type Domain struct {
	TrustDomain spiffeid.TrustDomain
	URL         string
	// EndpointID is who serves it (https_spiffe), verified with Bootstrap at first and with the domain's own bundle from then on.
	// Zero: the web's roots (https_web).
	EndpointID spiffeid.ID
	Bootstrap  *spiffebundle.Bundle
	Roots      *x509.CertPool // https_web: nil is the system's
}

// Config of Bundles; without a stated default everything is required.
type Config struct {
	Own     identity.Bundles
	Domains []Domain
	// Dir is where the last bundles are remembered, so that after a restart an endpoint is verified with them, and not with a first bundle
	// whose keys may have been replaced since. Empty: they are not.
	Dir string
	Log *slog.Logger
	Now func() time.Time // default time.Now
}

// How often bundles are fetched, and when they count no more.
const (
	mostOften   = 30 * time.Second
	leastOften  = 10 * time.Minute
	afterFault  = time.Minute
	fetchWithin = 20 * time.Second
	staleAfter  = 24 * time.Hour
)

// Bundles are our own and those of the listed domains. It is safe for concurrent use.
type Bundles struct {
	cfg    Config
	signal identity.Signal

	mu   sync.Mutex // guards the rest
	own  <-chan struct{}
	held map[spiffeid.TrustDomain]held
}

type held struct {
	bundle  *spiffebundle.Bundle // never changed once it is here
	fetched time.Time            // zero: before this start, so that no workload counts by it
}

var _ identity.Bundles = (*Bundles)(nil)

// New checks cfg. Nothing is fetched before Run.
func New(cfg Config) (*Bundles, error) {
	if cfg.Own == nil || cfg.Log == nil {
		return nil, errors.New("federation: Own and Log are required")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	seen := map[spiffeid.TrustDomain]bool{}
	for _, d := range cfg.Domains {
		if d.TrustDomain.IsZero() || d.URL == "" || seen[d.TrustDomain] {
			return nil, fmt.Errorf("federation: %s stands twice, or without a URL", d.TrustDomain)
		}
		if !d.EndpointID.IsZero() && d.Bootstrap == nil {
			return nil, fmt.Errorf("federation: %s: the endpoint's SPIFFE ID cannot be verified without a first bundle", d.TrustDomain)
		}
		seen[d.TrustDomain] = true
	}
	b := &Bundles{cfg: cfg, held: map[spiffeid.TrustDomain]held{}}
	return b, b.recall()
}

// GetX509BundleForTrustDomain implements x509bundle.Source.
func (b *Bundles) GetX509BundleForTrustDomain(td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	if own, err := b.cfg.Own.GetX509BundleForTrustDomain(td); err == nil {
		return own, nil
	}
	b.mu.Lock()
	h, ok := b.held[td]
	b.mu.Unlock()
	if !ok {
		return nil, fmt.Errorf("trust domain %q is not federated with, or its bundle was not fetched yet", td)
	}
	//remit:guard S8 TestStaleBundle
	if b.cfg.Now().Sub(h.fetched) > staleAfter {
		return nil, fmt.Errorf("the bundle of trust domain %q was not refreshed since %s", td, h.fetched.UTC().Format(time.RFC3339))
	}
	return h.bundle.X509Bundle(), nil
}

// GetJWTBundleForTrustDomain implements jwtbundle.Source: only our own tokens count.
func (b *Bundles) GetJWTBundleForTrustDomain(td spiffeid.TrustDomain) (*jwtbundle.Bundle, error) {
	return b.cfg.Own.GetJWTBundleForTrustDomain(td)
}

// Changed works as in identity.Signal, for our own bundle and all others.
func (b *Bundles) Changed() <-chan struct{} {
	own := b.cfg.Own.Changed()
	b.mu.Lock()
	defer b.mu.Unlock()
	if own != b.own {
		b.own = own
		b.signal.Notify()
	}
	return b.signal.Changed()
}

// Run fetches bundles until ctx ends, and returns nil then.
func (b *Bundles) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	for _, d := range b.cfg.Domains {
		wg.Go(func() { b.watch(ctx, d) })
	}
	wg.Wait()
	<-ctx.Done()
	return nil
}

func (b *Bundles) watch(ctx context.Context, d Domain) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		next, err := b.Refresh(ctx, d)
		if err != nil && ctx.Err() == nil {
			b.cfg.Log.Warn("the bundle of another trust domain cannot be fetched; the last one counts for a day", "trust_domain", d.TrustDomain.Name(), "err", err)
			next = afterFault
		}
		timer.Reset(next)
	}
}

// Refresh fetches one domain's bundle now, and returns when to do so again.
func (b *Bundles) Refresh(ctx context.Context, d Domain) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, fetchWithin)
	defer cancel()
	auth := upstream.WithWebPKIRoots(d.Roots)
	if !d.EndpointID.IsZero() {
		auth = upstream.WithSPIFFEAuth(endpoint{b, d}, d.EndpointID)
	}
	got, err := upstream.FetchBundle(ctx, d.TrustDomain, d.URL, auth)
	if err != nil {
		return 0, err
	}
	if err := b.take(d.TrustDomain, got); err != nil {
		return 0, err
	}
	if err := b.remember(&d, got); err != nil {
		return 0, err
	}
	hint, _ := got.RefreshHint()
	return max(mostOften, min(leastOften, hint)), nil
}

// take lets a fetched bundle count. One with an older sequence number is refused.
func (b *Bundles) take(td spiffeid.TrustDomain, got *spiffebundle.Bundle) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	before, ok := b.held[td]
	if ok {
		was, had := before.bundle.SequenceNumber()
		is, has := got.SequenceNumber()
		//remit:guard S8 TestRolledBackBundle
		if had && (!has || is < was) {
			return fmt.Errorf("the bundle of %s has sequence number %d, after %d: it was rolled back", td, is, was)
		}
	}
	b.held[td] = held{got, b.cfg.Now()}
	if !ok || !before.bundle.Equal(got) {
		b.signal.Notify()
	}
	return nil
}

// endpoint verifies who serves a bundle: with that domain's bundle as it is known, at first with the one from the file.
type endpoint struct {
	b *Bundles
	d Domain
}

// GetX509BundleForTrustDomain implements x509bundle.Source.
func (e endpoint) GetX509BundleForTrustDomain(td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	if td != e.d.TrustDomain {
		return e.b.GetX509BundleForTrustDomain(td)
	}
	e.b.mu.Lock()
	h, ok := e.b.held[td]
	e.b.mu.Unlock()
	if ok {
		return h.bundle.X509Bundle(), nil
	}
	return e.d.Bootstrap.X509Bundle(), nil
}
