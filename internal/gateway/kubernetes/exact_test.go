// SPDX-License-Identifier: Apache-2.0

package kubernetes_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	client "k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"remit"
	driver "remit/internal/credential/kubernetes"
)

// TestExact tries every row of S19 in each mode, with kubectl as it is and with client-go in JSON, in protobuf and by
// server-side apply, and looks with the administrator's eyes whether anything came of it.
func TestExact(t *testing.T) {
	for _, mode := range []driver.Mode{driver.ModeServiceAccount, driver.ModeJWT, driver.ModeWebhook} {
		t.Run(string(mode), func(t *testing.T) {
			w := newWorld(t, mode)
			w.owners(t)
			l, h, path := w.mint(t, w.lease(4*time.Minute))
			for i := 0; get(t, h, w.ns) != nil; i++ {
				if i > 500 {
					t.Fatal(get(t, h, w.ns))
				}
			}
			e := &exact{world: w, json: h, kubeconfig: path}
			e.protobuf = e.inProtobuf(t)
			before := w.seen(t)
			e.updates(t)
			e.commands(t)
			e.subresources(t)
			if after := w.seen(t); after != before {
				t.Errorf("the cluster changed from\n%s\nto\n%s", before, after)
			}
			e.creates(t)
			if after := w.seen(t); after != before {
				t.Errorf("creates changed the cluster from\n%s\nto\n%s", before, after)
			}
			e.granted(t)
			e.trials(t, l)
			if e.sent.Load() == 0 {
				t.Error("nothing was sent as protobuf")
			}
		})
	}
}

// exact is one lease's holder with its clients.
type exact struct {
	*world
	json, protobuf *client.Clientset
	kubeconfig     string
	sent           atomic.Int64 // bodies in protobuf
}

type counted struct {
	next http.RoundTripper
	sent *atomic.Int64
}

func (c counted) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Header.Get("Content-Type") == runtime.ContentTypeProtobuf && r.ContentLength > 0 {
		c.sent.Add(1)
	}
	return c.next.RoundTrip(r)
}

func (e *exact) inProtobuf(t *testing.T) *client.Clientset {
	t.Helper()
	rc, err := clientcmd.BuildConfigFromFlags("", e.kubeconfig)
	must(t, err)
	rc.QPS, rc.ContentType, rc.AcceptContentTypes = -1, runtime.ContentTypeProtobuf, runtime.ContentTypeProtobuf+","+runtime.ContentTypeJSON
	rc.Wrap(func(next http.RoundTripper) http.RoundTripper { return counted{next, &e.sent} })
	cs, err := client.NewForConfig(rc)
	must(t, err)
	return cs
}

// owners make what stands before any agent comes: the deployment with what no agent could give it, a pod, an account.
func (w *world) owners(t *testing.T) {
	t.Helper()
	core := shared.admin.CoreV1()
	_, err := core.ServiceAccounts(w.ns).Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default"}}, metav1.CreateOptions{})
	must(t, err)
	d := newDeployment("foo")
	spec := &d.Spec.Template.Spec
	spec.Volumes = []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}}
	spec.Containers[0].Image, spec.Containers[0].Command = strings.Replace(goodImage, "@sha256:1", "@sha256:0", 1), []string{"serve"}
	_, err = shared.admin.AppsV1().Deployments(w.ns).Create(t.Context(), d, metav1.CreateOptions{})
	must(t, err)
	_, err = core.Pods(w.ns).Create(t.Context(), &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p"}, Spec: d.Spec.Template.Spec}, metav1.CreateOptions{})
	must(t, err)
}

func newDeployment(name string) *appsv1.Deployment {
	labels := map[string]string{"app": name}
	return &appsv1.Deployment{TypeMeta: metav1.TypeMeta{APIVersion: "apps/v1", Kind: "Deployment"}, ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: appsv1.DeploymentSpec{Selector: &metav1.LabelSelector{MatchLabels: labels}, Template: corev1.PodTemplateSpec{
			ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "main", Image: goodImage}}}}}}
}

// seen is all that an agent could have made or changed, without what the server counts by itself.
func (w *world) seen(t *testing.T) string {
	t.Helper()
	out, err := kubectl(shared.Kubeconfig, "", "-n", w.ns, "get", "deployments,replicasets,statefulsets,daemonsets,jobs,cronjobs,pods,services,"+
		"secrets,configmaps,horizontalpodautoscalers,serviceaccounts", "-o", `jsonpath={range .items[*]}{.kind}/{.metadata.name}@{.metadata.resourceVersion}{"\n"}{end}`)
	if err != nil {
		t.Fatal(out)
	}
	return out
}

// contents are the rows of S19 about what an object says. Each is tried as an update of the owners' object and as a new one.
var contents = map[string]func(*appsv1.Deployment, *corev1.PodSpec){
	"image":   func(_ *appsv1.Deployment, p *corev1.PodSpec) { p.Containers[0].Image = badImage },
	"command": func(_ *appsv1.Deployment, p *corev1.PodSpec) { p.Containers[0].Command = []string{"sh", "-c", "id"} },
	"args":    func(_ *appsv1.Deployment, p *corev1.PodSpec) { p.Containers[0].Args = []string{"--admin"} },
	"env": func(_ *appsv1.Deployment, p *corev1.PodSpec) {
		p.Containers[0].Env = []corev1.EnvVar{{Name: "A", Value: "1"}}
	},
	"lifecycle": func(_ *appsv1.Deployment, p *corev1.PodSpec) {
		p.Containers[0].Lifecycle = &corev1.Lifecycle{PreStop: &execHandler}
	},
	"exec probe":      func(_ *appsv1.Deployment, p *corev1.PodSpec) { p.Containers[0].ReadinessProbe = &execProbe },
	"volume":          func(_ *appsv1.Deployment, p *corev1.PodSpec) { p.Volumes = append(p.Volumes, hostPath) },
	"service account": func(_ *appsv1.Deployment, p *corev1.PodSpec) { p.ServiceAccountName = "admin" },
	"init container": func(_ *appsv1.Deployment, p *corev1.PodSpec) {
		p.InitContainers = []corev1.Container{{Name: "i", Image: badImage}}
	},
	"host network": func(_ *appsv1.Deployment, p *corev1.PodSpec) { p.HostNetwork = true },
	"replicas":     func(d *appsv1.Deployment, _ *corev1.PodSpec) { n := int32(47); d.Spec.Replicas = &n },
	"pod annotation": func(d *appsv1.Deployment, _ *corev1.PodSpec) {
		d.Spec.Template.Annotations = map[string]string{"a": "b"}
	},
	"label": func(d *appsv1.Deployment, _ *corev1.PodSpec) { d.Labels = map[string]string{"team": "x"} },
}

var (
	execHandler = corev1.LifecycleHandler{Exec: &corev1.ExecAction{Command: []string{"sh"}}}
	execProbe   = corev1.Probe{ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"sh"}}}}
	hostPath    = corev1.Volume{Name: "host", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/"}}}
)

// ways are how a deployment is written: each returns the API server's refusal, or kubectl's words for it.
func (e *exact) ways(t *testing.T, d *appsv1.Deployment, isNew bool) map[string]error {
	t.Helper()
	ctx := t.Context()
	body, err := json.Marshal(d)
	must(t, err)
	run := func(args ...string) error {
		out, err := kubectl(e.kubeconfig, string(body), append(args, "-n", e.ns, "-f", "-")...)
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	}
	write := func(cs *client.Clientset) error {
		if isNew {
			_, err := cs.AppsV1().Deployments(e.ns).Create(ctx, d, metav1.CreateOptions{})
			return err
		}
		_, err := cs.AppsV1().Deployments(e.ns).Update(ctx, d, metav1.UpdateOptions{})
		return err
	}
	force := true
	patch := func(kind types.PatchType, o metav1.PatchOptions) error {
		_, err := e.protobuf.AppsV1().Deployments(e.ns).Patch(ctx, d.Name, kind, body, o)
		return err
	}
	out := map[string]error{"JSON": write(e.json), "protobuf": write(e.protobuf), "kubectl apply": run("apply"),
		"server-side apply":         patch(types.ApplyPatchType, metav1.PatchOptions{FieldManager: "agent", Force: &force}),
		"kubectl apply server-side": run("apply", "--server-side", "--force-conflicts")}
	if isNew {
		out["kubectl create"] = run("create")
		return out
	}
	out["merge patch"] = patch(types.MergePatchType, metav1.PatchOptions{})
	out["strategic merge patch"] = patch(types.StrategicMergePatchType, metav1.PatchOptions{})
	out["kubectl replace"] = run("replace")
	return out
}

func refusedBy(t *testing.T, what string, err error) {
	t.Helper()
	text := strings.ToLower(fmt.Sprint(err))
	if err == nil || !apierrors.IsForbidden(err) && !strings.Contains(text, "forbidden") {
		t.Errorf("%s: %v", what, err)
	}
}

func (e *exact) updates(t *testing.T) {
	t.Helper()
	for what, change := range contents {
		d, err := shared.admin.AppsV1().Deployments(e.ns).Get(t.Context(), "foo", metav1.GetOptions{})
		must(t, err)
		d.TypeMeta = metav1.TypeMeta{APIVersion: "apps/v1", Kind: "Deployment"}
		d.ManagedFields, d.ResourceVersion, d.Status = nil, "", appsv1.DeploymentStatus{}
		change(d, &d.Spec.Template.Spec)
		for way, err := range e.ways(t, d, false) {
			refusedBy(t, "update of "+what+" by "+way, err)
		}
	}
}

// creates tries a new object under a lease of its own.
func (e *exact) creates(t *testing.T) {
	t.Helper()
	l := e.lease(4 * time.Minute)
	l.Scope["name"] = remit.StringValue("new")
	_, h, path := e.mint(t, l)
	n := &exact{world: e.world, json: h, kubeconfig: path}
	n.protobuf = n.inProtobuf(t)
	for i := 0; i < 500; i++ {
		if _, err := h.AppsV1().Deployments(e.ns).Get(t.Context(), "new", metav1.GetOptions{}); apierrors.IsNotFound(err) {
			break
		}
	}
	for what, change := range contents {
		d := newDeployment("new")
		change(d, &d.Spec.Template.Spec)
		for way, err := range n.ways(t, d, true) {
			refusedBy(t, "create with "+what+" by "+way, err)
		}
	}
	for way, err := range n.ways(t, newDeployment("other"), true) {
		refusedBy(t, "create of another name by "+way, err)
	}
}

// commands are what people type.
func (e *exact) commands(t *testing.T) {
	t.Helper()
	for _, args := range []string{
		"set image deployment/foo main=" + badImage, "set env deployment/foo A=1", "set serviceaccount deployment foo admin",
		"set resources deployment foo --limits=cpu=1", "scale deployment foo --replicas=47", "autoscale deployment foo --max=9",
		"rollout restart deployment foo", "rollout undo deployment foo", "delete deployment foo", "delete deployment foo --force --grace-period=0",
		"delete deployments --all", "expose deployment foo --port=80", "label deployment foo a=b", "annotate deployment foo a=b",
		"exec p -- id", "attach p", "port-forward p 48231:80", "logs p", "debug p --image=" + goodImage, "cp p:/etc/passwd ./nothing",
		"run x --image=" + goodImage, "create job j --image=" + goodImage, "create deployment other --image=" + goodImage, "create configmap c",
		"create secret generic s", "create serviceaccount s", "create token default", "create role r --verb=get --resource=secrets",
		"create rolebinding r --clusterrole=cluster-admin --user=x", "get secrets", "get pods", "get configmaps", "get nodes", "get deployments -A",
		"get deployment foo -n default", "get deployment foo --as=system:admin", "get validatingadmissionpolicies",
		"delete pod p", "delete serviceaccount default",
		`patch deployment foo --subresource=scale --type=merge -p {"spec":{"replicas":47}}`,
		`patch deployment foo --subresource=status --type=merge -p {"status":{"replicas":47}}`,
		`patch deployment foo --type=json -p [{"op":"add","path":"/spec/template/spec/hostPID","value":true}]`,
	} {
		all := strings.Fields(args)
		if !strings.Contains(args, " -n ") && !strings.Contains(args, " -A") {
			all = append([]string{"-n", e.ns}, all...)
		}
		if out, err := kubectl(e.kubeconfig, "", all...); err == nil || !strings.Contains(strings.ToLower(out), "forbidden") {
			t.Errorf("kubectl %s: %v: %s", args, err, out)
		}
	}
}

// subresources, and what has no object at all, by raw client-go in protobuf.
func (e *exact) subresources(t *testing.T) {
	t.Helper()
	ctx, cs, ns := t.Context(), e.protobuf, e.ns
	meta := metav1.ObjectMeta{Name: "foo", Namespace: ns}
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p"}, Spec: newDeployment("p").Spec.Template.Spec}
	for what, f := range map[string]func() error{
		"scale": func() error {
			_, err := cs.AppsV1().Deployments(ns).UpdateScale(ctx, "foo", &autoscalingv1.Scale{ObjectMeta: meta, Spec: autoscalingv1.ScaleSpec{Replicas: 47}}, metav1.UpdateOptions{})
			return err
		},
		"status": func() error {
			_, err := cs.AppsV1().Deployments(ns).UpdateStatus(ctx, newDeployment("foo"), metav1.UpdateOptions{})
			return err
		},
		"eviction": func() error {
			return cs.CoreV1().Pods(ns).EvictV1(ctx, &policyv1.Eviction{ObjectMeta: metav1.ObjectMeta{Name: "p"}})
		},
		"binding": func() error {
			return cs.CoreV1().Pods(ns).Bind(ctx, &corev1.Binding{ObjectMeta: metav1.ObjectMeta{Name: "p"}, Target: corev1.ObjectReference{Kind: "Node", Name: "n"}}, metav1.CreateOptions{})
		},
		"ephemeral containers": func() error {
			p := pod.DeepCopy()
			p.Spec.EphemeralContainers = []corev1.EphemeralContainer{{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "e", Image: goodImage}}}
			_, err := cs.CoreV1().Pods(ns).UpdateEphemeralContainers(ctx, "p", p, metav1.UpdateOptions{})
			return err
		},
		"resize": func() error {
			_, err := cs.CoreV1().Pods(ns).UpdateResize(ctx, "p", pod, metav1.UpdateOptions{})
			return err
		},
		"pod": func() error { _, err := cs.CoreV1().Pods(ns).Create(ctx, pod, metav1.CreateOptions{}); return err },
		"job of the same name": func() error {
			_, err := cs.BatchV1().Jobs(ns).Create(ctx, &batchv1.Job{ObjectMeta: metav1.ObjectMeta{Name: "foo"}, Spec: batchv1.JobSpec{Template: newDeployment("foo").Spec.Template}}, metav1.CreateOptions{})
			return err
		},
		"delete": func() error { return cs.AppsV1().Deployments(ns).Delete(ctx, "foo", metav1.DeleteOptions{}) },
		"delete all": func() error {
			return cs.AppsV1().Deployments(ns).DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{})
		},
		"token": func() error {
			_, err := cs.CoreV1().ServiceAccounts(ns).CreateToken(ctx, "default", &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
			return err
		},
	} {
		refusedBy(t, what, f())
	}
	for _, sub := range []string{"exec", "attach", "portforward", "proxy", "log"} {
		for _, verb := range []string{http.MethodGet, http.MethodPost} {
			req := rest.NewRequest(cs.CoreV1().RESTClient().(*rest.RESTClient)).Verb(verb).Namespace(ns).Resource("pods").Name("p").SubResource(sub).
				Param("command", "id").Param("stdout", "true").Param("ports", "80")
			err := req.Do(ctx).Error()
			if verb == http.MethodPost && sub == "log" && apierrors.IsMethodNotSupported(err) {
				continue // there is no such thing
			}
			refusedBy(t, verb+" "+sub, err)
		}
	}
}

// granted is the counter-check: what was refused above was refused for what it said, not because nothing works.
func (e *exact) granted(t *testing.T) {
	t.Helper()
	out, err := kubectl(e.kubeconfig, "", "-n", e.ns, "set", "image", "deployment/foo", "main="+goodImage)
	if err != nil {
		t.Errorf("what is granted: %s", out)
	}
	d, err := shared.admin.AppsV1().Deployments(e.ns).Get(t.Context(), "foo", metav1.GetOptions{})
	must(t, err)
	c := d.Spec.Template.Spec.Containers[0]
	if c.Image != goodImage || len(d.Spec.Template.Spec.Volumes) != 1 || len(c.Command) != 1 {
		t.Errorf("the administrator sees %+v", d.Spec.Template.Spec)
	}
}

// trials are what `remit grant verify` does, in this mode.
func (e *exact) trials(t *testing.T, l remit.Lease) {
	t.Helper()
	token, err := clientcmd.LoadFromFile(e.kubeconfig)
	must(t, err)
	before := e.seen(t)
	trials, err := e.driver.Try(t.Context(), l, remit.Credential{Secret: remit.NewSecret(token.AuthInfos["u"].Token)})
	must(t, err)
	v := remit.Verification{Trials: trials}
	v.Conclude()
	var bad bytes.Buffer
	for _, r := range trials {
		if r.Wrong() || r.How != "" && r.Outcome == remit.TrialNotTried && r.How != "access review" {
			fmt.Fprintf(&bad, "%+v\n", r)
		}
	}
	if !v.Holds || bad.Len() > 0 || e.seen(t) != before {
		t.Errorf("holds %v, changed %v:\n%s", v.Holds, e.seen(t) != before, bad.String())
	}
}
