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

// cluster is the laboratory's Kubernetes API server, prepared as deploy/kubernetes says, and a second one on the same etcd that asks Remit
// about every request of a lease's holder.
type cluster struct {
	*testcluster.Cluster
	asking  *testcluster.Cluster
	kubectl string
	client  *http.Client
	broker  string // the token by which Remit works at the cluster: what a thief of its files has
}

// Targets of the laboratory at the cluster, one in each mode.
const (
	inServiceAccount = "cluster"
	inJWT            = "cluster-jwt"
	inWebhook        = "cluster-webhook"
)

const webhookSecret = "the-api-servers-own-secret-of-the-laboratory"

func (l *lab) startCluster(ctx context.Context, _ string) error {
	manifests, err := filepath.Abs(filepath.Join("deploy", "kubernetes"))
	if err != nil {
		return err
	}
	if err := l.startServers(ctx, manifests); err != nil {
		return err
	}
	tc := l.cluster.Cluster
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
		writeKubeconfig(l.path("asking.kubeconfig"), l.cluster.asking.URL, tc.CA, l.cluster.broker),
		os.WriteFile(l.path("webhook.token"), []byte(webhookSecret), 0o600))
}

// startServers starts both API servers with the shipped files: the first trusts grant tokens of one target, the second those of another, and
// asks about them.
func (l *lab) startServers(ctx context.Context, manifests string) error {
	ca, err := os.ReadFile(l.profile.Bundle)
	if err != nil {
		return err
	}
	hook := func(file, path string) error {
		return writeKubeconfig(l.path(file), l.profile.Server+path, ca, webhookSecret)
	}
	replaced := func(file, from string, replace ...string) error {
		b, err := os.ReadFile(filepath.Join(manifests, from))
		return errors.Join(err, os.WriteFile(l.path(file), []byte(strings.NewReplacer(replace...).Replace(string(b))), 0o600))
	}
	trusted := func(file, target string) error {
		return replaced(file, "authentication.yaml", "https://grants.example.org", l.profile.Server+"/grants", "[production-cluster]", "["+target+"]",
			"      (of the issuer's https server)\n", "", "      -----BEGIN CERTIFICATE-----\n", "      "+strings.ReplaceAll(strings.TrimSpace(string(ca)), "\n", "\n      ")+"\n",
			"      -----END CERTIFICATE-----\n", "")
	}
	err = errors.Join(os.Mkdir(l.path("cluster"), 0o700), os.Mkdir(l.path("asking"), 0o700),
		hook("audit.kubeconfig", "/kubernetes/"+inServiceAccount+"/audit"), hook("authorize.kubeconfig", "/kubernetes/"+inWebhook+"/authorize"),
		trusted("authentication.yaml", inJWT), trusted("asking.yaml", inWebhook),
		replaced("authorization.yaml", "authorization.yaml", "/etc/kubernetes/remit.kubeconfig", l.path("authorize.kubeconfig")))
	if err != nil {
		return err
	}
	l.cluster = &cluster{}
	first, err := testcluster.Start(ctx, testcluster.Config{Dir: l.path("cluster"), AuditWebhook: l.path("audit.kubeconfig"),
		AuditPolicy: filepath.Join(manifests, "audit-policy.yaml"), Authentication: l.path("authentication.yaml"), Flags: []string{"--audit-webhook-batch-max-wait=200ms"}})
	if err != nil {
		return err
	}
	l.cluster.Cluster = first
	l.cluster.asking, err = testcluster.Start(ctx, testcluster.Config{Dir: l.path("asking"), Join: first, Authentication: l.path("asking.yaml"),
		Authorization: l.path("authorization.yaml")})
	return err
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

func (c *cluster) close() {
	for _, s := range []*testcluster.Cluster{c.asking, c.Cluster} {
		if s != nil {
			_ = s.Stop()
		}
	}
}

// server is the API server of a target.
func (c *cluster) server(target string) *testcluster.Cluster {
	if target == inWebhook {
		return c.asking
	}
	return c.Cluster
}

// file declares the cluster as a target in each mode, and a workflow at each.
func (c *cluster) file(l *lab) string {
	broker, asking := l.path("broker.kubeconfig"), l.path("asking.kubeconfig")
	return c.target(l, inServiceAccount, "serviceaccount", broker, l.id, "rollout") + c.target(l, inJWT, "jwt", broker, l.id+"j", "rollout-jwt") +
		c.target(l, inWebhook, "webhook", asking, l.id+"w", "rollout-webhook")
}

func (c *cluster) target(l *lab, name, mode, kubeconfig, installation, workflow string) string {
	return fmt.Sprintf(`---
kind: Target
name: %[1]s
type: kubernetes
mode: %[2]s
audience: %[1]s
kubeconfig: %[3]s
namespaces: [production]
installation: %[4]s
webhook: {file: %[5]s}
---
kind: Workflow
name: %[6]s
parameters: {app: {type: name}, image: {type: image}}
start: {by: [operator/ci], expires: 1h}
stages:
- name: do
  end: {by: [operator/ci]}
  may:
  - {name: apply, who: agent/deploy, action: kubernetes.apply, target: %[1]s, where: {namespace: production, kind: Deployment, name: $app, image: $image}}
- name: after
  may:
  - {name: late, who: agent/other, action: kubernetes.get, target: %[1]s, where: {namespace: production, kind: Deployment, name: $app}}
`, name, mode, kubeconfig, installation, l.path("webhook.token"), workflow)
}

// grant NAME HOLDER RUN-TOKEN APP [TARGET]: the holder gets the credential that the target's workflow gives for APP and the laboratory's image, and NAME
// becomes it. It works before the command ends: a fresh binding takes the API server some milliseconds.
func (a *attack) grant(ts *testscript.TestScript, args []string) error {
	target := inServiceAccount
	if len(args) > 4 {
		target = args[4]
	}
	got, err := a.ask(ts, []string{args[1], "token=" + args[2], "target=" + target, "name=" + args[3], "image=" + a.profile.lab.image})
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
		seen, err := a.kube(ts, []string{v.Token, "GET", target + ":/apis/apps/v1/namespaces/production/deployments/" + args[3]})
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

// kube TOKEN METHOD [TARGET:]PATH [FILE] [CONTENT-TYPE]: a request straight to the target's API server with a bare credential. @NAME@ in the file becomes
// the variable.
func (a *attack) kube(ts *testscript.TestScript, args []string) (*answer, error) {
	c := a.profile.lab.cluster
	target, path, ok := strings.Cut(args[2], ":/")
	if !ok {
		target, path = inServiceAccount, strings.TrimPrefix(args[2], "/")
	}
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
	req, err := http.NewRequestWithContext(ctx, args[1], c.server(target).URL+"/"+path, bytes.NewReader(body))
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
