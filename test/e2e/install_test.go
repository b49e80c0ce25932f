// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"

	"remit"
	"remit/internal/api"
	"remit/internal/evidence/evidencetest"
)

const scanID = "scan-789"

// installation is one remit directory, the server on it, and this test as its operator, scanner and agent at once: agents are
// attested by uid here, so that the test holds what a real agent would hold.
type installation struct {
	t       *testing.T
	dir     string
	id      string // the installation's id at the cluster
	https   string
	image   string
	signer  *evidencetest.Signer
	admin   *api.Client
	process *process

	keeping  sync.Mutex // guards receipts and tokens while several agents ask at once
	receipts []remit.Receipt
	tokens   map[string]string // by the lease's object name at the cluster
}

// setting is what differs between installations.
type setting struct {
	server string // of the broker's kubeconfig; empty: the target is external
	ca     []byte
	token  string
	ns     string
	more   string // further documents
	remit  func(string) string
}

func through(c *cluster, p *proxy) setting {
	return setting{server: p.URL, ca: p.ca(), token: c.brokerToken, ns: c.namespace}
}

func install(t *testing.T, s setting) *installation {
	t.Helper()
	dir, err := os.MkdirTemp("", "re-") // short: sockets live in it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			log, _ := os.ReadFile(filepath.Join(dir, "serve.log"))
			t.Logf("%s", log[max(0, len(log)-4000):])
		}
		_ = os.RemoveAll(dir)
	})
	i := &installation{t: t, dir: dir, tokens: map[string]string{}}
	id := make([]byte, 5)
	_, _ = rand.Read(id)
	i.id = "e" + hex.EncodeToString(id)
	i.image = "registry.company.com/foo@" + string(remit.DigestOf([]byte(i.id)))
	if i.https, err = freeAddress(); err != nil {
		t.Fatal(err)
	}
	i.must(os.Chmod(dir, 0o755))
	i.run("init", "--trust-domain", "company.com", "--operator", "ci", "--https", i.https)
	i.write(s)
	i.admin, err = api.NewClient(i.path("remit", "run", "admin.sock"))
	i.must(err)
	t.Cleanup(func() {
		if i.process != nil {
			i.process.kill()
		}
	})
	return i
}

var lastPort atomic.Int32

// freeAddress finds a port below those that the kernel gives to outgoing connections: one of these could take it while the
// server is down.
func freeAddress() (string, error) {
	for range 1000 {
		port := 12000 + (int32(os.Getpid())*37+lastPort.Add(1))%18000
		l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(int(port))))
		if err == nil {
			return l.Addr().String(), l.Close()
		}
	}
	return "", errors.New("no free port")
}

func (i *installation) path(elem ...string) string {
	return filepath.Join(append([]string{i.dir}, elem...)...)
}

func (i *installation) must(err error) {
	i.t.Helper()
	if err != nil {
		i.t.Fatal(err)
	}
}

func (i *installation) write(s setting) {
	var err error
	if i.signer, err = evidencetest.NewSigner("ci-scanner"); err != nil {
		i.t.Fatal(err)
	}
	i.must(os.WriteFile(i.path("scanner.pub"), []byte(i.signer.PublicPEM()), 0o644))
	target := "kind: Target\nname: production-cluster\ntype: external\n"
	if s.server != "" {
		type object = map[string]any
		config, err := json.Marshal(object{"apiVersion": "v1", "kind": "Config", "current-context": "remit",
			"clusters": []any{object{"name": "c", "cluster": object{"server": s.server, "certificate-authority-data": s.ca}}},
			"contexts": []any{object{"name": "remit", "context": object{"cluster": "c", "user": "broker"}}},
			"users":    []any{object{"name": "broker", "user": object{"token": s.token}}}})
		i.must(err)
		i.must(os.WriteFile(i.path("broker.kubeconfig"), config, 0o600))
		target = fmt.Sprintf("kind: Target\nname: production-cluster\ntype: kubernetes\nmode: serviceaccount\nkubeconfig: %s\nnamespaces: [%s]\ninstallation: %s\n",
			i.path("broker.kubeconfig"), s.ns, i.id)
	}
	text := fmt.Sprintf(declarations, os.Getuid(), i.path("scanner.pub")) + "---\n" + target + s.more
	i.must(os.WriteFile(i.path("remit", "config", "story.yaml"), []byte(text), 0o644))
	b, err := os.ReadFile(i.path("remit", "remit.yaml"))
	i.must(err)
	own := strings.Replace(string(b), "allow_own_uid: false", "allow_own_uid: true", 1)
	if s.remit != nil {
		own = s.remit(own)
	}
	i.must(os.WriteFile(i.path("remit", "remit.yaml"), []byte(own), 0o644))
}

const declarations = `kind: Agent
name: deploy
owner: platform team
audiences: [somebody-else]
attest: [{unix: {uid: %[1]d}}]
---
kind: Agent
name: other
attest: [{unix: {uid: %[1]d}}]
---
kind: EvidenceSource
name: trivy-ci
type: scan
signers: [{name: ci-scanner, key: {file: %[2]s}}]
---
kind: Workflow
name: deploy
parameters:
  app:   {type: name}
  image: {type: image}
  scan:  {type: string}
start: {by: [operator/ci], expires: 1h}
stages:
- name: deploy
  expires: 30m
  end: {by: [operator/ci, agent/deploy]}
  may:
  - name: apply
    who: agent/deploy
    action: kubernetes.apply
    target: production-cluster
    where: {namespace: production, kind: Deployment, name: $app, image: $image}
    evidence:
    - scan: {id: $scan, of: $image, source: trivy-ci, worst: medium, within: 24h}
    ttl: 5m
  - name: look
    who: agent/other
    action: kubernetes.get
    target: production-cluster
    where: {namespace: production, kind: Deployment, name: $app}
- name: check
  may:
  - name: look-again
    who: agent/deploy
    action: kubernetes.get
    target: production-cluster
    where: {namespace: production, kind: Deployment, name: $app}
`

// remit runs a command of the shipped binary.
func (i *installation) remit(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, append([]string{"--dir", i.path("remit")}, args...)...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return out.String() + errs.String(), fmt.Errorf("remit %s: %w\n%s%s", strings.Join(args, " "), err, out.Bytes(), errs.Bytes())
	}
	return out.String(), nil
}

func (i *installation) run(args ...string) string {
	i.t.Helper()
	out, err := i.remit(args...)
	i.must(err)
	return out
}

// start starts remit serve; it is not waited for.
func (i *installation) start() {
	i.t.Helper()
	p, err := startProcess(i.path("serve.log"), nil, binary, "--dir", i.path("remit"), "serve")
	i.must(err)
	i.process = p
}

// serve starts remit serve and waits until it is ready.
func (i *installation) serve() {
	i.t.Helper()
	i.start()
	if !i.process.isReady() {
		i.t.Fatal("remit serve is not ready")
	}
}

// startCrashing starts a server that dies at its n-th commit.
func (i *installation) startCrashing(n uint64) {
	i.t.Helper()
	self, err := os.Executable()
	i.must(err)
	p, err := startProcess(i.path("serve.log"), []string{envCrashCommit + "=" + strconv.FormatUint(n, 10), envCrashDir + "=" + i.path("remit")}, self)
	i.must(err)
	i.process = p
}

// call is a management call that ends when the server does.
func (i *installation) call(path string, in, out any) error {
	ctx, cancel := context.WithTimeout(i.process.ctx, 30*time.Second)
	defer cancel()
	return i.admin.Post(ctx, path, in, out)
}

func (i *installation) addScan(id, image string) error {
	_, digest, _ := strings.Cut(image, "@")
	envelope, err := i.signer.Sign(evidencetest.Scan{ID: id, Image: "foo", Subjects: []remit.Digest{remit.Digest(digest)}, Finished: time.Now()}.Statement())
	if err != nil {
		return err
	}
	return i.call("/v1/evidence", api.AddEvidence{Source: "trivy-ci", Envelope: envelope}, nil)
}

func (i *installation) startRun() (remit.Run, error) {
	var r remit.Run
	err := i.call("/v1/runs", api.StartRun{Workflow: "deploy", Params: map[string]string{"app": i.id, "image": i.image, "scan": scanID}}, &r)
	return r, err
}

// agent is this process with one of its identities.
type agent struct {
	i    *installation
	id   string
	name remit.Name
	svid *x509svid.SVID
	http *http.Client
}

// become fetches the SVID of agent/NAME from the Workload API, as any SPIFFE client does.
func (i *installation) become(name string) (*agent, error) {
	ctx, cancel := context.WithTimeout(i.process.ctx, 20*time.Second)
	defer cancel()
	x, err := workloadapi.FetchX509Context(ctx, workloadapi.WithAddr("unix://"+i.path("remit", "run", "workload.sock")))
	if err != nil {
		return nil, fmt.Errorf("fetch an identity: %w", err)
	}
	for _, svid := range x.SVIDs {
		if svid.ID.Path() != "/agent/"+name {
			continue
		}
		server, err := spiffeid.FromPath(svid.ID.TrustDomain(), "/remit/server")
		if err != nil {
			return nil, err
		}
		cfg := tlsconfig.MTLSClientConfig(svid, x.Bundles, tlsconfig.AuthorizeID(server))
		cfg.MinVersion = tls.VersionTLS13
		a := &agent{i: i, id: svid.ID.String(), name: remit.Name("agent/" + name), svid: svid,
			http: &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{TLSClientConfig: cfg}}}
		i.t.Cleanup(a.http.CloseIdleConnections)
		return a, nil
	}
	return nil, fmt.Errorf("there is no identity agent/%s", name)
}

func (a *agent) thumbprint() string {
	sum := sha256.Sum256(a.svid.Certificates[0].Raw)
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// runToken gets a run token that is bound to the agent's certificate.
func (a *agent) runToken(run remit.RunID) (string, error) {
	var t api.Token
	err := a.i.call("/v1/runs/"+string(run)+"/token", api.TokenRequest{Agent: a.name, Thumbprint: a.thumbprint()}, &t)
	return t.Token, err
}

// answer is what the token endpoint said, in either case.
type answer struct {
	Status  int            `json:"-"`
	Token   string         `json:"access_token"`
	Grant   remit.GrantID  `json:"grant_id"`
	ID      string         `json:"decision_id"`
	Error   string         `json:"error"`
	Text    string         `json:"error_description"`
	Reasons []remit.Reason `json:"reasons"`
	Receipt *remit.Receipt `json:"receipt"`
}

func (g *answer) String() string {
	return fmt.Sprintf("%d %s %s %v", g.Status, g.Error, g.Text, g.Reasons)
}

// has reports whether the answer names the reason.
func (g *answer) has(code string) bool {
	for _, r := range g.Reasons {
		if string(r.Code) == code {
			return true
		}
	}
	return false
}

func details(i *installation, more map[string]any) string {
	d := map[string]any{"type": "kubernetes.apply", "target": "production-cluster", "namespace": "production", "kind": "Deployment",
		"name": i.id, "image": i.image}
	for k, v := range more {
		d[k] = v
	}
	b, _ := json.Marshal([]any{d})
	return string(b)
}

// ask posts to the token endpoint; what it answers is kept: receipts, and credentials by their name at the cluster.
func (a *agent) ask(txn string, form url.Values) (*answer, error) {
	ctx, cancel := context.WithTimeout(a.i.process.ctx, 40*time.Second)
	defer cancel()
	if form.Get("grant_type") == "" {
		form.Set("grant_type", "client_credentials")
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+a.i.https+"/oauth2/token", strings.NewReader(form.Encode()))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	if txn != "" {
		req.Header.Set("Txn-Token", txn)
	}
	res, err := a.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	if err != nil {
		return nil, err
	}
	got := &answer{Status: res.StatusCode}
	if err := json.Unmarshal(body, got); err != nil {
		return nil, fmt.Errorf("the token endpoint answered %d %.200s: %w", res.StatusCode, body, err)
	}
	a.i.keep(got)
	return got, nil
}

func (i *installation) keep(got *answer) {
	i.keeping.Lock()
	defer i.keeping.Unlock()
	if got.Receipt != nil {
		i.receipts = append(i.receipts, *got.Receipt)
	}
	if name := accountOf(got.Token); name != "" {
		i.tokens[name] = got.Token
	}
}

// accountOf reads the service account's name from a token.
func accountOf(token string) string {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return ""
	}
	b, _ := base64.RawURLEncoding.DecodeString(parts[1])
	var claims struct {
		Sub string `json:"sub"`
	}
	_ = json.Unmarshal(b, &claims)
	return strings.TrimPrefix(claims.Sub, "system:serviceaccount:remit-leases:")
}

// grant asks for the credential that the workflow allows.
func (a *agent) grant(txn string, more map[string]any) (*answer, error) {
	return a.ask(txn, url.Values{"client_id": {a.id}, "authorization_details": {details(a.i, more)}})
}

// evaluate asks the AuthZEN interface for the decision alone.
func (a *agent) evaluate(txn string) (bool, error) {
	ctx, cancel := context.WithTimeout(a.i.process.ctx, 40*time.Second)
	defer cancel()
	type object = map[string]any
	body, err := json.Marshal(object{"subject": object{"type": "agent", "id": a.id}, "action": object{"name": "kubernetes.apply"},
		"resource": object{"type": "kubernetes", "id": "production-cluster",
			"properties": object{"namespace": "production", "kind": "Deployment", "name": a.i.id, "image": a.i.image}},
		"context": object{"run_token": txn}})
	if err != nil {
		return false, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+a.i.https+"/access/v1/evaluation", bytes.NewReader(body))
	if err != nil {
		return false, err
	}
	req.Header.Set("Content-Type", "application/json")
	res, err := a.http.Do(req)
	if err != nil {
		return false, err
	}
	defer res.Body.Close()
	var got struct {
		Decision *bool `json:"decision"`
		Context  struct {
			Receipt *remit.Receipt `json:"receipt"`
		} `json:"context"`
	}
	if err := json.NewDecoder(io.LimitReader(res.Body, 1<<20)).Decode(&got); err != nil || got.Decision == nil || got.Context.Receipt == nil {
		return false, fmt.Errorf("the evaluation answered %s without decision and receipt: %w", res.Status, errors.Join(err))
	}
	a.i.keep(&answer{Receipt: got.Context.Receipt})
	return *got.Decision, nil
}

// apply uses a credential: it creates or changes the deployment of this installation, by server-side apply.
func (i *installation) apply(c *cluster, token, name, image string) (int, error) {
	type object = map[string]any
	labels := object{"app": name}
	body, err := json.Marshal(object{"apiVersion": "apps/v1", "kind": "Deployment", "metadata": object{"name": name, "namespace": c.namespace},
		"spec": object{"replicas": 1, "selector": object{"matchLabels": labels}, "template": object{"metadata": object{"labels": labels},
			"spec": object{"containers": []any{object{"name": "main", "image": image}}}}}})
	if err != nil {
		return 0, err
	}
	return c.request(token, http.MethodPatch, name+"?fieldManager=agent&force=true", body)
}

// applyGranted applies what was granted. A credential can be refused for some milliseconds after it was made, until the API
// server's own authorizer has seen its binding.
func (i *installation) applyGranted(c *cluster, token string) error {
	var status int
	var err error
	for end := time.Now().Add(2 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if status, err = i.apply(c, token, i.id, i.image); err != nil || status < 300 {
			return err
		}
	}
	return fmt.Errorf("apply with a granted credential: %d", status)
}

// request is a request about a deployment with a bare token, straight to the API server.
func (c *cluster) request(token, method, name string, body []byte) (int, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, c.URL+"/apis/apps/v1/namespaces/"+c.namespace+"/deployments/"+name, bytes.NewReader(body))
	if err != nil {
		return 0, err
	}
	req.Header.Set("Authorization", "Bearer "+token)
	req.Header.Set("Content-Type", "application/apply-patch+yaml")
	res, err := c.agents.Do(req)
	if err != nil {
		return 0, err
	}
	defer res.Body.Close()
	_, err = io.Copy(io.Discard, res.Body)
	return res.StatusCode, err
}

// usable says whether the API server still lets the token read its deployment.
func (c *cluster) usable(token, name string) (bool, error) {
	status, err := c.request(token, http.MethodGet, name, nil)
	switch {
	case err != nil:
		return false, err
	case status == http.StatusOK || status == http.StatusNotFound:
		return true, nil
	case status == http.StatusForbidden || status == http.StatusUnauthorized:
		return false, nil
	}
	return false, fmt.Errorf("the API server answered %d", status)
}

// audit proves every receipt that this test holds, with the ledger's files and public key, by the shipped command.
func (i *installation) audit() {
	i.t.Helper()
	if len(i.receipts) == 0 {
		return
	}
	var lines bytes.Buffer
	for _, r := range i.receipts {
		i.must(json.NewEncoder(&lines).Encode(r))
	}
	i.must(os.WriteFile(i.path("receipts"), lines.Bytes(), 0o600))
	var out string
	var err error
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		out, err = i.remit("ledger", "audit", i.path("receipts"), "--key", i.path("remit", "ledger.pub"), "--log", i.path("remit", "ledger"), "-o", "json")
		if err == nil && !strings.Contains(out, `"unsequenced"`) {
			break
		}
	}
	var results []struct{ Status string }
	if err := errors.Join(err, json.Unmarshal([]byte(out), &results)); err != nil {
		i.t.Fatal(err)
	}
	if len(results) != len(i.receipts) {
		i.t.Fatalf("%d of %d receipts were audited", len(results), len(i.receipts))
	}
	for _, r := range results {
		if r.Status != "proven" {
			i.t.Errorf("a receipt is %s:\n%s", r.Status, out)
		}
	}
	if out, err := i.remit("ledger", "verify", i.path("remit", "ledger"), "--key", i.path("remit", "ledger.pub")); err != nil {
		i.t.Errorf("the ledger is not intact: %v\n%s", err, out)
	}
}
