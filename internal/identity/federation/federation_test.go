// SPDX-License-Identifier: Apache-2.0

package federation_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	upstream "github.com/spiffe/go-spiffe/v2/federation"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"remit"
	"remit/internal/identity"
	"remit/internal/identity/federation"
	"remit/internal/identity/issuer"
)

var (
	ours   = spiffeid.RequireTrustDomainFromString("company.com")
	theirs = spiffeid.RequireTrustDomainFromString("partner.org")
)

func authority(t *testing.T, td spiffeid.TrustDomain) *issuer.Authority {
	t.Helper()
	a, err := issuer.New(issuer.Config{TrustDomain: td, Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// source is what their endpoint serves.
type source struct{ bundle *spiffebundle.Bundle }

func (s *source) GetBundleForTrustDomain(spiffeid.TrustDomain) (*spiffebundle.Bundle, error) {
	return s.bundle, nil
}

// fixture is our verifier, and their endpoint with go-spiffe's own handler.
type fixture struct {
	t       *testing.T
	now     time.Time
	own     *issuer.Authority
	other   *issuer.Authority
	served  *source
	domain  federation.Domain
	bundles *federation.Bundles
	auth    *identity.Verifier
	vouched remit.Level
}

type nobody struct{}

func (nobody) Issued(string) (remit.Issued, bool) {
	return remit.Issued{Agent: "agent/theirs", Level: remit.LevelSandbox, Workload: map[string]string{"uid": "0"}}, true
}
func (nobody) Agent(spiffeid.ID) (remit.Name, bool) { return "agent/theirs", true }
func (nobody) Commit(context.Context, remit.Change) (remit.Receipt, error) {
	return remit.Receipt{}, nil
}

func setUp(t *testing.T, spiffe bool) *fixture {
	t.Helper()
	f := &fixture{t: t, now: time.Now(), own: authority(t, ours), other: authority(t, theirs)}
	f.served = &source{f.other.Bundle()}
	h, err := upstream.NewHandler(theirs, f.served)
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewUnstartedServer(http.Handler(h))
	f.domain = federation.Domain{TrustDomain: theirs}
	if spiffe {
		cert, err := f.other.ServerCertificate(nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		own := &tls.Config{GetCertificate: cert.GetCertificate, MinVersion: tls.VersionTLS12} // httptest puts its own certificate before ours
		srv.TLS = &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return own, nil }}
		f.domain.EndpointID, f.domain.Bootstrap = spiffeid.RequireFromPath(theirs, identity.ServerPath), f.other.Bundle()
	}
	srv.StartTLS()
	t.Cleanup(srv.Close)
	f.domain.URL = srv.URL
	if !spiffe {
		f.domain.Roots = x509.NewCertPool()
		f.domain.Roots.AddCert(srv.Certificate())
	}
	f.bundles, err = federation.New(federation.Config{Own: f.own, Domains: []federation.Domain{f.domain}, Log: slog.New(slog.DiscardHandler), Now: func() time.Time { return f.now }})
	if err != nil {
		t.Fatal(err)
	}
	f.auth, err = identity.New(identity.Config{TrustDomain: ours, Bundles: f.bundles, Records: nobody{}, Names: nobody{}, Store: nobody{}, Audience: "https://remit",
		Vouched: func(spiffeid.ID) remit.Level { return f.vouched }})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func (f *fixture) refresh() error {
	f.t.Helper()
	_, err := f.bundles.Refresh(f.t.Context(), f.domain)
	return err
}

func (f *fixture) chain() []*x509.Certificate {
	f.t.Helper()
	svid, err := f.other.X509SVID(spiffeid.RequireFromPath(theirs, "/agent/deploy"), time.Hour)
	if err != nil {
		f.t.Fatal(err)
	}
	return svid.Certificates
}

// TestFederation: an SVID of the other domain counts once its bundle is here, by both profiles, and nothing is known of its workload
// but what our file vouches for.
func TestFederation(t *testing.T) {
	for name, spiffe := range map[string]bool{"https_web": false, "https_spiffe": true} {
		f := setUp(t, spiffe)
		chain := f.chain()
		if p, err := f.auth.Chain(chain); err == nil {
			t.Errorf("%s: before it was fetched: %+v", name, p)
		}
		if err := f.refresh(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		p, err := f.auth.Chain(chain)
		if err != nil || p.ID.String() != "spiffe://partner.org/agent/deploy" || p.Level != remit.LevelNone || p.Workload != nil || p.Launch != "" {
			t.Errorf("%s: %+v %v", name, p, err)
		}
		f.vouched = remit.LevelNode
		if p, err := f.auth.Chain(chain); err != nil || p.Level != remit.LevelNode || p.Workload != nil {
			t.Errorf("%s, vouched for: %+v %v", name, p, err)
		}
		if token, _, err := f.other.JWTSVID(p.ID, []string{"https://remit"}, time.Minute); err != nil {
			t.Fatal(err)
		} else if p, err := f.auth.Assertion(t.Context(), token); err == nil {
			t.Errorf("%s: a foreign JWT-SVID: %+v", name, p)
		}
	}
}

// TestOtherEndpoint: who serves the bundle must be who the file says; what it serves must be the domain's.
func TestOtherEndpoint(t *testing.T) {
	f := setUp(t, false)
	f.domain.Roots = x509.NewCertPool()
	if err := f.refresh(); err == nil {
		t.Error("an endpoint that no root vouches for")
	}
	g := setUp(t, true)
	g.domain.EndpointID = spiffeid.RequireFromPath(theirs, "/somebody")
	if err := g.refresh(); err == nil {
		t.Error("an endpoint with another SPIFFE ID")
	}
	g.domain.EndpointID, g.domain.Bootstrap = spiffeid.RequireFromPath(theirs, identity.ServerPath), authority(t, theirs).Bundle()
	if err := g.refresh(); err == nil {
		t.Error("an endpoint of another authority")
	}
	impostor := authority(t, ours)
	svid, err := impostor.X509SVID(spiffeid.RequireFromPath(ours, "/agent/deploy"), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	h := setUp(t, false)
	h.served.bundle = impostor.Bundle() // their endpoint serves roots that issue our names
	_ = h.refresh()
	if p, err := h.auth.Chain(svid.Certificates); err == nil {
		t.Errorf("a federated domain names our agents: %+v", p)
	}
}

func TestRolledBackBundle(t *testing.T) {
	f := setUp(t, false)
	old := f.other.Bundle()
	if err := f.other.Prepare(); err != nil {
		t.Fatal(err)
	}
	f.served.bundle = f.other.Bundle()
	if err := f.refresh(); err != nil {
		t.Fatal(err)
	}
	f.served.bundle = old
	if err := f.refresh(); err == nil {
		t.Error("an older bundle was taken")
	}
}

// TestRestartRemembersBundles: after a restart an endpoint is verified with the last bundle, not with the first one, whose keys somebody may have
// got since; a rollback is noticed; and nobody counts before a bundle was fetched.
func TestRestartRemembersBundles(t *testing.T) {
	f := setUp(t, true)
	dir := t.TempDir()
	restart := func() {
		t.Helper()
		var err error
		f.bundles, err = federation.New(federation.Config{Own: f.own, Domains: []federation.Domain{f.domain}, Dir: dir, Log: slog.New(slog.DiscardHandler), Now: func() time.Time { return f.now }})
		if err != nil {
			t.Fatal(err)
		}
	}
	restart()
	first := f.served.bundle
	// The domain moves on to keys of which the first bundle knows nothing, and says so at its endpoint.
	next := authority(t, theirs).Bundle()
	next.SetSequenceNumber(100)
	f.served.bundle = next
	if err := f.refresh(); err != nil {
		t.Fatal(err)
	}
	restart()
	if _, err := f.bundles.GetX509BundleForTrustDomain(theirs); err == nil {
		t.Error("a bundle of before the restart counts for workloads")
	}
	f.served.bundle = first
	if err := f.refresh(); err == nil {
		t.Error("an endpoint with the keys of the first bundle is believed again")
	}
	// With another first bundle an operator begins anew.
	f.domain.Bootstrap = f.domain.Bootstrap.Clone()
	f.domain.Bootstrap.SetSequenceNumber(7)
	restart()
	if err := f.refresh(); err != nil {
		t.Errorf("begun anew: %v", err)
	}

	web := setUp(t, false)
	web.served.bundle = next
	f = web
	restart()
	if err := f.refresh(); err != nil {
		t.Fatal(err)
	}
	restart()
	f.served.bundle = first
	if err := f.refresh(); err == nil {
		t.Error("after a restart an older bundle is taken")
	}
}

func TestStaleBundle(t *testing.T) {
	f := setUp(t, false)
	if err := f.refresh(); err != nil {
		t.Fatal(err)
	}
	if _, err := f.bundles.GetX509BundleForTrustDomain(theirs); err != nil {
		t.Fatal(err)
	}
	f.now = f.now.Add(25 * time.Hour)
	if _, err := f.bundles.GetX509BundleForTrustDomain(theirs); err == nil {
		t.Error("a bundle that nobody refreshed for a day counts")
	}
}

// TestChanged: a withdrawn root is noticed at once, also for a certificate that was verified before; so is a change of our own.
func TestChanged(t *testing.T) {
	f := setUp(t, false)
	if err := f.refresh(); err != nil {
		t.Fatal(err)
	}
	chain := f.chain()
	if _, err := f.auth.Chain(chain); err != nil {
		t.Fatal(err)
	}
	first := f.bundles.Changed()
	if f.bundles.Changed() != first {
		t.Error("changed by itself")
	}
	before := first
	if err := f.own.Prepare(); err != nil {
		t.Fatal(err)
	}
	if f.bundles.Changed() == before {
		t.Error("a change of our own is not seen")
	}
	replaced := authority(t, theirs).Bundle()
	n, _ := f.other.Bundle().SequenceNumber()
	replaced.SetSequenceNumber(n + 1)
	f.served.bundle = replaced
	if err := f.refresh(); err != nil {
		t.Fatal(err)
	}
	if p, err := f.auth.Chain(chain); err == nil {
		t.Errorf("after its root was withdrawn: %+v", p)
	}
}
