// SPDX-License-Identifier: Apache-2.0

package kubernetes_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	client "k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"remit"
	driver "remit/internal/credential/kubernetes"
	gateway "remit/internal/gateway/kubernetes"
	"remit/internal/testcluster"
)

const (
	manifests = "../../../deploy/kubernetes/"
	audience  = "production-cluster"
	goodImage = "registry.example/team/foo@sha256:1111111111111111111111111111111111111111111111111111111111111111"
	badImage  = "registry.example/team/foo@sha256:2222222222222222222222222222222222222222222222222222222222222222"
)

// shared is the one API server of this test binary, configured with the shipped sample files: it trusts our grant issuer,
// asks /authorize about every request of a lease's holder, and sends its audit events to /audit.
var shared struct {
	once sync.Once
	dir  string
	*testcluster.Cluster
	admin   *client.Clientset
	broker  string
	issuer  *issuer
	web     *httptest.Server
	serving atomic.Pointer[gateway.Gateway] // nil: Remit is down
	kubectl string
	err     error
}

func TestMain(m *testing.M) {
	code := m.Run()
	if shared.Cluster != nil {
		_ = shared.Stop()
	}
	for _, s := range []*httptest.Server{shared.web} {
		if s != nil {
			s.Close()
		}
	}
	if shared.issuer != nil {
		shared.issuer.Close()
	}
	if shared.dir != "" {
		_ = os.RemoveAll(shared.dir)
	}
	os.Exit(code)
}

// issuer is a grant issuer: one ES256 key, discovery and JWKS over https.
type issuer struct {
	*httptest.Server
	key *ecdsa.PrivateKey
}

func newIssuer() (*issuer, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	i := &issuer{key: key}
	i.Server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		if r.URL.Path == "/keys" {
			_ = json.NewEncoder(w).Encode(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key.Public(), KeyID: "k", Algorithm: "ES256", Use: "sig"}}})
			return
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"issuer": i.URL, "jwks_uri": i.URL + "/keys", "response_types_supported": []string{"id_token"},
			"subject_types_supported": []string{"public"}, "id_token_signing_alg_values_supported": []string{"ES256"}})
	}))
	return i, err
}

func (i *issuer) Sign(claims any) (string, error) { return sign(jose.ES256, i.key, claims) }

func sign(alg jose.SignatureAlgorithm, key, claims any) (string, error) {
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: jose.JSONWebKey{Key: key, KeyID: "k"}}, (&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		return "", err
	}
	body, err := json.Marshal(claims)
	if err != nil {
		return "", err
	}
	jws, err := s.Sign(body)
	if err != nil {
		return "", err
	}
	return jws.CompactSerialize()
}

func certPEM(s *httptest.Server) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}))
}

func needsCluster(t testing.TB) {
	t.Helper()
	if testing.Short() {
		t.Skip("needs the API server binary: make test builds it; left out by SHORT=1")
	}
	shared.once.Do(func() { shared.err = startShared() })
	must(t, shared.err)
}

func startShared() (err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Minute)
	defer cancel()
	if shared.dir, err = os.MkdirTemp("", "remit-gateway-"); err != nil {
		return err
	}
	if shared.kubectl, err = testcluster.Kubectl(ctx); err != nil {
		return err
	}
	if shared.issuer, err = newIssuer(); err != nil {
		return err
	}
	shared.web = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if g := shared.serving.Load(); g != nil {
			g.Handler().ServeHTTP(w, r)
			return
		}
		panic(http.ErrAbortHandler)
	}))
	shared.web.TLS = &tls.Config{ClientAuth: tls.RequestClientCert}
	shared.web.StartTLS()
	cfg := testcluster.Config{Dir: shared.dir, Flags: []string{"--audit-webhook-batch-max-wait=200ms"}}
	if err := writeConfigs(&cfg); err != nil {
		return err
	}
	if shared.Cluster, err = testcluster.Start(ctx, cfg); err != nil {
		return err
	}
	rc, err := clientcmd.BuildConfigFromFlags("", shared.Kubeconfig)
	if err != nil {
		return err
	}
	rc.QPS = -1
	if shared.admin, err = client.NewForConfig(rc); err != nil {
		return err
	}
	for _, f := range []string{"base.yaml", "policies.yaml"} {
		if out, err := kubectl(shared.Kubeconfig, "", "apply", "-f", manifests+f); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
	}
	hour := int64(3600)
	tr, err := shared.admin.CoreV1().ServiceAccounts("remit").CreateToken(ctx, "broker",
		&authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: &hour}}, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	if shared.broker, err = kubeconfig("broker", tr.Status.Token); err != nil {
		return err
	}
	return settled(ctx)
}

// settled waits until the policies have stood as long as the driver asks.
func settled(ctx context.Context) error {
	d, err := driver.New(driver.Config{Kubeconfig: shared.broker, Namespaces: []string{"default"}, Installation: "test1"})
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

// writeConfigs fills the shipped sample files with this test's addresses.
func writeConfigs(cfg *testcluster.Config) error {
	pki := testcluster.PKI(shared.dir)
	hook := func(path string) string {
		return fmt.Sprintf(`{apiVersion: v1, kind: Config, current-context: c, contexts: [{name: c, context: {cluster: c, user: u}}],
clusters: [{name: c, cluster: {server: %q, certificate-authority-data: %s}}],
users: [{name: u, user: {client-certificate: %q, client-key: %q}}]}`, shared.web.URL+path,
			base64.StdEncoding.EncodeToString([]byte(certPEM(shared.web))), pki+"/webhook-client.crt", pki+"/webhook-client.key")
	}
	file := func(name, text string) (string, error) {
		path := filepath.Join(shared.dir, name)
		return path, os.WriteFile(path, []byte(text), 0o600)
	}
	sample := func(name string) string {
		b, err := os.ReadFile(manifests + name)
		if err != nil {
			return err.Error()
		}
		return string(b)
	}
	authorizeHook, err := file("authorize.kubeconfig", hook("/authorize"))
	if err != nil {
		return err
	}
	authentication := sample("authentication.yaml")
	pemStart, pemEnd := strings.Index(authentication, "      -----BEGIN"), strings.Index(authentication, "  claimValidationRules")
	indented := "      " + strings.ReplaceAll(strings.TrimSpace(certPEM(shared.issuer.Server)), "\n", "\n      ") + "\n"
	authentication = authentication[:pemStart] + indented + authentication[pemEnd:]
	authentication = strings.Replace(authentication, "https://grants.example.org", shared.issuer.URL, 1)
	if cfg.Authentication, err = file("authentication.yaml", authentication); err != nil {
		return err
	}
	authorization := strings.Replace(sample("authorization.yaml"), "/etc/kubernetes/remit.kubeconfig", authorizeHook, 1)
	if cfg.Authorization, err = file("authorization.yaml", authorization); err != nil {
		return err
	}
	if cfg.AuditPolicy, err = file("audit-policy.yaml", sample("audit-policy.yaml")); err != nil {
		return err
	}
	cfg.AuditWebhook, err = file("audit.kubeconfig", hook("/audit"))
	return err
}

func kubectl(kubeconfig, stdin string, args ...string) (string, error) {
	cmd := exec.Command(shared.kubectl, append([]string{"--kubeconfig", kubeconfig, "--cache-dir", filepath.Join(shared.dir, "cache")}, args...)...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func kubeconfig(name, token string) (string, error) {
	path := filepath.Join(shared.dir, name+".kubeconfig")
	return path, os.WriteFile(path, fmt.Appendf(nil, `{apiVersion: v1, kind: Config, current-context: c,
clusters: [{name: c, cluster: {server: %q, certificate-authority-data: %s}}], users: [{name: u, user: {token: %q}}],
contexts: [{name: c, context: {cluster: c, user: u}}]}`, shared.URL, base64.StdEncoding.EncodeToString(shared.CA), token), 0o600)
}

// world is one test's target: a namespace, the driver in some mode, the gateway that serves it, and what it recorded.
type world struct {
	ns     string
	driver *driver.Driver
	leases *leases
	acts   *acts
}

func newWorld(t *testing.T, mode driver.Mode) *world {
	t.Helper()
	needsCluster(t)
	ns, err := shared.admin.CoreV1().Namespaces().Create(t.Context(),
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "target-"}}, metav1.CreateOptions{})
	must(t, err)
	if out, err := kubectl(shared.Kubeconfig, "", "apply", "-n", ns.Name, "-f", manifests+"target.yaml"); err != nil {
		t.Fatal(out)
	}
	w := &world{ns: ns.Name, leases: &leases{}, acts: &acts{}}
	w.driver, err = driver.New(driver.Config{Mode: mode, Kubeconfig: shared.broker, Namespaces: []string{ns.Name}, Installation: "test1",
		Audience: audience, Issuer: shared.issuer.URL, Signer: shared.issuer})
	must(t, err)
	g, err := gateway.New(gateway.Config{Target: "production", Installation: "test1", Clients: pool(t), ClientName: "kube-apiserver-webhook-client",
		Leases: w.leases, Acts: w.acts, Decides: mode == driver.ModeWebhook, Allowed: w.driver.Allowed})
	must(t, err)
	shared.serving.Store(g)
	t.Cleanup(func() { shared.serving.Store(nil) })
	return w
}

func pool(t *testing.T) *x509.CertPool {
	p := x509.NewCertPool()
	if !p.AppendCertsFromPEM(shared.CA) {
		t.Fatal("no certificate authority")
	}
	return p
}

func (w *world) lease(ttl time.Duration) remit.Lease {
	l := newLease(remit.GrantPending)
	s := remit.StringValue
	l.Credentials, l.Action, l.Grant, l.Expires = nil, "kubernetes.apply", remit.NewGrantID(), l.Issued.Add(ttl)
	l.MintBefore = l.Issued.Add(10 * time.Second)
	l.Scope = remit.Args{"namespace": s(w.ns), "kind": s("Deployment"), "name": s("foo"), "image": s(goodImage)}
	return l
}

// mint does what the broker does: pending, mint, active with the credential's ids.
func (w *world) mint(t *testing.T, l remit.Lease) (remit.Lease, *client.Clientset, string) {
	t.Helper()
	w.leases.put(l)
	c, err := w.driver.Mint(t.Context(), l)
	must(t, err)
	l.State, l.Credentials = remit.GrantActive, c.IDs
	w.leases.put(l)
	path, err := kubeconfig(string(l.ID), c.Secret.Reveal())
	must(t, err)
	return l, holder(t, c.Secret.Reveal()), path
}

func holder(t *testing.T, token string) *client.Clientset {
	cs, err := client.NewForConfig(&rest.Config{Host: shared.URL, BearerToken: token, QPS: -1, TLSClientConfig: rest.TLSClientConfig{CAData: shared.CA}})
	must(t, err)
	return cs
}

func manifest(image string) string {
	return strings.ReplaceAll(`
apiVersion: apps/v1
kind: Deployment
metadata: {name: foo}
spec: {selector: {matchLabels: {app: foo}}, template: {metadata: {labels: {app: foo}}, spec: {containers: [{name: main, image: "IMAGE"}]}}}
`, "IMAGE", image)
}

func get(t *testing.T, h *client.Clientset, ns string) error {
	_, err := h.AppsV1().Deployments(ns).Get(t.Context(), "foo", metav1.GetOptions{})
	return err
}
