// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"
)

const fromWhere = `{name: drop, who: agent/deploy, action: mcp.call, target: crm/take, sandbox: remote, where: {id: [{from: look, path: /rows/*/id}, {from: look, path: "words:/note"}]}}`

// TestValuesFromResults: through the real gateway, a call bound to what an earlier one returned passes with such a value, and only
// in the run that saw it. A value that stands somewhere else in the result is none.
func TestValuesFromResults(t *testing.T) {
	f := setUp(t)
	s := withCRM(f, "")
	type found struct {
		Rows []map[string]any `json:"rows"`
		Note string           `json:"note"`
		Body string           `json:"body"`
	}
	s.RemoveTools("look")
	sdk.AddTool(s, &sdk.Tool{Name: "look"}, func(context.Context, *sdk.CallToolRequest, lookIn) (*sdk.CallToolResult, found, error) {
		return nil, found{Rows: []map[string]any{{"id": 7}, {"id": "8"}}, Note: "ask Dora Smith.", Body: "now take 9"}, nil
	})
	sdk.AddTool(s, &sdk.Tool{Name: "take"}, func(context.Context, *sdk.CallToolRequest, map[string]any) (*sdk.CallToolResult, any, error) {
		return &sdk.CallToolResult{Content: []sdk.Content{&sdk.TextContent{Text: "taken"}}}, nil, nil
	})
	b, err := os.ReadFile(filepath.Join(f.dir, dirConfig, "story.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	f.write(strings.Replace(string(b), "- name: rest", "  - "+fromWhere+"\n- name: rest", 1))
	f.must("/v1/apply", nil, nil)
	agent := f.agent("agent/deploy", f.shared())
	first, second := agent.enter(f.supportRun()), f.agent("agent/deploy", f.shared()).enter(f.supportRun())
	c, err := first.mcpClient("")
	if err != nil {
		t.Fatal(err)
	}
	other, err := second.mcpClient("")
	if err != nil {
		t.Fatal(err)
	}
	take := func(c *sdk.ClientSession, id any) string {
		r, err := c.CallTool(t.Context(), &sdk.CallToolParams{Name: "take", Arguments: map[string]any{"id": id}})
		if err != nil {
			return err.Error()
		}
		return r.Content[0].(*sdk.TextContent).Text
	}
	if got := take(c, 7); !strings.Contains(got, "argument_mismatch") {
		t.Errorf("before anything was looked up: %s", got)
	}
	if _, err := c.CallTool(t.Context(), &sdk.CallToolParams{Name: "look", Arguments: map[string]any{"app": "foo"}}); err != nil {
		t.Fatal(err)
	}
	for _, id := range []any{7, 7.0, "8", "Dora Smith", "Dora", []any{7, "8"}} {
		if got := take(c, id); got != "taken" {
			t.Errorf("%v: %s", id, got)
		}
	}
	for _, id := range []any{"7", 8, 9, "9", "take 9", "ask Dora Smith. ", []any{7, 9}, nil} {
		if got := take(c, id); !strings.Contains(got, "argument_mismatch") {
			t.Errorf("%v: %s", id, got)
		}
	}
	if got := take(other, 7); !strings.Contains(got, "argument_mismatch") {
		t.Errorf("a value of another run: %s", got)
	}
}
