// SPDX-License-Identifier: Apache-2.0

// Command runner is a micro-tool: an MCP server over stdio that runs code which a model wrote. It checks nothing: what the code can
// do is what its sandbox lets it.
package main

import (
	"bytes"
	"context"
	"fmt"
	"log"
	"os/exec"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"
)

type codeIn struct {
	Language string `json:"language" jsonschema:"sh or python"`
	Code     string `json:"code" jsonschema:"the program"`
}

// interpreters are the programs that run code, which is their last argument.
var interpreters = map[string][]string{
	"sh":     {"/bin/sh", "-c"},
	"python": {"/usr/bin/python3", "-c"},
}

const (
	within    = 20 * time.Second
	maxOutput = 64 << 10
)

func main() {
	s := mcp.NewServer(&mcp.Implementation{Name: "runner", Version: "1"}, nil)
	mcp.AddTool(s, &mcp.Tool{Name: "run", Description: "Run a program and return what it prints. It has no network and no files."},
		func(ctx context.Context, _ *mcp.CallToolRequest, in codeIn) (*mcp.CallToolResult, any, error) {
			out, err := run(ctx, in)
			return &mcp.CallToolResult{Content: []mcp.Content{&mcp.TextContent{Text: out}}}, nil, err
		})
	if err := s.Run(context.Background(), &mcp.StdioTransport{}); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, in codeIn) (string, error) {
	argv, ok := interpreters[in.Language]
	if !ok {
		return "", fmt.Errorf("no interpreter for %.20q: sh or python", in.Language)
	}
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, argv[0], append(argv[1:], in.Code)...) //nolint:gosec // running what it is given is what it is for
	cmd.Stdout, cmd.Stderr, cmd.WaitDelay = &out, &out, time.Second
	err := cmd.Run()
	text := out.String()
	if len(text) > maxOutput {
		text = text[:maxOutput] + "\n[cut]"
	}
	if err != nil {
		text += fmt.Sprintf("\n[%v]", err)
	}
	return text, nil
}
