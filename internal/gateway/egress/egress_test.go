// SPDX-License-Identifier: Apache-2.0

package egress_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"remit"
	"remit/internal/gateway"
	"remit/internal/gateway/egress"
)

// world is a gate with servers behind it, and a line that allows what a test says.
type world struct {
	t     *testing.T
	gate  *egress.Gate
	proxy *egress.Proxy
	sock  string

	mu      sync.Mutex // guards the rest
	asked   []remit.Request
	acts    []remit.Outcome
	allow   func(*remit.Request) bool
	call    remit.DecisionID
	done    chan struct{}
	targets *egress.Targets
	names   map[string][]netip.Addr
	broken  bool
}

const secret = "s3cr3t/Va+lue&of-the_key"

func (w *world) Decide(_ context.Context, req *remit.Request) (remit.Decision, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.broken {
		return remit.Decision{}, errors.New("the disk is full")
	}
	w.asked = append(w.asked, *req)
	d := remit.Decision{ID: remit.NewDecisionID(), At: req.At, Action: req.Action, Target: req.Target, Args: req.Args, Run: req.Run, Under: req.Under, Reasons: req.Refused}
	switch {
	case len(req.Refused) > 0:
	case w.allow(req):
		d.Effect = remit.Allow
	default:
		d.Reasons = []remit.Reason{{Code: remit.ReasonArgument, Of: "where.path", Want: "something secret"}}
	}
	return d, nil
}

func (w *world) Executed(_ context.Context, acts []remit.Outcome) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.acts = append(w.acts, acts...)
	return nil
}

func (w *world) Call() (remit.DecisionID, <-chan struct{}, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.call, w.done, w.call != ""
}

func (w *world) set(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
}

func (w *world) resolve(_ context.Context, host string) ([]netip.Addr, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if a := w.names[host]; a != nil {
		return a, nil
	}
	return nil, errors.New("no such host")
}

// begin starts a call, and returns what ends it.
func (w *world) begin() func() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.call, w.done = remit.NewDecisionID(), make(chan struct{})
	done := w.done
	return func() {
		w.set(func() { w.call = "" })
		close(done)
	}
}

func newWorld(t *testing.T, targets ...*egress.Target) *world {
	t.Helper()
	w := &world{t: t, allow: func(*remit.Request) bool { return true }, names: map[string][]netip.Addr{"api.test": {netip.MustParseAddr("127.0.0.1")}}}
	w.use(targets...)
	w.proxy = w.newProxy(nil)
	w.gate, w.sock = w.open(w.proxy)
	w.begin()
	return w
}

func (w *world) use(targets ...*egress.Target) {
	ts, err := egress.NewTargets(targets...)
	if err != nil {
		w.t.Fatal(err)
	}
	w.set(func() { w.targets = ts })
}

func (w *world) newProxy(quota *gateway.Quota) *egress.Proxy {
	p, err := egress.New(egress.Config{Line: w, Acts: w, Resolve: w.resolve, Quota: quota, Targets: func() *egress.Targets {
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.targets
	}})
	if err != nil {
		w.t.Fatal(err)
	}
	return p
}

func (w *world) box() egress.Box {
	return egress.Box{Tool: "tool/pay", Run: remit.NewRunID(), Sandbox: "kernel", Call: w.Call,
		Principal: remit.Principal{ID: spiffeid.RequireFromString("spiffe://company.com/tool/pay"), Level: remit.LevelSandbox}}
}

func (w *world) open(p *egress.Proxy) (*egress.Gate, string) {
	w.t.Helper()
	g, err := p.Open(w.box())
	if err != nil {
		w.t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "egress")
	if err != nil {
		w.t.Fatal(err)
	}
	sock := filepath.Join(dir, "egress.sock")
	ln, err := net.Listen("unix", sock)
	if err != nil {
		w.t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- g.Serve(context.Background(), ln) }()
	w.t.Cleanup(func() {
		g.Close()
		if err := <-done; err != nil {
			w.t.Errorf("the gate ended with %v", err)
		}
		_ = os.RemoveAll(dir)
	})
	return g, sock
}

func (w *world) dial() net.Conn {
	w.t.Helper()
	c, err := net.Dial("unix", w.sock)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	return c
}

// client is a tool's HTTP client, with its proxy and roots set.
func (w *world) client() *http.Client {
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(w.gate.Bundle()) {
		w.t.Fatal("the bundle holds no certificate")
	}
	tr := &http.Transport{Proxy: http.ProxyURL(&url.URL{Scheme: "http", Host: "proxy:3128"}), ForceAttemptHTTP2: true,
		DialContext:     func(context.Context, string, string) (net.Conn, error) { return net.Dial("unix", w.sock) },
		TLSClientConfig: &tls.Config{RootCAs: pool}}
	w.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 20 * time.Second, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

func (w *world) do(method, u, contentType, body string, header ...string) (*http.Response, string) {
	w.t.Helper()
	r, err := http.NewRequest(method, u, strings.NewReader(body))
	if err != nil {
		w.t.Fatal(err)
	}
	if body == "" {
		r.Body, r.ContentLength = nil, 0
	}
	if contentType != "" {
		r.Header.Set("Content-Type", contentType)
	}
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	resp, err := w.client().Do(r)
	if err != nil {
		return nil, err.Error()
	}
	defer resp.Body.Close() //nolint:errcheck // a test
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return resp, string(b) + " then " + err.Error()
	}
	return resp, string(b)
}

func (w *world) last() remit.Request {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.asked) == 0 {
		w.t.Fatal("nothing was asked")
	}
	return w.asked[len(w.asked)-1]
}

func (w *world) asks() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.asked)
}

// recorded closes the gate and returns what it recorded.
func (w *world) recorded() []remit.Outcome {
	w.gate.Close()
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.acts
}

// upstream is a server behind the gate.
type upstream struct {
	*httptest.Server
	ca, port string

	mu   sync.Mutex // guards seen
	seen []seenRequest
}

type seenRequest struct {
	method, uri, host, body string
	header                  http.Header
}

func (u *upstream) requests() []seenRequest {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.seen
}

func newUpstream(t *testing.T, secure bool, h http.HandlerFunc) *upstream {
	t.Helper()
	u := &upstream{}
	u.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		u.mu.Lock()
		u.seen = append(u.seen, seenRequest{r.Method, r.RequestURI, r.Host, string(b), r.Header.Clone()})
		u.mu.Unlock()
		if h != nil {
			h(w, r)
			return
		}
		_, _ = io.WriteString(w, "hello")
	}))
	if secure {
		u.EnableHTTP2 = true
		u.TLS = &tls.Config{Certificates: []tls.Certificate{certificate(t, "api.test")}}
		u.StartTLS()
		u.ca = filepath.Join(t.TempDir(), "ca.pem")
		block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: u.TLS.Certificates[0].Certificate[0]})
		if err := os.WriteFile(u.ca, block, 0o600); err != nil {
			t.Fatal(err)
		}
	} else {
		u.Start()
	}
	t.Cleanup(u.Close)
	_, u.port, _ = net.SplitHostPort(u.Listener.Addr().String())
	return u
}

func (u *upstream) url() string {
	scheme := "http"
	if u.ca != "" {
		scheme = "https"
	}
	return scheme + "://api.test:" + u.port
}

// target is u as a target, on loopback.
func (u *upstream) target(t *testing.T, change func(*egress.TargetConfig)) *egress.Target {
	t.Helper()
	cfg := egress.TargetConfig{URL: u.url(), CA: u.ca, Private: true}
	if change != nil {
		change(&cfg)
	}
	out, err := egress.NewTarget("api", cfg, secretOf)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func secretOf(r egress.SecretRef) (remit.Secret, error) { return remit.NewSecret(r.Env), nil }

func withHeader(cfg *egress.TargetConfig) {
	cfg.Inject = &egress.InjectConfig{Header: "Authorization", Prefix: "Bearer ", Secret: egress.SecretRef{Env: secret}, Methods: []string{"GET", "POST"}, Paths: []string{"/v1"}}
}
