// SPDX-License-Identifier: Apache-2.0

// Command knowledge is a micro-tool: an MCP server over stdio that searches a folder of documents, which is all that it sees.
package main

import (
	"bufio"
	"context"
	"log"
	"os"
	"path/filepath"
	"strings"

	"github.com/modelcontextprotocol/go-sdk/mcp"
)

type searchIn struct {
	Query string `json:"query" jsonschema:"words that a line has to have"`
}

type found struct {
	File string `json:"file"`
	Line string `json:"line"`
}

type searchOut struct {
	Found []found `json:"found"`
}

const most = 50 // lines of an answer

func main() {
	folder := os.Getenv("KNOWLEDGE")
	s := mcp.NewServer(&mcp.Implementation{Name: "search-kb", Version: "1"}, nil)
	mcp.AddTool(s, &mcp.Tool{Name: "search", Description: "Search the company's rules for refunds."},
		func(_ context.Context, _ *mcp.CallToolRequest, in searchIn) (*mcp.CallToolResult, searchOut, error) {
			out, err := search(folder, strings.Fields(strings.ToLower(in.Query)))
			return nil, searchOut{out}, err
		})
	if err := s.Run(context.Background(), &mcp.StdioTransport{}); err != nil {
		log.Fatal(err)
	}
}

func search(folder string, words []string) ([]found, error) {
	out := []found{}
	files, err := filepath.Glob(filepath.Join(folder, "*.md"))
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		for lines := bufio.NewScanner(f); lines.Scan() && len(out) < most; {
			if has(strings.ToLower(lines.Text()), words) {
				out = append(out, found{filepath.Base(name), lines.Text()})
			}
		}
		if err := f.Close(); err != nil {
			return nil, err
		}
	}
	return out, err
}

func has(line string, words []string) bool {
	for _, w := range words {
		if !strings.Contains(line, w) {
			return false
		}
	}
	return len(words) > 0
}
