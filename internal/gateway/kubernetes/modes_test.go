// SPDX-License-Identifier: Apache-2.0

package kubernetes_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	authenticationv1 "k8s.io/api/authentication/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	client "k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"remit"
	driver "remit/internal/credential/kubernetes"
	"remit/internal/testcluster"
)

// The same story in all three modes, with kubectl as it is.
func TestModes(t *testing.T) {
	for _, mode := range []driver.Mode{driver.ModeServiceAccount, driver.ModeJWT, driver.ModeWebhook} {
		t.Run(string(mode), func(t *testing.T) {
			w := newWorld(t, mode)
			l, h, path := w.mint(t, w.lease(time.Minute))
			for range 2 {
				if out, err := kubectl(path, manifest(goodImage), "apply", "-n", w.ns, "-f", "-"); err != nil {
					t.Fatal(out)
				}
			}
			for what, args := range map[string][]string{
				"another image": {"apply", "-n", w.ns, "-f", "-"}, "another namespace": {"get", "deployment", "foo", "-n", "default"},
				"delete": {"delete", "deployment", "foo", "-n", w.ns}, "scale": {"scale", "deployment", "foo", "-n", w.ns, "--replicas=5"},
				"another name": {"create", "deployment", "bar", "-n", w.ns, "--image", goodImage}, "secrets": {"get", "secrets", "-n", w.ns},
			} {
				if out, err := kubectl(path, manifest(badImage), args...); err == nil || !strings.Contains(strings.ToLower(out), "forbidden") {
					t.Errorf("%s: %s", what, out)
				}
			}
			w.observed(t, l)
			start := time.Now()
			l.State = remit.GrantRevoking
			w.leases.put(l)
			must(t, w.driver.Revoke(t.Context(), l))
			for !apierrors.IsForbidden(get(t, h, w.ns)) && time.Since(start) < 5*time.Second {
			}
			t.Logf("refused %v after revocation", time.Since(start))
			if d := time.Since(start); d > time.Second {
				t.Errorf("the credential worked for %v after its revocation", d)
			}
		})
	}
}

// TestNoGuardsNoGrants: with a policy or a binding gone or changed, no mode mints, and each does again when it is restored.
func TestNoGuardsNoGrants(t *testing.T) {
	worlds := map[driver.Mode]*world{}
	for _, mode := range []driver.Mode{driver.ModeServiceAccount, driver.ModeJWT, driver.ModeWebhook} {
		worlds[mode] = newWorld(t, mode)
	}
	t.Cleanup(func() { // the cluster is shared
		if out, err := kubectl(shared.Kubeconfig, "", "apply", "-f", manifests+"policies.yaml"); err != nil {
			t.Error(out)
		}
	})
	for _, damage := range []string{
		"delete validatingadmissionpolicybinding remit-agents", "delete validatingadmissionpolicy remit-agents",
		"delete validatingadmissionpolicybinding remit-broker", "delete validatingadmissionpolicy remit-broker",
		`patch validatingadmissionpolicybinding remit-agents --type=merge -p {"spec":{"validationActions":["Audit"]}}`,
		`patch validatingadmissionpolicy remit-agents --type=merge -p {"spec":{"failurePolicy":"Ignore"}}`,
		`patch validatingadmissionpolicy remit-agents --type=json -p [{"op":"remove","path":"/spec/validations/1"}]`,
	} {
		if out, err := kubectl(shared.Kubeconfig, "", strings.Fields(damage)...); err != nil {
			t.Fatal(out)
		}
		for mode, w := range worlds {
			l := w.lease(time.Minute)
			if c, err := w.driver.Mint(t.Context(), l); remit.CodeOf(err) != remit.CodeUnavailable || !c.Secret.IsZero() {
				t.Errorf("%s after %q: %v", mode, damage, err)
			}
			if out, err := kubectl(shared.Kubeconfig, "", "-n", w.ns, "get", "rolebindings", "-l", "remit.internal/lease", "-o", "name"); err != nil || out != "" {
				t.Errorf("%s after %q: there is %s", mode, damage, out)
			}
		}
		if out, err := kubectl(shared.Kubeconfig, "", "apply", "-f", manifests+"policies.yaml"); err != nil {
			t.Fatal(out)
		}
		must(t, settled(t.Context()))
	}
	for mode, w := range worlds {
		if _, err := w.driver.Mint(t.Context(), w.lease(time.Minute)); err != nil {
			t.Errorf("%s, restored: %v", mode, err)
		}
	}
}

// observed waits until the audit log brought the apply and a refusal, joined to the lease.
func (w *world) observed(t *testing.T, l remit.Lease) {
	t.Helper()
	var applied, refused, minted bool
	for range 100 {
		for _, o := range w.acts.of(l.ID) {
			object := o.Resource == w.ns+"/deployments.apps/foo" || o.Resource == w.ns+"/deployments.apps"
			applied = applied || object && o.Verb == "create" && o.Allowed && o.Detail["images"] == goodImage && slices.Contains(l.Credentials, o.Credential)
			refused = refused || object && o.Verb == "patch" && !o.Allowed && strings.Contains(o.Detail["refused"], "image not approved")
			minted = minted || strings.HasSuffix(o.Resource, "/token") && o.Detail["user"] == driver.BrokerUser
		}
		if applied && refused {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	if !applied || !refused {
		t.Errorf("applied %v, refused %v, acts: %+v", applied, refused, w.acts.of(l.ID))
	}
	if strings.Contains(l.Credentials[0], "lease-") == minted {
		t.Errorf("token request observed: %v", minted)
	}
}

// The webhook refuses a revoked lease though its binding and token still stand: nothing is deleted here.
func TestWebhookEndsALeaseByItself(t *testing.T) {
	for _, mode := range []driver.Mode{driver.ModeServiceAccount, driver.ModeJWT, driver.ModeWebhook} {
		w := newWorld(t, mode)
		l, h, _ := w.mint(t, w.lease(time.Minute))
		for i := 0; !apierrors.IsNotFound(get(t, h, w.ns)); i++ {
			if i > 200 {
				t.Fatal(get(t, h, w.ns))
			}
		}
		l.State = remit.GrantRevoking
		w.leases.put(l)
		if err := get(t, h, w.ns); !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), "remit: the lease is revoking") {
			t.Errorf("%s: the next request: %v", mode, err)
		}
	}
}

// A grant token ends by itself, with Remit down and nothing revoked: after its exp and the API server's cache of ten seconds.
func TestGrantTokenEndsWithoutRemit(t *testing.T) {
	w := newWorld(t, driver.ModeJWT)
	l, h, _ := w.mint(t, w.lease(4*time.Second))
	for i := 0; !apierrors.IsNotFound(get(t, h, w.ns)) && i < 200; i++ {
	}
	l.Expires = l.Expires.Add(time.Hour) // the webhook is not what ends it here
	w.leases.put(l)
	end := l.Issued.Add(4 * time.Second)
	for !apierrors.IsUnauthorized(get(t, h, w.ns)) {
		if time.Since(end) > 12*time.Second {
			t.Fatal("the token lives on")
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Logf("rejected %v after exp", time.Since(end))
}

func TestRemitDown(t *testing.T) {
	w := newWorld(t, driver.ModeWebhook)
	_, h, _ := w.mint(t, w.lease(time.Minute))
	if err := get(t, h, w.ns); !apierrors.IsNotFound(err) {
		t.Fatal(err)
	}
	shared.serving.Store(nil)
	if err := get(t, h, w.ns); err == nil || apierrors.IsNotFound(err) {
		t.Errorf("an agent got through: %v", err)
	}
	if _, err := shared.admin.AppsV1().Deployments(w.ns).List(t.Context(), metav1.ListOptions{}); err != nil {
		t.Errorf("the administrator is affected: %v", err)
	}
}

// What the API server refuses of tokens, by the shipped AuthenticationConfiguration.
func TestForgedGrantTokens(t *testing.T) {
	w := newWorld(t, driver.ModeWebhook)
	now := time.Now()
	good := func() map[string]any {
		return map[string]any{"iss": shared.issuer.URL, "aud": []string{audience}, "sub": "spiffe://example.org/agent/deploy", "jti": "j",
			"iat": now.Unix(), "nbf": now.Unix(), "exp": now.Add(4 * time.Minute).Unix(),
			"remit": map[string]any{"lease": "l", "name": "n", "grant": "g", "groups": []string{"remit:agents", "remit:lease:n"}}}
	}
	who := func(token string) error {
		_, err := holder(t, token).AuthenticationV1().SelfSubjectReviews().Create(t.Context(), &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{})
		return err
	}
	token, err := shared.issuer.Sign(good())
	must(t, err)
	if err := who(token); !apierrors.IsForbidden(err) { // authentic, but of no lease: the webhook refuses
		t.Errorf("token without a lease: %v", err)
	}
	for what, change := range map[string]func(map[string]any){
		"ten minutes": func(c map[string]any) { c["exp"] = now.Add(10 * time.Minute).Unix() },
		"expired": func(c map[string]any) {
			c["iat"], c["exp"] = now.Add(-5*time.Minute).Unix(), now.Add(-time.Minute).Unix()
		},
		"another audience": func(c map[string]any) { c["aud"] = []string{"another-cluster"} },
		"another issuer":   func(c map[string]any) { c["iss"] = "https://127.0.0.1:1" },
		"no SPIFFE ID":     func(c map[string]any) { c["sub"] = "system:admin" },
		"foreign group": func(c map[string]any) {
			c["remit"].(map[string]any)["groups"] = []string{"remit:agents", "system:masters"}
		},
		"group of a lease": func(c map[string]any) {
			c["remit"].(map[string]any)["groups"] = []string{"remit:agents", "remit:lease:x"}
		},
		"no group":          func(c map[string]any) { c["remit"].(map[string]any)["groups"] = []string{} },
		"an SVID, no claim": func(c map[string]any) { delete(c, "remit") },
	} {
		claims := good()
		change(claims)
		token, err := shared.issuer.Sign(claims)
		must(t, err)
		if err := who(token); !apierrors.IsUnauthorized(err) {
			t.Errorf("%s: %v", what, err)
		}
	}
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	foreign, err := sign(jose.ES256, other, good())
	must(t, err)
	symmetric, err := sign(jose.HS256, []byte(strings.Repeat("k", 32)), good())
	must(t, err)
	body, err := json.Marshal(good())
	must(t, err)
	none := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none"}`)) + "." + base64.RawURLEncoding.EncodeToString(body) + "."
	for what, token := range map[string]string{"foreign key": foreign, "HS256": symmetric, "alg none": none} {
		if err := who(token); !apierrors.IsUnauthorized(err) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := w.driver.Mint(t.Context(), w.lease(10*time.Minute)); remit.CodeOf(err) != remit.CodeInvalid {
		t.Errorf("ten-minute lease: %v", err)
	}
}

// Two API servers on one etcd: a binding deleted through one ends the credential at the other.
func TestRevocationReachesTheSecondAPIServer(t *testing.T) {
	w := newWorld(t, driver.ModeJWT)
	second, err := testcluster.Start(t.Context(), testcluster.Config{Dir: t.TempDir(), Join: shared.Cluster,
		Authentication: filepath.Join(shared.dir, "authentication.yaml")})
	must(t, err)
	defer func() { _ = second.Stop() }()
	l, _, _ := w.mint(t, w.lease(time.Minute))
	token, err := clientcmd.LoadFromFile(filepath.Join(shared.dir, string(l.ID)+".kubeconfig"))
	must(t, err)
	h, err := client.NewForConfig(&rest.Config{Host: second.URL, BearerToken: token.AuthInfos["u"].Token, QPS: -1,
		TLSClientConfig: rest.TLSClientConfig{CAData: second.CA}})
	must(t, err)
	for i := 0; !apierrors.IsNotFound(get(t, h, w.ns)); i++ {
		if i > 500 {
			t.Fatal(get(t, h, w.ns))
		}
	}
	start := time.Now()
	must(t, w.driver.Revoke(t.Context(), l))
	for !apierrors.IsForbidden(get(t, h, w.ns)) && time.Since(start) < 5*time.Second {
	}
	t.Logf("refused by the second API server %v after the call of Revoke", time.Since(start))
	if time.Since(start) > time.Second {
		t.Error("too late")
	}
}
