// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"remit"
	"remit/internal/api"
	"remit/internal/config"
	"remit/internal/testcluster"
)

const (
	leaseNamespace = "production"
	clusterAgent   = "agent/deploy"
)

// cluster is a real API server, or two on one etcd, with Remit as its broker.
type cluster struct {
	*installation
	servers []*testcluster.Cluster
	broker  string // token of Remit's account
	token   string // run token
}

// kubernetes measures grants and revocation at a real API server.
func (b *bench) kubernetes(ctx context.Context) error {
	for _, set := range []struct {
		servers int
		mode    string
	}{{1, "serviceaccount"}, {2, "serviceaccount"}, {1, "webhook"}, {2, "webhook"}} {
		c, err := b.startCluster(ctx, set.servers, set.mode)
		if err != nil {
			return fmt.Errorf("%d API servers, mode %s: %w", set.servers, set.mode, err)
		}
		if set.servers == 1 && set.mode == "serviceaccount" {
			if err := errors.Join(b.grants(ctx, c), b.plugin(ctx, c)); err != nil {
				return err
			}
		}
		if err := b.revocations(ctx, c, set.mode); err != nil {
			return err
		}
		b.stopAll()
	}
	return nil
}

const clusterFiles = `kind: Agent
name: deploy
owner: bench
ttl: 1h
attest: [{unix: {uid: %d}}]
---
kind: Target
name: production-cluster
type: kubernetes
mode: %s
audience: production-cluster
webhook: {file: %s}
kubeconfig: %s
namespaces: [%s]
installation: bench
---
kind: Workflow
name: deploy
parameters:
  app:   {type: name}
  image: {type: image}
start: {by: [operator/bench], expires: 2h}
stages:
- name: deploy
  expires: 1h
  end: {by: [agent/deploy]}
  may:
  - {name: apply, who: agent/deploy, action: kubernetes.apply, target: production-cluster, ttl: 5m,
     where: {namespace: %s, kind: Deployment, name: $app, image: $image}}
`

// startCluster starts API servers on one etcd, and Remit as their broker. The API servers are told where Remit will be.
func (b *bench) startCluster(ctx context.Context, servers int, mode string) (*cluster, error) {
	name := fmt.Sprintf("%s-%d", mode, servers)
	in, err := b.prepare(ctx, name, nil)
	if err != nil {
		return nil, err
	}
	c := &cluster{installation: in}
	cfg, err := b.hooks(in, name, mode)
	if err != nil {
		return nil, err
	}
	for i := range servers {
		cfg.Dir = b.path(fmt.Sprintf("%s-api-%d", name, i))
		if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
			return nil, err
		}
		if i > 0 {
			cfg.Join = c.servers[0]
		}
		s, err := testcluster.Start(ctx, cfg)
		if err != nil {
			return nil, err
		}
		b.stops = append(b.stops, func() { _ = s.Stop() })
		c.servers = append(c.servers, s)
	}
	config, err := b.asBroker(ctx, c, name)
	if err != nil {
		return nil, err
	}
	text := fmt.Sprintf(clusterFiles, os.Getuid(), mode, b.path(name+".token"), config, leaseNamespace, leaseNamespace)
	if err := os.WriteFile(filepath.Join(in.dir, "config", "all.yaml"), []byte(text), 0o644); err != nil { //nolint:gosec // no secret
		return nil, err
	}
	if err := in.serve(b); err != nil {
		return nil, err
	}
	return c, c.ready(ctx)
}

// hooks writes what API servers need to trust grant tokens and to ask Remit about each request, from the shipped samples. In
// mode serviceaccount they need nothing.
func (b *bench) hooks(in *installation, name, mode string) (cfg testcluster.Config, err error) {
	const token = "a bench's token, which no one else has" //nolint:gosec // of a test cluster that lives for seconds
	if err := os.WriteFile(b.path(name+".token"), []byte(token), 0o600); err != nil || mode == "serviceaccount" {
		return cfg, err
	}
	server, err := config.LoadServer(filepath.Join(in.dir, "remit.yaml"))
	if err != nil {
		return cfg, err
	}
	ca, err := os.ReadFile(filepath.Join(in.dir, "bundle.pem"))
	if err != nil {
		return cfg, err
	}
	hook, err := kubeconfig("https://"+in.address+"/kubernetes/production-cluster/authorize", ca, token)
	if err != nil {
		return cfg, err
	}
	authn, err1 := os.ReadFile(filepath.Join(b.manifests, "authentication.yaml"))
	authz, err2 := os.ReadFile(filepath.Join(b.manifests, "authorization.yaml"))
	if err := errors.Join(err1, err2); err != nil {
		return cfg, err
	}
	before, rest, _ := strings.Cut(string(authn), "      -----BEGIN")
	_, after, _ := strings.Cut(rest, "  claimValidationRules")
	pem := "      " + strings.ReplaceAll(strings.TrimSpace(string(ca)), "\n", "\n      ") + "\n"
	text := strings.Replace(before+pem+"  claimValidationRules"+after, "https://grants.example.org", server.GrantIssuer, 1)
	cfg.Authentication, cfg.Authorization = b.path(name+".authn.yaml"), b.path(name+".authz.yaml")
	return cfg, errors.Join(os.WriteFile(cfg.Authentication, []byte(text), 0o600), os.WriteFile(b.path(name+".hook"), hook, 0o600),
		os.WriteFile(cfg.Authorization, []byte(strings.Replace(string(authz), "/etc/kubernetes/remit.kubeconfig", b.path(name+".hook"), 1)), 0o600))
}

func kubeconfig(server string, ca []byte, token string) ([]byte, error) {
	return json.Marshal(object{"apiVersion": "v1", "kind": "Config", "current-context": "c", "users": []any{object{"name": "u", "user": object{"token": token}}},
		"clusters": []any{object{"name": "c", "cluster": object{"server": server, "certificate-authority-data": ca}}},
		"contexts": []any{object{"name": "c", "context": object{"cluster": "c", "user": "u"}}}})
}

// asBroker does what the guide tells an administrator to do, and returns the path of Remit's kubeconfig.
func (b *bench) asBroker(ctx context.Context, c *cluster, name string) (string, error) {
	admin := c.servers[0].Kubeconfig
	for _, args := range [][]string{
		{"create", "namespace", leaseNamespace}, {"apply", "-f", filepath.Join(b.manifests, "base.yaml")},
		{"apply", "-f", filepath.Join(b.manifests, "policies.yaml")},
		{"-n", leaseNamespace, "apply", "-f", filepath.Join(b.manifests, "target-fast.yaml")},
	} {
		if _, err := kubectl(ctx, admin, args...); err != nil {
			return "", err
		}
	}
	token, err := kubectl(ctx, admin, "-n", "remit", "create", "token", "broker", "--duration=1h")
	if err != nil {
		return "", err
	}
	c.broker = strings.TrimSpace(token)
	text, err := kubeconfig(c.servers[0].URL, c.servers[0].CA, c.broker)
	path := b.path(name + ".broker.kubeconfig")
	return path, errors.Join(err, os.WriteFile(path, text, 0o600))
}

func kubectl(ctx context.Context, kubeconfig string, args ...string) (string, error) {
	path, err := testcluster.Kubectl(ctx)
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, path, append([]string{"--kubeconfig", kubeconfig}, args...)...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return string(out), err
}

// ready becomes the agent, starts a run, and waits until the target mints: its policies must have stood for some seconds.
func (c *cluster) ready(ctx context.Context) error {
	if err := c.become(ctx); err != nil {
		return err
	}
	var err error
	_, c.token, err = c.run(ctx, "deploy", clusterAgent, map[string]string{"app": "shop", "image": imageOf(0)})
	if err != nil {
		return err
	}
	client, err := c.client()
	if err != nil {
		return err
	}
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(250 * time.Millisecond) {
		var g granted
		if g, err = c.grant(ctx, client); err == nil {
			return c.revoke(ctx, g.Grant)
		}
	}
	return err
}

func (c *cluster) client() (*http.Client, error) {
	cfg, err := c.tls(clusterAgent)
	if err != nil {
		return nil, err
	}
	return &http.Client{Transport: &http.Transport{TLSClientConfig: cfg}, Timeout: 20 * time.Second}, nil
}

// granted is the token endpoint's answer, as far as it is needed here.
type granted struct {
	Token string        `json:"access_token"`
	Grant remit.GrantID `json:"grant_id"`
}

func (c *cluster) grant(ctx context.Context, client *http.Client) (g granted, err error) {
	details, err := json.Marshal([]object{{"type": "kubernetes.apply", "target": "production-cluster", "permission": "apply",
		"namespace": leaseNamespace, "kind": "Deployment", "name": "shop", "image": imageOf(0)}})
	if err != nil {
		return g, err
	}
	form := url.Values{"grant_type": {"client_credentials"}, "client_id": {agentID(clusterAgent)}, "authorization_details": {string(details)}}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+c.address+"/oauth2/token", strings.NewReader(form.Encode()))
	if err != nil {
		return g, err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("Txn-Token", c.token)
	status, body, err := do(client, req)
	if err != nil || status != http.StatusOK {
		return g, errors.Join(err, fmt.Errorf("the token endpoint answered %d: %s", status, body))
	}
	return g, json.Unmarshal(body, &g)
}

func (c *cluster) revoke(ctx context.Context, id remit.GrantID) error {
	return c.admin.Post(ctx, "/v1/grants/"+string(id)+"/revoke", api.Reasoned{Reason: "bench"}, nil)
}

func do(client *http.Client, req *http.Request) (int, []byte, error) {
	res, err := client.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	return res.StatusCode, body, err
}

// trusts is a client of the API server, by HTTP/2 as client-go is.
func trusts(s *testcluster.Cluster) *http.Client {
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(s.CA)
	return &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{ForceAttemptHTTP2: true,
		TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: pool}}}
}

// call sends one request to the API server; body nil is GET or DELETE.
func call(ctx context.Context, client *http.Client, s *testcluster.Cluster, token, method, path string, body any) (int, []byte, error) {
	var in io.Reader = http.NoBody
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			return 0, nil, err
		}
		in = strings.NewReader(string(text))
	}
	req, err := http.NewRequestWithContext(ctx, method, s.URL+path, in)
	if err != nil {
		return 0, nil, err
	}
	req.Header.Set("Authorization", "Bearer "+token)
	req.Header.Set("Content-Type", "application/json")
	return do(client, req)
}
