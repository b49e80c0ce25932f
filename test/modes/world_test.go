// SPDX-License-Identifier: Apache-2.0

// Package modes_test plays the story of docs/kubernetes.md in every mode: the shipped binary, a real API server configured
// with the shipped files, real kubectl. The commands that set things up are taken from the guide and run as they stand there.
package modes_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"remit"
	"remit/internal/evidence/evidencetest"
	"remit/internal/testcluster"
)

const (
	root     = "../.."
	agentUID = 4001 // the agent's own user where the test runs as root
	target   = "main-cluster"
	nsTarget = "shop"
	nsOther  = "warehouse"
	app      = "basket"
)

// shared is what all worlds have in common: the binaries, in a folder that the agent's user can enter.
var shared struct {
	once            sync.Once
	dir, bin        string
	remit, kubectl  string
	self            string // this test binary, launched as the agent that fetches JWT-SVIDs
	image, badImage string // REPOSITORY@sha256:HEX
	digest          remit.Digest
	scanner         *evidencetest.Signer
	digests         string // of what may be launched, for the agent's file
	registry        *httptest.Server
	err             error
}

func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == fetchCommand {
		os.Exit(fetchJWTSVID(os.Args[2]))
	}
	if len(os.Args) > 3 && os.Args[1] == holdCommand {
		os.Exit(hold(os.Args[2:]))
	}
	code := m.Run()
	if shared.registry != nil {
		shared.registry.Close()
	}
	if shared.dir != "" {
		_ = os.RemoveAll(shared.dir)
	}
	os.Exit(code)
}

func needsCluster(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("needs the API server binary: make test builds it; left out by SHORT=1")
	}
	shared.once.Do(func() { shared.err = prepare() })
	must(t, shared.err)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func prepare() (err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Minute)
	defer cancel()
	if shared.dir, err = os.MkdirTemp("", "remit-modes-"); err != nil {
		return err
	}
	shared.bin = filepath.Join(shared.dir, "bin")
	if err := errors.Join(os.Chmod(shared.dir, 0o755), os.Mkdir(shared.bin, 0o755)); err != nil {
		return err
	}
	shared.remit = filepath.Join(shared.bin, "remit")
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", shared.remit, "./cmd/remit")
	build.Env = append(os.Environ(), "CGO_ENABLED=0") // as it ships
	build.Dir = root
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build remit: %w: %s", err, out)
	}
	kubectl, err := testcluster.Kubectl(ctx)
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	shared.kubectl, shared.self = filepath.Join(shared.bin, "kubectl"), filepath.Join(shared.bin, "agent")
	for to, from := range map[string]string{shared.kubectl: kubectl, shared.self: self} {
		b, err := os.ReadFile(from)
		if err := errors.Join(err, os.WriteFile(to, b, 0o755)); err != nil {
			return err
		}
	}
	for _, path := range []string{shared.kubectl, shared.remit, shared.self} {
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		sum := sha256.Sum256(b)
		shared.digests += "sha256:" + hex.EncodeToString(sum[:]) + ", "
	}
	if shared.scanner, err = evidencetest.NewSigner("ci-scanner"); err != nil {
		return err
	}
	return pushImages()
}

func pushImages() error {
	shared.registry = httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	repo := strings.TrimPrefix(shared.registry.URL, "http://") + "/company/" + app
	var names [2]string
	for i := range names {
		img, err := random.Image(256, 1)
		if err != nil {
			return err
		}
		ref, err := name.ParseReference(repo+":v"+strconv.Itoa(i), name.Insecure)
		if err != nil {
			return err
		}
		h, err := img.Digest()
		if err := errors.Join(err, remote.Write(ref, img)); err != nil {
			return err
		}
		names[i] = repo + "@" + h.String()
		if i == 0 {
			shared.digest = remit.Digest(h.String())
		}
	}
	shared.image, shared.badImage = names[0], names[1]
	return nil
}

// world is one Remit with one cluster.
type world struct {
	dir, home, etc string // everything; Remit's; the API server's
	https          string
	mode           string
	env            []string // of the guide's commands: its variables and where the binaries are
	cluster        *testcluster.Cluster
	client         *http.Client
	served         *served
	run            string
}

type option struct{ mode, authorization string }

// newWorld follows the guide. authorization is the file that the API server runs with, "" for RBAC alone.
func newWorld(t *testing.T, o option) *world {
	needsCluster(t)
	dir, err := os.MkdirTemp(shared.dir, o.mode+"-")
	must(t, err)
	w := &world{dir: dir, home: filepath.Join(dir, "remit"), etc: filepath.Join(dir, "etc"), mode: o.mode}
	must(t, errors.Join(os.Chmod(dir, 0o755), os.Mkdir(w.etc, 0o755)))
	w.https = "localhost:" + strconv.Itoa(freePort(t))
	deploy, err := filepath.Abs(filepath.Join(root, "deploy", "kubernetes"))
	must(t, err)
	w.env = []string{"REMIT_DIR=" + w.home, "REMIT_HTTPS=" + w.https, "TARGET=" + target, "NAMESPACE=" + nsTarget, "INSTALLATION=main1",
		"MODE=" + o.mode, "ETC=" + w.etc, "DEPLOY=" + deploy, "PATH=" + shared.bin + ":" + os.Getenv("PATH"), "HOME=" + dir}
	for _, name := range []string{"init", "secret", "webhooks", "apiserver"} {
		w.guide(t, name)
	}
	w.startCluster(t, o)
	for _, ns := range []string{nsTarget, nsOther} {
		w.admin(t, "create", "namespace", ns)
	}
	for _, name := range []string{"manifests", "broker", "target"} {
		w.guide(t, name)
	}
	w.writeFiles(t)
	w.serve(t)
	w.fit(t)
	return w
}

func (w *world) startCluster(t *testing.T, o option) {
	cfg := testcluster.Config{Dir: filepath.Join(w.dir, "cluster"), Authentication: filepath.Join(w.etc, "authentication.yaml"),
		AuditPolicy: filepath.Join(w.etc, "audit-policy.yaml"), AuditWebhook: filepath.Join(w.etc, "audit.kubeconfig")}
	if o.authorization != "" {
		cfg.Authorization = filepath.Join(w.etc, o.authorization)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	defer cancel()
	var err error
	w.cluster, err = testcluster.Start(ctx, cfg)
	must(t, err)
	t.Cleanup(func() { _ = w.cluster.Stop() })
	w.env = append(w.env, "KUBECONFIG="+w.cluster.Kubeconfig)
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(w.cluster.CA)
	w.client = &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}}}
}

// guide runs one of the guide's commands: a block that starts with ```sh NAME.
func (w *world) guide(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, "docs", "kubernetes.md"))
	must(t, err)
	_, after, ok := strings.Cut(string(text), "\n```sh "+name+"\n")
	block, _, closed := strings.Cut(after, "\n```\n")
	if !ok || !closed {
		t.Fatalf("the guide has no block %q", name)
	}
	cmd := exec.CommandContext(t.Context(), "bash", "-euo", "pipefail", "-c", block)
	cmd.Dir, cmd.Env = w.etc, append(os.Environ(), w.env...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("the guide's block %q: %v\n%s", name, err, out)
	}
	return string(out)
}

func (w *world) writeFiles(t *testing.T) {
	uid := ""
	if os.Getuid() == 0 {
		uid = fmt.Sprintf("  uid: %d\n", agentUID)
	}
	key := filepath.Join(w.dir, "scanner.pub")
	must(t, os.WriteFile(key, []byte(shared.scanner.PublicPEM()), 0o644))
	operator := "operator/" + w.user(t)
	files := map[string]string{
		"agents.yaml":   fmt.Sprintf(agentFile, operator, strings.TrimSuffix(shared.digests, ", "), uid),
		"workflow.yaml": fmt.Sprintf(workflowFile, operator),
		"evidence.yaml": "kind: EvidenceSource\nname: trivy-ci\ntype: scan\nsigners:\n- name: ci-scanner\n  key: {file: " + key + "}\n",
	}
	for name, content := range files {
		must(t, os.WriteFile(filepath.Join(w.home, "config", name), []byte(content), 0o644))
	}
}

func (w *world) user(t *testing.T) string {
	out, err := exec.CommandContext(t.Context(), "id", "-un").Output()
	must(t, err)
	return strings.TrimSpace(string(out))
}

const agentFile = `kind: Agent
name: deploy
owner: shop team
audiences: [https://reports.company.com]
launch:
  by: [%s]
  commands: [%s]
  inherit: true
%s`

const workflowFile = `kind: Workflow
name: deploy
parameters:
  image: {type: image}
  scan:  {type: string}
start: {by: [%s], expires: 2h}
stages:
- name: deploy
  expires: 30m
  may:
  - name: apply
    who: agent/deploy
    action: kubernetes.apply
    target: ` + target + `
    where: {namespace: ` + nsTarget + `, kind: Deployment, name: ` + app + `, image: $image}
    evidence:
    - scan: {id: $scan, of: $image, source: trivy-ci, worst: medium, within: 24h}
    ttl: 5m
`

// served is a running remit serve.
type served struct {
	cmd    *exec.Cmd
	exited chan error
}

func (w *world) serve(t *testing.T) {
	t.Helper()
	logged, err := os.OpenFile(filepath.Join(w.dir, "remit.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	must(t, err)
	s := &served{cmd: exec.Command(shared.remit, "--dir", w.home, "serve"), exited: make(chan error, 1)}
	s.cmd.Stderr = logged
	out, err := s.cmd.StdoutPipe()
	must(t, err)
	must(t, s.cmd.Start())
	ready := make(chan bool, 1)
	go func() {
		line, _ := bufio.NewReader(out).ReadString('\n')
		ready <- strings.HasPrefix(line, "ready")
		_, _ = io.Copy(io.Discard, out)
		s.exited <- s.cmd.Wait()
		_ = logged.Close()
	}()
	w.served = s
	t.Cleanup(func() {
		s.end(os.Interrupt)
		if t.Failed() {
			b, _ := os.ReadFile(logged.Name())
			t.Logf("remit serve:\n%s", bytes.TrimSpace(b[max(0, len(b)-8000):]))
		}
	})
	if !<-ready {
		t.Fatal("remit serve is not ready")
	}
}

// end sends a signal and waits; ending twice is fine.
func (s *served) end(sig os.Signal) {
	_ = s.cmd.Process.Signal(sig)
	select {
	case <-s.exited:
	case <-time.After(15 * time.Second):
		_ = s.cmd.Process.Kill()
		<-s.exited
	}
	s.exited <- nil
}

// fit waits until doctor finds nothing wrong with the target: guards that are a few seconds old are not in force yet, and
// the API server looks for the grant issuer's keys every ten seconds.
func (w *world) fit(t *testing.T) {
	t.Helper()
	began := time.Now()
	var r result
	for time.Since(began) < 40*time.Second {
		if r = w.remit(t, "doctor", target); r.code == 0 {
			w.guide(t, "doctor")
			t.Logf("fit %.1f s after remit serve was ready: %s", time.Since(began).Seconds(), strings.TrimSpace(r.out))
			return
		}
		time.Sleep(200 * time.Millisecond)
	}
	t.Fatal(r)
}

// result is what a command did.
type result struct {
	argv      []string
	out, errs string
	code      int
}

func (r result) String() string {
	return fmt.Sprintf("%s: exit %d\n%s%s", strings.Join(r.argv, " "), r.code, r.out, r.errs)
}

func (w *world) command(t *testing.T, env []string, argv ...string) result {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), time.Minute)
	defer cancel()
	var out, errs strings.Builder
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr, cmd.Env, cmd.WaitDelay = &out, &errs, append(os.Environ(), env...), 5*time.Second
	err := cmd.Run()
	r := result{argv: argv, out: out.String(), errs: errs.String()}
	if e, ok := errors.AsType[*exec.ExitError](err); ok {
		r.code = e.ExitCode()
	} else if err != nil {
		r.code, r.errs = -1, r.errs+err.Error()
	}
	return r
}

func (w *world) remit(t *testing.T, args ...string) result {
	return w.command(t, nil, append([]string{shared.remit, "--dir", w.home}, args...)...)
}

// admin runs kubectl with the administrator's certificate; it must succeed.
func (w *world) admin(t *testing.T, args ...string) string {
	t.Helper()
	r := w.command(t, []string{"HOME=" + w.dir}, append([]string{shared.kubectl, "--kubeconfig", w.cluster.Kubeconfig}, args...)...)
	if r.code != 0 {
		t.Fatal(r)
	}
	return strings.TrimSpace(r.out)
}

// agent launches a command as the agent.
func (w *world) agent(t *testing.T, argv ...string) result {
	return w.remit(t, append([]string{"exec", "--run", w.run, "--as", "agent/deploy", "--for", "apply", "--"}, argv...)...)
}

func (w *world) kubectl(t *testing.T, args ...string) result {
	return w.agent(t, append([]string{shared.kubectl}, args...)...)
}

func freePort(t *testing.T) int {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer func() { _ = l.Close() }()
	return l.Addr().(*net.TCPAddr).Port
}
