// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"

	"remit"
	"remit/internal/api"
	"remit/internal/identity"
	"remit/internal/ledger"
	"remit/internal/server"
	"remit/internal/store"
)

const trustDomain = "company.com"

// installation is a directory of Remit and the shipped binary serving it. This process is operator and all agents at once,
// which needs the one setting that is not the default: allow_own_uid.
type installation struct {
	*process
	dir, address string
	admin        *api.Client
	svids        map[string]*x509svid.SVID // by SPIFFE ID
	bundles      *x509bundle.Set
}

// install makes the directory with the files as its configuration, and starts the server.
func (b *bench) install(ctx context.Context, name string, files map[string]string) (*installation, error) {
	in, err := b.prepare(ctx, name, files)
	if err != nil {
		return nil, err
	}
	return in, in.serve(b)
}

func (b *bench) prepare(ctx context.Context, name string, files map[string]string) (*installation, error) {
	in := &installation{dir: b.path(name), svids: map[string]*x509svid.SVID{}}
	var err error
	if in.address, err = freeAddress(); err != nil {
		return nil, err
	}
	err = server.Init(ctx, server.InitOptions{Dir: in.dir, TrustDomain: trustDomain, Operator: "bench", UID: uint32(os.Getuid()), HTTPS: in.address})
	if err != nil {
		return nil, err
	}
	main := filepath.Join(in.dir, "remit.yaml")
	text, err := os.ReadFile(main)
	if err != nil {
		return nil, err
	}
	text = bytes.Replace(text, []byte("allow_own_uid: false"), []byte("allow_own_uid: true"), 1)
	if err := os.WriteFile(main, text, 0o644); err != nil { //nolint:gosec // no secret
		return nil, err
	}
	for file, content := range files {
		if err := os.WriteFile(filepath.Join(in.dir, "config", file), []byte(content), 0o644); err != nil { //nolint:gosec // no secret
			return nil, err
		}
	}
	in.admin, err = api.NewClient(filepath.Join(in.dir, "run", "admin.sock"))
	return in, err
}

func (in *installation) serve(b *bench) (err error) {
	if b.profile != "" {
		in.process, err = b.serveHere(in.dir)
		return err
	}
	in.process, err = b.start(filepath.Base(in.dir), "ready ", "", b.remit, "--dir", in.dir, "serve", "--log-level", "warn")
	return err
}

// become fetches every identity of this process from the Workload API.
func (in *installation) become(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	x, err := workloadapi.FetchX509Context(ctx, workloadapi.WithAddr(in.workload()))
	if err != nil {
		return fmt.Errorf("fetch identities: %w", err)
	}
	in.bundles = x.Bundles
	for _, s := range x.SVIDs {
		in.svids[s.ID.String()] = s
	}
	return nil
}

func (in *installation) workload() string {
	return "unix://" + filepath.Join(in.dir, "run", "workload.sock")
}

// agentID is what the agent's name stands for.
func agentID(agent string) string { return "spiffe://" + trustDomain + "/" + agent }

// tls is how the agent connects to the server.
func (in *installation) tls(agent string) (*tls.Config, error) {
	svid, ok := in.svids[agentID(agent)]
	if !ok {
		return nil, fmt.Errorf("this process is not attested as %s", agent)
	}
	id, err := spiffeid.FromPath(svid.ID.TrustDomain(), identity.ServerPath)
	if err != nil {
		return nil, err
	}
	cfg := tlsconfig.MTLSClientConfig(svid, in.bundles, tlsconfig.AuthorizeID(id))
	cfg.MinVersion = tls.VersionTLS13
	return cfg, nil
}

// run starts a run and returns it with a token for the agent.
func (in *installation) run(ctx context.Context, workflow, agent string, params map[string]string) (remit.Run, string, error) {
	var run remit.Run
	if err := in.admin.Post(ctx, "/v1/runs", api.StartRun{Workflow: workflow, Params: params}, &run); err != nil {
		return run, "", err
	}
	svid, ok := in.svids[agentID(agent)]
	if !ok {
		return run, "", fmt.Errorf("this process is not attested as %s", agent)
	}
	sum := sha256.Sum256(svid.Certificates[0].Raw)
	var token api.Token
	err := in.admin.Post(ctx, "/v1/runs/"+string(run.ID)+"/token",
		api.TokenRequest{Agent: remit.Name(agent), Thumbprint: base64.RawURLEncoding.EncodeToString(sum[:])}, &token)
	return run, token.Token, err
}

// settle waits until everything on record is in the log.
func (in *installation) settle(ctx context.Context) error {
	for end := time.Now().Add(2 * time.Minute); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		var st api.Status
		if err := in.admin.Get(ctx, "/v1/status", nil, &st); err != nil {
			return err
		}
		if st.Sequenced >= st.LedgerSize {
			return nil
		}
	}
	return errors.New("the log does not catch up")
}

// decisionsOnRecord stops the server, verifies its ledger from files and public key, and counts the decisions in it.
func (in *installation) decisionsOnRecord(ctx context.Context) (decisions int64, size uint64, err error) {
	in.stop()
	key, err := ledger.LoadKey(filepath.Join(in.dir, "keys", "ledger.key"))
	if err != nil {
		return 0, 0, err
	}
	s, err := store.Open(store.Config{Path: filepath.Join(in.dir, "state.db"), Sign: key.SignBatch})
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	log, err := ledger.OpenLog(filepath.Join(in.dir, "ledger"), key.Public())
	if err != nil {
		return 0, 0, err
	}
	report, err := log.Verify(ctx, ledger.VerifyOptions{Tail: s})
	if err != nil {
		return 0, 0, err
	}
	if !report.Complete() {
		return 0, 0, fmt.Errorf("the ledger is not intact and complete: %+v", report)
	}
	for after := uint64(0); ; {
		entries, err := s.Entries(after, 4096)
		if err != nil || len(entries) == 0 {
			return decisions, report.Size, err
		}
		for _, e := range entries {
			if bytes.Contains(e.Body, []byte(`,"kind":"decision",`)) {
				decisions++
			}
		}
		after = entries[len(entries)-1].Seq
	}
}
