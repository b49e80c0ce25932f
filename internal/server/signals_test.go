// SPDX-License-Identifier: Apache-2.0

package server

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"remit"
	"remit/internal/store"
)

// setUpSignals is a server whose signals go to siem, a webhook, to idp, which takes tokens, to one that hangs, and to one that is dead.
func setUpSignals(t *testing.T, more string) (f *fixture, siem, idp *hook) {
	t.Helper()
	siem, idp = newHook(t), newHook(t)
	stop := make(chan struct{})
	hangs := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-stop }))
	t.Cleanup(func() { close(stop); hangs.Close() })
	dir := t.TempDir()
	for name, b := range map[string][]byte{"ca.pem": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: siem.Certificate().Raw}), "secret": []byte(hookSecret),
		"key": setKey(t), "token": []byte("a-token-of-the-idp")} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	in := func(name string) string { return filepath.Join(dir, name) }
	block := fmt.Sprintf("signals:\n- {name: siem, url: %q, secret: {file: %q}, ca: %q}\n- {name: idp, form: set, url: %q, key: {file: %q}, token: {file: %q}, audience: idp, ca: %q}\n"+
		"- {name: dead, url: \"https://127.0.0.1:1/\", secret: {file: %q}}\n- {name: hangs, url: %q, secret: {file: %q}, ca: %q}\n", siem.URL, in("secret"), in("ca.pem"),
		idp.URL, in("key"), in("token"), in("ca.pem"), in("secret"), hangs.URL, in("secret"), in("ca.pem"))
	if more != "" {
		block += fmt.Sprintf("- {name: more, url: %q, secret: {file: %q}, ca: %q}\n", more, in("secret"), in("ca.pem"))
	}
	return setUp(t, "# Who manages", block+"# Who manages"), siem, idp
}

// setKey is a key that signs tokens.
func setKey(t *testing.T) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

// set verifies a token as a receiver does, with the keys that Remit publishes, and returns its id and event.
func (f *fixture) set(r *http.Request, token string) (jti, event string) {
	f.t.Helper()
	var keys jose.JSONWebKeySet
	w := httptest.NewRecorder()
	mux := http.NewServeMux()
	f.srv.signalRoutes(mux)
	mux.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/ssf/jwks.json", http.NoBody))
	if err := json.Unmarshal(w.Body.Bytes(), &keys); err != nil || len(keys.Keys) != 1 || !keys.Keys[0].IsPublic() {
		f.t.Fatalf("%v %s", err, w.Body)
	}
	parsed, err := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		f.t.Fatal(err)
	}
	body, err := parsed.Verify(keys.Keys[0].Key)
	if err != nil || r.Header.Get("Content-Type") != "application/secevent+jwt" || r.Header.Get("Authorization") != "Bearer a-token-of-the-idp" {
		f.t.Fatalf("%v %v", err, r.Header)
	}
	var v struct {
		ID      string                    `json:"jti"`
		Subject struct{ URI string }      `json:"sub_id"`
		Events  map[string]map[string]any `json:"events"`
	}
	if err := json.Unmarshal(body, &v); err != nil || v.Subject.URI != "spiffe://company.com/agent/build" || len(v.Events) != 1 {
		f.t.Fatalf("%v %s", err, body)
	}
	for name := range v.Events {
		event = name[strings.LastIndexByte(name, '/')+1:]
	}
	return v.ID, event
}

// TestSignals: who is to be told is told, by what it can verify; one that is down is told after a restart, in order and by the same ids;
// one that hangs and one that is dead hold up nobody.
func TestSignals(t *testing.T) {
	f, siem, idp := setUpSignals(t, "")
	idp.broken.Store(true)
	f.stolen(f.startRun())
	f.eventually("the suspension is on record", func() bool { return f.events(remit.EventSuspended) == 1 })
	types := map[string]string{}
	for range 2 {
		r, body := siem.next(t)
		mac := hmac.New(sha256.New, []byte(hookSecret))
		mac.Write([]byte(r.Header.Get("webhook-id") + "." + r.Header.Get("webhook-timestamp") + "." + body))
		if want := "v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil)); r.Header.Get("webhook-signature") != want {
			t.Errorf("signature %v, want %s", r.Header, want)
		}
		var v struct{ Type string }
		if err := json.Unmarshal([]byte(body), &v); err != nil {
			t.Fatal(err)
		}
		types[v.Type] = r.Header.Get("webhook-id")
	}
	if types["finding.raised"] == "" || types["agent.suspended"] == "" {
		t.Errorf("told of %v", types)
	}
	f.restart()
	idp.broken.Store(false)
	seen := map[string]string{}
	for len(seen) < 2 { // a delivery that was cut off comes again, by the same id
		jti, event := f.set(idp.next(t))
		seen[jti] = event
	}
	events := map[string]bool{}
	for _, e := range seen {
		events[e] = true
	}
	if !events["risk-level-change"] || !events["session-revoked"] {
		t.Errorf("told of %v", seen)
	}
	w := f.agent("agent/deploy", f.shared()).enter(f.startRun())
	began := time.Now()
	for range 20 {
		if g := w.ask("write"); g.Secret == "" {
			t.Fatalf("%+v", g)
		}
	}
	if took := time.Since(began); took > signalLimit {
		t.Errorf("with receivers that hang, 20 grants took %s", took)
	}
	select {
	case r := <-siem.got: // the last one, if the restart cut its answer off
		if id := r.Header.Get("webhook-id"); id != types["agent.suspended"] && id != types["finding.raised"] {
			t.Errorf("told of %s, which it did not know", id)
		}
	case <-time.After(300 * time.Millisecond):
	}
}

// TestSignalTakenAndNotAnswered: what a receiver took, and then did not say so, comes again by the same id.
func TestSignalTakenAndNotAnswered(t *testing.T) {
	ids := make(chan string, 10)
	tries := 0
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		ids <- r.Header.Get("webhook-id")
		if tries++; tries == 1 {
			w.WriteHeader(http.StatusBadGateway)
		}
	}))
	t.Cleanup(srv.Close)
	f, _, _ := setUpSignals(t, srv.URL)
	f.stolen(f.startRun())
	if first, again, next := <-ids, <-ids, <-ids; first == "" || first != again || next == first {
		t.Errorf("%s, %s, %s", first, again, next)
	}
}

// TestSignalRefused: what a receiver refuses again and again is given up, on record, and what follows is told.
func TestSignalRefused(t *testing.T) {
	types := make(chan string, 100)
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		var v struct{ Type string }
		_ = json.Unmarshal(b, &v)
		if types <- v.Type; v.Type == "finding.raised" {
			w.WriteHeader(http.StatusBadRequest)
		}
	}))
	t.Cleanup(srv.Close)
	f, _, _ := setUpSignals(t, srv.URL)
	f.stolen(f.startRun())
	count := map[string]int{}
	for end := time.After(20 * time.Second); count["finding.raised"] < signalRefusal || count["agent.suspended"] < 1; {
		select {
		case k := <-types:
			count[k]++
		case <-end:
			t.Fatalf("told of %v", count)
		}
	}
	f.eventually("the refusal is on record", func() bool { return f.findingsNamed("signal_refused") == 1 })
}

// TestSignalsPassAFilter: an agent that asks for what a filter before a receiver bars does not keep that receiver from what follows, its own
// suspension included; a receiver that bars all is waited for.
func TestSignalsPassAFilter(t *testing.T) {
	var bars atomic.Bool
	bare, told := make(chan string, 100), make(chan string, 100)
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		var v struct {
			Type string
			Data struct{ Event json.RawMessage }
		}
		_ = json.Unmarshal(b, &v)
		switch {
		case bars.Load() || bytes.Contains(b, []byte("etc/passwd")):
			w.WriteHeader(http.StatusForbidden)
		case v.Data.Event == nil:
			bare <- v.Type
		default:
			told <- v.Type
		}
	}))
	t.Cleanup(srv.Close)
	f, _, _ := setUpSignals(t, srv.URL)
	f.write(f.files + "---\nkind: Target\nname: payments\ntype: memory\nbackend: \"" + backendOf(f.files) + "\"\n")
	f.must("/v1/apply", nil, nil)
	f.agent("agent/deploy", f.shared()).enter(f.startRun()).askFor(`{"type":"memory.read /etc/passwd","target":"payments"}`)
	f.found(remit.FindingOutsideWorkflow)
	bars.Store(true)
	f.stolen(f.startRun())
	f.eventually("the suspension is on record", func() bool { return f.events(remit.EventSuspended) == 1 })
	bars.Store(false)
	for got := map[string]bool{}; !got["agent.suspended"]; {
		select {
		case k := <-told:
			got[k] = true
		case <-time.After(20 * time.Second):
			t.Fatalf("told of %v only, and bare of %d", got, len(bare))
		}
	}
	if kind := <-bare; kind != string(remit.EventRaised) || f.findingsNamed("signal_refused") != 1 {
		t.Errorf("bare: %s; %d given up", kind, f.findingsNamed("signal_refused"))
	}
}

// TestSignalsGoNowhereElse: a receiver that redirects is not followed, and has not been told.
func TestSignalsGoNowhereElse(t *testing.T) {
	f, siem, idp := setUpSignals(t, "")
	target := newHook(t)
	for _, h := range []*hook{siem, idp} {
		h.Config.Handler = http.RedirectHandler(target.URL, http.StatusTemporaryRedirect)
	}
	f.stolen(f.startRun())
	f.eventually("the suspension is on record", func() bool { return f.events(remit.EventSuspended) == 1 })
	select {
	case <-target.got:
		t.Error("a redirect was followed")
	case <-time.After(1500 * time.Millisecond):
	}
	raised, _, err := f.srv.store.Events(store.EventFilter{Kind: remit.EventRaised}, 0, 1)
	if err != nil || len(raised) != 1 {
		t.Fatal(err)
	}
	for _, name := range []string{"siem", "idp"} {
		seq, _, err := f.srv.store.Followed(signalPrefix + name)
		if err != nil {
			t.Fatal(err)
		}
		if seq >= raised[0].Seq {
			t.Errorf("%s counts as told", name)
		}
	}
}
