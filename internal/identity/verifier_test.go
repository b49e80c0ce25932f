// SPDX-License-Identifier: Apache-2.0

package identity_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"errors"
	"maps"
	"math/big"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"remit"
	"remit/internal/identity"
	"remit/internal/identity/issuer"
)

const audience = "https://remit.company.com"

var domain = spiffeid.RequireTrustDomainFromString("company.com")

// trust holds two domains; it is an identity.Bundles.
type trust struct {
	*spiffebundle.Set
	identity.Signal
}

func (t *trust) GetX509BundleForTrustDomain(td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	return t.Set.GetX509BundleForTrustDomain(td)
}

func (t *trust) GetJWTBundleForTrustDomain(td spiffeid.TrustDomain) (*jwtbundle.Bundle, error) {
	return t.Set.GetJWTBundleForTrustDomain(td)
}

// journal stores what is used, as the store does.
type journal struct {
	mu      sync.Mutex // guards the rest
	used    map[remit.EpochKey]remit.Used
	issued  map[string]remit.Issued
	commits int
	fail    error
}

// Commit implements identity.Committer.
func (j *journal) Commit(_ context.Context, c remit.Change) (remit.Receipt, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.fail != nil {
		return remit.Receipt{}, j.fail
	}
	for _, p := range c.Require {
		if _, ok := j.used[p.Key]; ok || p.Epoch != 0 {
			return remit.Receipt{}, &remit.Error{Code: remit.CodeConflict, Msg: "moved"}
		}
	}
	for _, r := range c.Rows {
		j.used[r.EpochKey()] = r.(remit.Used)
	}
	j.commits++
	return remit.Receipt{}, nil
}

// Issued implements identity.Records.
func (j *journal) Issued(credential string) (remit.Issued, bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	i, ok := j.issued[credential]
	return i, ok
}

type fixture struct {
	*journal
	t                testing.TB
	now              time.Time
	authority, other *issuer.Authority // company.com and other.com
	trust            *trust
	registry         *identity.Registry
	verifier         *identity.Verifier
}

func (f *fixture) clock() time.Time { return f.now }

func newFixture(t testing.TB) *fixture {
	t.Helper()
	f := &fixture{t: t, now: time.Now(), registry: identity.NewRegistry(), trust: &trust{Set: spiffebundle.NewSet()},
		journal: &journal{used: map[remit.EpochKey]remit.Used{}, issued: map[string]remit.Issued{}}}
	for name, a := range map[string]**issuer.Authority{"company.com": &f.authority, "other.com": &f.other} {
		var err error
		if *a, err = issuer.New(issuer.Config{TrustDomain: spiffeid.RequireTrustDomainFromString(name), Dir: t.TempDir(), Now: f.clock}); err != nil {
			t.Fatal(err)
		}
		f.trust.Add((*a).Bundle())
	}
	agents := []remit.Agent{{Name: "agent/deploy", ID: id("/agent/deploy")}, {Name: "agent/foreign", ID: spiffeid.RequireFromString("spiffe://other.com/agent/deploy")}}
	if err := f.registry.Replace(agents, nil); err != nil {
		t.Fatal(err)
	}
	var err error
	if f.verifier, err = identity.New(identity.Config{TrustDomain: domain, Bundles: f.trust, Records: f, Names: f.registry, Store: f,
		Audience: audience, Now: f.clock}); err != nil {
		t.Fatal(err)
	}
	return f
}

func id(path string) spiffeid.ID { return spiffeid.RequireFromPath(domain, path) }

// attested records what was attested about a credential.
func (f *fixture) attested(credential string, agent remit.Name) {
	f.issued[credential] = remit.Issued{Credential: credential, Agent: agent, Level: remit.LevelLaunched, Launch: "lnch-1", Workload: map[string]string{"uid": "4001"}}
}

func (f *fixture) x509(a *issuer.Authority, id spiffeid.ID) []*x509.Certificate {
	f.t.Helper()
	svid, err := a.X509SVID(id, 10*time.Minute)
	if err != nil {
		f.t.Fatal(err)
	}
	return svid.Certificates
}

func TestCertificate(t *testing.T) {
	f := newFixture(t)
	certs := f.x509(f.authority, id("/agent/deploy"))
	serial := certs[0].SerialNumber.Text(16)
	sum := sha256.Sum256(certs[0].Raw)
	want := remit.Principal{ID: id("/agent/deploy"), Method: remit.MethodX509, Credential: serial, Expires: certs[0].NotAfter,
		Thumbprint: base64.RawURLEncoding.EncodeToString(sum[:])}
	check := func(name string) {
		t.Helper()
		got, err := f.verifier.Certificate(&tls.ConnectionState{HandshakeComplete: true, PeerCertificates: certs})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b spiffeid.ID) bool { return a == b })); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
	check("without record: nothing is known about the workload (S8)")
	f.attested(serial, "agent/deploy")
	want.Level, want.Launch, want.Workload = remit.LevelLaunched, "lnch-1", map[string]string{"uid": "4001"}
	check("with record")
	f.attested(serial, "agent/other")
	want.Level, want.Launch, want.Workload = remit.LevelNone, "", nil
	check("the record is about another agent")
	for name, state := range map[string]*tls.ConnectionState{"nil": nil, "no certificate": {HandshakeComplete: true}, "unfinished": {PeerCertificates: certs}} {
		if _, err := f.verifier.Certificate(state); remit.CodeOf(err) != remit.CodeUnauthenticated {
			t.Errorf("%s: %v", name, err)
		}
	}
	f.now = certs[0].NotAfter
	if _, err := f.verifier.Certificate(&tls.ConnectionState{HandshakeComplete: true, PeerCertificates: certs}); remit.CodeOf(err) != remit.CodeUnauthenticated {
		t.Errorf("at the moment of its end: %v", err)
	}
}

// TestForeignRecord: a foreign authority may choose the serial number of one of our SVIDs.
func TestForeignRecord(t *testing.T) {
	f := newFixture(t)
	foreign := spiffeid.RequireFromString("spiffe://other.com/agent/deploy")
	certs := f.x509(f.other, foreign)
	f.attested(certs[0].SerialNumber.Text(16), "agent/foreign")
	p, err := f.verifier.Chain(certs)
	if err != nil || p.ID != foreign {
		t.Fatalf("%v, %v", p, err)
	}
	if p.Level != remit.LevelNone || p.Workload != nil || p.Launch != "" {
		t.Errorf("a record of ours was believed about a foreign SVID: %+v", p)
	}
}

// S27: what was issued to a sandbox counts over that sandbox's own socket, which no certificate and no assertion come over.
func TestIdentityOfASandboxOutsideIt(t *testing.T) {
	f := newFixture(t)
	certs := f.x509(f.authority, id("/agent/deploy"))
	serial := certs[0].SerialNumber.Text(16)
	f.attested(serial, "agent/deploy")
	if p, err := f.verifier.Chain(certs); err != nil || p.Launch == "" {
		t.Fatalf("a launched one: %+v, %v", p, err)
	}
	row := f.issued[serial]
	row.Level = remit.LevelSandbox
	f.issued[serial] = row
	if p, err := f.verifier.Chain(certs); err == nil {
		t.Errorf("the certificate of a sandbox: %+v", p)
	}
}

// S26: over the socket of a sandbox only that sandbox's identity counts.
func TestIdentityInASandbox(t *testing.T) {
	f := newFixture(t)
	certs := f.x509(f.authority, id("/agent/deploy"))
	serial := certs[0].SerialNumber.Text(16)
	f.attested(serial, "agent/deploy")
	state := &tls.ConnectionState{HandshakeComplete: true, PeerCertificates: certs}
	launch := f.issued[serial].Launch
	if p, err := f.verifier.InSandbox(state, launch); err == nil {
		t.Errorf("one that was launched outside: %+v", p)
	}
	row := f.issued[serial]
	row.Level = remit.LevelSandbox
	f.issued[serial] = row
	if p, err := f.verifier.InSandbox(state, launch); err != nil || p.Launch != launch {
		t.Errorf("its own: %+v, %v", p, err)
	}
	for _, other := range []remit.LaunchID{"", remit.NewLaunchID()} {
		if p, err := f.verifier.InSandbox(state, other); err == nil {
			t.Errorf("over the socket of %q: %+v", other, p)
		}
	}
	if p, err := f.verifier.InSandbox(&tls.ConnectionState{}, launch); err == nil {
		t.Errorf("without a certificate: %+v", p)
	}
}

// ca is an authority that makes what no decent one makes.
type ca struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

func newCA(t *testing.T) *ca {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ca"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	c := &ca{key: key}
	c.cert = c.sign(t, tmpl, tmpl)
	return c
}

func (c *ca) sign(t *testing.T, tmpl, parent *x509.Certificate) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, &c.key.PublicKey, c.key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func TestCertificatesRefused(t *testing.T) {
	f := newFixture(t)
	c := newCA(t)
	f.trust.Add(spiffebundle.FromX509Authorities(domain, []*x509.Certificate{c.cert}))
	uri := func(s string) *url.URL {
		u, err := url.Parse(s)
		if err != nil {
			t.Fatal(err)
		}
		return u
	}
	leaf := func(change func(*x509.Certificate)) []*x509.Certificate {
		tmpl := &x509.Certificate{SerialNumber: big.NewInt(2), NotBefore: f.now.Add(-time.Minute), NotAfter: f.now.Add(time.Minute), BasicConstraintsValid: true,
			KeyUsage: x509.KeyUsageDigitalSignature, URIs: []*url.URL{uri("spiffe://company.com/agent/deploy")}}
		change(tmpl)
		return []*x509.Certificate{c.sign(t, tmpl, c.cert)}
	}
	refused := func(name string, chain []*x509.Certificate) {
		t.Helper()
		if p, err := f.verifier.Chain(chain); remit.CodeOf(err) != remit.CodeUnauthenticated || !p.IsZero() {
			t.Errorf("%s: %+v, %v", name, p, err)
		}
	}
	if _, err := f.verifier.Chain(leaf(func(*x509.Certificate) {})); err != nil {
		t.Fatalf("the unchanged certificate: %v", err)
	}
	ids := func(s ...string) []*x509.Certificate {
		return leaf(func(c *x509.Certificate) {
			c.URIs = nil
			for _, u := range s {
				c.URIs = append(c.URIs, uri(u))
			}
		})
	}
	refused("two URI SANs", ids("spiffe://company.com/agent/deploy", "spiffe://company.com/agent/other"))
	refused("two URI SANs, one https", ids("spiffe://company.com/agent/deploy", "https://company.com/x"))
	refused("no URI SAN", ids())
	refused("root path", ids("spiffe://company.com"))
	refused("not SPIFFE", ids("https://company.com/agent/deploy"))
	refused("upper case", ids("spiffe://Company.com/agent/deploy"))
	refused("dots", ids("spiffe://company.com/agent/../deploy"))
	refused("trailing slash", ids("spiffe://company.com/agent/deploy/"))
	refused("percent", ids("spiffe://company.com/agent/%64eploy"))
	refused("query", ids("spiffe://company.com/agent/deploy?x=1"))
	refused("foreign domain by our root", ids("spiffe://other.com/agent/deploy"))
	refused("unknown domain", ids("spiffe://unknown.com/agent/deploy"))
	refused("CA as leaf", leaf(func(c *x509.Certificate) {
		c.IsCA, c.KeyUsage = true, x509.KeyUsageCertSign|x509.KeyUsageDigitalSignature
	}))
	refused("may sign certificates", leaf(func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCertSign; c.IsCA = true }))
	refused("may sign CRLs", leaf(func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCRLSign }))
	refused("not for signatures", leaf(func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyEncipherment }))
	refused("expired", leaf(func(c *x509.Certificate) { c.NotAfter = f.now.Add(-time.Second) }))
	refused("not valid yet", leaf(func(c *x509.Certificate) { c.NotBefore = f.now.Add(10 * time.Second) }))
	refused("long chain", append(leaf(func(*x509.Certificate) {}), c.cert, c.cert, c.cert, c.cert, c.cert))
	refused("empty chain", nil)
	c = newCA(t) // the next certificates are a stranger's
	refused("signed by nobody known", leaf(func(*x509.Certificate) {}))
}

// TestRememberedCertificates: memory ends with the certificate and with the bundle that it was verified with.
func TestRememberedCertificates(t *testing.T) {
	f := newFixture(t)
	certs := f.x509(f.authority, id("/agent/deploy"))
	if _, err := f.verifier.Chain(certs); err != nil {
		t.Fatal(err)
	}
	f.now = certs[0].NotAfter
	if _, err := f.verifier.Chain(certs); err == nil {
		t.Error("an expired certificate was remembered")
	}
	f.now = f.now.Add(-time.Second)
	if _, err := f.verifier.Chain(certs); err != nil {
		t.Error(err)
	}
	f.trust.Add(spiffebundle.New(domain)) // its root is distrusted
	f.trust.Notify()
	if _, err := f.verifier.Chain(certs); err == nil {
		t.Error("a certificate whose root was dropped was remembered")
	}
}

// claims of an assertion that is accepted; tests change one thing.
func (f *fixture) claims() map[string]any {
	return map[string]any{"sub": "spiffe://company.com/agent/deploy", "aud": audience, "iat": f.now.Unix(), "exp": f.now.Add(5 * time.Minute).Unix(), "jti": rand.Text()}
}

func (f *fixture) with(key string, value any) map[string]any {
	c := f.claims()
	c[key] = value
	if value == nil {
		delete(c, key)
	}
	return c
}

// signer signs with a key that the domain's bundle has under "k".
func sign(t testing.TB, alg jose.SignatureAlgorithm, key any, claims map[string]any, headers map[jose.HeaderKey]any) string {
	t.Helper()
	opts := &jose.SignerOptions{ExtraHeaders: headers}
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: jose.JSONWebKey{Key: key, KeyID: "k"}}, opts)
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	jws, err := s.Sign(b)
	if err != nil {
		t.Fatal(err)
	}
	out, err := jws.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestAssertionOnce(t *testing.T) {
	f := newFixture(t)
	token, j, err := f.authority.JWTSVID(id("/agent/deploy"), []string{audience}, 5*time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	f.attested(j.JTI, "agent/deploy")
	p, err := f.verifier.Assertion(context.Background(), token)
	if err != nil {
		t.Fatal(err)
	}
	if p.ID != id("/agent/deploy") || p.Method != remit.MethodJWT || p.Credential != j.JTI || !p.Expires.Equal(j.Expires) ||
		p.Level != remit.LevelLaunched || p.Launch != "lnch-1" || p.Thumbprint != "" {
		t.Errorf("principal %+v", p)
	}
	if _, err := f.verifier.Assertion(context.Background(), token); remit.CodeOf(err) != remit.CodeUnauthenticated {
		t.Errorf("a replay: %v", err)
	}
	used := f.used[remit.UsedKey("spiffe://company.com", j.JTI)]
	if used.Until.Before(j.Expires) {
		t.Errorf("its use is forgotten at %s, before its end %s", used.Until, j.Expires)
	}
	f.fail = errors.New("disk full")
	fresh, _, _ := f.authority.JWTSVID(id("/agent/deploy"), []string{audience}, 5*time.Minute)
	if p, err := f.verifier.Assertion(context.Background(), fresh); remit.CodeOf(err) != remit.CodeUnavailable || !p.IsZero() {
		t.Errorf("a use that cannot be recorded: %v", err)
	}
}

func TestManyReplaysAtOnce(t *testing.T) {
	f := newFixture(t)
	token, _, err := f.authority.JWTSVID(id("/agent/deploy"), []string{audience}, 5*time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	accepted := 0
	for range 32 {
		wg.Go(func() {
			if _, err := f.verifier.Assertion(context.Background(), token); err == nil {
				mu.Lock()
				accepted++
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if accepted != 1 {
		t.Errorf("accepted %d times", accepted)
	}
}

func TestAssertionsRefused(t *testing.T) {
	f := newFixture(t)
	key, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	p384, _ := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	weak, _ := rsa.GenerateKey(rand.Reader, 1024) //nolint:gosec // the point
	strong, _ := rsa.GenerateKey(rand.Reader, 2048)
	_, ed, _ := ed25519.GenerateKey(rand.Reader)
	hmac := []byte(strings.Repeat("k", 64))
	bundle := func(pub any) {
		b := spiffebundle.New(domain)
		if err := b.AddJWTAuthority("k", pub); err != nil {
			t.Fatal(err)
		}
		f.trust.Add(b)
	}
	bundle(&key.PublicKey)
	es := func(c map[string]any) string { return sign(t, jose.ES256, key, c, nil) }
	refused := func(name, token string) {
		t.Helper()
		if p, err := f.verifier.Assertion(context.Background(), token); remit.CodeOf(err) != remit.CodeUnauthenticated || !p.IsZero() {
			t.Errorf("%s: %+v, %v", name, p, err)
		}
	}
	good := es(f.claims())
	if _, err := f.verifier.Assertion(context.Background(), es(f.claims())); err != nil {
		t.Fatalf("the unchanged assertion: %v", err)
	}
	before := f.commits
	head := func(h string) string {
		return base64.RawURLEncoding.EncodeToString([]byte(h)) + good[strings.Index(good, "."):]
	}
	none := strings.Join(append(strings.Split(head(`{"alg":"none","kid":"k"}`), ".")[:2], ""), ".")
	for name, token := range map[string]string{
		"empty": "", "garbage": "a.b.c", "alg none": none, "alg none with signature": head(`{"alg":"none","kid":"k"}`),
		"HS256":                sign(t, jose.HS256, hmac, f.claims(), nil),
		"EdDSA":                sign(t, jose.EdDSA, ed, f.claims(), nil),
		"other key":            sign(t, jose.ES384, p384, f.claims(), nil),
		"header jwk":           sign(t, jose.ES256, key, f.claims(), map[jose.HeaderKey]any{"jwk": jose.JSONWebKey{Key: &key.PublicKey}}),
		"header jku":           sign(t, jose.ES256, key, f.claims(), map[jose.HeaderKey]any{"jku": "https://evil"}),
		"header x5u":           sign(t, jose.ES256, key, f.claims(), map[jose.HeaderKey]any{"x5u": "https://evil"}),
		"typ at+jwt":           sign(t, jose.ES256, key, f.claims(), map[jose.HeaderKey]any{"typ": "at+jwt"}),
		"typ txntoken":         sign(t, jose.ES256, key, f.claims(), map[jose.HeaderKey]any{"typ": "txntoken+jwt"}),
		"audience of another":  es(f.with("aud", "https://other")),
		"audience and another": es(f.with("aud", []string{audience, "https://other"})),
		"longer audience":      es(f.with("aud", audience+"/oauth2/token")),
		"no audience":          es(f.with("aud", nil)),
		"expired":              es(f.with("exp", f.now.Add(-time.Second).Unix())),
		"expires now":          es(f.with("exp", f.now.Unix())),
		"no exp":               es(f.with("exp", nil)),
		"lives for a day":      es(f.with("exp", f.now.Add(24*time.Hour).Unix())),
		"lives long without iat": es(func() map[string]any {
			c := f.with("iat", nil)
			c["exp"] = f.now.Add(11 * time.Minute).Unix()
			return c
		}()),
		"old, lived long":         es(f.with("iat", f.now.Add(-time.Hour).Unix())),
		"issued in the future":    es(f.with("iat", f.now.Add(time.Minute).Unix())),
		"not valid yet":           es(f.with("nbf", f.now.Add(time.Minute).Unix())),
		"no jti":                  es(f.with("jti", nil)),
		"long jti":                es(f.with("jti", strings.Repeat("j", 300))),
		"no sub":                  es(f.with("sub", nil)),
		"sub without path":        es(f.with("sub", "spiffe://company.com")),
		"sub of a foreign domain": es(f.with("sub", "spiffe://other.com/agent/deploy")),
		"sub of no known domain":  es(f.with("sub", "spiffe://unknown.com/agent/deploy")),
		"sub is a URL":            es(f.with("sub", "https://company.com/agent/deploy")),
		"cut signature":           good[:len(good)-3],
		"other claims":            strings.Split(good, ".")[0] + "." + strings.Split(es(f.claims()), ".")[1] + "." + strings.Split(good, ".")[2],
		"too long":                es(f.with("x", strings.Repeat("x", 9000))),
	} {
		refused(name, token)
	}
	bundle(&p384.PublicKey)
	refused("ES256 with the id of a P-384 key", good)
	bundle(&weak.PublicKey)
	refused("RSA with 1024 bits", sign(t, jose.RS256, weak, f.claims(), nil))
	bundle(ed.Public())
	refused("EdDSA with a published key", sign(t, jose.EdDSA, ed, f.claims(), nil))
	bundle(&strong.PublicKey)
	refused("HMAC with the public key", sign(t, jose.HS256, x509.MarshalPKCS1PublicKey(&strong.PublicKey), f.claims(), nil))
	if f.commits != before {
		t.Errorf("%d refused assertions were written down (S35)", f.commits-before)
	}
	for _, alg := range []jose.SignatureAlgorithm{jose.RS256, jose.PS384} {
		if _, err := f.verifier.Assertion(context.Background(), sign(t, alg, strong, f.claims(), nil)); err != nil {
			t.Errorf("%s: %v", alg, err)
		}
	}
}

// TestPrefixes: an identity is that identity, not what begins like it (WIMSE counterexamples: raw prefix, id reuse).
func TestRegistry(t *testing.T) {
	f := newFixture(t)
	for _, path := range []string{"/agent/deploy-evil", "/agent/deploy/x", "/agent", "/Agent/deploy", "/agent/deploy."} {
		if n, ok := f.registry.Agent(id(path)); ok {
			t.Errorf("%s is %s", path, n)
		}
	}
	if n, ok := f.registry.Agent(id("/agent/deploy")); !ok || n != "agent/deploy" {
		t.Errorf("%q, %v", n, ok)
	}
	changed := f.registry.Changed()
	one := remit.Agent{Name: "agent/one", ID: id("/agent/one")}
	pep := remit.EnforcementPoint{Name: "pep/one", ID: id("/agent/one")}
	for name, bad := range map[string]func() error{
		"a name twice":        func() error { return f.registry.Replace([]remit.Agent{one, one}, nil) },
		"an ID twice":         func() error { return f.registry.Replace([]remit.Agent{one, {Name: "agent/two", ID: one.ID}}, nil) },
		"an agent's ID a PEP": func() error { return f.registry.Replace([]remit.Agent{one}, []remit.EnforcementPoint{pep}) },
		"the server's ID": func() error {
			return f.registry.Replace([]remit.Agent{{Name: "agent/x", ID: id("/remit/server")}}, nil)
		},
		"no path": func() error { return f.registry.Replace([]remit.Agent{{Name: "agent/x", ID: domain.ID()}}, nil) },
		"no ID":   func() error { return f.registry.Replace([]remit.Agent{{Name: "agent/x"}}, nil) },
	} {
		if err := bad(); remit.CodeOf(err) != remit.CodeInvalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	select {
	case <-changed:
		t.Error("a refused set was announced")
	default:
	}
	if _, ok := f.registry.Named("agent/deploy"); !ok {
		t.Error("a refused set replaced the old one")
	}
	if err := f.registry.Replace([]remit.Agent{one}, nil); err != nil {
		t.Fatal(err)
	}
	<-changed
	if _, ok := f.registry.Agent(id("/agent/deploy")); ok {
		t.Error("a removed agent is known")
	}
}

func FuzzAssertion(f *testing.F) {
	x := newFixture(f)
	token, _, err := x.authority.JWTSVID(id("/agent/deploy"), []string{audience}, time.Minute)
	if err != nil {
		f.Fatal(err)
	}
	key, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	foreign := sign(f, jose.ES256, key, maps.Clone(x.claims()), nil)
	for _, s := range []string{token, foreign, "", "..", "a.b.c", token[:len(token)/2], `{"payload":"","signatures":[]}`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		j, err := identity.VerifyJWT(s, x.trust, x.now)
		if err == nil && (j.ID.IsZero() || j.ID != id("/agent/deploy") || j.JTI == "") {
			t.Errorf("%q was accepted as %+v", s, j)
		}
	})
}

// FuzzSignedClaims signs whatever it is given: what is accepted names a workload of the domain whose key signed it.
func FuzzSignedClaims(f *testing.F) {
	key, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	b := spiffebundle.New(domain)
	if err := b.AddJWTAuthority("k", &key.PublicKey); err != nil {
		f.Fatal(err)
	}
	bundles, now := spiffebundle.NewSet(b), time.Unix(1800000000, 0)
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: key, KeyID: "k"}}, nil)
	if err != nil {
		f.Fatal(err)
	}
	for _, s := range []string{`{"sub":"spiffe://company.com/agent/deploy","aud":["a"],"exp":1800000060,"iat":1800000000,"jti":"x"}`,
		`{"sub":"spiffe://company.com","exp":1e300}`, `{"sub":"spiffe://company.com/a","exp":-1,"nbf":"x"}`, `{"sub":{},"aud":[1]}`, `[]`, ``} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, payload []byte) {
		jws, err := signer.Sign(payload)
		if err != nil {
			return
		}
		token, err := jws.CompactSerialize()
		if err != nil {
			return
		}
		j, err := identity.VerifyJWT(token, bundles, now)
		if err == nil && (!j.ID.MemberOf(domain) || j.ID.Path() == "" || !now.Before(j.Expires)) {
			t.Errorf("%q was accepted as %+v", payload, j)
		}
	})
}

func BenchmarkCertificate(b *testing.B) {
	f := newFixture(b)
	certs := f.x509(f.authority, id("/agent/deploy"))
	f.attested(certs[0].SerialNumber.Text(16), "agent/deploy")
	state := &tls.ConnectionState{HandshakeComplete: true, PeerCertificates: certs}
	for b.Loop() {
		if _, err := f.verifier.Certificate(state); err != nil {
			b.Fatal(err)
		}
	}
}
