// SPDX-License-Identifier: Apache-2.0

package kubernetes_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"remit"
	gateway "remit/internal/gateway/kubernetes"
)

// leases is a real in-memory index of leases, as the server keeps one.
type leases struct {
	mu sync.Mutex // guards m
	m  map[remit.LeaseID]remit.Lease
}

func (s *leases) put(l remit.Lease) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.m == nil {
		s.m = map[remit.LeaseID]remit.Lease{}
	}
	s.m[l.ID] = l
}

func (s *leases) ByID(id remit.LeaseID) (remit.Lease, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l, ok := s.m[id]
	return l, ok
}

func (s *leases) ByCredential(id string) (remit.Lease, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.m {
		if slices.Contains(l.Credentials, id) {
			return l, true
		}
	}
	return remit.Lease{}, false
}

type acts struct {
	mu   sync.Mutex // guards the rest
	all  []remit.Outcome
	fail error
}

func (a *acts) Executed(_ context.Context, o []remit.Outcome) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.fail != nil {
		return a.fail
	}
	a.all = append(a.all, o...)
	return nil
}

func (a *acts) of(id remit.LeaseID) []remit.Outcome {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(a.all), func(o remit.Outcome) bool { return o.Lease != id })
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newLease(state remit.GrantState) remit.Lease {
	now := time.Now()
	id := remit.NewLeaseID()
	return remit.Lease{ID: id, Target: "production", State: state, AgentID: "spiffe://example.org/agent/deploy", Issued: now,
		Expires: now.Add(time.Minute), Credentials: []string{"JTI=" + string(id)}}
}

const secret = "an-api-servers-secret"

func newGateway(t testing.TB, ls *leases, as *acts, change ...func(*gateway.Config)) *gateway.Gateway {
	cfg := gateway.Config{Target: "production", Installation: "test1", Token: remit.NewSecret(secret), Leases: ls, Acts: as}
	for _, f := range change {
		f(&cfg)
	}
	g, err := gateway.New(cfg)
	must(t, err)
	return g
}

func post(h http.Handler, path, body string, change ...func(*http.Request)) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodPost, path, strings.NewReader(body))
	r.TLS = &tls.ConnectionState{}
	r.Header.Set("Authorization", "Bearer "+secret)
	r.Header.Set("Content-Type", "application/json; charset=utf-8")
	for _, f := range change {
		f(r)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

type status struct {
	Allowed bool   `json:"allowed"`
	Denied  bool   `json:"denied"`
	Reason  string `json:"reason"`
}

func review(t testing.TB, g *gateway.Gateway, user, groups, credential, attributes string) status {
	t.Helper()
	w := post(g.Handler(), "/authorize", fmt.Sprintf(`{"kind":"SubjectAccessReview","apiVersion":"authorization.k8s.io/v1","spec":{"user":%q,
		"groups":[%s],"extra":{"authentication.kubernetes.io/credential-id":[%q]},%s}}`, user, groups, credential, attributes))
	var answer struct {
		Kind   string `json:"kind"`
		Status status `json:"status"`
	}
	must(t, json.Unmarshal(w.Body.Bytes(), &answer))
	if w.Code != http.StatusOK || answer.Kind != "SubjectAccessReview" {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	return answer.Status
}

const patchFoo = `"resourceAttributes":{"verb":"patch","group":"apps","resource":"deployments","namespace":"production","name":"foo"}`

func TestAuthorize(t *testing.T) {
	ls := &leases{}
	active, revoked, pending, expired, other := newLease(remit.GrantActive), newLease(remit.GrantRevoking), newLease(remit.GrantPending),
		newLease(remit.GrantActive), newLease(remit.GrantActive)
	expired.Expires, other.Target = time.Now(), "staging"
	for _, l := range []remit.Lease{active, revoked, pending, expired, other} {
		ls.put(l)
	}
	allowed := func(_ remit.Lease, verb, _, _, _, _, name string) bool { return verb == "patch" && name == "foo" }
	plain := newGateway(t, ls, &acts{})
	deciding := newGateway(t, ls, &acts{}, func(c *gateway.Config) { c.Decides, c.Allowed = true, allowed })
	account := func(l remit.Lease) string { return "system:serviceaccount:remit-leases:remit-test1-" + string(l.ID) }
	agents := `"remit:agents"`
	get := func(path string) string {
		return `"nonResourceAttributes":{"verb":"get","path":"` + path + `"}`
	}
	for _, c := range []struct {
		name               string
		g                  *gateway.Gateway
		user, groups, cred string
		attributes         string
		allowed, denied    bool
	}{
		{"live account", plain, account(active), ``, active.Credentials[0], patchFoo, false, false},
		{"revoked account", plain, account(revoked), ``, revoked.Credentials[0], patchFoo, false, true},
		{"pending account", plain, account(pending), ``, pending.Credentials[0], patchFoo, false, true},
		{"expired account", plain, account(expired), ``, expired.Credentials[0], patchFoo, false, true},
		{"unknown account", plain, account(newLease("")), ``, "JTI=x", patchFoo, false, true},
		{"account with a token of another lease", plain, account(revoked), ``, active.Credentials[0], patchFoo, false, true},
		{"live account with an unknown token", plain, account(active), ``, "JTI=x", patchFoo, false, true},
		{"account that is no lease", plain, "system:serviceaccount:remit-leases:default", ``, "JTI=x", patchFoo, false, true},
		{"account of another installation", plain, "system:serviceaccount:remit-leases:remit-other-" + string(active.ID), ``, "JTI=x", patchFoo, false, false},
		{"lease of another target", plain, account(other), ``, other.Credentials[0], patchFoo, false, true},
		{"somebody else", plain, "admin", `"system:masters"`, "X509SHA256=1", patchFoo, false, false},
		{"live token, RBAC decides", plain, active.AgentID, agents, active.Credentials[0], patchFoo, false, false},
		{"revoked token, RBAC decides", plain, active.AgentID, agents, revoked.Credentials[0], patchFoo, false, true},
		{"live token", deciding, active.AgentID, agents, active.Credentials[0], patchFoo, true, false},
		{"live token of another agent", deciding, "spiffe://example.org/agent/other", agents, active.Credentials[0], patchFoo, false, true},
		{"live token, another name", deciding, active.AgentID, agents, active.Credentials[0], strings.Replace(patchFoo, "foo", "bar", 1), false, true},
		{"revoked token", deciding, active.AgentID, agents, revoked.Credentials[0], patchFoo, false, true},
		{"expired token", deciding, active.AgentID, agents, expired.Credentials[0], patchFoo, false, true},
		{"discovery", deciding, active.AgentID, agents, active.Credentials[0], get("/apis/apps/v1"), true, false},
		{"metrics", deciding, active.AgentID, agents, active.Credentials[0], get("/metrics"), false, true},
		{"path beside discovery", deciding, active.AgentID, agents, active.Credentials[0], get("/apix"), false, true},
		{"discovery after revocation", deciding, active.AgentID, agents, revoked.Credentials[0], get("/apis"), false, true},
		{"live account where tokens are decided", deciding, account(active), ``, active.Credentials[0], patchFoo, false, false},
	} {
		s := review(t, c.g, c.user, c.groups, c.cred, c.attributes)
		if s.Allowed != c.allowed || s.Denied != c.denied || s.Reason == "" {
			t.Errorf("%s: %+v", c.name, s)
		}
	}
	two := fmt.Sprintf(`{"kind":"SubjectAccessReview","apiVersion":"authorization.k8s.io/v1","spec":{"user":%q,"groups":[%s],
		"extra":{"authentication.kubernetes.io/credential-id":[%q,%q]},%s}}`, active.AgentID, agents, active.Credentials[0], revoked.Credentials[0], patchFoo)
	if w := post(deciding.Handler(), "/authorize", two); !strings.Contains(w.Body.String(), `"denied":true`) {
		t.Errorf("a request with two credentials: %s", w.Body)
	}
}

// S36: only the enrolled API server, by token or by certificate.
func TestOnlyTheEnrolledAPIServer(t *testing.T) {
	as := &acts{}
	roots, right := authority(t, "kube-apiserver-webhook-client")
	_, foreign := authority(t, "kube-apiserver-webhook-client")
	g := newGateway(t, &leases{}, as, func(c *gateway.Config) { c.Clients, c.ClientName = roots, "kube-apiserver-webhook-client" })
	with := func(token string, cert *x509.Certificate) func(*http.Request) {
		return func(r *http.Request) {
			r.Header.Del("Authorization")
			if token != "" {
				r.Header.Set("Authorization", token)
			}
			if cert != nil {
				r.TLS.PeerCertificates = []*x509.Certificate{cert}
			}
		}
	}
	named := newGateway(t, &leases{}, as, func(c *gateway.Config) { c.Clients, c.ClientName = roots, "another-cluster" })
	for _, c := range []struct {
		name string
		g    *gateway.Gateway
		do   func(*http.Request)
		want int
	}{
		{"token", g, with("Bearer "+secret, nil), 200}, {"certificate", g, with("", right), 200},
		{"nothing", g, with("", nil), 401}, {"wrong token", g, with("Bearer x", nil), 401}, {"empty token", g, with("Bearer ", nil), 401},
		{"wrong token with right certificate", g, with("Bearer x", right), 401}, {"basic", g, with("Basic "+secret, nil), 401},
		{"foreign certificate", g, with("", foreign), 401}, {"certificate of another cluster", named, with("", right), 401},
		{"plain http", g, func(r *http.Request) { r.TLS = nil }, 401},
	} {
		for _, path := range []string{"/audit", "/authorize"} {
			body := `{"kind":"EventList","apiVersion":"audit.k8s.io/v1"}`
			if path == "/authorize" {
				body = `{"kind":"SubjectAccessReview","apiVersion":"authorization.k8s.io/v1"}`
			}
			if w := post(c.g.Handler(), path, body, c.do); w.Code != c.want {
				t.Errorf("%s at %s: %d", c.name, path, w.Code)
			}
		}
	}
	if _, err := gateway.New(gateway.Config{Target: "x", Installation: "a", Leases: &leases{}, Acts: as}); err == nil {
		t.Error("a gateway that anybody may call was made")
	}
}

func authority(t *testing.T, name string) (*x509.CertPool, *x509.Certificate) {
	make := func(tmpl, parent *x509.Certificate, parentKey *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		must(t, err)
		tmpl.SerialNumber, tmpl.NotBefore, tmpl.NotAfter = big.NewInt(1), time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
		if parent == nil {
			parent, parentKey = tmpl, key
		}
		der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, &key.PublicKey, parentKey)
		must(t, err)
		c, err := x509.ParseCertificate(der)
		must(t, err)
		return c, key
	}
	ca, key := make(&x509.Certificate{Subject: pkix.Name{CommonName: "ca"}, IsCA: true, BasicConstraintsValid: true}, nil, nil)
	leaf, _ := make(&x509.Certificate{Subject: pkix.Name{CommonName: name}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}, ca, key)
	pool := x509.NewCertPool()
	pool.AddCert(ca)
	return pool, leaf
}

func auditEvent(id string, l remit.Lease, more string) string {
	return fmt.Sprintf(`{"auditID":%q,"stage":"ResponseComplete","verb":"patch","requestURI":"/apis/apps/v1/x","user":{"username":
		"system:serviceaccount:remit-leases:remit-test1-%s","extra":{"authentication.kubernetes.io/credential-id":[%q]}},
		"objectRef":{"resource":"deployments","namespace":"production","name":"foo","apiGroup":"apps"},"responseStatus":{"code":200},
		"stageTimestamp":"2026-01-02T03:04:05.000006Z","annotations":{"authorization.k8s.io/decision":"allow"}%s}`, id, l.ID, l.Credentials[0], more)
}

func list(events ...string) string {
	return `{"kind":"EventList","apiVersion":"audit.k8s.io/v1","items":[` + strings.Join(events, ",") + `]}`
}

func TestAuditJoinsActsToLeases(t *testing.T) {
	ls, as := &leases{}, &acts{}
	l, unknown := newLease(remit.GrantActive), newLease(remit.GrantActive)
	ls.put(l)
	byName := l
	byName.Credentials = []string{"JTI=not-yet-known"}
	g := newGateway(t, ls, as)
	batch := list(auditEvent("1", l, ""), auditEvent("1", l, ""), auditEvent("2", byName, ""), auditEvent("3", unknown, ""),
		auditEvent("4", l, `,"stage":"RequestReceived"`),
		`{"auditID":"5","stage":"ResponseComplete","user":{"username":"admin"}}`, `{"auditID":"6","stage":"ResponseComplete","user":{},"responseStatus":{"code":401}}`)
	as.fail = errors.New("disk full")
	if w := post(g.Handler(), "/audit", batch); w.Code != http.StatusServiceUnavailable {
		t.Errorf("not recorded, but answered %d", w.Code)
	}
	as.fail = nil
	for range 2 {
		if w := post(g.Handler(), "/audit", batch); w.Code != http.StatusOK {
			t.Fatal(w.Code, w.Body)
		}
	}
	if got := as.of(l.ID); len(got) != 2 || got[0].Resource != "production/deployments.apps/foo" || got[0].Verb != "patch" || !got[0].Allowed ||
		got[0].Status != 200 || got[0].SourceID != "1" || got[0].Credential != l.Credentials[0] || got[0].At.Nanosecond() != 6000 {
		t.Errorf("%+v", got)
	}
	if got := as.of(""); len(got) != 1 || got[0].SourceID != "3" {
		t.Errorf("acts without a lease: %+v", got)
	}
	if len(as.all) != 3 {
		t.Errorf("%d acts recorded", len(as.all))
	}
}

// TestEffectiveActs: S9. Only what a lease is for proves that it was used; a lease also lets its holder look.
func TestEffectiveActs(t *testing.T) {
	for action, verbs := range map[string][]string{"kubernetes.apply": {"create", "update", "patch"}, "kubernetes.delete": {"delete"},
		"kubernetes.get": {"get", "list", "watch"}, "kubernetes.list": {"get", "list", "watch"}, "other": nil} {
		ls, as := &leases{}, &acts{}
		l := newLease(remit.GrantActive)
		l.Action = action
		ls.put(l)
		h := newGateway(t, ls, as).Handler()
		effective := func(verb, more string, change ...string) bool {
			t.Helper()
			as.all = nil
			e := strings.NewReplacer(append(change, `"verb":"patch"`, `"verb":"`+verb+`"`)...).Replace(auditEvent(string(remit.NewLeaseID()), l, more))
			if w := post(h, "/audit", list(e)); w.Code != http.StatusOK || len(as.of(l.ID)) != 1 {
				t.Fatalf("%s %s: %d, %+v", action, verb, w.Code, as.all)
			}
			return as.all[0].Effective
		}
		for _, verb := range []string{"create", "update", "patch", "delete", "deletecollection", "get", "list", "watch"} {
			if got := effective(verb, ""); got != slices.Contains(verbs, verb) {
				t.Errorf("%s: %s: %v", action, verb, got)
			}
		}
		if len(verbs) == 0 {
			continue
		}
		for what, got := range map[string]bool{
			"a dry run":              effective(verbs[0], "", `/v1/x"`, `/v1/x?dryRun=All"`),
			"as somebody else":       effective(verbs[0], `,"impersonatedUser":{"username":"x"}`),
			"a subresource":          effective(verbs[0], "", `"apiGroup"`, `"subresource":"status","apiGroup"`),
			"a query that is broken": effective(verbs[0], "", `/v1/x"`, `/v1/x?%zz&dryRun=All"`),
			"no answer":              effective(verbs[0], "", `"responseStatus"`, `"x"`),
			"a panic":                effective(verbs[0], "", "ResponseComplete", "Panic"),
			"our own mint": effective(verbs[0], "", `"namespace":"production","name":"foo"`, `"namespace":"remit-leases","name":"remit-test1-`+string(l.ID)+`"`,
				`{"authorization`, `{"authentication.kubernetes.io/issued-credential-id":"`+l.Credentials[0]+`","authorization`),
		} {
			if got {
				t.Errorf("%s: %s proves that it was executed", action, what)
			}
		}
	}
}

func TestBadBodies(t *testing.T) {
	as := &acts{}
	h := newGateway(t, &leases{}, as).Handler()
	for _, path := range []string{"/audit", "/authorize"} {
		for name, body := range map[string]string{"empty": "", "half": `{"kind":`, "array": `[]`, "other kind": `{"kind":"Pod","apiVersion":"v1"}`,
			"old version": `{"kind":"EventList","apiVersion":"audit.k8s.io/v1beta1"}`, "wrong types": `{"kind":1}`} {
			if w := post(h, path, body); w.Code != http.StatusBadRequest {
				t.Errorf("%s %s: %d", path, name, w.Code)
			}
		}
		if w := post(h, path, strings.Repeat(" ", 9<<20)); w.Code != http.StatusRequestEntityTooLarge {
			t.Errorf("%s: nine megabytes: %d", path, w.Code)
		}
		if w := post(h, path, "{}", func(r *http.Request) { r.Header.Set("Content-Type", "text/plain") }); w.Code != http.StatusUnsupportedMediaType {
			t.Errorf("%s: text: %d", path, w.Code)
		}
	}
	if len(as.all) > 0 {
		t.Error("something was recorded")
	}
}

func FuzzAudit(f *testing.F) {
	l := newLease(remit.GrantActive)
	f.Add([]byte(list(auditEvent("1", l, ""))))
	f.Add([]byte(list(auditEvent("1", l, `,"impersonatedUser":{"username":"x"},"sourceIPs":["::1"]`))))
	f.Add([]byte(`{"kind":"EventList","apiVersion":"audit.k8s.io/v1","items":[{"stage":"Panic","user":{"groups":["remit:agents"]}}]}`))
	ls, as := &leases{}, &acts{}
	ls.put(l)
	g := newGateway(f, ls, as)
	f.Fuzz(func(t *testing.T, body []byte) {
		as.all = nil
		w := post(g.Handler(), "/audit", string(body))
		if w.Code != http.StatusOK && len(as.all) > 0 {
			t.Errorf("%d, and recorded %d acts", w.Code, len(as.all))
		}
		for _, o := range as.all {
			if len(o.Resource) > 1100 || len(o.Verb) > 1100 || o.Lease != "" && o.Lease != l.ID {
				t.Errorf("%+v", o)
			}
		}
	})
}

func FuzzAuthorize(f *testing.F) {
	l := newLease(remit.GrantActive)
	f.Add([]byte(`{"kind":"SubjectAccessReview","apiVersion":"authorization.k8s.io/v1","spec":{"groups":["remit:agents"],"user":"x"}}`))
	f.Add([]byte(`{"kind":"SubjectAccessReview","apiVersion":"authorization.k8s.io/v1","spec":{"user":"system:serviceaccount:remit-leases:x","nonResourceAttributes":{"path":"/api"}}}`))
	ls := &leases{}
	ls.put(l)
	g := newGateway(f, ls, &acts{}, func(c *gateway.Config) {
		c.Decides, c.Allowed = true, func(remit.Lease, string, string, string, string, string, string) bool { return true }
	})
	f.Fuzz(func(t *testing.T, body []byte) {
		w := post(g.Handler(), "/authorize", string(body))
		if bytes.Contains(w.Body.Bytes(), []byte(`"allowed":true`)) && !bytes.Contains(body, []byte(l.ID)) {
			t.Errorf("allowed: %s", body)
		}
	})
}
