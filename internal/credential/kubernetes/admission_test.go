// SPDX-License-Identifier: Apache-2.0

package kubernetes_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"remit"
)

func selfReview() *authenticationv1.SelfSubjectReview { return &authenticationv1.SelfSubjectReview{} }

func tokenRequest(seconds int64) *authenticationv1.TokenRequest {
	return &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: &seconds}}
}

func account(name string) *corev1.ServiceAccount {
	return &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: name}}
}

func fakeKubeconfig(t *testing.T) string {
	path := filepath.Join(t.TempDir(), "kubeconfig")
	must(t, os.WriteFile(path, []byte(`{apiVersion: v1, kind: Config, current-context: c, users: [{name: u, user: {token: t}}],
clusters: [{name: c, cluster: {server: "https://127.0.0.1:1"}}], contexts: [{name: c, context: {cluster: c, user: u}}]}`), 0o600))
	return path
}

func podTemplate(name string) corev1.PodTemplateSpec {
	return corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": name}},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "main", Image: goodImage}}}}
}

func deployment(name string, change func(*appsv1.Deployment)) *appsv1.Deployment {
	d := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"app": name}}, Spec: appsv1.DeploymentSpec{
		Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": name}}, Template: podTemplate(name)}}
	if change != nil {
		change(d)
	}
	return d
}

// widen gives the lease's holder every right of the namespace but the virtual resources: what the admission policy refuses
// then, it refuses by itself.
func widen(t *testing.T, ns string, l remit.Lease) {
	t.Helper()
	ctx, rbac := t.Context(), shared.admin.RbacV1()
	_, err := rbac.Roles(ns).Create(ctx, &rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Name: "wide"}, Rules: []rbacv1.PolicyRule{
		{APIGroups: []string{"", "apps", "batch", "autoscaling", "policy", "networking.k8s.io"}, Resources: []string{"*"}, Verbs: []string{"*"}}}}, metav1.CreateOptions{})
	must(t, err)
	_, err = rbac.RoleBindings(ns).Create(ctx, &rbacv1.RoleBinding{ObjectMeta: metav1.ObjectMeta{Name: "wide"},
		RoleRef:  rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: "wide"},
		Subjects: []rbacv1.Subject{{Kind: "ServiceAccount", Namespace: "remit-leases", Name: "remit-test1-" + string(l.ID)}}}, metav1.CreateOptions{})
	must(t, err)
}

type change struct {
	name string
	do   func(*appsv1.Deployment)
	say  string // part of the refusal
}

func pod(f func(*corev1.PodSpec)) func(*appsv1.Deployment) {
	return func(d *appsv1.Deployment) { f(&d.Spec.Template.Spec) }
}

func container(f func(*corev1.Container)) func(*appsv1.Deployment) {
	return func(d *appsv1.Deployment) { f(&d.Spec.Template.Spec.Containers[0]) }
}

func yes() *bool { b := true; return &b }

// Changes that no grant of this test allows, neither on create nor on update.
var refused = []change{
	{"image", container(func(c *corev1.Container) { c.Image = badImage }), "image not approved"},
	{"image by tag", container(func(c *corev1.Container) { c.Image = "registry.example/team/foo:v1" }), "image not approved"},
	{"image with tag beside", container(func(c *corev1.Container) { c.Image = strings.Replace(goodImage, "@", ":v1@", 1) }), "image not approved"},
	{"init container", pod(func(p *corev1.PodSpec) { p.InitContainers = []corev1.Container{{Name: "i", Image: badImage}} }), "image not approved"},
	{"second container", pod(func(p *corev1.PodSpec) {
		p.Containers = append(p.Containers, corev1.Container{Name: "b", Image: badImage})
	}), "image not approved"},
	{"service account", pod(func(p *corev1.PodSpec) { p.ServiceAccountName = "admin" }), "remit:"},
	{"command", container(func(c *corev1.Container) { c.Command = []string{"sh", "-c", "id"} }), "command"},
	{"args", container(func(c *corev1.Container) { c.Args = []string{"--admin"} }), "args"},
	{"env", container(func(c *corev1.Container) { c.Env = []corev1.EnvVar{{Name: "LD_PRELOAD", Value: "/x"}} }), "environment"},
	{"env from a secret", container(func(c *corev1.Container) {
		c.EnvFrom = []corev1.EnvFromSource{{SecretRef: &corev1.SecretEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "s"}}}}
	}), "remit:"},
	{"lifecycle", container(func(c *corev1.Container) {
		c.Lifecycle = &corev1.Lifecycle{PostStart: &corev1.LifecycleHandler{Exec: &corev1.ExecAction{Command: []string{"sh"}}}}
	}), "remit:"},
	{"exec probe", container(func(c *corev1.Container) {
		c.LivenessProbe = &corev1.Probe{ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"sh"}}}}
	}), "remit:"},
	{"probe of another host", container(func(c *corev1.Container) {
		c.LivenessProbe = &corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Host: "10.0.0.1", Port: intstr.FromInt32(80)}}}
	}), "remit:"},
	{"host path", pod(func(p *corev1.PodSpec) {
		p.Volumes = append(p.Volumes, corev1.Volume{Name: "v", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/"}}})
	}), "remit:"},
	{"secret volume", pod(func(p *corev1.PodSpec) {
		p.Volumes = append(p.Volumes, corev1.Volume{Name: "v", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "s"}}})
	}), "remit:"},
	{"host network", pod(func(p *corev1.PodSpec) { p.HostNetwork = true }), "remit:"},
	{"host pid", pod(func(p *corev1.PodSpec) { p.HostPID = true }), "remit:"},
	{"node", pod(func(p *corev1.PodSpec) { p.NodeName = "master" }), "remit:"},
	{"node selector", pod(func(p *corev1.PodSpec) { p.NodeSelector = map[string]string{"a": "b"} }), "remit:"},
	{"tolerations", pod(func(p *corev1.PodSpec) { p.Tolerations = []corev1.Toleration{{Operator: "Exists"}} }), "remit:"},
	{"runtime class", pod(func(p *corev1.PodSpec) { s := "x"; p.RuntimeClassName = &s }), "remit:"},
	{"pull secrets", pod(func(p *corev1.PodSpec) { p.ImagePullSecrets = []corev1.LocalObjectReference{{Name: "s"}} }), "remit:"},
	{"shared processes", pod(func(p *corev1.PodSpec) { p.ShareProcessNamespace = yes() }), "remit:"},
	{"host alias", pod(func(p *corev1.PodSpec) {
		p.HostAliases = []corev1.HostAlias{{IP: "10.0.0.1", Hostnames: []string{"db"}}}
	}), "remit:"},
	{"dns", pod(func(p *corev1.PodSpec) {
		p.DNSPolicy = "None"
		p.DNSConfig = &corev1.PodDNSConfig{Nameservers: []string{"10.0.0.1"}}
	}), "remit:"},
	{"privilege escalation", container(func(c *corev1.Container) {
		c.SecurityContext = &corev1.SecurityContext{AllowPrivilegeEscalation: yes()}
	}), "remit:"},
	{"capability", container(func(c *corev1.Container) {
		c.SecurityContext = &corev1.SecurityContext{Capabilities: &corev1.Capabilities{Add: []corev1.Capability{"SYS_ADMIN"}}}
	}), "remit:"},
	{"unconfined", pod(func(p *corev1.PodSpec) {
		p.SecurityContext = &corev1.PodSecurityContext{SeccompProfile: &corev1.SeccompProfile{Type: "Unconfined"}}
	}), "remit:"},
	{"host port", container(func(c *corev1.Container) { c.Ports = []corev1.ContainerPort{{ContainerPort: 80, HostPort: 80}} }), "remit:"},
	{"working directory", container(func(c *corev1.Container) { c.WorkingDir = "/tmp" }), "remit:"},
	{"terminal", container(func(c *corev1.Container) { c.TTY = true }), "remit:"},
	{"replicas", func(d *appsv1.Deployment) { n := int32(50); d.Spec.Replicas = &n }, "replicas"},
	{"pod annotation", func(d *appsv1.Deployment) {
		d.Spec.Template.Annotations = map[string]string{"sidecar.istio.io/inject": "true"}
	}, "remit:"},
	{"pod label", func(d *appsv1.Deployment) { d.Spec.Template.Labels["service"] = "payments" }, "label"},
	{"label", func(d *appsv1.Deployment) { d.Labels["team"] = "x" }, "label"},
	{"annotation", func(d *appsv1.Deployment) { d.Annotations = map[string]string{"keel.sh/policy": "all"} }, "annotations"},
	{"owner", func(d *appsv1.Deployment) {
		d.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "Pod", Name: "x", UID: "y"}}
	}, "owner references"},
	{"finalizer", func(d *appsv1.Deployment) { d.Finalizers = []string{"example.org/x"} }, "finalizers"},
	{"paused", func(d *appsv1.Deployment) { d.Spec.Paused = true }, "remit:"},
}

func denied(t *testing.T, what, say string, err error) {
	t.Helper()
	if !apierrors.IsForbidden(err) || !strings.Contains(fmt.Sprint(err), "remit-agents") || !strings.Contains(fmt.Sprint(err), say) {
		t.Errorf("%s: want a refusal that says %q, got: %v", what, say, err)
	}
}

func TestAdmissionOnCreate(t *testing.T) {
	ns := target(t)
	l := applyLease(ns, "Deployment", "foo", nil)
	h := mint(t, newDriver(t, ns), l)
	for _, c := range refused {
		_, err := h.AppsV1().Deployments(ns).Create(t.Context(), deployment("foo", c.do), metav1.CreateOptions{})
		denied(t, "create with "+c.name, c.say, err)
	}
	selector := deployment("foo", func(d *appsv1.Deployment) {
		d.Spec.Selector = &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{
			{Key: "app", Operator: "In", Values: []string{"foo", "payments"}}}}
	})
	_, err := h.AppsV1().Deployments(ns).Create(t.Context(), selector, metav1.CreateOptions{})
	denied(t, "selector over others", "remit:", err)
	_, err = h.AppsV1().Deployments(ns).Create(t.Context(), deployment("bar", nil), metav1.CreateOptions{})
	denied(t, "another name", "not in the grant", err)
	generated := deployment("foo", nil)
	generated.Name, generated.GenerateName = "", "foo"
	_, err = h.AppsV1().Deployments(ns).Create(t.Context(), generated, metav1.CreateOptions{})
	denied(t, "generated name", "not in the grant", err)
	full := deployment("foo", func(d *appsv1.Deployment) {
		c := &d.Spec.Template.Spec.Containers[0]
		c.Ports = []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}}
		c.ReadinessProbe = &corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/", Port: intstr.FromInt32(8080)}}}
		c.SecurityContext = &corev1.SecurityContext{RunAsNonRoot: yes(), Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}}}
		d.Spec.Template.Spec.InitContainers = []corev1.Container{{Name: "init", Image: goodImage}}
		d.Spec.Template.Spec.SecurityContext = &corev1.PodSecurityContext{SeccompProfile: &corev1.SeccompProfile{Type: "RuntimeDefault"}}
	})
	_, err = h.AppsV1().Deployments(ns).Create(t.Context(), full, metav1.CreateOptions{})
	must(t, err)
}

func TestAdmissionOnUpdate(t *testing.T) {
	ns := target(t)
	deployments := shared.admin.AppsV1().Deployments(ns)
	old := deployment("foo", func(d *appsv1.Deployment) { // as the owners made it, with what no agent could
		p := &d.Spec.Template.Spec
		p.ServiceAccountName, p.Volumes = "payments", []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}}
		p.Containers[0].Image, p.Containers[0].Command = oldImage, []string{"serve"}
		p.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "data", MountPath: "/data"}}
		p.InitContainers = []corev1.Container{{Name: "init", Image: goodImage}}
		d.Spec.Template.Labels["service"] = "foo-front"
	})
	_, err := deployments.Create(t.Context(), old, metav1.CreateOptions{})
	must(t, err)
	l := applyLease(ns, "Deployment", "foo", nil)
	h := mint(t, newDriver(t, ns), l)
	more := append([]change{
		{"no command", container(func(c *corev1.Container) { c.Command = nil }), "remit:"},
		{"no volume", pod(func(p *corev1.PodSpec) { p.Volumes, p.Containers[0].VolumeMounts = nil, nil }), "remit:"},
		{"other mount", container(func(c *corev1.Container) { c.VolumeMounts[0].MountPath = "/etc" }), "remit:"},
		{"approved extra container", pod(func(p *corev1.PodSpec) {
			p.Containers = append(p.Containers, corev1.Container{Name: "b", Image: goodImage})
		}), "remit:"},
		{"init container becomes main", pod(func(p *corev1.PodSpec) {
			p.InitContainers[0], p.Containers[0] = corev1.Container{Name: "main", Image: goodImage}, corev1.Container{Name: "init", Image: goodImage}
		}), "remit:"},
		{"default service account", pod(func(p *corev1.PodSpec) { p.ServiceAccountName, p.DeprecatedServiceAccount = "", "" }), "remit:"},
		{"strategy", func(d *appsv1.Deployment) { d.Spec.Strategy = appsv1.DeploymentStrategy{Type: "Recreate"} }, "remit:"},
		{"label away", func(d *appsv1.Deployment) { delete(d.Labels, "app") }, "label"},
		{"resources", container(func(c *corev1.Container) { c.ImagePullPolicy = "Never" }), "remit:"},
	}, refused...)
	for _, c := range more {
		now, err := deployments.Get(t.Context(), "foo", metav1.GetOptions{})
		must(t, err)
		now.Spec.Template.Spec.Containers[0].Image = goodImage
		c.do(now)
		_, err = h.AppsV1().Deployments(ns).Update(t.Context(), now, metav1.UpdateOptions{})
		denied(t, "update of "+c.name, c.say, err)
	}
	now, err := deployments.Get(t.Context(), "foo", metav1.GetOptions{})
	must(t, err)
	now.Spec.Template.Spec.Containers[0].Image = goodImage
	_, err = h.AppsV1().Deployments(ns).Update(t.Context(), now, metav1.UpdateOptions{})
	must(t, err)
}

// With every right of the namespace in RBAC, the policy alone still lets nothing through but the named object.
func TestAdmissionHoldsWithoutRBAC(t *testing.T) {
	ns := target(t)
	l := applyLease(ns, "Deployment", "foo", nil)
	h := mint(t, newDriver(t, ns), l)
	_, err := h.AppsV1().Deployments(ns).Create(t.Context(), deployment("foo", nil), metav1.CreateOptions{})
	must(t, err)
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p"}, Spec: podTemplate("p").Spec}
	_, err = shared.admin.CoreV1().Pods(ns).Create(t.Context(), p, metav1.CreateOptions{})
	must(t, err)
	widen(t, ns, l)
	ctx := t.Context()
	tries := map[string]func() error{
		"pod": func() error {
			_, err := h.CoreV1().Pods(ns).Create(ctx, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "foo"}, Spec: p.Spec}, metav1.CreateOptions{})
			return err
		},
		"scale": func() error {
			_, err := h.AppsV1().Deployments(ns).Patch(ctx, "foo", types.MergePatchType, []byte(`{"spec":{"replicas":3}}`), metav1.PatchOptions{}, "scale")
			return err
		},
		"status": func() error {
			_, err := h.AppsV1().Deployments(ns).Patch(ctx, "foo", types.MergePatchType, []byte(`{"status":{"replicas":3}}`), metav1.PatchOptions{}, "status")
			return err
		},
		"ephemeral container": func() error {
			_, err := h.CoreV1().Pods(ns).Patch(ctx, "p", types.StrategicMergePatchType,
				[]byte(`{"spec":{"ephemeralContainers":[{"name":"e","image":"`+goodImage+`"}]}}`), metav1.PatchOptions{}, "ephemeralcontainers")
			return err
		},
		"eviction": func() error {
			return h.CoreV1().RESTClient().Post().Namespace(ns).Resource("pods").Name("p").SubResource("eviction").
				Body([]byte(`{"apiVersion":"policy/v1","kind":"Eviction","metadata":{"name":"p"}}`)).Do(ctx).Error()
		},
		"exec": func() error {
			return h.CoreV1().RESTClient().Post().Namespace(ns).Resource("pods").Name("p").SubResource("exec").Param("command", "sh").Do(ctx).Error()
		},
		"attach": func() error {
			return h.CoreV1().RESTClient().Post().Namespace(ns).Resource("pods").Name("p").SubResource("attach").Do(ctx).Error()
		},
		"port-forward": func() error {
			return h.CoreV1().RESTClient().Post().Namespace(ns).Resource("pods").Name("p").SubResource("portforward").Do(ctx).Error()
		},
		"proxy": func() error {
			return h.CoreV1().RESTClient().Get().Namespace(ns).Resource("pods").Name("p").SubResource("proxy").Do(ctx).Error()
		},
		"service account token": func() error {
			_, err := h.CoreV1().ServiceAccounts(ns).CreateToken(ctx, "default", tokenRequest(600), metav1.CreateOptions{})
			return err
		},
		"secret": func() error {
			_, err := h.CoreV1().Secrets(ns).Create(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "foo"}}, metav1.CreateOptions{})
			return err
		},
		"delete": func() error { return h.AppsV1().Deployments(ns).Delete(ctx, "foo", metav1.DeleteOptions{}) },
		"delete all": func() error {
			return h.CoreV1().Pods(ns).DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{})
		},
		"stateful set of the same name": func() error {
			_, err := h.AppsV1().StatefulSets(ns).Create(ctx, &appsv1.StatefulSet{ObjectMeta: metav1.ObjectMeta{Name: "foo"}, Spec: appsv1.StatefulSetSpec{
				Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "foo"}}, Template: podTemplate("foo")}}, metav1.CreateOptions{})
			return err
		},
		"config map": func() error {
			_, err := h.CoreV1().ConfigMaps(ns).Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "foo"}}, metav1.CreateOptions{})
			return err
		},
		"another deployment": func() error {
			_, err := h.AppsV1().Deployments(ns).Create(ctx, deployment("bar", nil), metav1.CreateOptions{})
			return err
		},
	}
	for what, try := range tries {
		// RBAC of the wide role arrives a moment after it was made.
		err := try()
		for range 100 {
			if strings.Contains(fmt.Sprint(err), "remit-agents") {
				break
			}
			err = try()
		}
		denied(t, what, "not in the grant", err)
	}
	_, err = shared.admin.CoreV1().Pods(ns).Get(ctx, "p", metav1.GetOptions{})
	must(t, err)
}

func TestAdmissionOfGrantedFields(t *testing.T) {
	ns := target(t)
	s := remit.StringValue
	l := applyLease(ns, "Deployment", "foo", remit.Args{
		"command": remit.ListValue(s("serve"), s("--greeting=grüß dich, 1:2")), "args": remit.ListValue(s("a"), s("b c")),
		"env":      remit.ObjectValue(map[string]remit.Value{"A": s("1"), "B": s("")}),
		"replicas": remit.IntValue(3), "labels": remit.ObjectValue(map[string]remit.Value{"team": s("front")}),
	})
	h := mint(t, newDriver(t, ns), l)
	granted := func(more func(*corev1.Container)) *appsv1.Deployment {
		return deployment("foo", func(d *appsv1.Deployment) {
			c := &d.Spec.Template.Spec.Containers[0]
			c.Command, c.Args = []string{"serve", "--greeting=grüß dich, 1:2"}, []string{"a", "b c"}
			c.Env = []corev1.EnvVar{{Name: "A", Value: "1"}, {Name: "B"}}
			n := int32(3)
			d.Spec.Replicas, d.Labels["team"], d.Spec.Template.Labels["team"] = &n, "front", "front"
			more(c)
		})
	}
	for what, f := range map[string]func(*corev1.Container){
		"words joined": func(c *corev1.Container) { c.Args = []string{"a b", "c"} },
		"words forged": func(c *corev1.Container) { c.Args = []string{"a3:b c"} },
		"word more":    func(c *corev1.Container) { c.Command = append(c.Command, "x") },
		"env value":    func(c *corev1.Container) { c.Env[0].Value = "2" },
		"env more":     func(c *corev1.Container) { c.Env = append(c.Env, corev1.EnvVar{Name: "C"}) },
		"env from": func(c *corev1.Container) {
			c.Env[1].ValueFrom = &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.name"}}
		},
		"args as command": func(c *corev1.Container) { c.Command = []string{"a", "b c"} },
	} {
		_, err := h.AppsV1().Deployments(ns).Create(t.Context(), granted(f), metav1.CreateOptions{})
		denied(t, what, "not in the grant", err)
	}
	_, err := h.AppsV1().Deployments(ns).Create(t.Context(), granted(func(*corev1.Container) {}), metav1.CreateOptions{})
	must(t, err)
}

func TestAdmissionOfOtherKinds(t *testing.T) {
	ns := target(t)
	d := newDriver(t, ns)
	ctx, batch, apps := t.Context(), shared.admin.BatchV1(), shared.admin.AppsV1()
	_, _ = batch, apps
	selector := &metav1.LabelSelector{MatchLabels: map[string]string{"app": "foo"}}
	never := podTemplate("foo")
	never.Spec.RestartPolicy = "Never"
	bad := func(t corev1.PodTemplateSpec) corev1.PodTemplateSpec {
		t = *t.DeepCopy()
		t.Spec.InitContainers = []corev1.Container{{Name: "i", Image: badImage}}
		return t
	}
	meta := metav1.ObjectMeta{Name: "foo"}
	for kind, create := range map[string]func(holder, corev1.PodTemplateSpec, corev1.PodTemplateSpec) error{
		"StatefulSet": func(h holder, p, _ corev1.PodTemplateSpec) error {
			_, err := h.AppsV1().StatefulSets(ns).Create(ctx, &appsv1.StatefulSet{ObjectMeta: meta, Spec: appsv1.StatefulSetSpec{Selector: selector, Template: p}}, metav1.CreateOptions{})
			return err
		},
		"DaemonSet": func(h holder, p, _ corev1.PodTemplateSpec) error {
			_, err := h.AppsV1().DaemonSets(ns).Create(ctx, &appsv1.DaemonSet{ObjectMeta: meta, Spec: appsv1.DaemonSetSpec{Selector: selector, Template: p}}, metav1.CreateOptions{})
			return err
		},
		"Job": func(h holder, _, p corev1.PodTemplateSpec) error {
			_, err := h.BatchV1().Jobs(ns).Create(ctx, &batchv1.Job{ObjectMeta: meta, Spec: batchv1.JobSpec{Template: p}}, metav1.CreateOptions{})
			return err
		},
		"CronJob": func(h holder, _, p corev1.PodTemplateSpec) error {
			_, err := h.BatchV1().CronJobs(ns).Create(ctx, &batchv1.CronJob{ObjectMeta: meta, Spec: batchv1.CronJobSpec{Schedule: "0 0 * * *",
				JobTemplate: batchv1.JobTemplateSpec{Spec: batchv1.JobSpec{Template: p}}}}, metav1.CreateOptions{})
			return err
		},
	} {
		h := mint(t, d, applyLease(ns, kind, "foo", nil))
		denied(t, kind+" with another init image", "image not approved", create(h, bad(podTemplate("foo")), bad(never)))
		if err := create(h, podTemplate("foo"), never); err != nil {
			t.Errorf("%s: %v", kind, err)
		}
	}
	h := mint(t, d, applyLease(ns, "CronJob", "foo", nil))
	for what, body := range map[string]string{
		"schedule": `{"spec":{"schedule":"* * * * *"}}`, "job": `{"spec":{"jobTemplate":{"spec":{"backoffLimit":99}}}}`,
		"job label": `{"spec":{"jobTemplate":{"metadata":{"labels":{"a":"b"}}}}}`,
		"pod":       `{"spec":{"jobTemplate":{"spec":{"template":{"spec":{"hostNetwork":true}}}}}}`,
	} {
		_, err := h.BatchV1().CronJobs(ns).Patch(ctx, "foo", types.MergePatchType, []byte(body), metav1.PatchOptions{})
		denied(t, "cron job's "+what, "remit:", err)
	}
}

func TestShippedPoliciesAreTheEmbeddedOnes(t *testing.T) {
	shipped, err := os.ReadFile(manifests + "policies.yaml")
	must(t, err)
	embedded, err := os.ReadFile("manifest/policies.yaml")
	must(t, err)
	if string(shipped) != string(embedded) {
		t.Error("copy manifest/policies.yaml to deploy/kubernetes/policies.yaml")
	}
}
