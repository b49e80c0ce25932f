// SPDX-License-Identifier: Apache-2.0

package server

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"

	"remit"
	"remit/internal/api"
	"remit/internal/config"
	"remit/internal/evidence/evidencetest"
	"remit/internal/identity"
	"remit/internal/store"
)

// envWaits makes this program an agent that waits.
const envWaits = "REMIT_TEST_WAITS"

// TestMain adds a type of target whose backend is in memory, so that what stands there can be seen.
func TestMain(m *testing.M) {
	if os.Getenv(envWaits) != "" { // an agent that does nothing
		time.Sleep(time.Minute)
		return
	}
	evidencetest.DeskMain()
	targetDrivers["memory"] = func(o config.Object, _ deps) (built, error) {
		var cfg struct {
			Backend string `yaml:"backend"`
			Watched bool   `yaml:"watched"`
		}
		err := o.Decode(&cfg)
		b, ok := backends.Load(cfg.Backend)
		if err == nil && !ok {
			err = fmt.Errorf("no backend %q", cfg.Backend)
		}
		if err != nil {
			return built{}, err
		}
		out := built{driver: b.(*backend), client: map[string]string{"server": "https://" + cfg.Backend + ".company.com"}}
		if cfg.Watched {
			out.webhooks = http.NotFoundHandler()
		}
		return out, nil
	}
	code := m.Run()
	stopping.Wait()
	if stopFailed.Load() {
		code = 1
	}
	os.Exit(code)
}

// Servers of tests that are over stop while the next tests run: a stop takes as long as a checkpoint's interval.
var (
	stopping   sync.WaitGroup
	stopFailed atomic.Bool
)

var backends sync.Map // name to *backend

// backend holds one object for each lease. busy, checking and minting, when set, are called by Revoke, Check and Mint before
// they do anything.
type backend struct {
	mu      sync.Mutex
	objects map[remit.LeaseID]bool
	busy    func()
	broken  bool // Revoke ends nothing

	checking, minting func()
}

func newBackend(t *testing.T) (name string, b *backend) {
	name, b = strings.ToLower(fmt.Sprintf("%x", sha256.Sum256([]byte(t.Name()+time.Now().String()))))[:12], &backend{objects: map[remit.LeaseID]bool{}}
	backends.Store(name, b)
	t.Cleanup(func() { backends.Delete(name) })
	return name, b
}

// Check implements credential.Checker: what stands between a decision and its record.
func (b *backend) Check(context.Context) error {
	b.call(&b.checking)
	return nil
}

// call calls a hook without holding the lock.
func (b *backend) call(hook *func()) {
	b.mu.Lock()
	f := *hook
	b.mu.Unlock()
	if f != nil {
		f()
	}
}

// set sets a hook that is called once.
func (b *backend) set(hook *func(), f func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	*hook = sync.OnceFunc(f)
}

// Plan implements credential.Planner for what has a customer.
func (b *backend) Plan(l remit.Lease) (bounds, notBounded []string, worst time.Duration, err error) {
	if v, ok := l.Scope["customer"]; ok {
		return []string{"customer " + v.String(), "masked: " + strings.Join(l.Masks, " ")}, []string{"the time of day\u202e"}, 2 * time.Minute, nil
	}
	return nil, nil, 0, nil
}

func (b *backend) Mint(_ context.Context, l remit.Lease) (remit.Credential, error) {
	b.call(&b.minting)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.objects[l.ID] = true
	return remit.Credential{Secret: remit.NewSecret("secret-of-" + string(l.ID)), Type: "memory", Expires: l.Expires, IDs: []string{"JTI=" + string(l.ID)}}, nil
}

func (b *backend) Revoke(ctx context.Context, l remit.Lease) error {
	b.mu.Lock()
	busy := b.busy
	b.mu.Unlock()
	if busy != nil {
		busy()
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.broken {
		return errors.New("the backend does not answer")
	}
	delete(b.objects, l.ID)
	return ctx.Err()
}

func (b *backend) fail(broken bool) { b.mu.Lock(); b.broken = broken; b.mu.Unlock() }

func (b *backend) whenBusy(f func()) { b.mu.Lock(); b.busy = f; b.mu.Unlock() }
func (b *backend) count() int        { b.mu.Lock(); defer b.mu.Unlock(); return len(b.objects) }

// waitEmpty fails when something stands at the backend after three seconds.
func (b *backend) waitEmpty(t *testing.T) {
	t.Helper()
	for end := time.Now().Add(3 * time.Second); b.count() > 0; time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d leases stand at the backend", b.count())
		}
	}
}

const story = `kind: Agent
name: deploy
attest: [{unix: {uid: UID}}]
launch: {by: [operator/ci], commands: ["DIGEST"], inherit: true}
---
kind: Agent
name: build
attest: [{unix: {uid: UID}}]
---
kind: Agent
name: other
attest: [{unix: {uid: UID}}]
launch: {by: [operator/else], commands: ["DIGEST"]}
---
kind: Agent
name: idle
---
kind: Target
name: cluster
type: memory
backend: "BACKEND"
---
kind: Target
name: vault
type: memory
production: true
backend: "BACKEND"
---
kind: Workflow
name: deploy
parameters: {app: {type: name}}
start: {by: [operator/ci], expires: 1h}
stages:
- name: prepare
  end: {by: [operator/ci, agent/build]}
  may:
  - {name: write, who: agent/deploy, action: memory.write, target: cluster, where: {app: $app}, ttl: 5m}
  - {name: secret, who: agent/deploy, action: memory.read, target: vault, where: {app: $app}, ttl: 5m}
  - {name: build, who: agent/build, action: memory.write, target: cluster, where: {app: $app}, ttl: 5m}
  - {name: other, who: agent/other, action: memory.write, target: cluster, where: {app: $app}, ttl: 5m}
- name: ship
  end: {by: [operator/ci]}
  may:
  - {name: ship, who: agent/build, action: memory.write, target: cluster, where: {app: $app}, ttl: 5m}
---
kind: Workflow
name: theirs
parameters: {image: {type: image}}
start: {by: [operator/else], expires: 1h}
stages:
- name: only
  end: {by: [operator/else]}
  may:
  - {name: write, who: agent/other, action: memory.write, target: cluster, where: {image: $image}}
`

// command is what the agents of these tests run: this test.
var command = sync.OnceValue(func() remit.Digest {
	b, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		panic(err)
	}
	return remit.DigestOf(b)
})

// fixture is a running server with its operator and its agents.
type fixture struct {
	t       *testing.T
	dir     string
	port    string
	srv     *Server
	admin   *api.Client
	backend *backend
	files   string // as written, with names filled in
	stop    func() error
	program string       // of whose parts sandboxes are made
	ahead   atomic.Int64 // how far the server's clocks are ahead: time that went by
	jumped  atomic.Int64 // how far its time of day is, alone
	begun   time.Time
}

// setUp makes a directory and starts a server in it. edit may change remit.yaml.
func setUp(t *testing.T, edit ...string) *fixture {
	t.Helper()
	dir, err := os.MkdirTemp("", "remit-") // t.TempDir's paths are too long for sockets
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := &fixture{t: t, begun: time.Now(), dir: dir, port: l.Addr().String(), stop: func() error { return nil }}
	t.Cleanup(func() {
		stopping.Go(func() {
			if err := errors.Join(f.stop(), os.RemoveAll(dir)); err != nil {
				fmt.Fprintln(os.Stderr, "stop:", err)
				stopFailed.Store(true)
			}
		})
	})
	_ = l.Close()
	if err := Init(t.Context(), InitOptions{Dir: dir, TrustDomain: "company.com", Operator: "ci", UID: uint32(os.Getuid()), HTTPS: f.port}); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(dir, fileServer))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, fileServer), []byte(strings.NewReplacer(append(edit, "allow_own_uid: false", "allow_own_uid: true")...).Replace(string(b))), 0o644); err != nil {
		t.Fatal(err)
	}
	name, memory := newBackend(t)
	f.backend = memory
	f.files = strings.NewReplacer("UID", fmt.Sprint(os.Getuid()), "DIGEST", string(command()), "BACKEND", name).Replace(story)
	f.write(f.files)
	f.start()
	return f
}

func (f *fixture) write(files string) {
	f.t.Helper()
	if err := os.WriteFile(filepath.Join(f.dir, dirConfig, "story.yaml"), []byte(files), 0o644); err != nil {
		f.t.Fatal(err)
	}
}

// restart stops the server and starts another in its directory.
func (f *fixture) restart() {
	f.t.Helper()
	if err := f.stop(); err != nil {
		f.t.Fatal(err)
	}
	f.start()
}

func (f *fixture) start() {
	f.t.Helper()
	srv, err := New(f.t.Context(), Options{Dir: f.dir, Log: slog.New(slog.DiscardHandler), Version: "test",
		Now:     func() time.Time { return time.Now().Add(time.Duration(f.ahead.Load() + f.jumped.Load())) },
		Elapsed: func() time.Duration { return time.Since(f.begun) + time.Duration(f.ahead.Load()) }, Reread: 20 * time.Millisecond, Executable: f.program})
	if err != nil {
		f.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- srv.Run(ctx, func(api.Status) { close(ready) }) }()
	f.stop = sync.OnceValue(func() error { cancel(); return <-ended })
	select {
	case <-ready:
	case err := <-ended:
		ended <- err
		f.t.Fatal(err)
	}
	f.srv = srv
	if f.admin, err = api.NewClient(filepath.Join(f.dir, "run", "admin.sock")); err != nil {
		f.t.Fatal(err)
	}
}

// post calls the management API and returns the error's code; "" is success.
func (f *fixture) post(path string, in, out any) remit.Code {
	f.t.Helper()
	err := f.admin.Post(f.t.Context(), path, in, out)
	if err != nil && remit.CodeOf(err) == remit.CodeInternal {
		f.t.Errorf("%s: %v", path, err)
	}
	return remit.CodeOf(err)
}

func (f *fixture) must(path string, in, out any) {
	f.t.Helper()
	if err := f.admin.Post(f.t.Context(), path, in, out); err != nil {
		f.t.Fatalf("%s: %v", path, err)
	}
}

func (f *fixture) startRun() remit.Run {
	f.t.Helper()
	var r remit.Run
	f.must("/v1/runs", api.StartRun{Workflow: "deploy", Params: map[string]string{"app": "foo"}}, &r)
	return r
}

// workload is a process with an agent's identity.
type workload struct {
	f     *fixture
	svid  *x509svid.SVID
	http  *http.Client
	token string
}

// agent fetches the identity of an agent, over the shared socket or that of a launch.
func (f *fixture) agent(name, socket string) *workload {
	f.t.Helper()
	w, err := f.tryAgent(name, socket)
	if err != nil {
		f.t.Fatal(err)
	}
	return w
}

func (f *fixture) tryAgent(name, socket string) (*workload, error) {
	ctx, cancel := context.WithTimeout(f.t.Context(), 5*time.Second)
	defer cancel()
	c, err := workloadapi.New(ctx, workloadapi.WithAddr("unix://"+socket))
	if err != nil {
		return nil, err
	}
	defer c.Close()
	x, err := c.FetchX509Context(ctx)
	if err != nil {
		return nil, err
	}
	for _, svid := range x.SVIDs {
		if svid.ID.Path() == "/"+name {
			return &workload{f: f, svid: svid, http: clientOf(svid, x.Bundles)}, nil
		}
	}
	return nil, errors.New("no identity " + name)
}

func clientOf(svid *x509svid.SVID, bundles x509bundle.Source) *http.Client {
	server, _ := spiffeid.FromPath(svid.ID.TrustDomain(), identity.ServerPath)
	cfg := tlsconfig.MTLSClientConfig(svid, bundles, tlsconfig.AuthorizeID(server))
	cfg.MinVersion = tls.VersionTLS13
	return &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{TLSClientConfig: cfg}}
}

func (f *fixture) shared() string { return filepath.Join(f.dir, "run", "workload.sock") }

func (w *workload) thumbprint() string {
	sum := sha256.Sum256(w.svid.Certificates[0].Raw)
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// enter gets the workload a run token from the operator.
func (w *workload) enter(r remit.Run) *workload {
	w.f.t.Helper()
	name := remit.Name(strings.TrimPrefix(w.svid.ID.Path(), "/"))
	var token api.Token
	w.f.must("/v1/runs/"+string(r.ID)+"/token", api.TokenRequest{Agent: name, Thumbprint: w.thumbprint()}, &token)
	w.token = token.Token
	return w
}

// given is the token endpoint's answer.
type given struct {
	Secret  string        `json:"access_token"`
	Grant   remit.GrantID `json:"grant_id"`
	Error   string        `json:"error"`
	Reasons []remit.Reason
}

// code is the first reason's, or the error.
func (g given) code() string {
	if len(g.Reasons) > 0 {
		return string(g.Reasons[0].Code)
	}
	return g.Error
}

// ask asks for a grant of a permission.
func (w *workload) ask(permission string) given {
	w.f.t.Helper()
	form := url.Values{"grant_type": {"client_credentials"}, "client_id": {w.svid.ID.String()},
		"authorization_details": {`[{"permission":"` + permission + `"}]`}}
	var g given
	w.call("/oauth2/token", "application/x-www-form-urlencoded", strings.NewReader(form.Encode()), &g)
	return g
}

func (w *workload) call(path, kind string, body io.Reader, out any) int {
	w.f.t.Helper()
	req, err := http.NewRequestWithContext(w.f.t.Context(), http.MethodPost, "https://"+w.f.port+path, body)
	if err != nil {
		w.f.t.Fatal(err)
	}
	req.Header.Set("Content-Type", kind)
	if w.token != "" {
		req.Header.Set("Txn-Token", w.token)
	}
	res, err := w.http.Do(req)
	if err != nil {
		w.f.t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		w.f.t.Fatal(err)
	}
	if out != nil {
		if err := json.Unmarshal(bytes.TrimSpace(b), out); err != nil {
			w.f.t.Fatalf("%s: %d %s", path, res.StatusCode, b)
		}
	}
	return res.StatusCode
}

// events counts the ledger's events of a kind.
func (f *fixture) events(kind remit.EventKind) int {
	f.t.Helper()
	entries, _, err := f.srv.store.Events(store.EventFilter{Kind: kind}, 0, 1000)
	if err != nil {
		f.t.Fatal(err)
	}
	return len(entries)
}
