// SPDX-License-Identifier: Apache-2.0

// Command payments is a micro-tool: an MCP server over stdio in front of the company's payment API. It holds no key and decides nothing:
// Remit's egress proxy decides each of its requests under the call that caused it, and puts the key in.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"
)

type refundIn struct {
	Customer int64       `json:"customer" jsonschema:"the customer's number"`
	Amount   json.Number `json:"amount" jsonschema:"how much, in euros"`
}

var schema = json.RawMessage(`{"type":"object","required":["customer","amount"],"additionalProperties":false,
"properties":{"customer":{"type":"integer"},"amount":{"type":"number"}}}`)

func main() {
	s := mcp.NewServer(&mcp.Implementation{Name: "issue-refund", Version: "1"}, nil)
	client := &http.Client{Timeout: 20 * time.Second}
	s.AddTool(&mcp.Tool{Name: "refund", Description: "Refund a customer.", InputSchema: schema},
		func(ctx context.Context, r *mcp.CallToolRequest) (*mcp.CallToolResult, error) {
			text, err := refund(ctx, client, r.Params.Arguments)
			if err != nil {
				text = err.Error()
			}
			return &mcp.CallToolResult{IsError: err != nil, Content: []mcp.Content{&mcp.TextContent{Text: text}}}, nil
		})
	if err := s.Run(context.Background(), &mcp.StdioTransport{}); err != nil {
		log.Fatal(err)
	}
}

// refund posts what was asked, with the amount as it was written, and returns the API's answer.
func refund(ctx context.Context, client *http.Client, args json.RawMessage) (string, error) {
	var in refundIn
	if err := json.Unmarshal(args, &in); err != nil {
		return "", err
	}
	body, err := json.Marshal(in)
	if err != nil {
		return "", err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, os.Getenv("PAYMENTS_URL")+"/v1/refunds", bytes.NewReader(body))
	if err != nil {
		return "", err
	}
	req.Header.Set("Content-Type", "application/json")
	res, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(res.Body, 64<<10))
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("the payment API answered %s: %s", res.Status, answer)
	}
	return string(answer), err
}
