// SPDX-License-Identifier: Apache-2.0

// Command mailbox is a micro-tool: an MCP server over stdio in front of the company's mail server. It holds no key and decides nothing: the
// egress proxy decides each of its requests under the call that caused it, and puts the key in.
package main

import (
	"context"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/url"
	"os"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"
)

type readIn struct {
	Message string `json:"message" jsonschema:"the message's id, such as M-1"`
}

func main() {
	client := &http.Client{Timeout: 20 * time.Second}
	s := mcp.NewServer(&mcp.Implementation{Name: "mailbox", Version: "1"}, nil)
	mcp.AddTool(s, &mcp.Tool{Name: "read", Description: "Read a message."},
		func(ctx context.Context, _ *mcp.CallToolRequest, in readIn) (*mcp.CallToolResult, any, error) {
			text, err := read(ctx, client, in.Message)
			if err != nil {
				return nil, nil, err
			}
			return &mcp.CallToolResult{Content: []mcp.Content{&mcp.TextContent{Text: text}}}, nil, nil
		})
	if err := s.Run(context.Background(), &mcp.StdioTransport{}); err != nil {
		log.Fatal(err)
	}
}

func read(ctx context.Context, client *http.Client, message string) (string, error) {
	to := os.Getenv("MAIL_URL") + "/v1/messages?" + url.Values{"id": {message}}.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, to, nil)
	if err != nil {
		return "", err
	}
	res, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	if err != nil {
		return "", fmt.Errorf("read the mail server's answer: %w", err)
	}
	if res.StatusCode != http.StatusOK {
		return "", fmt.Errorf("the mail server answered %s: %s", res.Status, body)
	}
	return string(body), nil
}
