// SPDX-License-Identifier: Apache-2.0

package kubernetes_test

import (
	"strings"
	"testing"

	"remit"
	"remit/internal/credential/kubernetes"
)

// Manifests as people write them, with much of what they can hold. FOO is an approved image.
var written = map[string]string{
	"Deployment": `
apiVersion: apps/v1
kind: Deployment
metadata: {name: foo, labels: {app: foo, team: front}}
spec:
  replicas: 3
  minReadySeconds: 5
  strategy: {rollingUpdate: {maxSurge: 1, maxUnavailable: 0}}
  selector: {matchLabels: {app: foo}}
  template:
    metadata: {labels: {app: foo, team: front}}
    spec:
      terminationGracePeriodSeconds: 20
      automountServiceAccountToken: false
      securityContext: {runAsNonRoot: true, runAsUser: 65532, fsGroup: 2000, seccompProfile: {type: RuntimeDefault}}
      initContainers:
      - {name: init, image: "FOO", args: [migrate, "grüß, 1:2"]}
      containers:
      - name: main
        image: "FOO"
        command: [serve]
        env: [{name: A, value: "1"}, {name: EMPTY}]
        ports: [{name: http, containerPort: 8080}, {containerPort: 53, protocol: UDP}]
        resources: {limits: {cpu: 1000m, memory: 1024Mi}, requests: {cpu: 0.25, memory: 256Mi}}
        securityContext: {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}
        readinessProbe: {httpGet: {port: http, path: /ready}, periodSeconds: 3}
        livenessProbe: {tcpSocket: {port: 8080}, initialDelaySeconds: 9}
        startupProbe: {grpc: {port: 9090, service: health}}
      - {name: side, image: "FOO"}
`,
	"StatefulSet": `
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: foo}
spec:
  serviceName: foo
  podManagementPolicy: Parallel
  updateStrategy: {rollingUpdate: {partition: 2}}
  selector: {matchLabels: {app: foo}}
  template: {metadata: {labels: {app: foo}}, spec: {containers: [{name: main, image: "FOO", ports: [{containerPort: 80}]}]}}
`,
	"DaemonSet": `
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: foo}
spec:
  updateStrategy: {type: OnDelete}
  selector: {matchLabels: {app: foo}}
  template: {metadata: {labels: {app: foo}}, spec: {containers: [{name: main, image: "FOO"}]}}
`,
	"Job": `
apiVersion: batch/v1
kind: Job
metadata: {name: foo}
spec:
  backoffLimit: 2
  completions: 4
  ttlSecondsAfterFinished: 60
  template: {spec: {restartPolicy: Never, containers: [{name: main, image: "FOO", command: [run]}]}}
`,
	"CronJob": `
apiVersion: batch/v1
kind: CronJob
metadata: {name: foo}
spec:
  schedule: "30 2 * * *"
  timeZone: Europe/Berlin
  concurrencyPolicy: Forbid
  successfulJobsHistoryLimit: 1
  jobTemplate: {spec: {backoffLimit: 1, template: {spec: {restartPolicy: OnFailure, containers: [{name: main, image: "FOO"}]}}}}
`,
}

// One change of each value; none may pass for the approved manifest.
var otherwise = map[string][]string{
	"Deployment": {"minReadySeconds: 5|minReadySeconds: 6", "maxSurge: 1|maxSurge: 2", "  strategy: {rollingUpdate: {maxSurge: 1, maxUnavailable: 0}}\n|",
		"replicas: 3|replicas: 4", "  minReadySeconds: 5\n|", "minReadySeconds: 5|progressDeadlineSeconds: 5", "minReadySeconds: 5|minReadySeconds: 5\n  revisionHistoryLimit: 1",
		"PeriodSeconds: 20|PeriodSeconds: 21", "65532|65533", "fsGroup: 2000|fsGroup: 2001", "runAsNonRoot: true, |", "migrate|migrat",
		"      - {name: side, image: \"FOO\"}\n|", "name: side|name: site", "command: [serve]|command: [serve, -x]", "command: [serve]|args: [serve]",
		`value: "1"|value: "2"`, ", {name: EMPTY}|", "8080}, {|8081}, {", "protocol: UDP|protocol: TCP", "name: http, |", "name: http, containerPort|name: httq, containerPort",
		"cpu: 1000m|cpu: 1001m", "memory: 1024Mi|memory: 2Gi", "cpu: 0.25|cpu: 0.5", "limits: {cpu: 1000m, memory: 1024Mi}, |", "readOnlyRootFilesystem: true|readOnlyRootFilesystem: false",
		"drop: [ALL]|drop: [CHOWN]", ", capabilities: {drop: [ALL]}|", "/ready|/other", "periodSeconds: 3|periodSeconds: 4", ", periodSeconds: 3|", "port: http,|port: 81,",
		"tcpSocket: {port: 8080}|httpGet: {port: 8080}", "initialDelaySeconds: 9|initialDelaySeconds: 1", "service: health|service: x", "9090|9091",
		"        startupProbe: {grpc: {port: 9090, service: health}}\n|", "name: init|name: initial", "image: \"FOO\"\n|image: \"FOO\"\n        imagePullPolicy: Always\n",
		"readinessProbe|startupProbe", "automountServiceAccountToken: false|automountServiceAccountToken: true", "      automountServiceAccountToken: false\n|"},
	"StatefulSet": {"serviceName: foo|serviceName: bar", "Parallel|OrderedReady", "partition: 2|partition: 3", "containerPort: 80|containerPort: 81"},
	"DaemonSet":   {"{type: OnDelete}|{}", "{type: OnDelete}|{type: RollingUpdate, rollingUpdate: {maxUnavailable: 2}}"},
	"Job":         {"backoffLimit: 2|backoffLimit: 3", "completions: 4|completions: 5", "ttlSecondsAfterFinished: 60|ttlSecondsAfterFinished: 0", "Never|OnFailure", "[run]|[walk]"},
	"CronJob":     {"30 2|31 2", "Europe/Berlin|Europe/Paris", "Forbid|Replace", "HistoryLimit: 1|HistoryLimit: 2", "backoffLimit: 1|backoffLimit: 6", "OnFailure|Never"},
}

// TestManifest holds the driver's text of a manifest and the policy's together, at the real API server with its defaults: the
// approved manifest can be created as it is written, and nothing that differs from it in one value.
func TestManifest(t *testing.T) {
	ns := target(t)
	d := newDriver(t, ns)
	for kind, text := range written {
		text = strings.ReplaceAll(text, "FOO", goodImage)
		l := applyLease(ns, kind, "foo", remit.Args{"manifest": remit.StringValue(text)})
		h := mint(t, d, l)
		create := func(text string, more ...string) (string, error) {
			return kubectl(h.kubeconfig, text, append([]string{"create", "-n", ns, "-f", "-"}, more...)...)
		}
		for i := 0; i < 50; i++ { // until the binding is in force
			if out, _ := kubectl(h.kubeconfig, "", "get", kind, "foo", "-n", ns); strings.Contains(out, "NotFound") {
				break
			}
		}
		for _, c := range otherwise[kind] {
			from, to, _ := strings.Cut(strings.ReplaceAll(c, "FOO", goodImage), "|")
			changed := strings.Replace(text, from, to, 1)
			if changed == text {
				t.Fatalf("%s: %q changes nothing", kind, c)
			}
			if out, err := create(changed, "--dry-run=server"); err == nil || !strings.Contains(out, "remit-agents") {
				t.Errorf("%s: %q: %v: %s", kind, c, err, out)
			}
		}
		if out, err := create(text); err != nil {
			t.Errorf("%s: the approved manifest: %s", kind, out)
		}
	}
}

func TestOnlyExistingObjects(t *testing.T) {
	ns := target(t)
	d := newDriver(t, ns)
	l := applyLease(ns, "Deployment", "foo", remit.Args{"existing": remit.BoolValue(true)})
	h := mint(t, d, l)
	widen(t, ns, l) // the right to create is there, and the policy refuses all the same
	out := ""
	for i := 0; i < 50 && !strings.Contains(out, "remit-agents"); i++ {
		var err error
		if out, err = kubectl(h.kubeconfig, manifest("foo", goodImage), "create", "-n", ns, "-f", "-"); err == nil {
			t.Fatal(out)
		}
	}
	if !strings.Contains(out, "about an object that stands") {
		t.Error(out)
	}
	if out, err := kubectl(shared.Kubeconfig, manifest("foo", oldImage), "create", "-n", ns, "-f", "-"); err != nil {
		t.Fatal(out)
	}
	if out, err := kubectl(h.kubeconfig, "", "set", "image", "deployment/foo", "main="+goodImage, "-n", ns); err != nil {
		t.Error(out)
	}
}

// A manifest that could not be held, or is not the grant's, is refused before anything is minted.
func TestManifestRefusedAtPlan(t *testing.T) {
	d, err := newPlanner(t)
	must(t, err)
	good := strings.ReplaceAll(written["Deployment"], "FOO", goodImage)
	if _, _, _, err := d.Plan(applyLease("production", "Deployment", "foo", remit.Args{"manifest": remit.StringValue(good)})); err != nil {
		t.Fatal(err)
	}
	for what, change := range map[string]string{
		"another kind": "kind: Deployment|kind: DaemonSet", "another name": "metadata: {name: foo|metadata: {name: bar",
		"another namespace": "metadata: {name: foo|metadata: {namespace: other, name: foo", "another image": "image: \"" + goodImage + "|image: \"" + badImage,
		"annotation": "metadata: {name: foo|metadata: {annotations: {a: b}, name: foo", "pod annotation": "metadata: {labels: {app: foo, team: front}}\n    spec|metadata: {annotations: {a: b}}\n    spec",
		"host network": "terminationGracePeriodSeconds: 20|hostNetwork: true", "volume": "terminationGracePeriodSeconds: 20|volumes: [{name: a}]",
		"exec probe": "tcpSocket: {port: 8080}|exec: {command: [a]}", "header": "path: /ready|httpHeaders: [{name: Host, value: x}]", "unknown key": "minReadySeconds|minimalReadySeconds",
		"unknown resource": "memory: 256Mi|example.com/gpu: 1", "host port": "name: http, |hostPort: 80, name: http, ", "labels": "team: front}}\n|team: front, a: b, c: d}}\n",
		"not YAML": "apiVersion|\t{",
	} {
		from, to, _ := strings.Cut(change, "|")
		changed := strings.Replace(good, from, to, 1)
		if changed == good {
			t.Fatalf("%s changes nothing", what)
		}
		if _, _, _, err := d.Plan(applyLease("production", "Deployment", "foo", remit.Args{"manifest": remit.StringValue(changed)})); remit.CodeOf(err) != remit.CodeInvalid {
			t.Errorf("%s: %v", what, err)
		}
	}
	both := remit.Args{"manifest": remit.StringValue(good), "existing": remit.BoolValue(true)}
	if _, _, _, err := d.Plan(applyLease("production", "Deployment", "foo", both)); remit.CodeOf(err) != remit.CodeInvalid {
		t.Errorf("both: %v", err)
	}
}

// newPlanner is a driver that never reaches its cluster.
func newPlanner(t *testing.T) (*kubernetes.Driver, error) {
	return kubernetes.New(kubernetes.Config{Kubeconfig: fakeKubeconfig(t), Namespaces: []string{"production"}, Installation: "a"})
}
