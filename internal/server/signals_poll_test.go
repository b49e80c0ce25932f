// SPDX-License-Identifier: Apache-2.0

package server

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"remit"
)

const pollToken = "the-token-of-who-polls-here"

// setUpPolled is a server with two streams: idp is fetched, other pushed to nobody who answers.
func setUpPolled(t *testing.T) *fixture {
	t.Helper()
	dir := t.TempDir()
	for name, b := range map[string][]byte{"key": setKey(t), "token": []byte(pollToken), "other": []byte("the-token-of-another-receiver")} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	in := func(name string) string { return filepath.Join(dir, name) }
	return setUp(t, "# Who manages", fmt.Sprintf("signals:\n- {name: idp, form: poll, key: {file: %[1]q}, token: {file: %[2]q}, audience: idp, events: [findings, credentials]}\n"+
		"- {name: other, form: set, url: \"https://127.0.0.1:1/\", key: {file: %[1]q}, token: {file: %[3]q}, audience: x}\n# Who manages", in("key"), in("token"), in("other")))
}

// ssf asks the transmitter as a receiver does.
func (f *fixture) ssf(method, path, token, body string) (int, string) {
	f.t.Helper()
	mux := http.NewServeMux()
	f.srv.signalRoutes(mux)
	r := httptest.NewRequestWithContext(f.t.Context(), method, path, strings.NewReader(body))
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	w := httptest.NewRecorder()
	mux.ServeHTTP(w, r)
	return w.Code, w.Body.String()
}

// polls fetches tokens, and returns the kind of event of each by its jti.
func (f *fixture) polls(body string) (got map[string]string, more bool) {
	f.t.Helper()
	code, text := f.ssf(http.MethodPost, "/ssf/poll/idp", pollToken, body)
	var out struct {
		Sets map[string]string `json:"sets"`
		More bool              `json:"moreAvailable"`
	}
	if err := json.Unmarshal([]byte(text), &out); err != nil || code != http.StatusOK || out.Sets == nil {
		f.t.Fatalf("%d %s", code, text)
	}
	got = map[string]string{}
	for jti, token := range out.Sets {
		parsed, err := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{jose.ES256})
		if err != nil {
			f.t.Fatal(err)
		}
		public := f.srv.receivers[0].signer.Public()
		claims, err := parsed.Verify(public.Key)
		if err != nil {
			f.t.Fatal(err)
		}
		var v struct {
			JTI     string                    `json:"jti"`
			Subject map[string]string         `json:"sub_id"`
			Events  map[string]map[string]any `json:"events"`
		}
		if err := json.Unmarshal(claims, &v); err != nil || v.JTI != jti || len(v.Events) != 1 {
			f.t.Fatalf("%v %s", err, claims)
		}
		for name, e := range v.Events {
			got[jti] = strings.TrimSpace(name[strings.LastIndexByte(name, '/')+1:] + " " + textOf(e["change_type"]) + textOf(e["state"]))
			if v.Subject["format"] == "" {
				f.t.Errorf("%s", claims)
			}
		}
	}
	return got, out.More
}

func textOf(v any) string {
	s, _ := v.(string)
	return s
}

func acks(got map[string]string) string {
	var ids []string
	for jti := range got {
		ids = append(ids, fmt.Sprintf("%q", jti))
	}
	return "[" + strings.Join(ids, ",") + "]"
}

func counted(got map[string]string) map[string]int {
	n := map[string]int{}
	for _, what := range got {
		n[what]++
	}
	return n
}

// TestSignalsPolled: a receiver fetches what happened, also credentials that came and were revoked; what it does not acknowledge it is given again,
// after a restart, too; what it acknowledged never; what it refuses is on record.
func TestSignalsPolled(t *testing.T) {
	f := setUpPolled(t)
	if got, more := f.polls(`{"returnImmediately":true}`); len(got) != 0 || more {
		t.Errorf("%v %v", got, more)
	}
	w := f.agent("agent/deploy", f.shared()).enter(f.startRun())
	g := w.ask("write")
	if g.Secret == "" {
		t.Fatalf("%+v", g)
	}
	f.must("/v1/grants/"+string(g.Grant)+"/revoke", map[string]string{"reason": "a test"}, nil)
	f.stolen(f.startRun())
	f.eventually("the suspension is on record", func() bool { return f.events(remit.EventSuspended) == 1 && f.events(remit.EventRaised) == 1 })
	first, more := f.polls(`{"maxEvents":2,"returnImmediately":true}`)
	if n := counted(first); !more || n["credential-change create"] != 1 || n["credential-change revoke"] != 1 {
		t.Fatalf("%v %v", first, more)
	}
	again, _ := f.polls(`{"maxEvents":2,"returnImmediately":true}`)
	rest, more := f.polls(`{"ack":` + acks(first) + `,"returnImmediately":true}`)
	if n := counted(rest); fmt.Sprint(again) != fmt.Sprint(first) || more || n["session-revoked"] != 1 || n["risk-level-change"] != 1 || n["credential-change create"] != 0 {
		t.Fatalf("%v, then %v %v", again, rest, more)
	}
	f.restart()
	if again, _ := f.polls(`{}`); fmt.Sprint(again) != fmt.Sprint(rest) {
		t.Errorf("%v, not %v", again, rest)
	}
	var refused string
	for jti, what := range rest {
		if what == "risk-level-change" {
			refused = jti
			delete(rest, jti)
		}
	}
	if left, more := f.polls(`{"maxEvents":0,"ack":` + acks(rest) + `,"setErrs":{"` + refused + `":{"err":"invalid_request"}}}`); len(left) != 0 || more {
		t.Errorf("%v %v", left, more)
	}
	if n := f.findingsNamed("signal_refused"); n != 1 {
		t.Errorf("%d refusals on record", n)
	}
	f.restart()
	if left, _ := f.polls(`{"returnImmediately":true}`); len(left) != 0 {
		t.Errorf("given again: %v", left)
	}
	woken := make(chan map[string]string, 1)
	go func() {
		got, _ := f.polls(`{}`)
		woken <- got
	}()
	time.Sleep(50 * time.Millisecond)
	f.must("/v1/agents/agent/build/reinstate", map[string]string{"reason": "settled"}, nil)
	if got := <-woken; counted(got)["risk-level-change"] != 1 {
		t.Errorf("woken by %v", got)
	}
}

// TestSignalStreams: a receiver sees its own stream, by its token, and can have it verified, once a minute; it can change nothing, and nobody else
// sees anything.
func TestSignalStreams(t *testing.T) {
	f := setUpPolled(t)
	const other = "the-token-of-another-receiver"
	for _, ask := range [][2]string{{"GET", "/ssf/streams"}, {"GET", "/ssf/status?stream_id=idp"}, {"POST", "/ssf/verify"}, {"POST", "/ssf/poll/idp"}, {"POST", "/ssf/streams"}, {"DELETE", "/ssf/streams"}} {
		for _, wrong := range []string{"", pollToken + "x", pollToken[1:]} {
			if code, body := f.ssf(ask[0], ask[1], wrong, `{"stream_id":"idp","returnImmediately":true}`); code != http.StatusUnauthorized {
				t.Errorf("%v with %q: %d %s", ask, wrong, code, body)
			}
		}
	}
	for _, ask := range [][3]string{{"GET", "/ssf/streams?stream_id=idp", ""}, {"GET", "/ssf/status?stream_id=idp", ""}, {"POST", "/ssf/verify", `{"stream_id":"idp"}`}, {"POST", "/ssf/poll/idp", `{}`}} {
		if code, body := f.ssf(ask[0], ask[1], other, ask[2]); code != http.StatusNotFound {
			t.Errorf("%v by another: %d %s", ask, code, body)
		}
	}
	for _, ask := range [][2]string{{"POST", "/ssf/streams"}, {"PATCH", "/ssf/streams"}, {"PUT", "/ssf/streams"}, {"DELETE", "/ssf/streams"}, {"POST", "/ssf/status"}} {
		if code, _ := f.ssf(ask[0], ask[1], pollToken, `{"stream_id":"idp","status":"disabled"}`); code != http.StatusForbidden {
			t.Errorf("%v: %d", ask, code)
		}
	}
	var list []map[string]any
	code, body := f.ssf("GET", "/ssf/streams", pollToken, "")
	if err := json.Unmarshal([]byte(body), &list); err != nil || code != http.StatusOK || len(list) != 1 || list[0]["stream_id"] != "idp" || list[0]["aud"] != "idp" ||
		!strings.Contains(body, `"method":"urn:ietf:rfc:8936"`) || strings.Contains(body, "other") {
		t.Errorf("%d %s", code, body)
	}
	if code, body := f.ssf("GET", "/ssf/status?stream_id=idp", pollToken, ""); code != http.StatusOK || !strings.Contains(body, `"status":"enabled"`) {
		t.Errorf("%d %s", code, body)
	}
	for _, bad := range []string{"", "[]", `{"stream_id":7}`, `{"stream_id":"idp","state":"` + strings.Repeat("x", 2000) + `"}`, strings.Repeat(" ", 1<<17)} {
		if code, _ := f.ssf("POST", "/ssf/verify", pollToken, bad); code != http.StatusBadRequest {
			t.Errorf("%.40q: %d", bad, code)
		}
	}
	if code, body := f.ssf("POST", "/ssf/verify", pollToken, `{"stream_id":"idp","state":"abc"}`); code != http.StatusNoContent {
		t.Errorf("%d %s", code, body)
	}
	if code, _ := f.ssf("POST", "/ssf/verify", pollToken, `{"stream_id":"idp"}`); code != http.StatusTooManyRequests {
		t.Errorf("again: %d", code)
	}
	got, _ := f.polls(`{"returnImmediately":true}`)
	if counted(got)["verification abc"] != 1 {
		t.Errorf("%v", got)
	}
	if left, _ := f.polls(`{"returnImmediately":true,"ack":` + acks(got) + `}`); len(left) != 0 {
		t.Errorf("given again: %v", left)
	}
	short := f.srv.receivers[0].cfg
	short.Token.File = filepath.Join(t.TempDir(), "short")
	if err := os.WriteFile(short.Token.File, []byte(pollToken[:23]), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := f.srv.newReceiver(short); err == nil || !strings.Contains(err.Error(), "fewer than 24") {
		t.Errorf("a short token: %v", err)
	}
	if code, _ := f.ssf("POST", "/ssf/poll/other", other, `{}`); code != http.StatusNotFound {
		t.Errorf("a pushed stream was polled: %d", code)
	}
}

// TestVerificationIsPushed: who is pushed to gets the verification that it asks for.
func TestVerificationIsPushed(t *testing.T) {
	idp := newHook(t)
	f := setUpReceiver(t, idp.Server, "form: set, key: KEY, audience: idp, token: TOKEN")
	if code, body := f.ssf("POST", "/ssf/verify", "a-token-of-the-collector", `{"stream_id":"siem","state":"abc"}`); code != http.StatusNoContent {
		t.Fatalf("%d %s", code, body)
	}
	_, token := idp.next(t)
	parsed, err := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		t.Fatal(err)
	}
	public := f.srv.receivers[0].signer.Public()
	if body, err := parsed.Verify(public.Key); err != nil || !strings.Contains(string(body), `ssf/event-type/verification":{"state":"abc"}`) || !strings.Contains(string(body), `"sub_id":{"format":"opaque","id":"siem"}`) {
		t.Errorf("%v %s", err, body)
	}
}
