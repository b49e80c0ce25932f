// SPDX-License-Identifier: Apache-2.0

// Package e2e_test judges the shipped binary from outside: it is killed, starved, attacked and searched while it works with
// a real Kubernetes API server, and what is true afterwards is read with the cluster administrator's own kubeconfig, with the
// ledger's files and with stock opa, never from Remit's own answers.
package e2e_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	authenticationv1 "k8s.io/api/authentication/v1"

	"remit/internal/testcluster"
)

// needsCluster is why tests are skipped under -short; test/skips.txt names them.
const needsCluster = "needs the Kubernetes API server, which SHORT leaves out"

// binary is the remit that is judged; TestMain builds it as releases are built.
var binary string

func TestMain(m *testing.M) {
	if os.Getenv(envCrashCommit) != "" {
		os.Exit(serveAndCrash())
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "remit-e2e-")
	if err == nil {
		err = os.Chmod(dir, 0o755) // other users run the binary
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if binary = os.Getenv("REMIT_TEST_BINARY"); binary == "" {
		binary = filepath.Join(dir, "remit")
		build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", binary, "remit/cmd/remit")
		build.Env = append(os.Environ(), "CGO_ENABLED=0") // as it ships
		if out, err := build.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "build remit: %v\n%s", err, out)
			return 1
		}
	}
	defer shared.stop()
	return m.Run()
}

// cluster is the API server with what an administrator prepared for Remit: manifests, one target namespace, an account.
type cluster struct {
	*testcluster.Cluster
	admin       kubernetes.Interface
	config      *rest.Config
	agents      *http.Client // trusts the cluster and shows nothing of its own
	brokerToken string
	namespace   string
	dir         string
}

// shared is the one cluster of all tests; installations in it differ by id.
var shared sharedCluster

type sharedCluster struct {
	once sync.Once
	c    *cluster
	err  error
}

func (s *sharedCluster) stop() {
	if s.c != nil {
		_ = s.c.Stop()
		_ = os.RemoveAll(s.c.dir)
	}
}

// theCluster starts the API server for the first test that asks.
func theCluster(t *testing.T) *cluster {
	t.Helper()
	if testing.Short() {
		t.Skip(needsCluster)
	}
	shared.once.Do(func() { shared.c, shared.err = startCluster() })
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	return shared.c
}

func startCluster() (*cluster, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 25*time.Minute) // the first time it is compiled
	defer cancel()
	dir, err := os.MkdirTemp("", "remit-e2e-k8s-")
	if err != nil {
		return nil, err
	}
	tc, err := testcluster.Start(ctx, testcluster.Config{Dir: dir})
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	c := &cluster{Cluster: tc, namespace: "production", dir: dir}
	if err := c.prepare(ctx); err != nil {
		return nil, errors.Join(err, c.Stop(), os.RemoveAll(dir))
	}
	return c, nil
}

// prepare does what deploy/kubernetes/README.md tells the administrator to do.
func (c *cluster) prepare(ctx context.Context) (err error) {
	if c.config, err = clientcmd.BuildConfigFromFlags("", c.Kubeconfig); err != nil {
		return err
	}
	c.config.QPS = -1
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(c.CA)
	c.agents = &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}, MaxIdleConnsPerHost: 16}}
	if c.admin, err = kubernetes.NewForConfig(c.config); err != nil {
		return err
	}
	kubectl, err := testcluster.Kubectl(ctx)
	if err != nil {
		return err
	}
	manifests := filepath.Join("..", "..", "deploy", "kubernetes")
	for _, args := range [][]string{
		{"create", "namespace", c.namespace},
		{"apply", "-f", filepath.Join(manifests, "base.yaml"), "-f", filepath.Join(manifests, "policies.yaml")},
		{"-n", c.namespace, "apply", "-f", filepath.Join(manifests, "target.yaml")},
	} {
		cmd := exec.CommandContext(ctx, kubectl, append([]string{"--kubeconfig", c.Kubeconfig}, args...)...)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("kubectl %s: %w\n%s", strings.Join(args, " "), err, out)
		}
	}
	hour := int64(3600)
	answer, err := c.admin.CoreV1().ServiceAccounts("remit").CreateToken(ctx, "broker",
		&authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: &hour}}, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	c.brokerToken = answer.Status.Token
	time.Sleep(4 * time.Second) // Remit mints three seconds after policies.yaml was applied: deploy/kubernetes/README.md
	return nil
}

// standing lists what an installation has at the cluster, by the name that all objects of one lease share: "SA Role RB" or a
// part of it.
func (c *cluster) standing(t *testing.T, installation string) map[string]string {
	t.Helper()
	found := map[string]string{}
	prefix := "remit-" + installation + "-"
	accounts, err := c.admin.CoreV1().ServiceAccounts("remit-leases").List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	roles, err := c.admin.RbacV1().Roles("").List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	bindings, err := c.admin.RbacV1().RoleBindings("").List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	add := func(kind, name string) { // by name, not by label: whatever it is labelled, it counts
		if strings.HasPrefix(name, prefix) {
			found[name] = strings.TrimSpace(found[name] + " " + kind)
		}
	}
	for i := range accounts.Items {
		add("account", accounts.Items[i].Name)
	}
	for i := range roles.Items {
		add("role", roles.Items[i].Name)
	}
	for i := range bindings.Items {
		add("binding", bindings.Items[i].Name)
	}
	return found
}
