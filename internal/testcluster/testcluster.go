// SPDX-License-Identifier: Apache-2.0

// Package testcluster starts a real Kubernetes API server for tests and the demo: the program of test/kubernetes/apiserver
// as a process of its own, because it is built from its own module and only one server fits in a process. It is test
// support and part of no product path. Start owns the process and one goroutine that reads its output; Stop waits for both.
package testcluster

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Config says how the API server runs. Paths are files in its own formats; empty ones are left out.
type Config struct {
	Dir            string   // its working directory, required; it and everything below is the caller's to remove
	Join           *Cluster // run a second API server on this one's etcd, certificates and keys; nil: a cluster of its own
	Authentication string   // AuthenticationConfiguration
	Authorization  string   // AuthorizationConfiguration; empty: RBAC only
	AuditPolicy    string
	AuditWebhook   string    // kubeconfig
	Flags          []string  // further flags of kube-apiserver
	Log            io.Writer // gets its standard error; nil: only its end is kept, for error texts
}

// Cluster is a running API server.
type Cluster struct {
	URL        string // https://127.0.0.1:PORT
	Kubeconfig string // path; the administrator's
	Dir        string
	CA         []byte // PEM
	// WebhookCert and WebhookKey are paths of a client certificate, common name "kube-apiserver-webhook-client", with which
	// the API server can show itself to webhooks; it is signed by CA.
	WebhookCert, WebhookKey string

	pki   string
	cmd   *exec.Cmd
	stdin io.Closer
	done  chan error
	once  sync.Once
	err   error
}

// PKI returns the directory of certificates of a cluster that will run in dir, to name them in files before Start.
func PKI(dir string) string { return filepath.Join(dir, "pki") }

// Start starts the API server and returns when it answers, at the latest when ctx ends or after two minutes. It builds the
// program first when that is missing, which takes minutes; ctx ends the build, too. The server outlives ctx: call Stop.
func Start(ctx context.Context, cfg Config) (*Cluster, error) {
	binary, err := Binary(ctx)
	if err != nil {
		return nil, err
	}
	c := &Cluster{Dir: cfg.Dir, Kubeconfig: filepath.Join(cfg.Dir, "admin.kubeconfig"), pki: PKI(cfg.Dir), done: make(chan error, 1)}
	if cfg.Join != nil {
		c.pki = cfg.Join.pki
	}
	args, err := arguments(cfg, c.pki)
	if err != nil {
		return nil, err
	}
	c.cmd = exec.Command(binary, args...)
	tail := &tailBuffer{next: cfg.Log}
	c.cmd.Stderr = tail
	if c.stdin, err = c.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := c.cmd.Start(); err != nil {
		return nil, err
	}
	line := make(chan string, 1)
	go func() {
		r := bufio.NewReader(out)
		first, _ := r.ReadString('\n')
		line <- first
		_, _ = io.Copy(io.Discard, r)
		c.done <- c.cmd.Wait()
	}()
	select {
	case first := <-line:
		url, ok := strings.CutPrefix(strings.TrimSpace(first), "ready ")
		if !ok {
			return nil, errors.Join(fmt.Errorf("start API server: %s", tail), c.Stop())
		}
		c.URL = url
	case <-ctx.Done():
		return nil, errors.Join(ctx.Err(), c.Stop())
	}
	c.WebhookCert, c.WebhookKey = filepath.Join(c.pki, "webhook-client.crt"), filepath.Join(c.pki, "webhook-client.key")
	if c.CA, err = os.ReadFile(filepath.Join(c.pki, "ca.crt")); err != nil {
		return nil, errors.Join(err, c.Stop())
	}
	return c, nil
}

func arguments(cfg Config, pki string) ([]string, error) {
	if cfg.Dir == "" {
		return nil, errors.New("testcluster: Dir is missing")
	}
	args := []string{"--stdin", "--dir", cfg.Dir, "--pki", pki}
	if cfg.Join != nil {
		etcd, err := os.ReadFile(filepath.Join(cfg.Join.Dir, "etcd.url"))
		if err != nil {
			return nil, err
		}
		args = append(args, "--etcd", string(etcd))
	}
	for _, f := range [...]struct{ flag, value string }{
		{"--authentication-config", cfg.Authentication}, {"--authorization-config", cfg.Authorization},
		{"--audit-policy", cfg.AuditPolicy}, {"--audit-webhook-config", cfg.AuditWebhook},
	} {
		if f.value != "" {
			args = append(args, f.flag, f.value)
		}
	}
	return append(append(args, "--"), cfg.Flags...), nil
}

// Pid returns the process id of the API server.
func (c *Cluster) Pid() int { return c.cmd.Process.Pid }

// Stop ends the API server: by closing its standard input, then, after ten seconds, by killing it. Stopping twice is fine.
func (c *Cluster) Stop() error {
	c.once.Do(func() {
		_ = c.stdin.Close()
		select {
		case c.err = <-c.done:
		case <-time.After(10 * time.Second):
			_ = c.cmd.Process.Kill()
			<-c.done
		}
	})
	return c.err
}

// Binary returns the path of the API server program: $REMIT_TEST_APISERVER, else bin/remit-test-apiserver below the module's
// root, built now if it is not there. Processes that need it at once build it one after the other.
func Binary(ctx context.Context) (string, error) {
	return program(ctx, "REMIT_TEST_APISERVER", "apiserver")
}

// Kubectl returns the path of kubectl: $REMIT_TEST_KUBECTL, else the one in PATH, else bin/remit-test-kubectl, built if needed.
func Kubectl(ctx context.Context) (string, error) {
	if p := os.Getenv("REMIT_TEST_KUBECTL"); p != "" {
		return p, nil
	}
	if p, err := exec.LookPath("kubectl"); err == nil {
		return p, nil
	}
	return program(ctx, "REMIT_TEST_KUBECTL", "kubectl")
}

func program(ctx context.Context, env, name string) (string, error) {
	if p := os.Getenv(env); p != "" {
		return p, nil
	}
	root, err := moduleRoot()
	if err != nil {
		return "", err
	}
	path := filepath.Join(root, "bin", "remit-test-"+name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return "", err
	}
	lock, err := os.OpenFile(path+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return "", err
	}
	defer func() { _ = lock.Close() }()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return "", err
	}
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	build := exec.CommandContext(ctx, "go", "build", "-ldflags", "-s -w -X k8s.io/component-base/version.gitVersion=v1.37.2",
		"-o", path+".new", "./"+name)
	build.Dir = filepath.Join(root, "test", "kubernetes")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build %s: %w: %s", name, err, out)
	}
	return path, os.Rename(path+".new", path)
}

// moduleRoot walks up from the working directory to the go.mod of module remit.
func moduleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		mod, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err == nil && bytes.HasPrefix(mod, []byte("module remit\n")) {
			return dir, nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", errors.New("testcluster: not inside module remit, and REMIT_TEST_APISERVER is not set")
		}
		dir = parent
	}
}

// tailBuffer keeps the last 4 KiB written, and passes everything on.
type tailBuffer struct {
	next io.Writer
	mu   sync.Mutex // guards end
	end  []byte
}

func (t *tailBuffer) Write(p []byte) (int, error) {
	t.mu.Lock()
	t.end = append(t.end, p...)
	t.end = t.end[max(0, len(t.end)-4096):]
	t.mu.Unlock()
	if t.next != nil {
		return t.next.Write(p)
	}
	return len(p), nil
}

func (t *tailBuffer) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.end)
}
