// SPDX-License-Identifier: Apache-2.0

// Command agent is the support orchestrator, without a model: it follows a fixed plan, and, as a hijacked one would, does whatever
// the ticket tells it to. A line of a ticket that reads
//
//	CALL TOOL {"argument": "value"}
//
// becomes a call; FETCH URL, DIAL HOST:PORT and READ FILE it does itself, without a tool. It holds no data, no key and no tool: all it can do is to ask Remit, over MCP.
//
// It reads one line for each stage of its plan from standard input, "work" or "answer", and writes what it did as lines of JSON to
// standard output.
package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

func main() {
	if len(os.Args) != 3 {
		log.Fatal("usage: agent TICKET CUSTOMER")
	}
	if err := work(context.Background(), os.Args[1], os.Args[2]); err != nil {
		log.Fatal(err)
	}
}

func work(ctx context.Context, ticket, customer string) error {
	source, err := workloadapi.NewX509Source(ctx)
	if err != nil {
		return fmt.Errorf("get an identity: %w", err)
	}
	defer source.Close() //nolint:errcheck // it is over
	o := &orchestrator{out: json.NewEncoder(os.Stdout), source: source, ticket: ticket, customer: customer}
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		stage, ok := map[string]func(context.Context) error{"work": o.investigate, "answer": o.answer}[in.Text()]
		if !ok {
			return fmt.Errorf("no stage %q", in.Text())
		}
		if err := o.connected(ctx, stage); err != nil {
			return err
		}
		if err := o.out.Encode(step{Tool: "end of " + in.Text()}); err != nil {
			return err
		}
	}
	return nil
}

// step is one thing that the orchestrator did, as it tells it.
type step struct {
	Tool      string          `json:"tool"`
	Arguments json.RawMessage `json:"arguments,omitempty"`
	Injected  bool            `json:"injected,omitempty"` // the ticket told it to
	Failed    bool            `json:"failed,omitempty"`
	Text      string          `json:"text,omitempty"`
	Denial    any             `json:"denial,omitempty"` // Remit's, for programs
}

type orchestrator struct {
	out              *json.Encoder
	source           *workloadapi.X509Source
	session          *mcp.ClientSession
	ticket, customer string
}

// connected does a stage over one session of MCP.
func (o *orchestrator) connected(ctx context.Context, stage func(context.Context) error) error {
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
	client := mcp.NewClient(&mcp.Implementation{Name: "support", Version: "1"}, nil)
	o.session, err = client.Connect(ctx, &mcp.StreamableClientTransport{Endpoint: os.Getenv("REMIT_URL") + "/mcp", DisableStandaloneSSE: true,
		HTTPClient: &http.Client{Transport: &inRun{&http.Transport{TLSClientConfig: config, Proxy: http.ProxyFromEnvironment}}}}, nil)
	if err != nil {
		return fmt.Errorf("connect to Remit: %w", err)
	}
	defer o.session.Close() //nolint:errcheck // it is over
	return stage(ctx)
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

// investigate is the plan of the first stage: what tools there are, what is known of such problems, the ticket, the customer.
func (o *orchestrator) investigate(ctx context.Context) error {
	tools, err := o.session.ListTools(ctx, nil)
	if err != nil {
		return fmt.Errorf("list the tools: %w", err)
	}
	var names []string
	for _, t := range tools.Tools {
		names = append(names, t.Name)
	}
	if err := o.out.Encode(step{Tool: "tools/list", Text: strings.Join(names, " ")}); err != nil {
		return err
	}
	ticket, err := o.call(ctx, false, "desk__read_ticket", map[string]any{"ticket": o.ticket})
	if err != nil {
		return err
	}
	for _, c := range []struct {
		tool string
		args map[string]any
	}{
		{"desk__read_customer", map[string]any{"customer": o.customer}},
		{"kb__read_text_file", map[string]any{"path": "/kb/invoices.md"}},
		{"memory__create_entities", map[string]any{"entities": []any{map[string]any{"name": o.customer, "entityType": "customer",
			"observations": []string{"asked about an invoice in " + o.ticket}}}}},
		{"runner__run", map[string]any{"language": "python", "code": "print(sum(i * 19 for i in (1, 2, 3)) / 100)"}},
	} {
		if _, err := o.call(ctx, false, c.tool, c.args); err != nil {
			return err
		}
	}
	return o.obey(ctx, ticket)
}

// answer is the plan of the second stage.
func (o *orchestrator) answer(ctx context.Context) error {
	_, err := o.call(ctx, false, "desk__add_note", map[string]any{"customer": o.customer, "text": "The invoice was counted twice; refunded."})
	return err
}

// obey does what the text says: the injection.
func (o *orchestrator) obey(ctx context.Context, text string) error {
	var ticket struct{ Text string }
	if err := json.Unmarshal([]byte(text), &ticket); err != nil {
		return fmt.Errorf("read the ticket: %w", err)
	}
	for line := range strings.Lines(ticket.Text) {
		verb, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		if own := itself[verb]; own != nil {
			text, err := own(ctx, rest)
			s := step{Tool: verb, Injected: true, Failed: err != nil, Text: text}
			if err != nil {
				s.Text = err.Error()
			}
			if err := o.out.Encode(s); err != nil {
				return err
			}
			continue
		}
		if verb != "CALL" {
			continue
		}
		tool, args, _ := strings.Cut(rest, " ")
		if _, err := o.call(ctx, true, tool, json.RawMessage(args)); err != nil {
			return err
		}
	}
	return nil
}

// itself is what the orchestrator can try without a tool.
var itself = map[string]func(ctx context.Context, what string) (string, error){
	"FETCH": func(ctx context.Context, url string) (string, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return "", err
		}
		res, err := (&http.Client{Timeout: 10 * time.Second}).Do(req)
		if err != nil {
			return "", err
		}
		defer res.Body.Close()
		body, err := io.ReadAll(io.LimitReader(res.Body, 64<<10))
		if err == nil && res.StatusCode != http.StatusOK {
			err = fmt.Errorf("%s: %s", res.Status, body)
		}
		return string(body), err
	},
	"DIAL": func(ctx context.Context, address string) (string, error) {
		c, err := (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "tcp", address)
		if err != nil {
			return "", err
		}
		return "connected", c.Close()
	},
	"READ": func(_ context.Context, file string) (string, error) {
		b, err := os.ReadFile(file)
		return string(b), err
	},
}

// call calls a tool and tells what came of it. Only a fault of the connection is an error.
func (o *orchestrator) call(ctx context.Context, injected bool, tool string, args any) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	raw, err := json.Marshal(args)
	if err != nil {
		return "", fmt.Errorf("the arguments of %s: %w", tool, err)
	}
	s := step{Tool: tool, Arguments: raw, Injected: injected}
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
	return s.Text, o.out.Encode(s)
}
