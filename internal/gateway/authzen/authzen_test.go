// SPDX-License-Identifier: Apache-2.0

package authzen_test

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"remit"
	"remit/internal/gateway"
	"remit/internal/gateway/authzen"
	"remit/internal/gateway/gatewaytest"
)

// line judges with a function and keeps what it was asked. Like the authorizer, it denies what is refused or has no agent.
type line struct {
	gateway.Line
	judge func(*remit.Request) (remit.Decision, error)

	mu    sync.Mutex // guards asked
	asked []remit.Request
}

func (l *line) Decide(_ context.Context, req *remit.Request) (remit.Decision, error) {
	l.mu.Lock()
	l.asked = append(l.asked, *req)
	l.mu.Unlock()
	d := remit.Decision{ID: remit.NewDecisionID(), At: req.At, Receipt: &remit.Receipt{Seq: 1}}
	switch {
	case len(req.Refused) > 0:
		d.Reasons = req.Refused
		return d, nil
	case req.Agent == "":
		d.Reasons = []remit.Reason{{Code: remit.ReasonUnknownAgent}}
		return d, nil
	}
	judged, err := l.judge(req)
	if judged.At, judged.Receipt = d.At, d.Receipt; judged.ID == "" {
		judged.ID = d.ID
	}
	return judged, err
}

func allow(*remit.Request) (remit.Decision, error) { return remit.Decision{Effect: remit.Allow}, nil }

// last is the only request since the last call.
func (l *line) last(t *testing.T) remit.Request {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.asked) != 1 {
		t.Fatalf("the line was asked %d times", len(l.asked))
	}
	r := l.asked[0]
	l.asked = nil
	return r
}

// fixture is a handler with an asserting enforcement point, one that may not assert, and two agents.
type fixture struct {
	*gatewaytest.World
	line    *line
	handler *authzen.Handler
	certs   map[string]*http.Request // carries the TLS state
	deploy  spiffeid.ID
}

const base = "https://remit.company.com"

func newFixture(t testing.TB, judge func(*remit.Request) (remit.Decision, error), change ...func(*authzen.Config)) *fixture {
	w := gatewaytest.New(t, "company.com", base)
	f := &fixture{World: w, line: &line{judge: judge}, certs: map[string]*http.Request{}, deploy: w.ID("/agent/deploy")}
	w.Agents[f.deploy] = "agent/deploy"
	w.Agents[w.ID("/agent/other")] = "agent/other"
	point := remit.EnforcementPoint{Name: "pep/gate", ID: w.ID("/pep/gate"), Assert: true, TrustDomains: []spiffeid.TrustDomain{w.Domain},
		Actions: []string{"kubernetes.apply", "mcp.*"}}
	w.Points[point.ID] = point
	point.Name, point.ID, point.Assert = "pep/plain", w.ID("/pep/plain"), false
	w.Points[point.ID] = point
	cfg := authzen.Config{Base: base, Line: f.line, Authenticator: w, RunTokens: w, Directory: w}
	for _, c := range change {
		c(&cfg)
	}
	var err error
	if f.handler, err = authzen.New(cfg); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/agent/deploy", "/agent/other", "/pep/gate", "/pep/plain", "/nobody"} {
		r := httptest.NewRequest(http.MethodPost, "/", nil)
		r.TLS = gatewaytest.State(w.SVID(w.ID(path)))
		f.certs[path] = r
	}
	return f
}

// post sends a body as the caller of path.
func (f *fixture) post(path, endpoint, body string, change ...func(*http.Request)) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodPost, endpoint, strings.NewReader(body))
	if c := f.certs[path]; c != nil {
		r.TLS = c.TLS
	}
	r.Header.Set("Content-Type", "application/json")
	for _, c := range change {
		c(r)
	}
	w := httptest.NewRecorder()
	f.handler.ServeHTTP(w, r)
	return w
}

// reply is an answer, strictly typed.
type reply struct {
	Decision *bool `json:"decision"`
	Context  struct {
		DecisionID    string                      `json:"decision_id"`
		EvaluationID  string                      `json:"evaluation_id"`
		Reasons       []remit.Reason              `json:"reasons"`
		Receipt       *remit.Receipt              `json:"receipt"`
		ExpiresIn     int                         `json:"expires_in"`
		Limits        map[string]int              `json:"limits"`
		Obligations   []struct{ ID, Type string } `json:"obligations"`
		AccessRequest *struct {
			ExpiresAt time.Time    `json:"expires_at"`
			Hold      remit.HoldID `json:"hold"`
			Endpoint  string       `json:"endpoint"`
		} `json:"access_request"`
		NextAction string `json:"next_action"`
		NextReason string `json:"next_reason"`
		Error      *struct {
			Status  int
			Message string
		} `json:"error"`
	} `json:"context"`
	Evaluations []reply `json:"evaluations"`
}

func read(t *testing.T, w *httptest.ResponseRecorder) reply {
	t.Helper()
	if w.Code != http.StatusOK || w.Header().Get("Content-Type") != "application/json" {
		t.Fatalf("%d %s: %s", w.Code, w.Header().Get("Content-Type"), w.Body)
	}
	var out reply
	if err := json.Unmarshal(w.Body.Bytes(), &out); err != nil {
		t.Fatalf("%v: %s", err, w.Body)
	}
	return out
}

const (
	single = "/access/v1/evaluation"
	batch  = "/access/v1/evaluations"
	sound  = `{"subject":{"type":"agent","id":"spiffe://company.com/agent/deploy"},"action":{"name":"kubernetes.apply"},` +
		`"resource":{"type":"kubernetes","id":"production-cluster","properties":{"namespace":"production","replicas":3}}}`
)

func TestEvaluationReachesTheLine(t *testing.T) {
	f := newFixture(t, allow)
	got := read(t, f.post("/pep/gate", single, sound))
	if got.Decision == nil || !*got.Decision || got.Context.DecisionID == "" || got.Context.Receipt == nil {
		t.Errorf("%+v", got)
	}
	req := f.line.last(t)
	if req.Agent != "agent/deploy" || req.Action != "kubernetes.apply" || req.Target != "production-cluster" || req.Via != "authzen" || req.Run != "" {
		t.Errorf("%+v", req)
	}
	want := remit.Args{"namespace": remit.StringValue("production"), "replicas": remit.IntValue(3)}
	if d := cmp.Diff(want, req.Args); d != "" {
		t.Error(d)
	}
	if req.Caller.ID != f.ID("/pep/gate") {
		t.Errorf("caller is %s", req.Caller)
	}
}

// Pitfall 1: a denial is 200 with decision false, and S30: only code and part leave.
func TestDenialIsAnAnswer(t *testing.T) {
	f := newFixture(t, func(*remit.Request) (remit.Decision, error) {
		return remit.Decision{Reasons: []remit.Reason{{Code: remit.ReasonArgument, Of: "where.image", Want: "foo@sha256:secret", Got: "bar"}}}, nil
	})
	w := f.post("/agent/deploy", single, sound)
	got := read(t, w)
	if got.Decision == nil || *got.Decision || len(got.Context.Reasons) != 1 || got.Context.Reasons[0].Of != "where.image" {
		t.Errorf("%s", w.Body)
	}
	if strings.Contains(w.Body.String(), "secret") || strings.Contains(w.Body.String(), "bar") {
		t.Errorf("S30: %s", w.Body)
	}
}

func TestHoldIsADenialWithAccessRequest(t *testing.T) {
	at := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	f := newFixture(t, func(*remit.Request) (remit.Decision, error) {
		return remit.Decision{Effect: remit.Hold, Hold: "hold-x", Until: at.Add(time.Hour), Reasons: []remit.Reason{{Code: remit.ReasonApproval}}}, nil
	})
	w := f.post("/agent/deploy", single, sound)
	got := read(t, w)
	if *got.Decision || got.Context.AccessRequest == nil || got.Context.AccessRequest.Hold != "hold-x" || !got.Context.AccessRequest.ExpiresAt.Equal(at.Add(time.Hour)) || got.Context.EvaluationID != got.Context.DecisionID {
		t.Errorf("%s", w.Body)
	}
}

func TestAllowCarriesWhatMustBeKept(t *testing.T) {
	f := newFixture(t, func(*remit.Request) (remit.Decision, error) {
		return remit.Decision{Effect: remit.Allow, TTL: 5 * time.Minute, Limits: map[string]int64{"rows": 500}, Obligations: []string{"mask", "log"}}, nil
	})
	w := f.post("/agent/deploy", single, sound)
	c := read(t, w).Context
	if c.ExpiresIn != 300 || c.Limits["rows"] != 500 || len(c.Obligations) != 2 || c.Obligations[1].ID != "log" || c.Obligations[1].Type != "custom" {
		t.Errorf("%s", w.Body)
	}
}

func TestBadRequests(t *testing.T) {
	f := newFixture(t, allow)
	for name, body := range map[string]string{
		"empty": ``, "malformed": `{`, "not an object": `[]`, "two": sound + sound, "name twice": `{"subject":1,"subject":1}`,
		"no subject":         `{"action":{"name":"a"},"resource":{"type":"t","id":"i"}}`,
		"null subject":       strings.Replace(sound, `"subject":{"type":"agent","id":"spiffe://company.com/agent/deploy"}`, `"subject":null`, 1),
		"no subject id":      strings.Replace(sound, `,"id":"spiffe://company.com/agent/deploy"`, ``, 1),
		"subject a string":   `{"subject":"x","action":{"name":"a"},"resource":{"type":"t","id":"i"}}`,
		"id a number":        strings.Replace(sound, `"production-cluster"`, `7`, 1),
		"no resource type":   strings.Replace(sound, `"type":"kubernetes",`, ``, 1),
		"action a string":    strings.Replace(sound, `{"name":"kubernetes.apply"}`, `"kubernetes.apply"`, 1),
		"no action name":     strings.Replace(sound, `{"name":"kubernetes.apply"}`, `{}`, 1),
		"properties a list":  strings.Replace(sound, `{"namespace":"production","replicas":3}`, `[]`, 1),
		"context a list":     strings.Replace(sound, `{"subject"`, `{"context":[],"subject"`, 1),
		"under no id":        strings.Replace(sound, `{"subject"`, `{"context":{"under":"dec-1"},"subject"`, 1),
		"property twice":     strings.Replace(sound, `"kubernetes.apply"`, `"kubernetes.apply","properties":{"namespace":"kube-system"}`, 1),
		"too long":           sound + strings.Repeat(" ", gateway.MaxBody),
		"escaped name twice": strings.Replace(sound, `{"subject"`, `{"\u0073ubject":null,"subject"`, 1),
	} {
		for _, endpoint := range []string{single, batch} {
			w := f.post("/pep/gate", endpoint, body)
			var msg string
			if err := json.Unmarshal(w.Body.Bytes(), &msg); w.Code != http.StatusBadRequest || err != nil || msg == "" {
				t.Errorf("%s at %s: %d %s", name, endpoint, w.Code, w.Body)
			}
		}
	}
	for _, contentType := range []string{"", "text/plain", "application/jsonx", "application/json; charset=latin1", "application/x-www-form-urlencoded"} {
		w := f.post("/pep/gate", single, sound, func(r *http.Request) { r.Header.Set("Content-Type", contentType) })
		if w.Code != http.StatusBadRequest {
			t.Errorf("content type %q: %d", contentType, w.Code)
		}
	}
	if len(f.line.asked) != 0 {
		t.Errorf("the line was asked %d times", len(f.line.asked))
	}
	w := f.post("/pep/gate", single, sound, func(r *http.Request) { r.Header.Set("Content-Type", "application/json; charset=UTF-8") })
	read(t, w)
}

func TestUnknownMembersAreIgnoredAndNullIsAbsent(t *testing.T) {
	f := newFixture(t, allow)
	body := `{"x":{"deep":[1,{"y":null}]},"context":null,"options":null,"evaluations":null,` + strings.NewReplacer(
		`"type":"agent"`, `"type":"agent","properties":{"department":"x","scan_id":"scan-789","token":null},"ip":1`,
		`"name":"kubernetes.apply"`, `"name":"kubernetes.apply","properties":null,"z":0`,
		`"replicas":3`, `"replicas":null`).Replace(sound)[1:]
	for _, endpoint := range []string{single, batch} {
		if got := read(t, f.post("/pep/gate", endpoint, body)); got.Decision == nil || !*got.Decision {
			t.Errorf("%s: %+v", endpoint, got)
		}
		if d := cmp.Diff(remit.Args{"namespace": remit.StringValue("production")}, f.line.last(t).Args); d != "" {
			t.Error(d)
		}
	}
}

func TestRequestIDIsEchoed(t *testing.T) {
	f := newFixture(t, allow)
	for name, body := range map[string]string{"allow": sound, "bad": "{"} {
		w := f.post("/pep/gate", single, body, func(r *http.Request) { r.Header.Set("X-Request-ID", "bfe9eb29-ab87") })
		if w.Header().Get("X-Request-ID") != "bfe9eb29-ab87" {
			t.Errorf("%s: %v", name, w.Header())
		}
	}
}

func TestFaultIsNoDecision(t *testing.T) {
	f := newFixture(t, func(*remit.Request) (remit.Decision, error) {
		return remit.Decision{Effect: remit.Allow}, errors.New("disk /secret full")
	})
	w := f.post("/pep/gate", single, sound)
	if w.Code != http.StatusInternalServerError || strings.Contains(w.Body.String(), "secret") || strings.Contains(w.Body.String(), `"decision"`) {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

func TestMetadata(t *testing.T) {
	for _, at := range []string{base, base + "/tenant"} {
		f := newFixture(t, allow, func(c *authzen.Config) { c.Base, c.Holds = at, &desk{} })
		path := "/.well-known/authzen-configuration" + strings.TrimPrefix(at, base)
		w := httptest.NewRecorder()
		f.handler.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
		var got map[string]any
		if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil {
			t.Fatal(err)
		}
		want := map[string]any{"policy_decision_point": at, "access_evaluation_endpoint": at + single, "access_evaluations_endpoint": at + batch,
			"access_request_endpoint": at + accessPath, "capabilities": []any{"urn:openid:authzen:capability:access-request"}}
		if d := cmp.Diff(want, got); d != "" {
			t.Error(d)
		}
		if w := f.post("/pep/gate", path, ""); w.Code != http.StatusMethodNotAllowed {
			t.Errorf("POST: %d", w.Code)
		}
		if w := f.post("/pep/gate", strings.TrimPrefix(at, base)+single, sound); w.Code != http.StatusOK {
			t.Errorf("%s: %d", at, w.Code)
		}
	}
	for _, bad := range []string{"", "http://remit.company.com", "https://", base + "/", base + "?x", "remit.company.com"} {
		if _, err := authzen.New(authzen.Config{Base: bad, Line: &line{}, Authenticator: &gatewaytest.World{}, RunTokens: &gatewaytest.World{}, Directory: &gatewaytest.World{}}); err == nil {
			t.Errorf("Base %q was accepted", bad)
		}
	}
}

func TestOnlyWhatIsServed(t *testing.T) {
	f := newFixture(t, allow)
	for _, path := range []string{"/", "/access/v1/search/subject", "/access/v1/evaluation/", "/access/v1/evaluationsx", "/x" + single} {
		if w := f.post("/pep/gate", path, sound); w.Code != http.StatusNotFound {
			t.Errorf("%s: %d", path, w.Code)
		}
	}
	w := f.post("/pep/gate", single, sound, func(r *http.Request) { r.Method = http.MethodGet })
	if w.Code != http.StatusMethodNotAllowed || w.Header().Get("Allow") != "POST" {
		t.Errorf("GET: %d", w.Code)
	}
}
