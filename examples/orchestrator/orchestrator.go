// SPDX-License-Identifier: Apache-2.0

// Package orchestrator is what the example agents share: an MCP client of Remit, with the identity that remit exec gives a launched
// agent, which tells what it does as lines of JSON on standard output. It holds no data, no key and no tool.
package orchestrator

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

// Step is one thing that the orchestrator did, as it tells it.
type Step struct {
	Tool      string          `json:"tool"`
	Arguments json.RawMessage `json:"arguments,omitempty"`
	Injected  bool            `json:"injected,omitempty"` // a text that it read told it to
	Failed    bool            `json:"failed,omitempty"`
	Text      string          `json:"text,omitempty"`
	Denial    any             `json:"denial,omitempty"` // Remit's, for programs
}

// Orchestrator is used by one goroutine.
type Orchestrator struct {
	name    string
	out     *json.Encoder
	source  *workloadapi.X509Source
	session *mcp.ClientSession
}

// New gets an identity. Close gives it back.
func New(ctx context.Context, name string) (*Orchestrator, error) {
	source, err := workloadapi.NewX509Source(ctx)
	if err != nil {
		return nil, fmt.Errorf("get an identity: %w", err)
	}
	return &Orchestrator{name: name, out: json.NewEncoder(os.Stdout), source: source}, nil
}

// Source is its identity, for what it asks Remit beside MCP.
func (o *Orchestrator) Source() *workloadapi.X509Source { return o.source }

// Close ends it.
func (o *Orchestrator) Close() error { return o.source.Close() }

// Work does what each line of in orders, over an MCP session of its own, and says when it is done.
func (o *Orchestrator) Work(ctx context.Context, in io.Reader, do func(ctx context.Context, order string) error) error {
	return o.Orders(ctx, in, func(ctx context.Context, order string) error {
		return o.Connected(ctx, func(ctx context.Context) error { return do(ctx, order) })
	})
}

// Orders does what each line of in orders, and says when it is done. An error ends it.
func (o *Orchestrator) Orders(ctx context.Context, in io.Reader, do func(ctx context.Context, order string) error) error {
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		err := do(ctx, lines.Text())
		if err == nil {
			err = o.Tell(Step{Tool: "end of " + lines.Text()})
		}
		if err != nil {
			return err
		}
	}
	return lines.Err()
}

// Connected does something over an MCP session of its own.
func (o *Orchestrator) Connected(ctx context.Context, do func(context.Context) error) error {
	svid, err := o.source.GetX509SVID()
	if err != nil {
		return err
	}
	server, err := spiffeid.FromPath(svid.ID.TrustDomain(), "/remit/server")
	if err != nil {
		return err
	}
	config := tlsconfig.MTLSClientConfig(o.source, o.source, tlsconfig.AuthorizeID(server))
	config.MinVersion = tls.VersionTLS13
	client := mcp.NewClient(&mcp.Implementation{Name: o.name, Version: "1"}, nil)
	o.session, err = client.Connect(ctx, &mcp.StreamableClientTransport{Endpoint: os.Getenv("REMIT_URL") + "/mcp", DisableStandaloneSSE: true,
		HTTPClient: &http.Client{Transport: &inRun{&http.Transport{TLSClientConfig: config, Proxy: http.ProxyFromEnvironment}}}}, nil)
	if err != nil {
		return fmt.Errorf("connect to Remit: %w", err)
	}
	defer o.session.Close() //nolint:errcheck // it is over
	return do(ctx)
}

// inRun says in which run a request is: the run token, read anew each time.
type inRun struct{ next http.RoundTripper }

// RoundTrip implements http.RoundTripper.
func (t *inRun) RoundTrip(r *http.Request) (*http.Response, error) {
	token, err := os.ReadFile(os.Getenv("REMIT_RUN_TOKEN_FILE"))
	if err != nil {
		return nil, fmt.Errorf("read the run token: %w", err)
	}
	r = r.Clone(r.Context())
	r.Header.Set("Txn-Token", strings.TrimSpace(string(token)))
	return t.next.RoundTrip(r)
}

// Tell says what it did.
func (o *Orchestrator) Tell(s Step) error { return o.out.Encode(s) }

// List tells which tools it is shown.
func (o *Orchestrator) List(ctx context.Context) error {
	tools, err := o.session.ListTools(ctx, nil)
	if err != nil {
		return fmt.Errorf("list the tools: %w", err)
	}
	var names []string
	for _, t := range tools.Tools {
		names = append(names, t.Name)
	}
	return o.Tell(Step{Tool: "tools/list", Text: strings.Join(names, " ")})
}

// Call calls a tool, tells what came of it and returns its text. Only a fault of the connection is an error.
func (o *Orchestrator) Call(ctx context.Context, injected bool, tool string, args any) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	raw, err := json.Marshal(args)
	if err != nil {
		return "", fmt.Errorf("the arguments of %s: %w", tool, err)
	}
	s := Step{Tool: tool, Arguments: raw, Injected: injected}
	res, err := o.session.CallTool(ctx, &mcp.CallToolParams{Name: tool, Arguments: json.RawMessage(raw)})
	switch {
	case err != nil && errors.Is(err, context.DeadlineExceeded):
		return "", fmt.Errorf("call %s: %w", tool, err)
	case err != nil:
		s.Failed, s.Text = true, err.Error()
	default:
		s.Failed, s.Denial = res.IsError, res.Meta["remit.internal/denial"]
		for _, c := range res.Content {
			if t, ok := c.(*mcp.TextContent); ok {
				s.Text += t.Text
			}
		}
	}
	return s.Text, o.Tell(s)
}
