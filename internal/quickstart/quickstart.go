// SPDX-License-Identifier: Apache-2.0

// Package quickstart plays Remit's story in a temporary folder, with the real server and no cluster: an agent is denied, the
// evidence arrives, the agent is allowed, the decision is explained, and the ledger is verified. The target is external: Remit
// decides and nobody mints. The package plays operator, scanner and agent at once, which is why this installation attests
// processes of its own user; nothing else should.
package quickstart

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/workloadapi"

	"remit"
	"remit/internal/api"
	"remit/internal/evidence/evidencetest"
	"remit/internal/identity"
	"remit/internal/ledger"
	"remit/internal/server"
)

const (
	app  = "foo"
	scan = "scan-789"
)

// image is what the story is about; nothing pulls it.
var imageDigest = remit.DigestOf([]byte("the story's image"))

// story is one playing.
type story struct {
	dir    string
	out    io.Writer
	began  time.Time
	admin  *api.Client
	https  string
	server string // base URL
	client *http.Client
	thumb  string
	token  string
	signer *evidencetest.Signer
}

// Run plays the story and prints it to out. It leaves nothing behind.
func Run(ctx context.Context, out io.Writer) (err error) {
	dir, err := os.MkdirTemp("", "remit-quickstart-")
	if err != nil {
		return fmt.Errorf("make a folder: %w", err)
	}
	defer os.RemoveAll(dir)
	s := &story{dir: dir, out: out, began: time.Now()}
	if err := s.prepare(ctx); err != nil {
		return err
	}
	srv, err := server.New(ctx, server.Options{Dir: dir, Log: slog.New(slog.DiscardHandler), Version: "quickstart"})
	if err != nil {
		return err
	}
	running, stop := context.WithCancel(ctx)
	ready, ended := make(chan api.Status, 1), make(chan error, 1)
	go func() { ended <- srv.Run(running, func(st api.Status) { ready <- st }) }()
	select {
	case st := <-ready:
		s.server = st.HTTPS
	case err := <-ended:
		stop()
		return err
	}
	err = s.play(ctx)
	stop()
	if stopped := <-ended; err == nil {
		err = stopped
	}
	if err != nil {
		return err
	}
	return s.verify(ctx)
}

func (s *story) say(format string, args ...any) { fmt.Fprintf(s.out, format+"\n", args...) }

// prepare makes the server's directory and the four files of the story.
func (s *story) prepare(ctx context.Context) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("find a port: %w", err)
	}
	s.https = l.Addr().String()
	if err := l.Close(); err != nil {
		return err
	}
	o := server.InitOptions{Dir: s.dir, TrustDomain: "company.com", Operator: "ci", UID: uint32(os.Getuid()), HTTPS: s.https}
	if err := server.Init(ctx, o); err != nil {
		return err
	}
	file := filepath.Join(s.dir, "remit.yaml")
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	b = bytes.Replace(b, []byte("allow_own_uid: false"), []byte("allow_own_uid: true"), 1)
	if s.signer, err = evidencetest.NewSigner("ci-scanner"); err != nil {
		return err
	}
	key := filepath.Join(s.dir, "scanner.pub")
	for name, content := range map[string]string{
		file: string(b), key: s.signer.PublicPEM(),
		filepath.Join(s.dir, "config", "story.yaml"): fmt.Sprintf(files, os.Getuid(), key),
	} {
		if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
			return err
		}
	}
	s.admin, err = api.NewClient(filepath.Join(s.dir, "run", "admin.sock"))
	return err
}

const files = `kind: Agent
name: deploy
owner: platform team
attest: [{unix: {uid: %d}}]
---
kind: Target
name: production-cluster
type: external
---
kind: EvidenceSource
name: trivy-ci
type: scan
signers: [{name: ci-scanner, key: {file: %s}}]
---
kind: Workflow
name: deploy
parameters:
  app:   {type: name}
  image: {type: image}
  scan:  {type: string}
start: {by: [operator/ci], expires: 1h}
stages:
- name: deploy
  expires: 30m
  end: {by: [agent/deploy]}
  may:
  - name: apply
    who: agent/deploy
    action: kubernetes.apply
    target: production-cluster
    where: {namespace: production, kind: Deployment, name: $app, image: $image}
    evidence:
    - scan: {id: $scan, of: $image, source: trivy-ci, worst: medium, within: 24h}
    ttl: 5m
`

func (s *story) play(ctx context.Context) error {
	image := "registry.company.com/foo@" + string(imageDigest)
	s.say("remit is running in %s (trust domain company.com), %.0f ms after the start", s.dir, ms(s.began))
	if err := s.becomeAgent(ctx); err != nil {
		return err
	}
	var run remit.Run
	params := map[string]string{"app": app, "image": image, "scan": scan}
	if err := s.admin.Post(ctx, "/v1/runs", api.StartRun{Workflow: "deploy", Params: params}, &run); err != nil {
		return err
	}
	s.say("\noperator/ci started %s of workflow deploy, for image %s", run.ID, image)
	var token api.Token
	if err := s.admin.Post(ctx, "/v1/runs/"+string(run.ID)+"/token", api.TokenRequest{Agent: "agent/deploy", Thumbprint: s.thumb}, &token); err != nil {
		return err
	}
	s.token = token.Token
	if err := s.step(ctx, "1. The agent asks to apply it. No scan exists.", image, false); err != nil {
		return err
	}
	s.say("\n2. A scanner signs that image with %s, and CI hands the statement in.", scan)
	envelope, err := s.signer.Sign(evidencetest.Scan{ID: scan, Image: app, Subjects: []remit.Digest{imageDigest}, Finished: time.Now()}.Statement())
	if err != nil {
		return err
	}
	if err := s.admin.Post(ctx, "/v1/evidence", api.AddEvidence{Source: "trivy-ci", Envelope: envelope}, nil); err != nil {
		return err
	}
	if err := s.step(ctx, "3. The agent asks again.", image, true); err != nil {
		return err
	}
	other := "registry.company.com/foo@" + string(remit.DigestOf([]byte("another image")))
	return s.step(ctx, "4. The agent asks for another image.", other, false)
}

// becomeAgent fetches the identity of this process from the Workload API, as any SPIFFE client does.
func (s *story) becomeAgent(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	x, err := workloadapi.FetchX509Context(ctx, workloadapi.WithAddr("unix://"+filepath.Join(s.dir, "run", "workload.sock")))
	if err != nil {
		return fmt.Errorf("fetch an identity: %w", err)
	}
	svid := x.DefaultSVID()
	id, err := spiffeid.FromPath(svid.ID.TrustDomain(), identity.ServerPath)
	if err != nil {
		return err
	}
	cfg := tlsconfig.MTLSClientConfig(svid, x.Bundles, tlsconfig.AuthorizeID(id))
	cfg.MinVersion = tls.VersionTLS13
	s.client = &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{TLSClientConfig: cfg}}
	s.thumb = remit.Thumbprint(svid.Certificates[0].Raw)
	s.say("this process is attested as %s", svid.ID)
	return nil
}

// step asks for a decision and explains it; an answer that is not the expected one is an error.
func (s *story) step(ctx context.Context, title, image string, want bool) error {
	s.say("\n%s", title)
	type object = map[string]any
	body, err := json.Marshal(object{
		"subject": object{"type": "agent", "id": "spiffe://company.com/agent/deploy"},
		"action":  object{"name": "kubernetes.apply"},
		"resource": object{"type": "kubernetes", "id": "production-cluster",
			"properties": object{"namespace": "production", "kind": "Deployment", "name": app, "image": image}},
		"context": object{"run_token": s.token},
	})
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.server+"/access/v1/evaluation", bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	began := time.Now()
	res, err := s.client.Do(req)
	if err != nil {
		return fmt.Errorf("ask for a decision: %w", err)
	}
	defer res.Body.Close()
	var answer struct {
		Decision *bool `json:"decision"`
		Context  struct {
			ID remit.DecisionID `json:"decision_id"`
		} `json:"context"`
	}
	if err := json.NewDecoder(io.LimitReader(res.Body, 1<<20)).Decode(&answer); err != nil || answer.Decision == nil {
		return fmt.Errorf("the answer %s is no decision: %w", res.Status, err)
	}
	s.say("   decision: %v, durable in the ledger, in %.1f ms", *answer.Decision, ms(began))
	var why api.Why
	if err := s.admin.Get(ctx, "/v1/why/"+string(answer.Context.ID), nil, &why); err != nil {
		return err
	}
	for line := range bytes.Lines([]byte(why.Text)) {
		s.say("   %s", bytes.TrimRight(line, "\n"))
	}
	if *answer.Decision != want {
		return fmt.Errorf("the story says %v", want)
	}
	return nil
}

// verify checks the ledger with its files and the public key, after the server has stopped.
func (s *story) verify(ctx context.Context) error {
	b, err := os.ReadFile(filepath.Join(s.dir, "ledger.pub"))
	if err != nil {
		return err
	}
	key, err := ledger.ParsePublicKey(string(bytes.TrimSpace(b)))
	if err != nil {
		return err
	}
	log, err := ledger.OpenLog(filepath.Join(s.dir, "ledger"), key)
	if err != nil {
		return err
	}
	report, err := log.Verify(ctx, ledger.VerifyOptions{})
	if err != nil {
		return err
	}
	if !report.Intact() {
		return fmt.Errorf("the ledger is not intact: %s", report.Problems[0].What)
	}
	s.say("\n5. The server stopped; its ledger verifies offline: %d entries, nothing missing.", report.Size)
	s.say("\nThat took %.1f s. Next: remit init --trust-domain YOURS, and docs/kubernetes.md for a cluster.", ms(s.began)/1e3)
	return nil
}

func ms(since time.Time) float64 { return float64(time.Since(since).Microseconds()) / 1e3 }
