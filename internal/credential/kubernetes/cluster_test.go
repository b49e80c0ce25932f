// SPDX-License-Identifier: Apache-2.0

package kubernetes_test

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	client "k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"remit"
	"remit/internal/credential/kubernetes"
	"remit/internal/testcluster"
)

const manifests = "../../../deploy/kubernetes/"

// shared is the one API server of this test binary: started by the first test that needs it, ended by TestMain.
var shared struct {
	once sync.Once
	dir  string
	*testcluster.Cluster
	admin   *client.Clientset
	config  *rest.Config
	broker  string // kubeconfig of system:serviceaccount:remit:broker
	kubectl string
	err     error
}

func TestMain(m *testing.M) {
	code := m.Run()
	if shared.Cluster != nil {
		_ = shared.Stop()
	}
	if shared.dir != "" {
		_ = os.RemoveAll(shared.dir)
	}
	os.Exit(code)
}

func needsCluster(t testing.TB) {
	t.Helper()
	if testing.Short() {
		t.Skip("needs the API server binary: make test builds it; left out by SHORT=1")
	}
	shared.once.Do(func() { shared.err = startShared() })
	if shared.err != nil {
		t.Fatal(shared.err)
	}
}

func startShared() (err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Minute)
	defer cancel()
	if shared.dir, err = os.MkdirTemp("", "remit-kubernetes-"); err != nil {
		return err
	}
	if shared.kubectl, err = testcluster.Kubectl(ctx); err != nil {
		return err
	}
	if shared.Cluster, err = testcluster.Start(ctx, testcluster.Config{Dir: shared.dir}); err != nil {
		return err
	}
	if shared.config, err = clientcmd.BuildConfigFromFlags("", shared.Kubeconfig); err != nil {
		return err
	}
	shared.config.QPS = -1
	if shared.admin, err = client.NewForConfig(shared.config); err != nil {
		return err
	}
	for _, f := range []string{"base.yaml", "policies.yaml", "sweeper-rbac.yaml"} {
		if out, err := kubectl(shared.Kubeconfig, "", "apply", "-f", manifests+f); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
	}
	if shared.broker, err = accountKubeconfig(ctx, "broker"); err != nil {
		return err
	}
	return settled(ctx)
}

// settled waits until the policies have stood long enough.
func settled(ctx context.Context) error {
	d, err := kubernetes.New(kubernetes.Config{Kubeconfig: shared.broker, Namespaces: []string{"default"}, Installation: "settle"})
	if err != nil {
		return err
	}
	for range 100 {
		if err = d.Check(ctx); err == nil {
			return nil
		}
		time.Sleep(100 * time.Millisecond)
	}
	return err
}

// accountKubeconfig writes a kubeconfig with a token of an account in namespace remit.
func accountKubeconfig(ctx context.Context, name string) (string, error) {
	hour := int64(3600)
	tr, err := shared.admin.CoreV1().ServiceAccounts("remit").CreateToken(ctx, name,
		&authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: &hour}}, metav1.CreateOptions{})
	if err != nil {
		return "", err
	}
	return writeKubeconfig(name, tr.Status.Token, "")
}

func writeKubeconfig(name, token, namespace string) (string, error) {
	ca := filepath.Join(shared.dir, "ca.pem")
	if err := os.WriteFile(ca, shared.CA, 0o600); err != nil {
		return "", err
	}
	path := filepath.Join(shared.dir, name+".kubeconfig")
	text := fmt.Sprintf(`{apiVersion: v1, kind: Config, current-context: c,
clusters: [{name: c, cluster: {server: %q, certificate-authority: %q}}], users: [{name: u, user: {token: %q}}],
contexts: [{name: c, context: {cluster: c, user: u, namespace: %q}}]}`, shared.URL, ca, token, namespace)
	return path, os.WriteFile(path, []byte(text), 0o600)
}

func kubectl(kubeconfig, stdin string, args ...string) (string, error) {
	cmd := exec.Command(shared.kubectl, append([]string{"--kubeconfig", kubeconfig, "--cache-dir", filepath.Join(shared.dir, "cache")}, args...)...)
	cmd.Stdin = strings.NewReader(stdin)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	return out.String(), err
}

// target makes a namespace with its default account, which no controller makes here, and lets the broker in.
func target(t testing.TB) string { return targetWith(t, "target.yaml") }

func targetWith(t testing.TB, manifest string) string {
	t.Helper()
	needsCluster(t)
	ns, err := shared.admin.CoreV1().Namespaces().Create(t.Context(),
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "target-"}}, metav1.CreateOptions{})
	must(t, err)
	_, err = shared.admin.CoreV1().ServiceAccounts(ns.Name).Create(t.Context(),
		&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default"}}, metav1.CreateOptions{})
	must(t, err)
	out, err := kubectl(shared.Kubeconfig, "", "apply", "-n", ns.Name, "-f", manifests+manifest)
	if err != nil {
		t.Fatal(out)
	}
	return ns.Name
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newDriver(t testing.TB, ns string, change ...func(*kubernetes.Config)) *kubernetes.Driver {
	t.Helper()
	cfg := kubernetes.Config{Kubeconfig: shared.broker, Namespaces: []string{ns}, Installation: "test1"}
	for _, f := range change {
		f(&cfg)
	}
	d, err := kubernetes.New(cfg)
	must(t, err)
	return d
}

const (
	goodImage = "registry.example/team/foo@sha256:1111111111111111111111111111111111111111111111111111111111111111"
	oldImage  = "registry.example/team/foo@sha256:0000000000000000000000000000000000000000000000000000000000000000"
	badImage  = "registry.example/team/foo@sha256:2222222222222222222222222222222222222222222222222222222222222222"
)

func newLease(action string, args remit.Args) remit.Lease {
	now := time.Now()
	return remit.Lease{ID: remit.NewLeaseID(), Grant: remit.NewGrantID(), Agent: "agent/deploy", AgentID: "spiffe://example.org/agent/deploy",
		Target: "production", Action: action, Scope: args, Issued: now, Expires: now.Add(5 * time.Minute), MintBefore: now.Add(10 * time.Second),
		State: remit.GrantPending}
}

func applyLease(ns, kind, name string, more remit.Args) remit.Lease {
	args := remit.Args{"namespace": remit.StringValue(ns), "kind": remit.StringValue(kind), "name": remit.StringValue(name),
		"image": remit.StringValue(goodImage)}
	for k, v := range more {
		args[k] = v
	}
	return newLease("kubernetes.apply", args)
}

// holder is who holds a credential: a client and a kubeconfig with its token and nothing else.
type holder struct {
	*client.Clientset
	kubeconfig string
}

func holderOf(t testing.TB, c remit.Credential) holder {
	t.Helper()
	rc := &rest.Config{Host: c.Fields["server"], BearerToken: c.Secret.Reveal(), QPS: -1,
		TLSClientConfig: rest.TLSClientConfig{CAData: []byte(c.Fields["ca"])}}
	cs, err := client.NewForConfig(rc)
	must(t, err)
	path, err := writeKubeconfig(c.IDs[0], c.Secret.Reveal(), c.Fields["namespace"])
	must(t, err)
	return holder{cs, path}
}

func mint(t testing.TB, d *kubernetes.Driver, l remit.Lease) holder {
	t.Helper()
	c, err := d.Mint(t.Context(), l)
	must(t, err)
	h := holderOf(t, c)
	bound(t, h, c.Fields["namespace"])
	return h
}

// bound waits until the API server's authorizer knows the lease's binding: it learns of it from a watch, late on a busy machine,
// and refuses until then.
func bound(t testing.TB, h holder, namespace string) {
	t.Helper()
	ours := func(r authorizationv1.ResourceRule) bool { // everybody may ask about themselves, in groups under k8s.io
		return !slices.ContainsFunc(r.APIGroups, func(g string) bool { return strings.HasSuffix(g, ".k8s.io") })
	}
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		review := &authorizationv1.SelfSubjectRulesReview{Spec: authorizationv1.SelfSubjectRulesReviewSpec{Namespace: namespace}}
		may, err := h.AuthorizationV1().SelfSubjectRulesReviews().Create(t.Context(), review, metav1.CreateOptions{})
		must(t, err)
		if slices.ContainsFunc(may.Status.ResourceRules, ours) {
			return
		}
	}
	t.Fatal("the API server does not know the lease's binding after 30 s")
}

// roundTrip lets a test stand between the driver and the API server.
type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }
