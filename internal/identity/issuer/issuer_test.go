// SPDX-License-Identifier: Apache-2.0

package issuer_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/spiffe/go-spiffe/v2/federation"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"remit/internal/identity"
	"remit/internal/identity/issuer"
)

var domain = spiffeid.RequireTrustDomainFromString("company.com")

// clock is a clock that the test moves.
type clock struct {
	mu  sync.Mutex // guards now
	now time.Time
}

func newClock() *clock { return &clock{now: time.Now()} }

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) Add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

func newAuthority(t testing.TB, change func(*issuer.Config)) *issuer.Authority {
	t.Helper()
	cfg := issuer.Config{TrustDomain: domain, Dir: t.TempDir(), Issuer: "https://remit.company.com/svid"}
	if change != nil {
		change(&cfg)
	}
	a, err := issuer.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func agentID(path string) spiffeid.ID { return spiffeid.RequireFromPath(domain, path) }

func TestCertificateProfile(t *testing.T) {
	a := newAuthority(t, nil)
	svid, err := a.X509SVID(agentID("/agent/deploy"), 10*time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	if len(svid.Certificates) != 2 {
		t.Fatalf("%d certificates in the chain, want leaf and issuing", len(svid.Certificates))
	}
	leaf, issuing, root := svid.Certificates[0], svid.Certificates[1], a.Bundle().X509Authorities()[0]
	if leaf.Subject.CommonName != "agent-deploy" || len(leaf.URIs) != 1 || leaf.URIs[0].String() != "spiffe://company.com/agent/deploy" {
		t.Errorf("subject %q, URIs %v", leaf.Subject, leaf.URIs)
	}
	if leaf.KeyUsage != x509.KeyUsageDigitalSignature || leaf.IsCA || !leaf.BasicConstraintsValid || len(leaf.ExtKeyUsage) != 2 {
		t.Errorf("usage %v, CA %v, extended %v", leaf.KeyUsage, leaf.IsCA, leaf.ExtKeyUsage)
	}
	if leaf.SerialNumber.BitLen() > 128 || leaf.SerialNumber.Sign() <= 0 {
		t.Errorf("serial %s", leaf.SerialNumber)
	}
	if life := leaf.NotAfter.Sub(leaf.NotBefore); life < 10*time.Minute || life > 10*time.Minute+12*time.Second {
		t.Errorf("it lives %s", life)
	}
	for _, ca := range []*x509.Certificate{issuing, root} {
		if !ca.IsCA || ca.KeyUsage != x509.KeyUsageCertSign || len(ca.URIs) != 1 || ca.URIs[0].String() != "spiffe://company.com" {
			t.Errorf("%s: CA %v, usage %v, URIs %v", ca.Subject, ca.IsCA, ca.KeyUsage, ca.URIs)
		}
	}
	if got := len(a.Bundle().X509Authorities()); got != 1 {
		t.Errorf("%d certificates in the bundle, want the root alone", got)
	}
}

func TestOpenSSLAcceptsTheChain(t *testing.T) {
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		t.Skip("openssl is not installed")
	}
	a := newAuthority(t, nil)
	svid, err := a.X509SVID(agentID("/agent/deploy"), 0)
	if err != nil {
		t.Fatal(err)
	}
	server, err := a.ServerCertificate([]string{"remit.company.com"}, []net.IP{net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	served, err := server.Get()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write := func(name string, ders ...[]byte) string {
		var b []byte
		for _, der := range ders {
			b = append(b, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
		}
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	root := write("root.pem", a.Bundle().X509Authorities()[0].Raw)
	issuing := write("issuing.pem", svid.Certificates[1].Raw)
	for name, der := range map[string][]byte{"agent": svid.Certificates[0].Raw, "server": served.Certificate[0]} {
		leaf := write(name+".pem", der)
		for _, purpose := range []string{"sslclient", "sslserver"} {
			out, err := exec.Command(openssl, "verify", "-x509_strict", "-purpose", purpose, "-CAfile", root, "-untrusted", issuing, leaf).CombinedOutput()
			if err != nil {
				t.Errorf("%s as %s: %s", name, purpose, out)
			}
		}
	}
	out, err := exec.Command(openssl, "verify", "-x509_strict", "-verify_hostname", "remit.company.com", "-CAfile", root, "-untrusted", issuing, filepath.Join(dir, "server.pem")).CombinedOutput()
	if err != nil {
		t.Errorf("host name: %s", out)
	}
}

func TestNoSVIDForOthers(t *testing.T) {
	a := newAuthority(t, nil)
	other := spiffeid.RequireFromString("spiffe://other.com/agent/deploy")
	for _, id := range []spiffeid.ID{{}, domain.ID(), other, agentID("/remit/server"), agentID("/remit")} {
		if _, err := a.X509SVID(id, time.Minute); err == nil {
			t.Errorf("an X.509-SVID was made for %q", id)
		}
		if _, _, err := a.JWTSVID(id, []string{"a"}, time.Minute); err == nil {
			t.Errorf("a JWT-SVID was made for %q", id)
		}
	}
	if _, err := a.X509SVID(agentID("/remit-like/agent"), time.Minute); err != nil {
		t.Errorf("/remit-like is not reserved: %v", err)
	}
	if _, _, err := a.JWTSVID(agentID("/agent/deploy"), nil, time.Minute); err == nil {
		t.Error("a JWT-SVID without audience")
	}
}

// TestTwoYears moves the clock by an hour at a time and checks at each that what was issued verifies with the bundle that a
// client fetched a refresh hint ago, and that everything came back from disk.
func TestTwoYears(t *testing.T) {
	c := newClock()
	var events []string
	cfg := issuer.Config{TrustDomain: domain, Dir: t.TempDir(), IssuingLife: 20*24*time.Hour + 40*time.Minute, JWTKeyLife: 20*24*time.Hour + 40*time.Minute, Now: c.Now, OnEvent: func(step, key string) {
		ring, _, _ := strings.Cut(key, "/")
		events = append(events, ring+" "+step)
	}}
	a, err := issuer.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	var sequence uint64
	for hour := range 2 * 365 * 24 / 5 {
		stale := a.Bundle()
		c.Add(5 * time.Minute) // a client that refreshes as hinted
		if err := a.Turn(); err != nil {
			t.Fatal(err)
		}
		svid, err := a.X509SVID(agentID("/agent/deploy"), 0)
		if err != nil {
			t.Fatalf("hour %d: %v", hour, err)
		}
		if _, _, err := x509svid.Verify(svid.Certificates, stale, x509svid.WithTime(c.Now())); err != nil {
			t.Fatalf("hour %d: %v", hour, err)
		}
		if left := svid.Certificates[0].NotAfter.Sub(c.Now()); left < time.Hour-2*time.Second {
			t.Fatalf("hour %d: the SVID ends in %s", hour, left)
		}
		token, _, err := a.JWTSVID(agentID("/agent/deploy"), []string{"x"}, 0)
		if err != nil {
			t.Fatalf("hour %d: %v", hour, err)
		}
		if _, err := identity.VerifyJWT(token, stale, c.Now()); err != nil {
			t.Fatalf("hour %d: %v", hour, err)
		}
		if n, _ := a.Bundle().SequenceNumber(); n < sequence {
			t.Fatalf("the sequence number went back from %d to %d", sequence, n)
		} else {
			sequence = n
		}
		if n := len(a.Bundle().X509Authorities()) + len(a.Bundle().JWTAuthorities()); n > 6 {
			t.Fatalf("hour %d: %d keys are published: old ones are not pruned", hour, n)
		}
		if hour%500 == 0 { // a restart
			if a, err = issuer.New(cfg); err != nil {
				t.Fatal(err)
			}
		}
		c.Add(5*time.Hour - 5*time.Minute)
		if err := a.Turn(); err != nil {
			t.Fatal(err)
		}
	}
	for _, want := range []string{"root prepare", "root activate", "root retire", "root prune", "issuing activate", "issuing prune", "jwt retire", "jwt prune"} {
		if !slices.Contains(events, want) {
			t.Errorf("no event %q", want)
		}
	}
}

// TestAfterLongDowntime: every key ended while nobody ran.
func TestAfterLongDowntime(t *testing.T) {
	c := newClock()
	cfg := issuer.Config{TrustDomain: domain, Dir: t.TempDir(), Now: c.Now}
	if _, err := issuer.New(cfg); err != nil {
		t.Fatal(err)
	}
	c.Add(3 * 365 * 24 * time.Hour)
	a, err := issuer.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	svid, err := a.X509SVID(agentID("/agent/deploy"), 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := x509svid.Verify(svid.Certificates, a.Bundle(), x509svid.WithTime(c.Now())); err != nil {
		t.Error(err)
	}
}

// TestNothingOutlivesItsKey: nobody turned the rings for long, and the keys are about to end.
func TestNothingOutlivesItsKey(t *testing.T) {
	c := newClock()
	a := newAuthority(t, func(cfg *issuer.Config) { cfg.Now = c.Now })
	c.Add(24*time.Hour - 10*time.Minute)
	svid, err := a.X509SVID(agentID("/agent/deploy"), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if leaf, ca := svid.Certificates[0], svid.Certificates[1]; leaf.NotAfter.After(ca.NotAfter) {
		t.Errorf("the SVID ends %s, its authority %s", leaf.NotAfter, ca.NotAfter)
	}
	c.Add(24 * time.Hour)
	if token, _, err := a.JWTSVID(agentID("/agent/deploy"), []string{"x"}, time.Hour); err == nil {
		t.Errorf("a token outlives its key: %s", token)
	}
	if _, _, err := a.JWTSVID(agentID("/agent/deploy"), []string{"x"}, 5*time.Minute); err != nil {
		t.Error(err)
	}
}

func TestForcedRotation(t *testing.T) {
	c := newClock()
	a := newAuthority(t, func(cfg *issuer.Config) { cfg.Now = c.Now })
	before := a.Bundle()
	old, err := a.X509SVID(agentID("/agent/deploy"), 0)
	if err != nil {
		t.Fatal(err)
	}
	changed := a.Changed()
	if err := a.Prepare(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-changed:
	default:
		t.Error("nobody was told")
	}
	if n := len(a.Bundle().X509Authorities()); n != 2 {
		t.Fatalf("%d roots are published after prepare", n)
	}
	now, _ := a.X509SVID(agentID("/agent/deploy"), 0)
	if _, _, err := x509svid.Verify(now.Certificates, before); err != nil {
		t.Errorf("the next root signed before its time: %v", err)
	}
	c.Add(9 * time.Minute)
	if err := a.Turn(); err != nil {
		t.Fatal(err)
	}
	if now, _ = a.X509SVID(agentID("/agent/deploy"), 0); now.Certificates[1].CheckSignatureFrom(before.X509Authorities()[0]) != nil {
		t.Error("the next root took over before its notice was over")
	}
	c.Add(2 * time.Minute)
	if err := a.Turn(); err != nil {
		t.Fatal(err)
	}
	if now, _ = a.X509SVID(agentID("/agent/deploy"), 0); now.Certificates[1].CheckSignatureFrom(before.X509Authorities()[0]) == nil {
		t.Error("the next root did not take over")
	}
	at := x509svid.WithTime(c.Now())
	if _, _, err := x509svid.Verify(old.Certificates, a.Bundle(), at); err != nil {
		t.Errorf("an SVID of the old root: %v", err)
	}
	if err := a.Drop(); err != nil {
		t.Fatal(err)
	}
	if _, _, err := x509svid.Verify(old.Certificates, a.Bundle(), at); err == nil {
		t.Error("an SVID of a dropped root verifies")
	}
	if _, _, err := x509svid.Verify(now.Certificates, a.Bundle(), at); err != nil {
		t.Errorf("an SVID of the new root: %v", err)
	}
	if err := a.Activate(); err == nil {
		t.Error("activated a key that was not prepared")
	}
}

// keysOf returns the keys of a key file as they are written.
func keysOf(t *testing.T, text []byte) []map[string]any {
	t.Helper()
	var f struct{ Keys []map[string]any }
	if err := json.Unmarshal(text, &f); err != nil || len(f.Keys) == 0 {
		t.Fatal(len(f.Keys), err)
	}
	return f.Keys
}

func keysIn(t *testing.T, path string) []map[string]any {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return keysOf(t, text)
}

func TestKeyFiles(t *testing.T) {
	dir := t.TempDir()
	a := newAuthority(t, func(c *issuer.Config) { c.Dir = dir })
	files, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil || len(files) != 3 {
		t.Fatalf("files %v, %v", files, err)
	}
	for _, f := range files {
		info, err := os.Stat(f)
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v, %v", f, info.Mode(), err)
		}
	}
	again := newAuthority(t, func(c *issuer.Config) { c.Dir = dir })
	if !a.Bundle().Equal(again.Bundle()) {
		t.Error("another bundle after a restart")
	}
	root := filepath.Join(dir, "root.json")
	good, err := os.ReadFile(root)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(root, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := issuer.New(issuer.Config{TrustDomain: domain, Dir: dir}); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("a key file that others may read: %v", err)
	}
	_ = os.Chmod(root, 0o600)
	for name, bad := range map[string]string{"empty": "", "cut": string(good[:len(good)/2]), "array": "[]",
		"unknown member": strings.Replace(string(good), `"v": 1`, `"v": 1, "x": 1`, 1), "version": strings.Replace(string(good), `"v": 1`, `"v": 2`, 1)} {
		if err := os.WriteFile(root, []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := issuer.New(issuer.Config{TrustDomain: domain, Dir: dir}); err == nil {
			t.Errorf("%s: a broken key file was accepted, and its keys replaced", name)
		}
	}
	for name, change := range map[string]func(key map[string]any) []any{
		"a key twice":                 func(k map[string]any) []any { return []any{k, k} },
		"an id that is not the key's": func(k map[string]any) []any { k["id"] = "other"; return []any{k} },
		"another's certificate": func(k map[string]any) []any {
			k["chain"] = keysIn(t, filepath.Join(dir, "issuing.json"))[0]["chain"]
			return []any{k}
		},
	} {
		bad, err := json.Marshal(map[string]any{"v": 1, "keys": change(keysOf(t, good)[0])})
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(root, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := issuer.New(issuer.Config{TrustDomain: domain, Dir: dir}); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
	if err := os.WriteFile(root, good, 0o600); err != nil {
		t.Fatal(err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".*")); len(left) > 0 {
		t.Errorf("temporary files are left: %v", left)
	}
}

// TestStepThatCannotBeWritten: a step that cannot be written does not take effect, and signing goes on.
func TestStepThatCannotBeWritten(t *testing.T) {
	c := newClock()
	dir := t.TempDir()
	a := newAuthority(t, func(cfg *issuer.Config) { cfg.Dir, cfg.Now = dir, c.Now })
	before := a.Bundle()
	moved := dir + "-gone"
	if err := os.Rename(dir, moved); err != nil {
		t.Fatal(err)
	}
	if err := a.Prepare(); err == nil {
		t.Fatal("prepared without a disk")
	}
	if !a.Bundle().Equal(before) {
		t.Error("a key is published that is not on disk")
	}
	if _, err := a.X509SVID(agentID("/agent/deploy"), 0); err != nil {
		t.Errorf("minting stopped: %v", err)
	}
	c.Add(25 * time.Hour)
	if _, err := a.X509SVID(agentID("/agent/deploy"), 0); err == nil {
		t.Error("an ended key signs")
	}
	if err := os.Rename(moved, dir); err != nil {
		t.Fatal(err)
	}
	if err := a.Turn(); err != nil {
		t.Fatal(err)
	}
	if _, err := a.X509SVID(agentID("/agent/deploy"), 0); err != nil {
		t.Errorf("after the disk came back: %v", err)
	}
}

func TestJWTSVID(t *testing.T) {
	a := newAuthority(t, nil)
	token, j, err := a.JWTSVID(agentID("/agent/deploy"), []string{"https://x"}, 5*time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	svid, err := jwtsvid.ParseAndValidate(token, a, []string{"https://x"})
	if err != nil {
		t.Fatal(err)
	}
	if svid.Claims["jti"] != j.JTI || svid.Claims["iss"] != "https://remit.company.com/svid" || svid.Claims["aud"] != "https://x" {
		t.Errorf("claims %v", svid.Claims)
	}
	jws, err := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		t.Fatal(err)
	}
	h := jws.Signatures[0].Protected
	if h.Algorithm != "ES256" || h.KeyID == "" || len(h.ExtraHeaders) != 1 || h.ExtraHeaders["typ"] != "JWT" {
		t.Errorf("header %+v", h)
	}
}

func TestFederationBundle(t *testing.T) {
	a := newAuthority(t, nil)
	h, err := a.BundleHandler()
	if err != nil {
		t.Fatal(err)
	}
	cert, err := a.ServerCertificate([]string{"localhost"}, []net.IP{net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewUnstartedServer(h)
	srv.TLS = &tls.Config{GetCertificate: cert.GetCertificate, MinVersion: tls.VersionTLS13}
	srv.StartTLS()
	defer srv.Close()
	// StartTLS adds a certificate of its own, which would be preferred.
	srv.TLS.Certificates = nil
	server := agentID("/remit/server")
	got, err := federation.FetchBundle(context.Background(), domain, srv.URL, federation.WithSPIFFEAuth(a, server))
	if err != nil {
		t.Fatal(err)
	}
	if !got.Equal(a.Bundle()) {
		t.Error("the fetched bundle is not the authority's")
	}
	if hint, ok := got.RefreshHint(); !ok || hint != 5*time.Minute {
		t.Errorf("refresh hint %s, %v", hint, ok)
	}
	roots := x509.NewCertPool()
	roots.AddCert(a.Bundle().X509Authorities()[0])
	if _, err := federation.FetchBundle(context.Background(), domain, srv.URL, federation.WithWebPKIRoots(roots)); err != nil {
		t.Errorf("as a web server: %v", err)
	}
	if _, err := federation.FetchBundle(context.Background(), domain, srv.URL, federation.WithSPIFFEAuth(a, agentID("/agent/deploy"))); err == nil {
		t.Error("another identity was accepted as the endpoint")
	}
}

func TestDiscovery(t *testing.T) {
	a := newAuthority(t, nil)
	grants, err := issuer.NewGrantIssuer("https://remit.company.com/grants", issuer.KeysConfig{Name: "grant", Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	svids, err := a.Discovery()
	if err != nil {
		t.Fatal(err)
	}
	keys := map[string]string{}
	for iss, h := range map[string]http.Handler{"https://remit.company.com/grants": grants.Discovery(), "https://remit.company.com/svid": svids} {
		srv := httptest.NewServer(h)
		defer srv.Close()
		path := strings.TrimPrefix(iss, "https://remit.company.com")
		var doc struct {
			Issuer string `json:"issuer"`
			JWKS   string `json:"jwks_uri"`
		}
		fetch(t, srv.URL+path+"/.well-known/openid-configuration", &doc)
		if doc.Issuer != iss || doc.JWKS != iss+"/keys" {
			t.Errorf("%s: %+v", iss, doc)
		}
		var set jose.JSONWebKeySet
		fetch(t, srv.URL+path+"/keys", &set)
		if len(set.Keys) != 1 || set.Keys[0].Use != "sig" || !set.Keys[0].IsPublic() {
			t.Fatalf("%s: keys %+v", iss, set.Keys)
		}
		keys[set.Keys[0].KeyID] = iss
		if res, err := http.Post(srv.URL+path+"/keys", "", nil); err != nil || res.StatusCode != http.StatusMethodNotAllowed {
			t.Errorf("POST: %v %v", res.StatusCode, err)
		}
	}
	if len(keys) != 2 {
		t.Error("grant issuer and SVID issuer share a key (S1)")
	}
}

func fetch(t *testing.T, url string, into any) {
	t.Helper()
	res, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusOK {
		t.Fatalf("%s: %d %v", url, res.StatusCode, err)
	}
	if err := json.Unmarshal(b, into); err != nil {
		t.Fatalf("%s: %v", b, err)
	}
}

type claims struct {
	Issuer  string `json:"iss,omitempty"`
	Subject string `json:"sub"`
	Expires int64  `json:"exp,omitempty"`
}

func TestGrantIssuerAndKeys(t *testing.T) {
	c := newClock()
	iss := "https://remit.company.com/grants"
	dir := t.TempDir()
	for _, bad := range []string{"http://remit.company.com/grants", iss + "/", iss + "?a=b", "https://user@remit.company.com", "grants"} {
		if _, err := issuer.NewGrantIssuer(bad, issuer.KeysConfig{Name: "grant", Dir: t.TempDir(), Now: c.Now}); err == nil {
			t.Errorf("%s names an issuer", bad)
		}
	}
	grants, err := issuer.NewGrantIssuer(iss, issuer.KeysConfig{Name: "grant", Dir: dir, Now: c.Now})
	if err != nil {
		t.Fatal(err)
	}
	runs, err := issuer.OpenKeys(issuer.KeysConfig{Name: "run-token", Dir: dir, Type: "txntoken+jwt", Now: c.Now})
	if err != nil {
		t.Fatal(err)
	}
	in := func(d time.Duration) int64 { return c.Now().Add(d).Unix() }
	grant, err := grants.Sign(claims{iss, "a", in(5 * time.Minute)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := grants.Verify(grant); err != nil {
		t.Error(err)
	}
	run, err := runs.Sign(claims{"", "a", in(time.Minute)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := runs.Verify(grant); err == nil {
		t.Error("a grant token passed as a run token")
	}
	if _, err := grants.Verify(run); err == nil {
		t.Error("a run token passed as a grant token")
	}
	for name, bad := range map[string]claims{"foreign iss": {"https://other", "a", in(time.Minute)}, "no exp": {iss, "a", 0}, "too long": {iss, "a", in(2 * time.Hour)}} {
		if _, err := grants.Sign(bad); err == nil && name != "no exp" {
			t.Errorf("%s was signed", name)
		}
	}
	if _, err := grants.Sign(struct {
		Issuer string `json:"iss"`
	}{iss}); err == nil {
		t.Error("a token without exp was signed")
	}
	for name, bad := range tampered(grant) {
		if _, err := grants.Verify(bad); err == nil {
			t.Errorf("%s verifies", name)
		}
	}
	as, err := issuer.OpenKeys(issuer.KeysConfig{Name: "grant", Dir: dir, Type: "at+jwt", Now: c.Now})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := as.Verify(grant); err == nil {
		t.Error("a token of another type verifies with the same key")
	}
	if err := grants.Rotate(); err != nil {
		t.Fatal(err)
	}
	c.Add(11 * time.Minute)
	if err := grants.Turn(); err != nil {
		t.Fatal(err)
	}
	newer, err := grants.Sign(claims{iss, "a", in(time.Minute)})
	if err != nil {
		t.Fatal(err)
	}
	if strings.Split(newer, ".")[0] == strings.Split(grant, ".")[0] {
		t.Error("the ring did not rotate")
	}
	if _, err := grants.Verify(grant); err != nil {
		t.Errorf("a token of the old key: %v", err)
	}
	if err := grants.Drop(); err != nil {
		t.Fatal(err)
	}
	if _, err := grants.Verify(grant); err == nil {
		t.Error("a token of a dropped key verifies")
	}
	if _, err := issuer.NewGrantIssuer("http://remit", issuer.KeysConfig{Name: "x", Dir: dir}); err == nil {
		t.Error("an issuer without TLS")
	}
}

func tampered(token string) map[string]string {
	parts := strings.Split(token, ".")
	enc := func(s string) string {
		return strings.TrimRight(strings.NewReplacer("+", "-", "/", "_").Replace(b64(s)), "=")
	}
	var h struct{ Kid string }
	_ = json.Unmarshal([]byte(dec(parts[0])), &h)
	head := func(format string) string { return enc(fmt.Sprintf(format, h.Kid)) + "." + parts[1] + "." }
	return map[string]string{
		"no signature":    parts[0] + "." + parts[1] + ".",
		"other claims":    parts[0] + "." + enc(`{"sub":"b","exp":9999999999}`) + "." + parts[2],
		"alg none":        head(`{"alg":"none","kid":"%s","typ":"JWT"}`),
		"alg HS256":       head(`{"alg":"HS256","kid":"%s","typ":"JWT"}`) + parts[2],
		"embedded key":    head(`{"alg":"ES256","kid":"%s","typ":"JWT","jwk":{}}`) + parts[2],
		"jku":             head(`{"alg":"ES256","kid":"%s","typ":"JWT","jku":"https://x"}`) + parts[2],
		"other type":      head(`{"alg":"ES256","kid":"%s","typ":"at+jwt"}`) + parts[2],
		"duplicate alg":   head(`{"alg":"ES256","alg":"ES256","kid":"%s","typ":"JWT"}`) + parts[2],
		"not a token":     "a.b",
		"empty":           "",
		"JSON serialised": `{"payload":"","protected":"","signature":""}`,
	}
}

func b64(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

func dec(s string) string {
	b, _ := base64.RawURLEncoding.DecodeString(s)
	return string(b)
}

func TestServerCertificateRotates(t *testing.T) {
	c := newClock()
	a := newAuthority(t, func(cfg *issuer.Config) { cfg.Now = c.Now })
	s, err := a.ServerCertificate([]string{"localhost"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	first, _ := s.Get()
	c.Add(20 * time.Minute)
	if same, _ := s.Get(); same != first {
		t.Error("renewed before half of its life")
	}
	c.Add(11 * time.Minute)
	second, err := s.Get()
	if err != nil || second == first {
		t.Fatalf("not renewed: %v", err)
	}
	if err := errors.Join(a.Prepare(), a.Activate(), a.Drop()); err != nil {
		t.Fatal(err)
	}
	third, err := s.Get()
	if err != nil || third == second {
		t.Errorf("not renewed when its root was dropped: %v", err)
	}
}
