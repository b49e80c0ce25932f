// SPDX-License-Identifier: Apache-2.0

package kubernetes_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	client "k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"remit"
	"remit/internal/credential"
	"remit/internal/credential/credentialtest"
	"remit/internal/credential/kubernetes"
)

// holding delays the creation of role bindings: the request stays on its way after its sender gave up.
type holding struct {
	mu    sync.Mutex // guards delay
	delay time.Duration
	wg    sync.WaitGroup
}

func (h *holding) wrap(next http.RoundTripper) http.RoundTripper {
	return roundTrip(func(r *http.Request) (*http.Response, error) {
		h.mu.Lock()
		delay := h.delay
		h.mu.Unlock()
		if delay == 0 || r.Method != http.MethodPost || !strings.HasSuffix(r.URL.Path, "/rolebindings") {
			return next.RoundTrip(r)
		}
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return nil, err
		}
		late := r.Clone(context.WithoutCancel(r.Context()))
		late.Body = io.NopCloser(bytes.NewReader(body))
		h.wg.Go(func() {
			time.Sleep(delay)
			if resp, err := next.RoundTrip(late); err == nil {
				_ = resp.Body.Close()
			}
		})
		<-r.Context().Done()
		return nil, r.Context().Err()
	})
}

func (h *holding) hold(d time.Duration) func() {
	h.set(d)
	return func() { h.wg.Wait(); h.set(0) }
}

func (h *holding) set(d time.Duration) {
	h.mu.Lock()
	h.delay = d
	h.mu.Unlock()
}

// standing counts with the administrator's eyes.
func standing(ctx context.Context, l remit.Lease) ([]string, error) {
	var found []string
	ns := l.Scope["namespace"].Text()
	for _, in := range []string{ns, "remit-leases"} {
		rb, err1 := shared.admin.RbacV1().RoleBindings(in).List(ctx, metav1.ListOptions{})
		r, err2 := shared.admin.RbacV1().Roles(in).List(ctx, metav1.ListOptions{})
		sa, err3 := shared.admin.CoreV1().ServiceAccounts(in).List(ctx, metav1.ListOptions{})
		for _, err := range []error{err1, err2, err3} {
			if err != nil {
				return nil, err
			}
		}
		for _, o := range rb.Items {
			found = append(found, "rolebinding/"+o.Name)
		}
		for _, o := range r.Items {
			found = append(found, "role/"+o.Name)
		}
		for _, o := range sa.Items {
			found = append(found, "serviceaccount/"+o.Name)
		}
	}
	return slices.DeleteFunc(found, func(s string) bool { return !strings.HasSuffix(s, string(l.ID)) }), nil
}

func live(wrap func(credential.Driver) credential.Driver) func(t *testing.T) credentialtest.Live {
	return func(t *testing.T) credentialtest.Live {
		ns := target(t)
		h := &holding{}
		d := newDriver(t, ns, func(c *kubernetes.Config) { c.Wrap = h.wrap })
		patch := func(ctx context.Context, c remit.Credential, name, image string) error {
			_, err := kubectlContext(ctx, t, c, strings.NewReplacer("foo", name).Replace(manifest("foo", image)))
			return err
		}
		return credentialtest.Live{
			Driver: wrap(d), Hold: h.hold, Standing: standing, Widen: widenSecrets, Snapshot: func(ctx context.Context) (string, error) { return snapshot(ctx, ns) },
			Lease: func() remit.Lease { return applyLease(ns, "Deployment", "foo", nil) },
			Act: func(ctx context.Context, _ remit.Lease, c remit.Credential) error {
				return patch(ctx, c, "foo", goodImage)
			},
			Forbidden: map[string]func(context.Context, remit.Lease, remit.Credential) error{
				"another image": func(ctx context.Context, _ remit.Lease, c remit.Credential) error {
					return patch(ctx, c, "foo", badImage)
				},
				"another name": func(ctx context.Context, _ remit.Lease, c remit.Credential) error {
					return patch(ctx, c, "bar", goodImage)
				},
				"delete": func(ctx context.Context, _ remit.Lease, c remit.Credential) error {
					return holderOf(t, c).AppsV1().Deployments(ns).Delete(ctx, "foo", metav1.DeleteOptions{})
				},
				"another namespace": func(ctx context.Context, _ remit.Lease, c remit.Credential) error {
					_, err := holderOf(t, c).AppsV1().Deployments("default").Create(ctx, deployment("foo", nil), metav1.CreateOptions{})
					return err
				},
				"secrets": func(ctx context.Context, _ remit.Lease, c remit.Credential) error {
					_, err := holderOf(t, c).CoreV1().Secrets(ns).List(ctx, metav1.ListOptions{})
					return err
				},
			},
		}
	}
}

// widenSecrets lets the lease's holder read secrets.
func widenSecrets(ctx context.Context, l remit.Lease) error {
	rbac, ns := shared.admin.RbacV1(), l.Scope["namespace"].Text()
	meta := metav1.ObjectMeta{Name: "wider"}
	_, err1 := rbac.Roles(ns).Create(ctx, &rbacv1.Role{ObjectMeta: meta, Rules: []rbacv1.PolicyRule{
		{APIGroups: []string{""}, Resources: []string{"secrets"}, Verbs: []string{"get"}}}}, metav1.CreateOptions{})
	_, err2 := rbac.RoleBindings(ns).Create(ctx, &rbacv1.RoleBinding{ObjectMeta: meta,
		RoleRef:  rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: meta.Name},
		Subjects: []rbacv1.Subject{{Kind: "ServiceAccount", Namespace: "remit-leases", Name: "remit-test1-" + string(l.ID)}}}, metav1.CreateOptions{})
	return errors.Join(err1, err2)
}

// snapshot names every object of the namespace, and of the policies, with the version in which it stands.
func snapshot(ctx context.Context, ns string) (string, error) {
	var all []string
	for _, args := range [][]string{
		{"-n", ns, "get", "deployments,replicasets,statefulsets,daemonsets,jobs,cronjobs,pods,secrets,configmaps,serviceaccounts,roles,rolebindings"},
		{"-n", "remit-leases", "get", "serviceaccounts,roles,rolebindings"}, {"get", "validatingadmissionpolicies,validatingadmissionpolicybindings"},
	} {
		out, err := kubectl(shared.Kubeconfig, "", append(args, "-o",
			`jsonpath={range .items[*]}{.kind}/{.metadata.name}@{.metadata.resourceVersion} {end}`)...)
		if err != nil {
			return "", fmt.Errorf("%w: %s", err, out)
		}
		all = append(all, out)
	}
	return strings.Join(all, "\n"), ctx.Err()
}

func kubectlContext(_ context.Context, t *testing.T, c remit.Credential, text string) (string, error) {
	out, err := kubectl(holderOf(t, c).kubeconfig, text, "apply", "-f", "-")
	if err != nil {
		return out, fmt.Errorf("%w: %s", err, out)
	}
	return out, nil
}

func TestDriver(t *testing.T) {
	credentialtest.Test(t, live(func(d credential.Driver) credential.Driver { return d }))
}

// idle is a driver whose Revoke does nothing.
type idle struct{ *kubernetes.Driver }

func (idle) Revoke(context.Context, remit.Lease) error { return nil }

func TestSuiteNoticesADriverThatDoesNotRevoke(t *testing.T) {
	credentialtest.MustFail(t, live(func(d credential.Driver) credential.Driver { return idle{d.(*kubernetes.Driver)} }))
}

// What stands at the cluster and is on no record, as after a restored backup, is listed and removed by its id alone.
func TestRevokeOfAnUnknownLease(t *testing.T) {
	ns := target(t)
	d := newDriver(t, ns)
	l := applyLease(ns, "Deployment", "foo", nil)
	_, err := d.Mint(t.Context(), l)
	must(t, err)
	ids, err := d.List(t.Context())
	must(t, err)
	if !slices.Contains(ids, l.ID) {
		t.Fatalf("listed %v", ids)
	}
	must(t, d.Revoke(t.Context(), remit.Lease{ID: l.ID, Target: "production"}))
	left, err := standing(t.Context(), l)
	must(t, err)
	if len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

func TestRevokeGoesOnAfterAFailure(t *testing.T) {
	ns := target(t)
	fail := false
	d := newDriver(t, ns, func(c *kubernetes.Config) {
		c.Wrap = func(next http.RoundTripper) http.RoundTripper {
			return roundTrip(func(r *http.Request) (*http.Response, error) {
				if fail && r.Method == http.MethodDelete && strings.Contains(r.URL.Path, "/serviceaccounts/") {
					return nil, fmt.Errorf("cut")
				}
				return next.RoundTrip(r)
			})
		}
	})
	l := applyLease(ns, "Deployment", "foo", nil)
	_, err := d.Mint(t.Context(), l)
	must(t, err)
	fail = true
	if err := d.Revoke(t.Context(), l); err == nil {
		t.Error("revoke hides its failure")
	}
	left, err := standing(t.Context(), l)
	must(t, err)
	if !slices.Equal(left, []string{"serviceaccount/remit-test1-" + string(l.ID)}) {
		t.Errorf("left: %v", left)
	}
	fail = false
	must(t, d.Revoke(t.Context(), l))
}

const requestsPerMint = 9 // account and token; role and binding; four guards and who Remit is

// A crash after each request of Mint: whatever was made, Revoke from the recorded lease leaves nothing.
func TestCrashAfterEachRequest(t *testing.T) {
	ns := target(t)
	for n := 1; n <= requestsPerMint; n++ {
		left, cut := n, false
		var mu sync.Mutex
		d := newDriver(t, ns, func(c *kubernetes.Config) {
			c.Wrap = func(next http.RoundTripper) http.RoundTripper {
				return roundTrip(func(r *http.Request) (*http.Response, error) {
					mu.Lock()
					left--
					cut = left < 0
					dead := cut
					mu.Unlock()
					if dead {
						return nil, fmt.Errorf("crashed")
					}
					return next.RoundTrip(r)
				})
			}
		})
		l := applyLease(ns, "Deployment", "foo", nil)
		_, err := d.Mint(t.Context(), l)
		if (err == nil) != (n == requestsPerMint) {
			t.Errorf("mint of 9 requests, cut after %d: %v", n, err)
		}
		must(t, newDriver(t, ns).Revoke(t.Context(), l))
		found, err := standing(t.Context(), l)
		must(t, err)
		if len(found) > 0 {
			t.Errorf("after %d requests: %v", n, found)
		}
	}
}

func TestSweepEndsWhatExpired(t *testing.T) {
	ns := target(t)
	path, err := accountKubeconfig(t.Context(), "sweeper")
	must(t, err)
	rc, err := clientcmd.BuildConfigFromFlags("", path)
	must(t, err)
	sweeper, err := client.NewForConfig(rc)
	must(t, err)
	in := func(name string) func(*kubernetes.Config) {
		return func(c *kubernetes.Config) { c.Installation = name }
	}
	expired, alive, foreign := applyLease(ns, "Deployment", "a", nil), applyLease(ns, "Deployment", "b", nil), applyLease(ns, "Deployment", "c", nil)
	alive.Expires = alive.Expires.Add(10 * time.Minute)
	_, err = newDriver(t, ns, in("swept")).Mint(t.Context(), expired)
	must(t, err)
	_, err = newDriver(t, ns, in("swept")).Mint(t.Context(), alive)
	must(t, err)
	_, err = newDriver(t, ns, in("foreign")).Mint(t.Context(), foreign)
	must(t, err)
	now := expired.Expires.Add(2 * time.Second)
	n, err := kubernetes.Sweep(t.Context(), sweeper, []string{ns}, "swept", now)
	must(t, err)
	if n != 1 {
		t.Errorf("%d leases swept", n)
	}
	for l, want := range map[*remit.Lease]int{&expired: 0, &alive: 3, &foreign: 3} {
		left, err := standing(t.Context(), *l)
		must(t, err)
		if len(left) != want {
			t.Errorf("lease about %s: %v", l.Scope["name"].Text(), left)
		}
	}
	_, err = shared.admin.CoreV1().ServiceAccounts("remit-leases").Create(t.Context(), account("stranger"), metav1.CreateOptions{})
	must(t, err)
	err = sweeper.CoreV1().ServiceAccounts("remit-leases").Delete(t.Context(), "stranger", metav1.DeleteOptions{})
	if !apierrors.IsForbidden(err) {
		t.Errorf("the sweeper deletes what is no lease: %v", err)
	}
}

// Two installations on one cluster neither list nor revoke each other's leases.
func TestInstallationsKeepApart(t *testing.T) {
	ns := target(t)
	one := newDriver(t, ns, func(c *kubernetes.Config) { c.Installation = "one" })
	two := newDriver(t, ns, func(c *kubernetes.Config) { c.Installation = "two" })
	l := applyLease(ns, "Deployment", "foo", nil)
	_, err := one.Mint(t.Context(), l)
	must(t, err)
	must(t, two.Revoke(t.Context(), l))
	ids, err := two.List(t.Context())
	must(t, err)
	_, err = kubernetes.Sweep(t.Context(), shared.admin, []string{ns}, "two", l.Expires.Add(time.Hour))
	must(t, err)
	left, err := standing(t.Context(), l)
	must(t, err)
	if len(ids) != 0 || len(left) != 3 {
		t.Errorf("listed %v, left %v", ids, left)
	}
	// Somebody who may write labels gives the first's object the second's: what is named otherwise is not the second's lease.
	for _, o := range []string{"-n=" + ns + " rolebinding", "-n=" + ns + " role", "-n=remit-leases serviceaccount"} {
		args := append(strings.Fields("label --overwrite "+o), "remit-one-"+string(l.ID), "remit.internal/installation=two")
		if out, err := kubectl(shared.Kubeconfig, "", args...); err != nil {
			t.Fatal(out)
		}
	}
	if ids, err = two.List(t.Context()); err != nil || len(ids) != 0 {
		t.Errorf("listed by its labels: %v %v", ids, err)
	}
	n, err := kubernetes.Sweep(t.Context(), shared.admin, []string{ns}, "two", l.Expires.Add(time.Hour))
	must(t, err)
	if left, err = standing(t.Context(), l); err != nil || n != 0 || len(left) != 3 {
		t.Errorf("swept by its labels: %d, left %v, %v", n, left, err)
	}
}

func TestLatency(t *testing.T) {
	for _, manifest := range []string{"target.yaml", "target-fast.yaml"} {
		t.Run(manifest, func(t *testing.T) { latency(t, manifest) })
	}
}

func latency(t *testing.T, manifest string) {
	ns := targetWith(t, manifest)
	d := newDriver(t, ns)
	const rounds = 60
	var mints, ends []time.Duration
	for range rounds {
		l := applyLease(ns, "Deployment", "foo", nil)
		start := time.Now()
		c, err := d.Mint(t.Context(), l)
		mints = append(mints, time.Since(start))
		must(t, err)
		ends = append(ends, untilRefused(t, d, ns, l, holderOf(t, c)))
	}
	slices.Sort(mints)
	slices.Sort(ends)
	t.Logf("mint p50 %v p95 %v, from revoke to the first refusal p50 %v p99 %v", mints[rounds/2], mints[rounds*95/100], ends[rounds/2], ends[rounds-1])
	if ends[rounds-1] > time.Second {
		t.Errorf("a revocation took %v", ends[rounds-1])
	}
}

// untilRefused returns the time from the call of Revoke to the first refused request, over a warm connection in use.
func untilRefused(t *testing.T, d *kubernetes.Driver, ns string, l remit.Lease, h holder) time.Duration {
	t.Helper()
	try := func() error {
		_, err := h.AppsV1().Deployments(ns).Get(t.Context(), "foo", metav1.GetOptions{})
		return err
	}
	for i := 0; !apierrors.IsNotFound(try()); i++ { // allowed, though there is no such deployment
		if i > 1000 {
			t.Fatal("the credential never worked")
		}
	}
	refused := make(chan time.Time, 1)
	go func() {
		for !apierrors.IsForbidden(try()) && t.Context().Err() == nil {
		}
		refused <- time.Now()
	}()
	start := time.Now()
	must(t, d.Revoke(t.Context(), l))
	return (<-refused).Sub(start)
}
