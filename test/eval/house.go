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
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"

	"remit"
	"remit/internal/api"
	"remit/internal/identity"
	"remit/internal/server"
)

const (
	trustDomain = "company.com"
	agentName   = "assistant"
	operator    = "user"
)

// house is a directory of Remit with the server running on it in this process, which is the operator and the agent as well: that
// needs allow_own_uid. What the agent may ask in a second is not what is measured here, so its quota is wide.
type house struct {
	dir, address string
	admin        *api.Client
	svid         *x509svid.SVID
	bundles      *x509bundle.Set
	client       *http.Client
	stop         func() error
}

const quotas = "\nquotas:\n  agents: {rate: 100000, burst: 100000, concurrent: 4096, bytes: 1073741824}\n"

// openHouse makes the directory with the files as its configuration, and starts the server.
func openHouse(ctx context.Context, dir string, files map[string]string) (*house, error) {
	h := &house{dir: dir}
	var err error
	if h.address, err = freeAddress(ctx); err != nil {
		return nil, err
	}
	err = server.Init(ctx, server.InitOptions{Dir: dir, TrustDomain: trustDomain, Operator: operator, UID: uint32(os.Getuid()), HTTPS: h.address}) //nolint:gosec // a uid
	if err != nil {
		return nil, err
	}
	main := filepath.Join(dir, "remit.yaml")
	text, err := os.ReadFile(main) //nolint:gosec // made right now
	if err != nil {
		return nil, err
	}
	text = append(bytes.Replace(text, []byte("allow_own_uid: false"), []byte("allow_own_uid: true"), 1), quotas...)
	if err := os.WriteFile(main, text, 0o644); err != nil { //nolint:gosec // no secret
		return nil, err
	}
	for file, content := range files {
		if err := os.WriteFile(filepath.Join(dir, "config", file), []byte(content), 0o644); err != nil { //nolint:gosec // no secret
			return nil, err
		}
	}
	if h.admin, err = api.NewClient(filepath.Join(dir, "run", "admin.sock")); err != nil {
		return nil, err
	}
	if err := h.serve(ctx); err != nil {
		return nil, err
	}
	if err := h.become(ctx); err != nil {
		return nil, errors.Join(err, h.stop())
	}
	return h, nil
}

// serve runs the server until stop.
func (h *house) serve(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	srv, err := server.New(ctx, server.Options{Dir: h.dir, Log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError})), Version: "eval"})
	if err != nil {
		cancel()
		return err
	}
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- srv.Run(ctx, func(api.Status) { close(ready) }) }()
	h.stop = func() error {
		cancel()
		return <-ended
	}
	select {
	case <-ready:
		return nil
	case err := <-ended:
		cancel()
		return errors.Join(errors.New("the server ended before it was ready"), err)
	}
}

// become fetches the agent's identity from the Workload API.
func (h *house) become(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	x, err := workloadapi.FetchX509Context(ctx, workloadapi.WithAddr("unix://"+filepath.Join(h.dir, "run", "workload.sock")))
	if err != nil {
		return fmt.Errorf("fetch the agent's identity: %w", err)
	}
	h.svid, h.bundles = x.DefaultSVID(), x.Bundles
	id, err := spiffeid.FromPath(h.svid.ID.TrustDomain(), identity.ServerPath)
	if err != nil {
		return err
	}
	cfg := tlsconfig.MTLSClientConfig(h.svid, h.bundles, tlsconfig.AuthorizeID(id))
	cfg.MinVersion = tls.VersionTLS13
	h.client = &http.Client{Transport: &http.Transport{TLSClientConfig: cfg, MaxIdleConnsPerHost: 64}}
	return nil
}

// enter starts a run of the workflow and returns a client of the gateway that is the agent in it.
func (h *house) enter(ctx context.Context, workflow, suite string) (*sdk.ClientSession, remit.RunID, error) {
	var run remit.Run
	if err := h.admin.Post(ctx, "/v1/runs", api.StartRun{Workflow: workflow}, &run); err != nil {
		return nil, "", err
	}
	sum := sha256.Sum256(h.svid.Certificates[0].Raw)
	var token api.Token
	err := h.admin.Post(ctx, "/v1/runs/"+string(run.ID)+"/token",
		api.TokenRequest{Agent: remit.Name("agent/" + agentName), Thumbprint: base64.RawURLEncoding.EncodeToString(sum[:])}, &token)
	if err != nil {
		return nil, "", err
	}
	c := sdk.NewClient(&sdk.Implementation{Name: agentName, Version: "1"}, nil)
	s, err := c.Connect(ctx, &sdk.StreamableClientTransport{Endpoint: "https://" + h.address + "/mcp/" + suite, DisableStandaloneSSE: true,
		HTTPClient: &http.Client{Transport: &headed{h.client.Transport, "Txn-Token", token.Token}}}, nil)
	return s, run.ID, err
}

// leave finishes a run, so that the server forgets what it returned.
func (h *house) leave(ctx context.Context, run remit.RunID) error {
	return h.admin.Post(ctx, "/v1/runs/"+string(run)+"/finish", nil, nil)
}

// headed adds a header to each request.
type headed struct {
	http.RoundTripper
	name, value string
}

// RoundTrip implements http.RoundTripper.
func (h *headed) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set(h.name, h.value)
	return h.RoundTripper.RoundTrip(r)
}

func freeAddress(ctx context.Context) (string, error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}
