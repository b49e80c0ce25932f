// SPDX-License-Identifier: Apache-2.0

package server

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"remit"
	"remit/internal/config"
)

const hookSecret = "a-secret-of-some-length-for-tests"

// hook is a real receiver.
type hook struct {
	*httptest.Server
	broken atomic.Bool
	got    chan *http.Request
	bodies chan string
}

func newHook(t *testing.T) *hook {
	t.Helper()
	h := &hook{got: make(chan *http.Request, 100), bodies: make(chan string, 100)}
	h.Server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		if h.broken.Load() {
			w.WriteHeader(500)
			return
		}
		h.got <- r
		h.bodies <- string(b)
	}))
	t.Cleanup(h.Close)
	return h
}

// setUpAnnounced is a server with a receiver, a chat, and one whose address nobody answers at.
func setUpAnnounced(t *testing.T) (*fixture, *hook, *hook) {
	t.Helper()
	desk, chat := newHook(t), newHook(t)
	dir := t.TempDir()
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: desk.Certificate().Raw})
	for name, b := range map[string][]byte{"ca.pem": ca, "secret": []byte(hookSecret), "path": []byte("/services/T0/B0/x")} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	block := fmt.Sprintf("announce:\n- {name: dead, url: \"https://127.0.0.1:1/\", secret: {file: %[1]q}}\n- {name: desk, url: %[2]q, secret: {file: %[1]q}, ca: %[3]q}\n"+
		"- {name: chat, url: %[4]q, path: {file: %[5]q}, form: slack, ca: %[3]q}\n", filepath.Join(dir, "secret"), desk.URL+"/in", filepath.Join(dir, "ca.pem"), chat.URL, filepath.Join(dir, "path"))
	f := setUp(t, "# Who manages", block+"# Who manages")
	f.files += strings.Replace(refundStory, "PEOPLE", "1", 1)
	f.write(f.files)
	f.must("/v1/apply", nil, nil)
	return f, desk, chat
}

func (h *hook) next(t *testing.T) (*http.Request, string) {
	t.Helper()
	select {
	case r := <-h.got:
		return r, <-h.bodies
	case <-time.After(10 * time.Second):
		t.Fatal("nothing was announced")
		return nil, ""
	}
}

func (f *fixture) heldPay(amount string) remit.Held {
	f.t.Helper()
	d := &refundDesk{people: &people{fixture: f}}
	w := f.agent("agent/deploy", f.shared()).enter(d.refunds(f.admin))
	if g := d.pay(w, amount, ""); g.Error != "authorization_pending" {
		f.t.Fatalf("%+v", g)
	}
	return d.newest()
}

// noted waits until it is on record that the newest request was announced.
func (f *fixture) noted(webhook string) {
	f.t.Helper()
	d := &refundDesk{people: &people{fixture: f}}
	for range 100 {
		if slices.Contains(d.newest().Told, webhook) {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	f.t.Fatalf("%s was told, and nobody noted it", webhook)
}

// TestAnnouncements: who is asked is told, by a signed delivery that a receiver can verify, with no value in it; a receiver that is
// down is told later, also after a restart, and once; one that is dead holds up nobody.
func TestAnnouncements(t *testing.T) {
	f, desk, chat := setUpAnnounced(t)
	desk.broken.Store(true)
	begin := time.Now()
	h := f.heldPay("987")
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("held after %s", took)
	}
	r, body := chat.next(t)
	if r.URL.Path != "/services/T0/B0/x" || !strings.Contains(body, "Deny") || !strings.Contains(body, string(h.ID)) || strings.Contains(body, "987") {
		t.Errorf("%s %s", r.URL, body)
	}
	f.noted("chat") // a delivery that is cut off before is repeated
	f.restart()
	desk.broken.Store(false)
	r, body = desk.next(t)
	mac := hmac.New(sha256.New, []byte(hookSecret))
	mac.Write([]byte(r.Header.Get("webhook-id") + "." + r.Header.Get("webhook-timestamp") + "." + body))
	if want := "v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil)); r.Header.Get("webhook-signature") != want || r.Header.Get("webhook-id") != "msg-"+string(h.ID) {
		t.Errorf("signature %v, want %s", r.Header, want)
	}
	var a announcement
	if err := json.Unmarshal([]byte(body), &a); err != nil || a.Data.Agent != "agent/deploy" || a.Data.Groups[0] != "finance" || strings.Contains(body, "987") {
		t.Errorf("%v %s", err, body)
	}
	select {
	case <-desk.got:
		t.Error("told twice")
	case <-chat.got:
		t.Error("told twice, after a restart")
	case <-time.After(time.Second):
	}
}

// TestDenyLink: opening a link decides nothing; its button denies exactly one request, once; nothing else of it works.
func TestDenyLink(t *testing.T) {
	f, desk, _ := setUpAnnounced(t)
	first := f.heldPay("900")
	_, body := desk.next(t)
	var a announcement
	if err := json.Unmarshal([]byte(body), &a); err != nil {
		t.Fatal(err)
	}
	second := f.heldPay("901")
	c := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}} //nolint:gosec // a browser that was let through
	at := func(link string) string {
		return "https://" + f.port + "/approvals/" + link[strings.Index(link, "hold-"):]
	}
	call := func(method, link, token string) int {
		t.Helper()
		req, err := http.NewRequest(method, at(link), strings.NewReader(url.Values{"deny": {token}, "approve": {token}}.Encode()))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		res, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		return res.StatusCode
	}
	token, err := url.QueryUnescape(a.Data.Deny[strings.Index(a.Data.Deny, "deny=")+5:])
	if err != nil {
		t.Fatal(err)
	}
	state := func(id remit.HoldID) remit.HeldState { h, _, _ := f.srv.held(id); return h.State }
	if call("GET", a.Data.Deny, "") != 200 || call("HEAD", a.Data.Deny, "") != 200 || state(first.ID) != remit.HeldPending {
		t.Errorf("opening it: %s", state(first.ID))
	}
	for name, wrong := range map[string]string{"none": "", "of another webhook": "chat" + token[4:], "cut": token[:len(token)-1], "no mac": "desk."} {
		if got := call("POST", a.Data.Link, wrong); got != 403 || state(first.ID) != remit.HeldPending {
			t.Errorf("%s: %d, %s", name, got, state(first.ID))
		}
	}
	if got := call("POST", string(second.ID), token); got != 403 || state(second.ID) != remit.HeldPending {
		t.Errorf("another request: %d, %s", got, state(second.ID))
	}
	if got := call("POST", a.Data.Link, token); got != 200 || state(first.ID) != remit.HeldDenied {
		t.Errorf("its button: %d, %s", got, state(first.ID))
	}
	if got := call("POST", a.Data.Link, token); got != 403 {
		t.Errorf("a second time: %d", got)
	}
}

// TestAnnouncedHostIsPinned: the secret part of a URL cannot lead to another host, and a receiver that redirects is not followed.
func TestAnnouncedHostIsPinned(t *testing.T) {
	for path, ok := range map[string]bool{"/services/x": true, ".evil.example/": false, "@evil.example/": false, ":99/": false} {
		name := filepath.Join(t.TempDir(), "path")
		if err := os.WriteFile(name, []byte(path), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := newWebhook(config.Announce{Name: "chat", URL: "https://hooks.example", Path: config.SecretRef{File: name}, Form: "slack"})
		if (err == nil) != ok {
			t.Errorf("%s: %v", path, err)
		}
	}
	followed := atomic.Bool{}
	other := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { followed.Store(true) }))
	defer other.Close()
	front := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, other.URL, http.StatusTemporaryRedirect)
	}))
	defer front.Close()
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: front.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	h, err := newWebhook(config.Announce{Name: "chat", URL: front.URL, Form: "slack", CA: ca})
	if err != nil {
		t.Fatal(err)
	}
	if err := h.deliver(t.Context(), []byte("{}"), "hold-x", time.Now()); err == nil || followed.Load() {
		t.Errorf("%v, followed %t", err, followed.Load())
	}
}
