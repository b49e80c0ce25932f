// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"remit/internal/testcluster"
)

// cluster is the laboratory's Kubernetes API server, prepared as deploy/kubernetes says.
type cluster struct {
	*testcluster.Cluster
	kubectl string
	client  *http.Client
	broker  string // the token by which Remit works at the cluster: what a thief of its files has
}

const webhookSecret = "the-api-servers-own-secret-of-the-laboratory"

func (l *lab) startCluster(ctx context.Context, _ string) error {
	audit, err := l.writeAudit()
	if err != nil {
		return err
	}
	manifests, err := filepath.Abs(filepath.Join("deploy", "kubernetes"))
	if err != nil {
		return err
	}
	dir := l.path("cluster")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	tc, err := testcluster.Start(ctx, testcluster.Config{Dir: dir, AuditWebhook: audit, AuditPolicy: filepath.Join(manifests, "audit-policy.yaml"),
		Flags: []string{"--audit-webhook-batch-max-wait=200ms"}})
	if err != nil {
		return err
	}
	l.cluster = &cluster{Cluster: tc}
	if l.cluster.kubectl, err = testcluster.Kubectl(ctx); err != nil {
		return err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(tc.CA)
	l.cluster.client = &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}}}
	for _, args := range [][]string{
		{"create", "namespace", "production"}, {"create", "namespace", "staging"},
		{"apply", "-f", filepath.Join(manifests, "base.yaml"), "-f", filepath.Join(manifests, "policies.yaml")},
		{"-n", "production", "apply", "-f", filepath.Join(manifests, "target.yaml")},
	} {
		if out, err := l.cluster.run(ctx, args...); err != nil {
			return fmt.Errorf("kubectl %s: %w\n%s", strings.Join(args, " "), err, out)
		}
	}
	token, err := l.cluster.run(ctx, "-n", "remit", "create", "token", "broker", "--duration=2h")
	if err != nil {
		return fmt.Errorf("%w: %s", err, token)
	}
	l.cluster.broker = strings.TrimSpace(string(token))
	return errors.Join(writeKubeconfig(l.path("broker.kubeconfig"), tc.URL, tc.CA, l.cluster.broker),
		os.WriteFile(l.path("webhook.token"), []byte(webhookSecret), 0o600))
}

// writeAudit writes how the API server tells Remit what was executed.
func (l *lab) writeAudit() (string, error) {
	ca, err := os.ReadFile(l.profile.Bundle)
	if err != nil {
		return "", err
	}
	return l.path("audit.kubeconfig"), writeKubeconfig(l.path("audit.kubeconfig"), l.profile.Server+"/kubernetes/cluster/audit", ca, webhookSecret)
}

func writeKubeconfig(path, server string, ca []byte, token string) error {
	type object = map[string]any
	b, err := json.Marshal(object{"apiVersion": "v1", "kind": "Config", "current-context": "remit",
		"clusters": []any{object{"name": "c", "cluster": object{"server": server, "certificate-authority-data": ca}}},
		"contexts": []any{object{"name": "remit", "context": object{"cluster": "c", "user": "u"}}},
		"users":    []any{object{"name": "u", "user": object{"token": token}}}})
	if err != nil {
		return err
	}
	return os.WriteFile(path, b, 0o600)
}

func (c *cluster) run(ctx context.Context, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	return exec.CommandContext(ctx, c.kubectl, append([]string{"--kubeconfig", c.Kubeconfig}, args...)...).CombinedOutput()
}

func (c *cluster) close() { _ = c.Stop() }

// file declares the cluster as a target, and a workflow at it.
func (c *cluster) file(l *lab) string {
	return fmt.Sprintf(`---
kind: Target
name: cluster
type: kubernetes
mode: serviceaccount
kubeconfig: %s
namespaces: [production]
installation: %s
webhook: {file: %s}
---
kind: Workflow
name: rollout
parameters: {app: {type: name}, image: {type: image}}
start: {by: [operator/ci], expires: 1h}
stages:
- name: do
  end: {by: [operator/ci]}
  may:
  - {name: apply, who: agent/deploy, action: kubernetes.apply, target: cluster, where: {namespace: production, kind: Deployment, name: $app, image: $image}}
- name: after
  may:
  - {name: late, who: agent/other, action: kubernetes.get, target: cluster, where: {namespace: production, kind: Deployment, name: $app}}
`, l.path("broker.kubeconfig"), l.id, l.path("webhook.token"))
}

// grant NAME HOLDER RUN-TOKEN APP: the holder gets the credential that workflow rollout gives for APP and the laboratory's image, and NAME becomes it. It works
// before the command ends: a fresh binding takes the API server some milliseconds.
func (a *attack) grant(ts *testscript.TestScript, args []string) error {
	got, err := a.ask(ts, []string{args[1], "token=" + args[2], "target=cluster", "name=" + args[3], "image=" + a.profile.lab.image})
	if err != nil {
		return err
	}
	a.last = got
	var v struct {
		Token string `json:"access_token"`
		Grant string `json:"grant_id"`
	}
	if err := json.Unmarshal([]byte(got.text), &v); err != nil || v.Token == "" {
		return fmt.Errorf("no credential: %s\n%s", got, a.evidence(got))
	}
	ts.Setenv(args[0], v.Token)
	ts.Setenv("GRANT", v.Grant)
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		seen, err := a.kube(ts, []string{v.Token, "GET", "/apis/apps/v1/namespaces/production/deployments/" + args[3]})
		if err != nil {
			return err
		}
		if seen.status == "200" || seen.status == "404" {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("the credential does not work: %s", seen.text)
		}
	}
}

// kube TOKEN METHOD PATH [FILE] [CONTENT-TYPE]: a request straight to the API server with a bare credential. @NAME@ in the file becomes the variable.
func (a *attack) kube(ts *testscript.TestScript, args []string) (*answer, error) {
	c := a.profile.lab.cluster
	var body []byte
	kind := "application/apply-patch+yaml"
	if len(args) > 3 && args[3] != "-" {
		text := placeholder.ReplaceAllStringFunc(ts.ReadFile(args[3]), func(s string) string { return ts.Getenv(strings.Trim(s, "@")) })
		body = []byte(text)
	}
	if len(args) > 4 {
		kind = args[4]
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, args[1], c.URL+args[2], bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer "+args[0])
	req.Header.Set("Content-Type", kind)
	res, err := c.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	if err != nil {
		return nil, err
	}
	return readAnswer(res.StatusCode, text), nil
}

// cluster ARG…: kubectl as the cluster's administrator, who must succeed; what it printed is the last answer.
func (a *attack) clusterAdmin(_ *testscript.TestScript, args []string) error {
	out, err := a.profile.lab.cluster.run(context.Background(), args...)
	a.last = &answer{status: "exit 0", allowed: err == nil, text: string(out)}
	if err != nil {
		return fmt.Errorf("kubectl %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return nil
}

// eventuallyDead TOKEN PATH: waits until the API server refuses the token, for two seconds.
func (a *attack) eventuallyDead(ts *testscript.TestScript, args []string) error {
	for end := time.Now().Add(2 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		got, err := a.kube(ts, []string{args[0], "GET", args[1]})
		if err != nil {
			return err
		}
		if !got.allowed && got.status != "404" {
			return nil
		}
		if time.Now().After(end) {
			a.verdict, a.got = verdictSucceeded, "still alive after two seconds"
			return errors.New("THE ATTACK SUCCEEDED: the credential works two seconds after its end")
		}
	}
}

// eventuallyGone: waits until nothing of any lease is left at the cluster, for ten seconds.
func (a *attack) eventuallyGone(*testscript.TestScript, []string) error {
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		out, err := a.profile.lab.cluster.run(context.Background(), "get", "rolebindings,roles", "-n", "production", "-o", "name")
		if err == nil && !strings.Contains(string(out), "/remit-"+a.profile.lab.id+"-") {
			return nil
		}
		if time.Now().After(end) {
			a.verdict, a.got = verdictSucceeded, "leases are left at the cluster"
			return fmt.Errorf("THE ATTACK SUCCEEDED: after ten seconds there are still, %w:\n%s", err, out)
		}
	}
}

// without KIND NAME: the cluster's administrator deletes one of Remit's objects, which comes back when the script is over.
func (a *attack) without(ts *testscript.TestScript, args []string) error {
	policies, err := filepath.Abs(filepath.Join("deploy", "kubernetes", "policies.yaml"))
	if err != nil {
		return err
	}
	l := a.profile.lab
	a.undo = append(a.undo, func() {
		_, _ = l.cluster.run(context.Background(), "apply", "-f", policies)
		_ = l.settle(context.Background(), "")
	})
	return a.clusterAdmin(ts, append([]string{"delete"}, args...))
}
