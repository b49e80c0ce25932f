// SPDX-License-Identifier: Apache-2.0

package kubernetes_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/clientcmd"

	client "k8s.io/client-go/kubernetes"

	"remit"
	"remit/internal/credential/kubernetes"
)

func manifest(name, image string) string {
	return strings.NewReplacer("NAME", name, "IMAGE", image).Replace(`
apiVersion: apps/v1
kind: Deployment
metadata: {name: NAME}
spec:
  selector: {matchLabels: {app: NAME}}
  template:
    metadata: {labels: {app: NAME}}
    spec: {containers: [{name: main, image: "IMAGE"}]}
`)
}

func TestMintedCredentialAppliesWithKubectl(t *testing.T) {
	ns := target(t)
	d := newDriver(t, ns)
	must(t, d.Check(t.Context()))
	h := mint(t, d, applyLease(ns, "Deployment", "foo", nil))
	for _, args := range [][]string{
		{"apply", "-f", "-"}, {"apply", "-f", "-"}, // creates, then finds it unchanged
		{"apply", "--server-side", "--force-conflicts", "-f", "-"}, {"diff", "-f", "-"},
		{"set", "image", "deployment/foo", "main=" + goodImage}, {"get", "deployment", "foo"},
	} {
		if out, err := kubectl(h.kubeconfig, manifest("foo", goodImage), args...); err != nil {
			t.Fatalf("%v: %s", args, out)
		}
	}
	for _, args := range [][]string{
		{"apply", "-f", "-"}, {"apply", "--server-side", "--force-conflicts", "-f", "-"}, {"replace", "-f", "-"},
		{"set", "image", "deployment/foo", "main=" + badImage}, {"apply", "--dry-run=server", "-f", "-"},
	} {
		out, err := kubectl(h.kubeconfig, manifest("foo", badImage), args...)
		if err == nil || !strings.Contains(out, "image not approved") {
			t.Errorf("%v with another image: %v %s", args, err, out)
		}
	}
	for _, args := range [][]string{
		{"delete", "deployment", "foo"}, {"scale", "deployment", "foo", "--replicas=3"}, {"get", "deployment", "bar"}, {"get", "deployments"},
		{"get", "secrets"}, {"get", "pods", "-A"}, {"exec", "foo", "--", "sh"}, {"port-forward", "pod/foo", "1:1"}, {"attach", "foo"},
		{"create", "deployment", "bar", "--image=" + goodImage}, {"run", "foo", "--image=" + goodImage}, {"rollout", "restart", "deployment/foo"},
		{"create", "token", "default"}, {"label", "deployment", "foo", "team=x"}, {"annotate", "deployment", "foo", "team=x"},
		{"create", "deployment", "foo", "-n", "default", "--image=" + goodImage}, {"autoscale", "deployment", "foo", "--max=3"},
	} {
		out, err := kubectl(h.kubeconfig, "", args...)
		if err == nil || !strings.Contains(out, "orbidden") && !strings.Contains(out, "forbidden") {
			t.Errorf("%v: %v %s", args, err, out)
		}
	}
}

func TestMintAnswersItsBounds(t *testing.T) {
	ns := target(t)
	l := applyLease(ns, "Deployment", "foo", nil)
	c, err := newDriver(t, ns).Mint(t.Context(), l)
	must(t, err)
	if !c.Expires.Equal(l.Expires) || c.Native.Sub(l.Issued) < 10*time.Minute-2*time.Second || c.WorstCase != 670*time.Second {
		t.Errorf("expires %v, native %v, worst %v", c.Expires, c.Native, c.WorstCase)
	}
	if !slices.Contains(c.Bounds, "name foo") || len(c.NotBounded) == 0 || c.Type != "kubernetes" || len(c.Fields) != 3 {
		t.Errorf("%+v", c)
	}
	admin := shared.admin
	name := "remit-test1-" + string(l.ID)
	rb, err := admin.RbacV1().RoleBindings(ns).Get(t.Context(), name, metav1.GetOptions{})
	must(t, err)
	if rb.Labels["remit.internal/lease"] != string(l.ID) || rb.Labels["remit.internal/installation"] != "test1" {
		t.Errorf("labels %v", rb.Labels)
	}
	var me string
	rev, err := holderOf(t, c).AuthenticationV1().SelfSubjectReviews().Create(t.Context(), selfReview(), metav1.CreateOptions{})
	must(t, err)
	for _, id := range rev.Status.UserInfo.Extra["authentication.kubernetes.io/credential-id"] {
		me = id
	}
	if me != c.IDs[0] {
		t.Errorf("credential id %q, the cluster says %q", c.IDs[0], me)
	}
}

func TestPlanRefusesWhatTheClusterCannotHold(t *testing.T) {
	d, err := kubernetes.New(kubernetes.Config{Kubeconfig: fakeKubeconfig(t), Namespaces: []string{"production"}, Installation: "a"})
	must(t, err)
	if _, _, _, err := d.Plan(applyLease("production", "Deployment", "foo", nil)); err != nil {
		t.Fatal(err)
	}
	s := remit.StringValue
	for name, l := range map[string]remit.Lease{
		"other namespace":  applyLease("kube-system", "Deployment", "foo", nil),
		"no namespace":     applyLease("production", "Deployment", "foo", remit.Args{"namespace": remit.Value{}}),
		"namespace path":   applyLease("production/../kube-system", "Deployment", "foo", nil),
		"env name":         applyLease("production", "Deployment", "foo", remit.Args{"env": remit.ObjectValue(map[string]remit.Value{"A=B": s("x")})}),
		"env reference":    applyLease("production", "Deployment", "foo", remit.Args{"env": remit.ObjectValue(map[string]remit.Value{"A": remit.ObjectValue(nil)})}),
		"label":            applyLease("production", "Deployment", "foo", remit.Args{"labels": remit.ObjectValue(map[string]remit.Value{"a": s("b=c")})}),
		"unknown kind":     applyLease("production", "Secret", "foo", nil),
		"pod":              applyLease("production", "Pod", "foo", nil),
		"no name":          applyLease("production", "Deployment", "", nil),
		"name list":        applyLease("production", "Deployment", "x", remit.Args{"name": remit.ListValue(s("a"), s("b"))}),
		"tag only":         applyLease("production", "Deployment", "foo", remit.Args{"image": s("foo:v1")}),
		"no image":         applyLease("production", "Deployment", "foo", remit.Args{"image": remit.Value{}}),
		"unknown argument": applyLease("production", "Deployment", "foo", remit.Args{"hostNetwork": remit.BoolValue(true)}),
		"unknown action":   newLease("kubernetes.exec", remit.Args{"namespace": s("production"), "kind": s("Pod"), "name": s("foo")}),
		"delete of pod":    newLease("kubernetes.delete", remit.Args{"namespace": s("production"), "kind": s("Pod"), "name": s("foo")}),
		"get with image":   newLease("kubernetes.get", remit.Args{"namespace": s("production"), "kind": s("Pod"), "name": s("foo"), "image": s(goodImage)}),
		"half a replica":   applyLease("production", "Deployment", "foo", remit.Args{"replicas": s("1")}),
		"bad lease id": func() remit.Lease {
			l := applyLease("production", "Deployment", "foo", nil)
			l.ID = "lease-../../x"
			return l
		}(),
		"two hours": func() remit.Lease {
			l := applyLease("production", "Deployment", "foo", nil)
			l.Expires = l.Issued.Add(2 * time.Hour)
			return l
		}(),
	} {
		if _, _, _, err := d.Plan(l); remit.CodeOf(err) != remit.CodeInvalid {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := d.Mint(t.Context(), l); remit.CodeOf(err) != remit.CodeInvalid {
			t.Errorf("%s: mint: %v", name, err)
		}
	}
}

func TestReadAndDeleteLeases(t *testing.T) {
	ns := target(t)
	d := newDriver(t, ns)
	s := remit.StringValue
	for _, name := range []string{"foo", "bar"} {
		if out, err := kubectl(shared.Kubeconfig, manifest(name, badImage), "apply", "-n", ns, "-f", "-"); err != nil {
			t.Fatal(out)
		}
	}
	get := mint(t, d, newLease("kubernetes.get", remit.Args{"namespace": s(ns), "kind": s("Deployment"), "name": s("foo")}))
	_, err := get.AppsV1().Deployments(ns).Get(t.Context(), "foo", metav1.GetOptions{})
	must(t, err)
	_, err = get.AppsV1().Deployments(ns).Get(t.Context(), "bar", metav1.GetOptions{})
	forbidden(t, "get another", err)
	forbidden(t, "delete under get", get.AppsV1().Deployments(ns).Delete(t.Context(), "foo", metav1.DeleteOptions{}))
	list := mint(t, d, newLease("kubernetes.list", remit.Args{"namespace": s(ns), "kind": s("Deployment")}))
	all, err := list.AppsV1().Deployments(ns).List(t.Context(), metav1.ListOptions{})
	must(t, err)
	if len(all.Items) != 2 {
		t.Errorf("%d deployments", len(all.Items))
	}
	_, err = list.CoreV1().Secrets(ns).List(t.Context(), metav1.ListOptions{})
	forbidden(t, "list secrets", err)
	del := mint(t, d, newLease("kubernetes.delete", remit.Args{"namespace": s(ns), "kind": s("Deployment"), "name": s("foo")}))
	forbidden(t, "delete another", del.AppsV1().Deployments(ns).Delete(t.Context(), "bar", metav1.DeleteOptions{}))
	_, err = del.AppsV1().Deployments(ns).Patch(t.Context(), "foo", types.MergePatchType, []byte(`{"spec":{"replicas":9}}`), metav1.PatchOptions{})
	forbidden(t, "patch under delete", err)
	must(t, del.AppsV1().Deployments(ns).Delete(t.Context(), "foo", metav1.DeleteOptions{}))
}

// S19: without the policy, or with a changed one, nothing is minted and no binding is made.
func TestNothingIsMintedWithoutItsGuards(t *testing.T) {
	ns := target(t)
	d := newDriver(t, ns)
	bindings := shared.admin.AdmissionregistrationV1().ValidatingAdmissionPolicyBindings()
	policies := shared.admin.AdmissionregistrationV1().ValidatingAdmissionPolicies()
	restore := func() {
		if out, err := kubectl(shared.Kubeconfig, "", "apply", "-f", manifests+"policies.yaml"); err != nil {
			t.Fatal(out)
		}
	}
	defer func() { restore(); must(t, settled(context.WithoutCancel(t.Context()))) }()
	damage := map[string]func(){
		"binding gone":   func() { must(t, bindings.Delete(t.Context(), "remit-agents", metav1.DeleteOptions{})) },
		"binding audits": func() { patch(t, bindings.Patch, "remit-agents", `{"spec":{"validationActions":["Audit"]}}`) },
		"policy gone":    func() { must(t, policies.Delete(t.Context(), "remit-agents", metav1.DeleteOptions{})) },
		"policy weaker":  func() { patchPolicy(t, `{"spec":{"failurePolicy":"Ignore"}}`) },
	}
	for name, do := range damage {
		do()
		l := applyLease(ns, "Deployment", "foo", nil)
		if err := d.Check(t.Context()); remit.CodeOf(err) != remit.CodeUnavailable {
			t.Errorf("%s: check: %v", name, err)
		}
		if _, err := d.Mint(t.Context(), l); remit.CodeOf(err) != remit.CodeUnavailable {
			t.Errorf("%s: mint: %v", name, err)
		}
		_, err := shared.admin.RbacV1().RoleBindings(ns).Get(t.Context(), "remit-test1-"+string(l.ID), metav1.GetOptions{})
		if !apierrors.IsNotFound(err) {
			t.Errorf("%s: a binding was made: %v", name, err)
		}
		restore()
		if err := d.Check(t.Context()); err == nil {
			t.Errorf("%s: restored, and at once in force", name)
		}
		must(t, settled(t.Context()))
	}
}

func patch(t *testing.T, f func(context.Context, string, types.PatchType, []byte, metav1.PatchOptions, ...string) (*admissionv1.ValidatingAdmissionPolicyBinding, error), name, body string) {
	t.Helper()
	_, err := f(t.Context(), name, types.MergePatchType, []byte(body), metav1.PatchOptions{})
	must(t, err)
}

func patchPolicy(t *testing.T, body string) {
	t.Helper()
	_, err := shared.admin.AdmissionregistrationV1().ValidatingAdmissionPolicies().Patch(t.Context(), "remit-agents", types.MergePatchType,
		[]byte(body), metav1.PatchOptions{})
	must(t, err)
}

func TestCheckRefusesAnAdministratorsKubeconfig(t *testing.T) {
	ns := target(t)
	d := newDriver(t, ns, func(c *kubernetes.Config) { c.Kubeconfig = shared.Kubeconfig })
	if err := d.Check(t.Context()); remit.CodeOf(err) != remit.CodeForbidden {
		t.Errorf("check as administrator: %v", err)
	}
}

// The broker's own limits: what it may never do, with its own credential and no driver between.
func TestBrokerIsBound(t *testing.T) {
	for _, manifest := range []string{"target.yaml", "target-fast.yaml"} {
		t.Run(manifest, func(t *testing.T) { brokerIsBound(t, targetWith(t, manifest)) })
	}
}

func brokerIsBound(t *testing.T, ns string) {
	rc, err := clientcmd.BuildConfigFromFlags("", shared.broker)
	must(t, err)
	b, err := client.NewForConfig(rc)
	must(t, err)
	ctx, rbac := t.Context(), b.RbacV1()
	meta := metav1.ObjectMeta{Name: "remit-test1-" + string(remit.NewLeaseID())}
	role := func(r ...rbacv1.PolicyRule) error {
		_, err := rbac.Roles(ns).Create(ctx, &rbacv1.Role{ObjectMeta: meta, Rules: r}, metav1.CreateOptions{})
		return err
	}
	bind := func(in, kind, name string, subject rbacv1.Subject) error {
		_, err := rbac.RoleBindings(in).Create(ctx, &rbacv1.RoleBinding{ObjectMeta: meta, Subjects: []rbacv1.Subject{subject},
			RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: kind, Name: name}}, metav1.CreateOptions{})
		return err
	}
	lease := rbacv1.Subject{Kind: "ServiceAccount", Namespace: "remit-leases", Name: meta.Name}
	self := rbacv1.Subject{Kind: "ServiceAccount", Namespace: "remit", Name: "broker"}
	apps := func(verbs ...string) rbacv1.PolicyRule {
		return rbacv1.PolicyRule{APIGroups: []string{"apps"}, Resources: []string{"deployments"}, Verbs: verbs}
	}
	small := apps("patch")
	small.ResourceNames = []string{"foo"}
	must(t, role(small)) // what the broker is for
	_, token := b.CoreV1().ServiceAccounts("remit").CreateToken(ctx, "broker", tokenRequest(600), metav1.CreateOptions{})
	_, stranger := b.CoreV1().ServiceAccounts(ns).Create(ctx, account(meta.Name), metav1.CreateOptions{})
	_, other := b.CoreV1().ServiceAccounts("remit-leases").Create(ctx, account("admin"), metav1.CreateOptions{})
	_, deploy := b.AppsV1().Deployments(ns).Create(ctx, deployment("foo", nil), metav1.CreateOptions{})
	_, named := b.CoreV1().ServiceAccounts("remit-leases").Create(ctx, account("remit-test1-x"), metav1.CreateOptions{})
	_, secrets := b.CoreV1().Secrets(ns).List(ctx, metav1.ListOptions{})
	_, policies := b.AdmissionregistrationV1().ValidatingAdmissionPolicies().List(ctx, metav1.ListOptions{})
	for what, err := range map[string]error{
		"role with secrets":         role(rbacv1.PolicyRule{APIGroups: []string{""}, Resources: []string{"secrets"}, Verbs: []string{"get"}}),
		"role with any name":        role(apps("patch")),
		"role with any verb":        role(apps("*")),
		"binding to cluster-admin":  bind(ns, "ClusterRole", "cluster-admin", lease),
		"binding to its own rights": bind(ns, "ClusterRole", "remit-broker-target", lease),
		"binding of itself":         bind(ns, "Role", meta.Name, self),
		"binding elsewhere":         bind("default", "Role", meta.Name, lease),
		"token of itself":           token, "account in the target": stranger, "account of another name": other,
		"account of no lease": named, "its own binding gone": rbac.RoleBindings(ns).Delete(ctx, "remit-broker", metav1.DeleteOptions{}),
		"deployment": deploy, "secrets": secrets, "other policies": policies,
		"policy gone": b.AdmissionregistrationV1().ValidatingAdmissionPolicies().Delete(ctx, "remit-agents", metav1.DeleteOptions{}),
	} {
		forbidden(t, what, err)
	}
}

func TestMintIsNeverSentTooLate(t *testing.T) {
	ns := target(t)
	d := newDriver(t, ns, func(c *kubernetes.Config) { c.Installation = "late" })
	l := applyLease(ns, "Deployment", "foo", nil)
	l.MintBefore = time.Now().Add(-time.Millisecond)
	if _, err := d.Mint(t.Context(), l); remit.CodeOf(err) != remit.CodeUnavailable {
		t.Errorf("mint after MintBefore: %v", err)
	}
	ids, err := d.List(t.Context())
	must(t, err)
	if len(ids) > 0 {
		t.Errorf("something was made: %v", ids)
	}
}

func TestClusterDown(t *testing.T) {
	d, err := kubernetes.New(kubernetes.Config{Kubeconfig: fakeKubeconfig(t), Namespaces: []string{"production"}, Installation: "a", Timeout: time.Second})
	must(t, err)
	l := applyLease("production", "Deployment", "foo", nil)
	start := time.Now()
	if _, err := d.Mint(t.Context(), l); remit.CodeOf(err) != remit.CodeUnavailable {
		t.Errorf("mint: %v", err)
	}
	if err := d.Revoke(t.Context(), l); err == nil || !strings.Contains(err.Error(), "role binding") || !strings.Contains(err.Error(), "service account") {
		t.Errorf("revoke does not name all that is left: %v", err)
	}
	if _, err := d.List(t.Context()); remit.CodeOf(err) != remit.CodeUnavailable {
		t.Errorf("list: %v", err)
	}
	if err := d.Check(t.Context()); err == nil || errors.Is(err, context.Canceled) {
		t.Errorf("check: %v", err)
	}
	if d := time.Since(start); d > 20*time.Second {
		t.Errorf("took %v", d)
	}
}

func forbidden(t *testing.T, what string, err error) {
	t.Helper()
	if !apierrors.IsForbidden(err) {
		t.Errorf("%s: %v", what, err)
	}
}
