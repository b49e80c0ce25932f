// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"remit"
	"remit/internal/evidence/evidencetest"
	"remit/test/story"
)

// agentUID is the agent's own user where the demo runs as root.
const agentUID = 4001

// demo is the story of the deployment agent. Everything with a name is random, so that nothing can be hard-coded anywhere.
type demo struct {
	*story.Story
	parts
	cluster cluster
	scanner *evidencetest.Signer
	minted  []string // every credential that the story saw

	app, namespace, otherNamespace, scan, run string
	https                                     string // HOST:PORT of Remit
	image, otherImage                         string // REPOSITORY@sha256:HEX
	tagged                                    string // REPOSITORY:v1.2
	digest, otherDigest                       remit.Digest
}

var decisionPattern = regexp.MustCompile(`dec-[a-z2-7]{26}`)

func (s *demo) setUp(ctx context.Context) error {
	s.app, s.namespace, s.otherNamespace, s.scan = s.Word("foo"), s.Word("production"), s.Word("staging"), s.Word("scan")
	return s.Steps(ctx, []story.Chapter{
		{Name: "binaries", Do: s.copyBinaries}, {Name: "OCI registry with two images", Do: s.startRegistry}, {Name: "remit init", Do: s.initRemit},
		{Name: "Kubernetes API server", Do: s.startCluster}, {Name: "Remit's objects in the cluster", Do: s.prepareCluster},
		{Name: "agent, workflow, target, evidence source", Do: s.writeFiles}, {Name: "remit serve", Do: s.Serve}, {Name: "remit doctor", Do: s.doctor},
	})
}

// copyBinaries puts them where the agent's user can execute them.
func (s *demo) copyBinaries(context.Context) error {
	own, err := os.Executable()
	if err != nil {
		return err
	}
	return s.Programs(map[string]string{"remit": s.parts.remit, "kubectl": s.parts.kubectl, "agent": own})
}

func (s *demo) startRegistry(context.Context) error {
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	s.Stop(server.Close)
	repo := strings.TrimPrefix(server.URL, "http://") + "/company/" + s.app
	push := func(tag string) (string, remit.Digest, error) {
		img, err := random.Image(256, 1)
		if err != nil {
			return "", "", err
		}
		ref, err := name.ParseReference(repo+":"+tag, name.Insecure)
		if err != nil {
			return "", "", err
		}
		if err := remote.Write(ref, img); err != nil {
			return "", "", err
		}
		h, err := img.Digest()
		return repo + "@" + h.String(), remit.Digest(h.String()), err
	}
	var err, err2 error
	s.tagged = repo + ":v1.2"
	s.image, s.digest, err = push("v1.2")
	s.otherImage, s.otherDigest, err2 = push("v1.3")
	return errors.Join(err, err2)
}

func (s *demo) startCluster(ctx context.Context) error {
	if os.Getenv("CLUSTER") == "own" {
		if s.cluster.kubeconfig = os.Getenv("KUBECONFIG"); s.cluster.kubeconfig == "" {
			return errors.New("CLUSTER=own needs KUBECONFIG")
		}
		return s.readCluster(ctx)
	}
	audit, err := s.writeAudit()
	if err != nil {
		return err
	}
	_, err = s.Start(s.Path("apiserver.log"), "ready ", s.apiserver, "--dir", s.Path("cluster"), "--audit-webhook-config", audit,
		"--audit-policy", filepath.Join(s.manifests, "audit-policy.yaml"), "--", "--audit-webhook-batch-max-wait=1s")
	if err != nil {
		return err
	}
	s.cluster.kubeconfig = s.Path("cluster", "admin.kubeconfig")
	return s.readCluster(ctx)
}

// prepareCluster does what the Kubernetes guide tells an administrator to do.
func (s *demo) prepareCluster(ctx context.Context) error {
	for _, ns := range []string{s.namespace, s.otherNamespace} {
		if r := s.adminKubectl(ctx, "create", "namespace", ns); r.Code != 0 {
			return fmt.Errorf("%s", r)
		}
	}
	for _, args := range [][]string{
		{"apply", "-f", filepath.Join(s.manifests, "base.yaml")}, {"apply", "-f", filepath.Join(s.manifests, "policies.yaml")},
		{"-n", s.namespace, "apply", "-f", filepath.Join(s.manifests, "target.yaml")},
	} {
		if r := s.adminKubectl(ctx, args...); r.Code != 0 {
			return fmt.Errorf("%s", r)
		}
	}
	token := s.adminKubectl(ctx, "-n", "remit", "create", "token", "broker", "--duration=1h")
	if token.Code != 0 {
		return fmt.Errorf("%s", token)
	}
	type object = map[string]any
	config, err := json.Marshal(object{"apiVersion": "v1", "kind": "Config", "current-context": "remit",
		"clusters": []any{object{"name": "c", "cluster": object{"server": s.cluster.server, "certificate-authority-data": []byte(s.cluster.ca)}}},
		"contexts": []any{object{"name": "remit", "context": object{"cluster": "c", "user": "broker"}}},
		"users":    []any{object{"name": "broker", "user": object{"token": strings.TrimSpace(token.Out)}}}})
	if err != nil {
		return err
	}
	return os.WriteFile(s.Path("broker.kubeconfig"), config, 0o600)
}

func (s *demo) initRemit(ctx context.Context) error {
	port, err := story.FreePort()
	if err != nil {
		return err
	}
	s.https = "127.0.0.1:" + strconv.Itoa(port)
	if r := s.Remit(ctx, "init", "--trust-domain", "company.com", "--operator", "ci", "--https", s.https); r.Code != 0 {
		return fmt.Errorf("%s", r)
	}
	return nil
}

// writeAudit writes how the API server tells Remit what was executed: by TLS to Remit, and with a token that only it has.
func (s *demo) writeAudit() (string, error) {
	secret := make([]byte, 24)
	for i := range secret {
		secret[i] = byte(s.Rand.UintN(256))
	}
	token := hex.EncodeToString(secret)
	ca, err := os.ReadFile(s.Path("remit", "bundle.pem"))
	if err != nil {
		return "", err
	}
	type object = map[string]any
	config, err := json.Marshal(object{"apiVersion": "v1", "kind": "Config", "current-context": "remit",
		"clusters": []any{object{"name": "remit", "cluster": object{"server": "https://" + s.https + "/kubernetes/production-cluster/audit",
			"certificate-authority-data": ca}}},
		"contexts": []any{object{"name": "remit", "context": object{"cluster": "remit", "user": "api-server"}}},
		"users":    []any{object{"name": "api-server", "user": object{"token": token}}}})
	if err != nil {
		return "", err
	}
	return s.Path("audit.kubeconfig"), errors.Join(os.WriteFile(s.Path("audit.kubeconfig"), config, 0o600),
		os.WriteFile(s.Path("webhook.token"), []byte(token), 0o600))
}

func (s *demo) writeFiles(context.Context) error {
	if err := s.newScanner(); err != nil {
		return err
	}
	uid := ""
	if os.Getuid() == 0 {
		uid = fmt.Sprintf("  uid: %d\n", agentUID)
	}
	kubectl, err1 := story.DigestOf(s.Path("bin", "kubectl"))
	self, err2 := story.DigestOf(s.Path("bin", "remit"))
	holds, err3 := story.DigestOf(s.Path("bin", "agent"))
	if err := errors.Join(err1, err2, err3); err != nil {
		return err
	}
	files := map[string]string{
		"agents.yaml":   fmt.Sprintf(agentFile, kubectl, self, holds, uid),
		"workflow.yaml": fmt.Sprintf(workflowFile, s.namespace),
		"target.yaml":   fmt.Sprintf(targetFile, s.Path("broker.kubeconfig"), s.namespace, s.webhook()),
		"evidence.yaml": fmt.Sprintf(sourceFile, s.Path("scanner.pub")),
	}
	for name, content := range files {
		if err := os.WriteFile(s.Path("remit", "config", name), []byte(content), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// webhook is the target's key for audit events; a cluster of the user's own does not send any here.
func (s *demo) webhook() string {
	if os.Getenv("CLUSTER") == "own" {
		return ""
	}
	return "webhook: {file: " + s.Path("webhook.token") + "}\n"
}

const agentFile = `kind: Agent
name: deploy
owner: platform team
launch:
  by: [operator/ci]
  commands: [%s, %s, %s]  # kubectl, remit, and this program, as an agent that works on
  inherit: true  # kubectl starts the credential plugin
%s`

const workflowFile = `kind: Workflow
name: deploy
parameters:
  app:   {type: name}
  image: {type: image}
  scan:  {type: string}
start: {by: [operator/ci], expires: 2h}
stages:
- name: deploy
  expires: 30m
  end: {by: [agent/deploy]}
  may:
  - name: apply
    who: agent/deploy
    action: kubernetes.apply
    target: production-cluster
    where: {namespace: %s, kind: Deployment, name: $app, image: $image}
    evidence:
    - scan: {id: $scan, of: $image, source: trivy-ci, worst: medium, within: 24h}
    ttl: 5m
`

const targetFile = `kind: Target
name: production-cluster
type: kubernetes
production: true
mode: serviceaccount
kubeconfig: %s
namespaces: [%s]
installation: demo
%s`

const sourceFile = `kind: EvidenceSource
name: trivy-ci
type: scan
signers:
- name: ci-scanner
  key: {file: %s}
`

// doctor waits until the target is fit: admission policies that are a few seconds old may not be in force everywhere yet.
func (s *demo) doctor(ctx context.Context) error {
	var r story.Result
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(250 * time.Millisecond) {
		if r = s.Remit(ctx, "doctor"); r.Code == 0 {
			return nil
		}
	}
	return fmt.Errorf("%s", r)
}

func (s *demo) startRun(ctx context.Context) error {
	s.Ask("remit run start deploy, image %s", s.tagged)
	r := s.Remit(ctx, "run", "start", "deploy", "--param", "app="+s.app, "--param", "image="+s.tagged, "--param", "scan="+s.scan, "-o", "json")
	var run remit.Run
	if err := json.Unmarshal([]byte(r.Out), &run); r.Code != 0 || err != nil {
		return fmt.Errorf("%s", r)
	}
	if got := run.Params["image"].Text(); got != s.image {
		return fmt.Errorf("the tag was resolved to %s, not to %s", got, s.image)
	}
	s.run = string(run.ID)
	s.Told("%s, the tag resolved to its digest", s.run, r.Took)
	return nil
}

func (s *demo) finishRun(ctx context.Context) error {
	if r := s.Remit(ctx, "run", "finish", s.run); r.Code != 0 {
		return fmt.Errorf("%s", r)
	}
	return nil
}

// manifest writes a deployment and returns its file.
func (s *demo) manifest(file, app, namespace, image string) string {
	path := s.Path(file + ".yaml")
	_ = os.WriteFile(path, fmt.Appendf(nil, `apiVersion: apps/v1
kind: Deployment
metadata: {name: %[1]s, namespace: %[2]s}
spec:
  replicas: 1
  selector: {matchLabels: {app: %[1]s}}
  template:
    metadata: {labels: {app: %[1]s}}
    spec:
      containers:
      - name: main
        image: %[3]s
`, app, namespace, image), 0o644)
	return path
}

// newScanner makes the key with which the demo plays the scanner in CI.
func (s *demo) newScanner() (err error) {
	if s.scanner, err = evidencetest.NewSigner("ci-scanner"); err != nil {
		return err
	}
	return os.WriteFile(s.Path("scanner.pub"), []byte(s.scanner.PublicPEM()), 0o644)
}

// addScan signs a scan of an image and hands it in.
func (s *demo) addScan(ctx context.Context, id string, digest remit.Digest) error {
	scan := evidencetest.Scan{ID: id, Image: s.app, Subjects: []remit.Digest{digest}, Finished: time.Now(),
		Findings: []evidencetest.Finding{{ID: "CVE-2026-0001", Severity: "low"}}}
	envelope, err := s.scanner.Sign(scan.Statement())
	if err != nil {
		return err
	}
	file := s.Path(id + ".json")
	if err := os.WriteFile(file, envelope, 0o644); err != nil {
		return err
	}
	if r := s.Remit(ctx, "evidence", "add", file, "--source", "trivy-ci"); r.Code != 0 {
		return fmt.Errorf("%s", r)
	}
	return nil
}
