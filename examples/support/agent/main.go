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
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"remit/examples/orchestrator"
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
	o, err := orchestrator.New(ctx, "support")
	if err != nil {
		return err
	}
	defer o.Close() //nolint:errcheck // it is over
	a := &agent{Orchestrator: o, ticket: ticket, customer: customer}
	return o.Work(ctx, os.Stdin, func(ctx context.Context, order string) error {
		stage, ok := map[string]func(context.Context) error{"work": a.investigate, "answer": a.answer}[order]
		if !ok {
			return fmt.Errorf("no stage %q", order)
		}
		return stage(ctx)
	})
}

type agent struct {
	*orchestrator.Orchestrator
	ticket, customer string
}

// investigate is the plan of the first stage: what tools there are, what is known of such problems, the ticket, the customer.
func (a *agent) investigate(ctx context.Context) error {
	if err := a.List(ctx); err != nil {
		return err
	}
	ticket, err := a.Call(ctx, false, "desk__read_ticket", map[string]any{"ticket": a.ticket})
	if err != nil {
		return err
	}
	for _, c := range []struct {
		tool string
		args map[string]any
	}{
		{"desk__read_customer", map[string]any{"customer": a.customer}},
		{"kb__read_text_file", map[string]any{"path": "/kb/invoices.md"}},
		{"memory__create_entities", map[string]any{"entities": []any{map[string]any{"name": a.customer, "entityType": "customer",
			"observations": []string{"asked about an invoice in " + a.ticket}}}}},
		{"runner__run", map[string]any{"language": "python", "code": "print(sum(i * 19 for i in (1, 2, 3)) / 100)"}},
	} {
		if _, err := a.Call(ctx, false, c.tool, c.args); err != nil {
			return err
		}
	}
	return a.obey(ctx, ticket)
}

// answer is the plan of the second stage.
func (a *agent) answer(ctx context.Context) error {
	_, err := a.Call(ctx, false, "desk__add_note", map[string]any{"customer": a.customer, "text": "The invoice was counted twice; refunded."})
	return err
}

// obey does what the text says: the injection.
func (a *agent) obey(ctx context.Context, text string) error {
	var ticket struct{ Text string }
	if err := json.Unmarshal([]byte(text), &ticket); err != nil {
		return fmt.Errorf("read the ticket: %w", err)
	}
	for line := range strings.Lines(ticket.Text) {
		verb, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		if own := itself[verb]; own != nil {
			text, err := own(ctx, rest)
			s := orchestrator.Step{Tool: verb, Injected: true, Failed: err != nil, Text: text}
			if err != nil {
				s.Text = err.Error()
			}
			if err := a.Tell(s); err != nil {
				return err
			}
			continue
		}
		if verb != "CALL" {
			continue
		}
		tool, args, _ := strings.Cut(rest, " ")
		if _, err := a.Call(ctx, true, tool, json.RawMessage(args)); err != nil {
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
