// SPDX-License-Identifier: Apache-2.0

package token_test

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"remit"
	"remit/internal/gateway"
	"remit/internal/gateway/gatewaytest"
	"remit/internal/gateway/token"
)

// line grants with a function and keeps what it was asked. Like the authorizer, it denies what is refused, has no agent or no run.
type line struct {
	gateway.Line
	judge func(*remit.Request) (gateway.Granted, error)
	asked []remit.Request
}

func (l *line) Grant(_ context.Context, req *remit.Request) (gateway.Granted, error) {
	l.asked = append(l.asked, *req)
	deny := func(reasons ...remit.Reason) (gateway.Granted, error) {
		return gateway.Granted{Decision: remit.Decision{ID: remit.NewDecisionID(), Reasons: reasons, Receipt: &remit.Receipt{Seq: 9}}}, nil
	}
	switch {
	case len(req.Refused) > 0:
		return deny(req.Refused...)
	case req.Agent == "":
		return deny(remit.Reason{Code: remit.ReasonUnknownAgent})
	case req.Run == "":
		return deny(remit.Reason{Code: remit.ReasonNoRun})
	}
	return l.judge(req)
}

func (l *line) last(t *testing.T) remit.Request {
	t.Helper()
	if len(l.asked) != 1 {
		t.Fatalf("the line was asked %d times", len(l.asked))
	}
	r := l.asked[0]
	l.asked = nil
	return r
}

const secret = "eyJhbGciOiJSUzI1NiJ9.very-secret.signature"

// narrowed grants less than was asked: one replica, and an end before the permission's.
func narrowed(req *remit.Request) (gateway.Granted, error) {
	until := req.At.Add(4*time.Minute + 500*time.Millisecond)
	return gateway.Granted{
		Decision: remit.Decision{ID: remit.NewDecisionID(), Effect: remit.Allow, Receipt: &remit.Receipt{Seq: 9}},
		Grant: remit.Grant{ID: remit.NewGrantID(), Agent: req.Agent, Run: req.Run, Action: "kubernetes.apply", Target: "production-cluster",
			Permission: remit.PermissionRef{Workflow: "deploy", Stage: "deploy", Name: "apply"}, Expires: until,
			Scope: remit.Args{"namespace": remit.StringValue("production"), "replicas": remit.IntValue(1), "type": remit.StringValue("shadow")}},
		Credential: remit.Credential{Secret: remit.NewSecret(secret), Type: "kubernetes", Expires: until, Native: req.At.Add(time.Hour),
			Fields: map[string]string{"server": "https://k8s", "ca": "PEM"}, Bounds: []string{"namespace production"},
			NotBounded: []string{"reads"}, WorstCase: 670 * time.Second},
	}, nil
}

// grants keeps grants by id and says which were ended.
type grants struct {
	all   map[remit.GrantID]remit.Grant
	byJTI map[string]remit.GrantID
	ended []remit.GrantID
	err   error
}

func (g *grants) Grant(id remit.GrantID) (remit.Grant, bool) { x, ok := g.all[id]; return x, ok }
func (g *grants) GrantOf(cred string) (remit.GrantID, bool)  { id, ok := g.byJTI[cred]; return id, ok }
func (g *grants) Revoke(ctx context.Context, id remit.GrantID, _, by string) error {
	if g.err == nil && ctx.Err() == nil && strings.HasPrefix(by, "spiffe://") {
		g.ended = append(g.ended, id)
	}
	return g.err
}

type fixture struct {
	*gatewaytest.World
	line    *line
	grants  *grants
	handler *token.Handler
	states  map[string]*http.Request
	deploy  spiffeid.ID
	run     remit.RunID
	log     *strings.Builder
}

const issuer = "https://remit.company.com"

func newFixture(t testing.TB, judge func(*remit.Request) (gateway.Granted, error), change ...func(*token.Config)) *fixture {
	w := gatewaytest.New(t, "company.com", issuer)
	f := &fixture{World: w, line: &line{judge: judge}, grants: &grants{all: map[remit.GrantID]remit.Grant{}, byJTI: map[string]remit.GrantID{}},
		states: map[string]*http.Request{}, deploy: w.ID("/agent/deploy"), run: remit.NewRunID(), log: &strings.Builder{}}
	w.Agents[f.deploy], w.Agents[w.ID("/agent/other")] = "agent/deploy", "agent/other"
	for _, path := range []string{"/agent/deploy", "/agent/other", "/nobody"} {
		r := httptest.NewRequest(http.MethodPost, "/", nil)
		r.TLS = gatewaytest.State(w.SVID(w.ID(path)))
		f.states[path] = r
	}
	w.Runs["rt"] = gatewaytest.Run{ID: f.run, Agent: f.deploy,
		Holder: remit.Holder{Thumbprint: gatewaytest.Thumbprint(f.states["/agent/deploy"].TLS.PeerCertificates[0])}}
	w.Runs["any"] = gatewaytest.Run{ID: f.run, Agent: f.deploy}
	cfg := token.Config{Issuer: issuer, Line: f.line, Authenticator: w, RunTokens: w, Directory: w, Grants: f.grants,
		Log:      slog.New(slog.NewTextHandler(f.log, nil)),
		Location: func(uri string) (string, bool) { return "production-cluster", uri == "https://k8s.company.com" }}
	for _, c := range change {
		c(&cfg)
	}
	var err error
	if f.handler, err = token.New(cfg); err != nil {
		t.Fatal(err)
	}
	return f
}

const entry = `[{"type":"kubernetes.apply","target":"production-cluster","namespace":"production","replicas":3}]`

// form is a sound request of agent/deploy, with changes; an empty value takes a parameter away.
func form(pairs ...string) url.Values {
	v := url.Values{"grant_type": {"client_credentials"}, "client_id": {"spiffe://company.com/agent/deploy"}, "authorization_details": {entry}}
	for i := 0; i < len(pairs); i += 2 {
		if v.Set(pairs[i], pairs[i+1]); pairs[i+1] == "" {
			v.Del(pairs[i])
		}
	}
	return v
}

func (f *fixture) post(caller, path, body string, change ...func(*http.Request)) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodPost, path, strings.NewReader(body))
	if s := f.states[caller]; s != nil {
		r.TLS = s.TLS
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.Header.Set("Txn-Token", "rt")
	for _, c := range change {
		c(r)
	}
	w := httptest.NewRecorder()
	f.handler.ServeHTTP(w, r)
	return w
}

type answer struct {
	Token      string                       `json:"access_token"`
	Type       string                       `json:"token_type"`
	Issued     string                       `json:"issued_token_type"`
	In         int                          `json:"expires_in"`
	At         time.Time                    `json:"expires_at"`
	Details    []map[string]json.RawMessage `json:"authorization_details"`
	Decision   remit.DecisionID             `json:"decision_id"`
	Grant      remit.GrantID                `json:"grant_id"`
	Bounds     []string                     `json:"bounds"`
	NotBounded []string                     `json:"not_bounded"`
	Worst      int                          `json:"worst_case_s"`
	Credential map[string]string            `json:"credential"`
	Receipt    *remit.Receipt               `json:"receipt"`
	Refresh    string                       `json:"refresh_token"`
	Error      string                       `json:"error"`
	Text       string                       `json:"error_description"`
	Reasons    []remit.Reason               `json:"reasons"`
	Handle     string                       `json:"request_handle"`
}

func read(t *testing.T, w *httptest.ResponseRecorder) answer {
	t.Helper()
	if w.Header().Get("Cache-Control") != "no-store" {
		t.Errorf("Cache-Control: %q", w.Header().Get("Cache-Control"))
	}
	var a answer
	if err := json.Unmarshal(w.Body.Bytes(), &a); err != nil {
		t.Fatalf("%d %v: %s", w.Code, err, w.Body)
	}
	if (a.Error == "") != (w.Code == http.StatusOK) || (a.Token != "") != (w.Code == http.StatusOK) {
		t.Errorf("%d: %s", w.Code, w.Body)
	}
	return a
}

// Pitfalls 8 and 14: the answer says what was granted and when it really ends.
func TestGrantSaysWhatWasGranted(t *testing.T) {
	f := newFixture(t, narrowed)
	w := f.post("/agent/deploy", "/oauth2/token", form().Encode())
	a := read(t, w)
	if a.Token != secret || a.Type != "N_A" || a.Issued != "urn:remit:token-type:kubernetes" || a.Refresh != "" || a.Worst != 670 ||
		a.Credential["server"] != "https://k8s" || a.Receipt == nil || a.Grant == "" || a.Decision == "" || len(a.Bounds) != 1 || len(a.NotBounded) != 1 {
		t.Errorf("%s", w.Body)
	}
	if a.In != 240 && a.In != 239 {
		t.Errorf("expires_in %d is not the effective end, rounded down", a.In)
	}
	if len(a.Details) != 1 || string(a.Details[0]["replicas"]) != "1" || string(a.Details[0]["type"]) != `"kubernetes.apply"` ||
		string(a.Details[0]["run"]) != `"`+string(f.run)+`"` || strings.Count(w.Body.String(), `"type"`) != 1 {
		t.Errorf("details: %s", w.Body)
	}
	req := f.line.last(t)
	want := remit.Args{"namespace": remit.StringValue("production"), "replicas": remit.IntValue(3)}
	if d := cmp.Diff(want, req.Args); d != "" || req.Run != f.run || req.Agent != "agent/deploy" || req.Via != "token" || req.Fill {
		t.Errorf("%+v\n%s", req, d)
	}
}

func TestEntryMembers(t *testing.T) {
	f := newFixture(t, narrowed)
	under := remit.NewDecisionID()
	body := form("resource", "https://k8s.company.com", "authorization_details", `[{"type":"kubernetes.apply","locations":["https://k8s.company.com"],
		"actions":["apply"],"permission":"apply","run":"`+string(f.run)+`","stage":"deploy","under":"`+string(under)+`","ttl":120,"x":null,"Type":"X"}]`).Encode()
	read(t, f.post("/agent/deploy", "/oauth2/token", body))
	req := f.line.last(t)
	if req.Target != "production-cluster" || req.Permission != "apply" || !req.Fill || req.Stage != "deploy" || req.Under != under || req.TTL != 2*time.Minute {
		t.Errorf("%+v", req)
	}
	if d := cmp.Diff(remit.Args{"Type": remit.StringValue("X")}, req.Args); d != "" {
		t.Error(d)
	}
	for ttl, want := range map[string]time.Duration{`"5m0s"`: 5 * time.Minute, `"90s"`: 90 * time.Second, `1`: time.Second} {
		read(t, f.post("/agent/deploy", "/oauth2/token", form("authorization_details", `[{"type":"","permission":"apply","ttl":`+ttl+`}]`).Encode()))
		if req := f.line.last(t); req.TTL != want || req.Action != "" || req.Target != "" || !req.Fill {
			t.Errorf("%s: %+v", ttl, req)
		}
	}
}

func TestBadDetails(t *testing.T) {
	f := newFixture(t, narrowed)
	const target = `"target":"production-cluster"`
	for details, want := range map[string]string{
		``: "invalid_authorization_details", `{}`: "invalid_authorization_details", `[]`: "invalid_authorization_details",
		`[{"type":"a",` + target + `},{"type":"a",` + target + `}]`:                                   "invalid_authorization_details",
		`[{"type":"a",` + target + `}]]`:                                                              "invalid_authorization_details",
		`[{` + target + `}]`:                                                                          "invalid_authorization_details",
		`[{"type":7,` + target + `}]`:                                                                 "invalid_authorization_details",
		`[{"type":"a","type":"b",` + target + `}]`:                                                    "invalid_authorization_details",
		`[{"type":"a","x":1,"\u0078":2,` + target + `}]`:                                              "invalid_authorization_details",
		`[{"type":"a"}]`:                                                                              "invalid_authorization_details",
		`[{"type":"a.b","actions":["c"],` + target + `}]`:                                             "invalid_authorization_details",
		`[{"type":"a.b","actions":["b","c"],` + target + `}]`:                                         "invalid_authorization_details",
		`[{"type":"a","ttl":0,` + target + `}]`:                                                       "invalid_authorization_details",
		`[{"type":"a","ttl":-5,` + target + `}]`:                                                      "invalid_authorization_details",
		`[{"type":"a","ttl":86401,` + target + `}]`:                                                   "invalid_authorization_details",
		`[{"type":"a","ttl":"soon",` + target + `}]`:                                                  "invalid_authorization_details",
		`[{"type":"a","ttl":[5],` + target + `}]`:                                                     "invalid_authorization_details",
		`[{"type":"a","under":"x",` + target + `}]`:                                                   "invalid_authorization_details",
		`[{"type":"a","run":7,` + target + `}]`:                                                       "invalid_authorization_details",
		`[{"type":"a","locations":["https://x","https://y"]}]`:                                        "invalid_authorization_details",
		`[{"type":"a","locations":["https://unknown"]}]`:                                              "invalid_target",
		`[{"type":"a","locations":["urn:remit:target:"]}]`:                                            "invalid_target",
		`[{"type":"a","target":"x","locations":["urn:remit:target:y"]}]`:                              "invalid_target",
		`[{"type":"a","x":` + strings.Repeat("[", 12) + strings.Repeat("]", 12) + `,` + target + `}]`: "invalid_authorization_details",
	} {
		w := f.post("/agent/deploy", "/oauth2/token", form("authorization_details", details).Encode())
		if a := read(t, w); w.Code != http.StatusBadRequest || a.Error != want || strings.ContainsAny(a.Text, "\"\\") {
			t.Errorf("%s: %d %s", details, w.Code, w.Body)
		}
	}
	if a := read(t, f.post("/agent/deploy", "/oauth2/token", form("resource", "urn:remit:target:other").Encode())); a.Error != "invalid_target" {
		t.Errorf("resource against target: %+v", a)
	}
	if len(f.line.asked) != 0 {
		t.Errorf("the line was asked %d times", len(f.line.asked))
	}
}

func TestBadForms(t *testing.T) {
	f := newFixture(t, narrowed)
	sound := form().Encode()
	for name, c := range map[string]struct {
		body, want string
		change     func(*http.Request)
	}{
		"parameter twice":     {sound + "&grant_type=client_credentials", "invalid_request", nil},
		"twice by escape":     {sound + "&%67rant_type=client_credentials", "invalid_request", nil},
		"bad escape":          {sound + "&x=%zz", "invalid_request", nil},
		"not UTF-8":           {sound + "&x=%ff", "invalid_request", nil},
		"no name":             {sound + "&=x", "invalid_request", nil},
		"many":                {sound + manyParameters(), "invalid_request", nil},
		"long":                {sound + "&x=" + strings.Repeat("a", gateway.MaxBody), "invalid_request", nil},
		"JSON":                {sound, "invalid_request", func(r *http.Request) { r.Header.Set("Content-Type", "application/json") }},
		"no type":             {sound, "invalid_request", func(r *http.Request) { r.Header.Del("Content-Type") }},
		"parameters in URL":   {sound, "invalid_request", func(r *http.Request) { r.URL.RawQuery = "client_assertion=x" }},
		"no grant type":       {form("grant_type", "").Encode(), "invalid_request", nil},
		"password":            {form("grant_type", "password").Encode(), "unsupported_grant_type", nil},
		"refresh":             {form("grant_type", "refresh_token").Encode(), "unsupported_grant_type", nil},
		"token exchange":      {form("grant_type", exchangeType).Encode(), "unsupported_grant_type", nil},
		"scope":               {form("scope", "all").Encode(), "invalid_scope", nil},
		"secret":              {form("client_secret", "x").Encode(), "invalid_request", nil},
		"two run tokens":      {sound, "invalid_request", func(r *http.Request) { r.Header.Add("Txn-Token", "rt") }},
		"run token as bearer": {sound, "invalid_request", func(r *http.Request) { r.Header.Set("Authorization", "Bearer rt") }},
	} {
		w := f.post("/agent/deploy", "/oauth2/token", c.body, func(r *http.Request) {
			if c.change != nil {
				c.change(r)
			}
		})
		if a := read(t, w); w.Code != http.StatusBadRequest || a.Error != c.want {
			t.Errorf("%s: %d %s", name, w.Code, w.Body)
		}
	}
	if w := f.post("/agent/deploy", "/oauth2/token", sound, func(r *http.Request) { r.Method = http.MethodGet }); w.Code != http.StatusMethodNotAllowed {
		t.Errorf("GET: %d", w.Code)
	}
	if len(f.line.asked) != 0 {
		t.Errorf("the line was asked %d times", len(f.line.asked))
	}
}

func manyParameters() string {
	var b strings.Builder
	for i := range 40 {
		b.WriteString("&p" + strings.Repeat("x", i) + "=1")
	}
	return b.String()
}

func TestAnswersOfTheLine(t *testing.T) {
	for name, c := range map[string]struct {
		got    gateway.Granted
		err    error
		status int
		code   string
	}{
		"deny": {gateway.Granted{Decision: remit.Decision{ID: "dec-x", Reasons: []remit.Reason{{Code: remit.ReasonEvidenceMissing, Of: "evidence.scan", Want: "hidden"}}}},
			nil, 400, "access_denied"},
		"hold":          {gateway.Granted{Decision: remit.Decision{ID: "dec-x", Effect: remit.Hold, Hold: "hold-x", Reasons: []remit.Reason{{Code: remit.ReasonApproval, Got: "hidden"}}}}, nil, 400, "authorization_pending"},
		"fault":         {gateway.Granted{}, errors.New("hidden"), 503, "temporarily_unavailable"},
		"mint failed":   {gateway.Granted{Decision: remit.Decision{ID: "dec-x", Effect: remit.Allow}}, errors.New("hidden"), 503, "temporarily_unavailable"},
		"no credential": {gateway.Granted{Decision: remit.Decision{ID: "dec-x", Effect: remit.Allow}}, nil, 503, "temporarily_unavailable"},
		"ended already": {gateway.Granted{Decision: remit.Decision{ID: "dec-x", Effect: remit.Allow}, Credential: remit.Credential{Secret: remit.NewSecret("hidden"), Expires: time.Now()}},
			nil, 503, "temporarily_unavailable"},
	} {
		f := newFixture(t, func(*remit.Request) (gateway.Granted, error) { return c.got, c.err })
		w := f.post("/agent/deploy", "/oauth2/token", form().Encode())
		a := read(t, w)
		if w.Code != c.status || a.Error != c.code || strings.Contains(w.Body.String(), "hidden") || a.Decision != c.got.Decision.ID {
			t.Errorf("%s: %d %s", name, w.Code, w.Body)
		}
		if (name == "hold") != (a.Handle == "hold-x") {
			t.Errorf("%s: handle %q", name, a.Handle)
		}
		if name == "deny" && (a.Reasons[0].Of != "evidence.scan" || !strings.Contains(a.Text, "evidence")) {
			t.Errorf("the denial does not say what to do: %s", w.Body)
		}
	}
}

func TestNoSecretIsLogged(t *testing.T) {
	f := newFixture(t, func(req *remit.Request) (gateway.Granted, error) {
		g, _ := narrowed(req)
		return g, errors.New("conflict after mint")
	})
	w := f.post("/agent/deploy", "/oauth2/token", form().Encode())
	if strings.Contains(f.log.String()+w.Body.String(), "very-secret") || !strings.Contains(f.log.String(), "conflict after mint") {
		t.Errorf("log %s\nbody %s", f.log, w.Body)
	}
}

func TestQuota(t *testing.T) {
	now := time.Now()
	f := newFixture(t, narrowed, func(c *token.Config) {
		c.Quota = gateway.NewQuota(gateway.Limits{Rate: 1, Burst: 1, Concurrent: 1})
		c.Now = func() time.Time { return now }
	})
	read(t, f.post("/agent/deploy", "/oauth2/token", form().Encode()))
	f.line.last(t)
	w := f.post("/agent/deploy", "/oauth2/token", form().Encode())
	if a := read(t, w); a.Error != "slow_down" || w.Header().Get("Retry-After") == "" || len(f.line.asked) != 0 {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if w := f.post("/agent/deploy", "/oauth2/revoke", form("token", "x").Encode()); w.Code != http.StatusOK {
		t.Errorf("revocation waited for the quota: %d", w.Code)
	}
	if a := read(t, f.post("/agent/other", "/oauth2/token", form("client_id", "spiffe://company.com/agent/other").Encode())); a.Error != "access_denied" {
		t.Errorf("another agent: %+v", a)
	}
}

func TestMetadata(t *testing.T) {
	for _, at := range []string{issuer, issuer + "/tenant"} {
		f := newFixture(t, narrowed, func(c *token.Config) {
			c.Issuer = at
			c.Actions = func() []string { return []string{"kubernetes.apply"} }
		})
		w := httptest.NewRecorder()
		f.handler.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/.well-known/oauth-authorization-server"+strings.TrimPrefix(at, issuer), nil))
		var got map[string]any
		if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil {
			t.Fatalf("%d %s", w.Code, w.Body)
		}
		methods := []any{"spiffe_x509", "spiffe_jwt"}
		want := map[string]any{"issuer": at, "token_endpoint": at + "/oauth2/token", "revocation_endpoint": at + "/oauth2/revoke",
			"grant_types_supported": []any{"client_credentials"}, "token_endpoint_auth_methods_supported": methods,
			"revocation_endpoint_auth_methods_supported": methods, "response_types_supported": []any{},
			"authorization_details_types_supported": []any{"kubernetes.apply"}}
		if d := cmp.Diff(want, got); d != "" {
			t.Error(d)
		}
		if w := f.post("/agent/deploy", strings.TrimPrefix(at, issuer)+"/oauth2/token", form().Encode()); w.Code != http.StatusOK {
			t.Errorf("%s: %d", at, w.Code)
		}
	}
	for _, bad := range []string{"", "http://x", "https://x/", "https://x?y", "https://"} {
		w := &gatewaytest.World{}
		if _, err := token.New(token.Config{Issuer: bad, Line: &line{}, Authenticator: w, RunTokens: w, Directory: w, Grants: &grants{}}); err == nil {
			t.Errorf("issuer %q was accepted", bad)
		}
	}
}

type accessOf struct{ asked []remit.RunID }

func (*accessOf) Audience(resource string) (string, bool) {
	return issuer + "/mcp", resource == issuer+"/mcp"
}

func (a *accessOf) Access(_ context.Context, _ remit.Principal, _ remit.Name, run remit.RunID, _ string, at time.Time) (remit.Secret, time.Time, error) {
	a.asked = append(a.asked, run)
	return remit.NewSecret("at"), at.Add(time.Minute), nil
}

// TestAccessToken: S10. A bearer is given only for a run token in its holder's hand.
func TestAccessToken(t *testing.T) {
	a := &accessOf{}
	f := newFixture(t, narrowed, func(c *token.Config) { c.Access = a })
	body := form("resource", issuer+"/mcp", "authorization_details", "").Encode()
	w := f.post("/agent/deploy", "/oauth2/token", body)
	if got := read(t, w); got.Token != "at" || got.Type != "Bearer" || len(a.asked) != 1 || a.asked[0] != f.run || got.Refresh != "" {
		t.Errorf("%s", w.Body)
	}
	for txn, want := range map[string]remit.ReasonCode{"": remit.ReasonNoRun, "xx": remit.ReasonRunToken} {
		w := f.post("/agent/deploy", "/oauth2/token", body, func(r *http.Request) {
			if r.Header.Set("Txn-Token", txn); txn == "" {
				r.Header.Del("Txn-Token")
			}
		})
		if got := read(t, w); got.Error != "access_denied" || got.Reasons[0].Code != want || len(a.asked) != 1 {
			t.Errorf("%q: %s", txn, w.Body)
		}
	}
}
