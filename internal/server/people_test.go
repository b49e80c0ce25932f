// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"math/big"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"

	"remit"
	"remit/internal/api"
	"remit/internal/gateway/login"
	"remit/internal/gateway/login/logintest"
	"remit/internal/store"
)

// people is a server where persons log in at a real provider.
type people struct {
	*fixture
	provider *logintest.Provider
}

func setUpPeople(t *testing.T) *people {
	t.Helper()
	p := logintest.Start(t, map[string]logintest.Account{
		"alice": {Subject: "s-alice", Name: "alice", Groups: []string{"remit-admins"}},
		"carol": {Subject: "s-carol", Name: "carol", Groups: []string{"remit-audit"}},
		"ci":    {Subject: "s-ci", Name: "ci", Groups: []string{"remit-admins"}},
	})
	ca := filepath.Join(t.TempDir(), "provider.pem")
	if err := os.WriteFile(ca, p.CA, 0o600); err != nil {
		t.Fatal(err)
	}
	block := fmt.Sprintf("people:\n  issuer: %s\n  client_id: %s\n  ca: %q\n  name: preferred_username\n  roles:\n"+
		"  - {claim: groups, has: remit-admins, roles: [admin]}\n  - {claim: groups, has: remit-audit, roles: [auditor]}\n", p.Issuer, logintest.ClientID, ca)
	return &people{setUp(t, "# Who manages", block+"# Who manages"), p}
}

func key(t *testing.T) tls.Certificate {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: k}
}

// remote is a client of the management API over HTTPS.
func (p *people) remote(k tls.Certificate, token string) *api.Client {
	p.t.Helper()
	b, err := os.ReadFile(filepath.Join(p.dir, fileBundle))
	if err != nil {
		p.t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(b)
	c, err := api.NewRemote(api.Remote{URL: "https://" + p.port, Roots: roots, Key: k, Token: remit.NewSecret(token)})
	if err != nil {
		p.t.Fatal(err)
	}
	return c
}

// login logs the account in with a key of its own.
func (p *people) login(account string) (*api.Client, login.Granted, error) {
	p.t.Helper()
	k := key(p.t)
	c := p.remote(k, "")
	var st login.Started
	if err := c.Post(p.t.Context(), "/login/start", login.Start{Flow: "browser", Redirect: "http://127.0.0.1:1/callback"}, &st); err != nil {
		p.t.Fatal(err)
	}
	back, err := p.provider.Browse(account, st.URL, false)
	if err != nil {
		p.t.Fatal(err)
	}
	var g login.Granted
	err = c.Post(p.t.Context(), "/login/finish", login.Finish{Login: st.Login, Code: back.Get("code"), State: back.Get("state")}, &g)
	return p.remote(k, g.Token), g, err
}

// last returns the newest management event's fields.
func (p *people) last() (by string, data map[string]any) {
	p.t.Helper()
	entries, _, err := p.srv.store.Events(store.EventFilter{Kind: remit.EventAdmin}, 0, 1000)
	if err != nil || len(entries) == 0 {
		p.t.Fatal(err)
	}
	var e struct {
		By   string         `json:"by"`
		Data map[string]any `json:"data"`
	}
	if err := json.Unmarshal(slices.MaxFunc(entries, func(a, b remit.Entry) int { return int(a.Seq) - int(b.Seq) }).Body, &e); err != nil {
		p.t.Fatal(err)
	}
	return e.By, e.Data
}

// TestRemoteManagement: people log in, are decided by role, are on record with each call, and are out after logout and restart of
// nothing else.
func TestRemoteManagement(t *testing.T) {
	p := setUpPeople(t)
	alice, g, err := p.login("alice")
	if err != nil {
		t.Fatal(err)
	}
	var st api.Status
	if err := alice.Get(t.Context(), "/v1/status", nil, &st); err != nil || st.You != "operator/alice" || st.Expires.IsZero() {
		t.Fatalf("%+v %v", st, err)
	}
	if by, data := p.last(); by != "operator/alice" || data["op"] != "status" || data["session"] != string(g.Session) {
		t.Errorf("on record: %s %v", by, data)
	}
	if err := alice.Post(t.Context(), "/v1/agents/agent/idle/suspend", api.Reasoned{Reason: "test"}, nil); err != nil {
		t.Errorf("an admin: %v", err)
	}
	carol, _, err := p.login("carol")
	if err != nil {
		t.Fatal(err)
	}
	if err := carol.Get(t.Context(), "/v1/ledger", nil, nil); err != nil {
		t.Errorf("an auditor reads the ledger: %v", err)
	}
	if err := carol.Post(t.Context(), "/v1/agents/agent/idle/reinstate", api.Reasoned{Reason: "test"}, nil); remit.CodeOf(err) != remit.CodeForbidden {
		t.Errorf("an auditor reinstates: %v", err)
	}
	if by, data := p.last(); by != "operator/carol" || data["outcome"] != "forbidden" {
		t.Errorf("on record: %s %v", by, data)
	}
	if _, _, err := p.login("ci"); remit.CodeOf(err) != remit.CodeForbidden {
		t.Errorf("the name of a local operator: %v", err)
	}
	p.restart()
	if err := alice.Get(t.Context(), "/v1/status", nil, &st); err != nil {
		t.Errorf("after a restart: %v", err)
	}
	if err := carol.Post(t.Context(), "/v1/logout", nil, nil); err != nil {
		t.Fatal(err)
	}
	if err := carol.Get(t.Context(), "/v1/status", nil, nil); remit.CodeOf(err) != remit.CodeUnauthenticated {
		t.Errorf("after logout: %v", err)
	}
	p.must("/v1/sessions/"+string(g.Session)+"/end", nil, nil) // an operator on the host ends it
	if err := alice.Get(t.Context(), "/v1/status", nil, nil); remit.CodeOf(err) != remit.CodeUnauthenticated {
		t.Errorf("after its end: %v", err)
	}
}

// TestLocalCallsStayLocal: what needs something of this host is not there from elsewhere, whatever the role.
func TestLocalCallsStayLocal(t *testing.T) {
	p := setUpPeople(t)
	alice, _, err := p.login("alice")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/v1/launches", "/v1/launches/lnch-x/pid", "/v1/launches/lnch-x/end", "/v1/backup"} {
		if err := alice.Post(t.Context(), path, map[string]string{}, nil); remit.CodeOf(err) != remit.CodeNotFound || !strings.Contains(err.Error(), "no such call here") {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// TestNobodyElseHoldsARole: S2. Not an agent with its SVID, a launched one, a run token, a grant, a JWT-SVID, an enforcement point;
// not even with a person's stolen token. Nothing of it is written.
func TestNobodyElseHoldsARole(t *testing.T) {
	p := setUpPeople(t)
	_, g, err := p.login("alice")
	if err != nil {
		t.Fatal(err)
	}
	p.write(p.files + "---\nkind: EnforcementPoint\nname: proxy\nactions: [\"memory.*\"]\nattest: [{unix: {uid: " + fmt.Sprint(os.Getuid()) + "}}]\n")
	p.must("/v1/apply", nil, nil)
	r := p.startRun()
	agent := p.agent("agent/deploy", p.shared()).enter(r)
	_, launched := p.launch(r)
	grant := agent.ask("write")
	if grant.Secret == "" {
		t.Fatalf("no grant: %+v", grant)
	}
	point := p.agent("pep/proxy", p.shared())
	tlsOf := func(w *workload) tls.Certificate {
		out := tls.Certificate{PrivateKey: w.svid.PrivateKey}
		for _, c := range w.svid.Certificates {
			out.Certificate = append(out.Certificate, c.Raw)
		}
		return out
	}
	before := p.events(remit.EventAdmin)
	for name, c := range map[string]*api.Client{
		"an agent":                        p.remote(tlsOf(agent), ""),
		"a launched agent":                p.remote(tlsOf(launched), ""),
		"an agent, with a stolen session": p.remote(tlsOf(agent), g.Token),
		"a stolen session, no key":        p.remote(tls.Certificate{}, g.Token),
		"a stolen session, another key":   p.remote(key(t), g.Token),
		"a run token":                     p.remote(tlsOf(agent), agent.token),
		"a launch's run token":            p.remote(tlsOf(launched), launched.token),
		"a grant's credential":            p.remote(tlsOf(agent), grant.Secret),
		"a JWT-SVID":                      p.remote(tlsOf(agent), p.jwt("agent/deploy")),
		"an enforcement point":            p.remote(tlsOf(point), ""),
		"nobody":                          p.remote(key(t), ""),
	} {
		for _, path := range []string{"/v1/status", "/v1/agents"} {
			if err := c.Get(t.Context(), path, nil, nil); remit.CodeOf(err) != remit.CodeUnauthenticated {
				t.Errorf("%s reads %s: %v", name, path, err)
			}
		}
		if err := c.Post(t.Context(), "/v1/agents/agent/idle/suspend", api.Reasoned{Reason: "x"}, nil); remit.CodeOf(err) != remit.CodeUnauthenticated {
			t.Errorf("%s suspends: %v", name, err)
		}
	}
	if n := p.events(remit.EventAdmin); n != before {
		t.Errorf("%d events of nobody", n-before)
	}
	// And a session is no workload.
	for _, path := range []string{"/oauth2/token", "/v1/runs", "/access/v1/evaluation"} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://"+p.port+path, strings.NewReader("{}"))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+g.Token)
		req.Header.Set("Content-Type", "application/json")
		res, err := agent.http.Transport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = res.Body.Close()
		if res.StatusCode < 400 {
			t.Errorf("%s takes a session: %d", path, res.StatusCode)
		}
	}
}

func (p *people) jwt(name string) string {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), 5*time.Second)
	defer cancel()
	c, err := workloadapi.New(ctx, workloadapi.WithAddr("unix://"+p.shared()))
	if err != nil {
		p.t.Fatal(err)
	}
	defer c.Close()
	all, err := c.FetchJWTSVIDs(ctx, jwtsvid.Params{Audience: p.srv.baseURL()})
	if err != nil {
		p.t.Fatal(err)
	}
	for _, s := range all {
		if s.ID.Path() == "/"+name {
			return s.Marshal()
		}
	}
	p.t.Fatal("no JWT-SVID of " + name)
	return ""
}
