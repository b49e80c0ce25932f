// SPDX-License-Identifier: Apache-2.0

// Command desk is a micro-tool: an MCP server over stdio in front of the company's support system. It holds no key and decides
// nothing: Remit's egress proxy decides each of its requests under the call that caused it, and puts the key in.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/url"
	"os"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"
)

type ticketIn struct {
	Ticket string `json:"ticket" jsonschema:"the ticket's id, such as T-1"`
}

type customerIn struct {
	Customer string `json:"customer" jsonschema:"the customer's id, such as C-1"`
}

type noteIn struct {
	Customer string `json:"customer" jsonschema:"the customer's id, such as C-1"`
	Text     string `json:"text" jsonschema:"what the note says"`
}

type nothing struct{}

func main() {
	d := &desk{url: os.Getenv("DESK_URL"), client: &http.Client{Timeout: 20 * time.Second}}
	s := mcp.NewServer(&mcp.Implementation{Name: "desk", Version: "1"}, nil)
	mcp.AddTool(s, &mcp.Tool{Name: "read_ticket", Description: "Read a support ticket."},
		func(ctx context.Context, _ *mcp.CallToolRequest, in ticketIn) (*mcp.CallToolResult, any, error) {
			return d.get(ctx, "/v1/tickets", url.Values{"id": {in.Ticket}})
		})
	mcp.AddTool(s, &mcp.Tool{Name: "read_customer", Description: "Read a customer's record."},
		func(ctx context.Context, _ *mcp.CallToolRequest, in customerIn) (*mcp.CallToolResult, any, error) {
			return d.get(ctx, "/v1/customers", url.Values{"id": {in.Customer}})
		})
	mcp.AddTool(s, &mcp.Tool{Name: "add_note", Description: "Add a note to a customer's record."},
		func(ctx context.Context, _ *mcp.CallToolRequest, in noteIn) (*mcp.CallToolResult, any, error) {
			return d.post(ctx, "/v1/notes", in)
		})
	mcp.AddTool(s, &mcp.Tool{Name: "diagnose", Description: "Ask the support system what it received."},
		func(ctx context.Context, _ *mcp.CallToolRequest, _ nothing) (*mcp.CallToolResult, any, error) {
			return d.get(ctx, "/v1/diagnose", nil)
		})
	if err := s.Run(context.Background(), &mcp.StdioTransport{}); err != nil {
		log.Fatal(err)
	}
}

// desk is the support system as this tool reaches it: by the usual proxy variables.
type desk struct {
	url    string
	client *http.Client
}

func (d *desk) get(ctx context.Context, path string, query url.Values) (*mcp.CallToolResult, any, error) {
	to := d.url + path
	if len(query) > 0 {
		to += "?" + query.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, to, nil)
	if err != nil {
		return nil, nil, err
	}
	return d.send(req)
}

func (d *desk) post(ctx context.Context, path string, body any) (*mcp.CallToolResult, any, error) {
	b, err := json.Marshal(body)
	if err != nil {
		return nil, nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, d.url+path, bytes.NewReader(b))
	if err != nil {
		return nil, nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	return d.send(req)
}

// send returns the system's answer as the tool's text; a refusal, of the system or of Remit, is an error that the agent reads.
func (d *desk) send(req *http.Request) (*mcp.CallToolResult, any, error) {
	res, err := d.client.Do(req)
	if err != nil {
		return nil, nil, err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	if err != nil {
		return nil, nil, fmt.Errorf("read the support system's answer: %w", err)
	}
	if res.StatusCode != http.StatusOK {
		return nil, nil, fmt.Errorf("the support system answered %s: %s", res.Status, body)
	}
	return &mcp.CallToolResult{Content: []mcp.Content{&mcp.TextContent{Text: string(body)}}}, nil, nil
}
