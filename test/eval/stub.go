// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"net/http/httptest"
	"regexp"
	"sync"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"
	"go.yaml.in/yaml/v3"
)

// stub is the MCP server of one suite: it has the suite's tools, and returns what was recorded. Two runs may make the same call
// and have got different answers, so the one that plays a run says beforehand what the next call returns, and holds that call
// until it is over.
type stub struct {
	*httptest.Server
	mu   sync.Mutex // guards next, and what its turns say
	next map[string]*turn
}

// turn is the right to make one call.
type turn struct {
	sync.Mutex
	text   string
	failed bool
	came   int // how often the call came here
}

func newStub(suite string, tools []tool) *stub {
	s := &stub{next: map[string]*turn{}}
	srv := sdk.NewServer(&sdk.Implementation{Name: suite, Version: "1"}, nil)
	for _, t := range tools {
		srv.AddTool(&sdk.Tool{Name: t.Name, Description: t.Description, InputSchema: t.Parameters}, s.answer)
	}
	s.Server = httptest.NewTLSServer(sdk.NewStreamableHTTPHandler(func(*http.Request) *sdk.Server { return srv },
		&sdk.StreamableHTTPOptions{Stateless: true, JSONResponse: true}))
	return s
}

func (s *stub) answer(_ context.Context, r *sdk.CallToolRequest) (*sdk.CallToolResult, error) {
	key, err := callKey(r.Params.Name, r.Params.Arguments)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.next[key]
	if t == nil {
		return nil, fmt.Errorf("nobody announced %s", key)
	}
	t.came++
	out := &sdk.CallToolResult{Content: []sdk.Content{&sdk.TextContent{Text: t.text}}, IsError: t.failed}
	if !t.failed {
		out.StructuredContent = structured(t.text)
	}
	return out, nil
}

// announce says what the next such call returns; done lets others make the same call, and says how often it came. Nobody waits for
// anything but the call of another run that is under way.
func (s *stub) announce(key, text string, failed bool) (done func() int) {
	s.mu.Lock()
	t := s.next[key]
	if t == nil {
		t = &turn{}
		s.next[key] = t
	}
	s.mu.Unlock()
	t.Lock()
	s.mu.Lock()
	t.text, t.failed, t.came = text, failed, 0
	s.mu.Unlock()
	return func() int {
		s.mu.Lock()
		came := t.came
		s.mu.Unlock()
		t.Unlock()
		return came
	}
}

// callKey is the call in canonical form: the gateway passes arguments on as values, without those that are null.
func callKey(name string, args json.RawMessage) (string, error) {
	var v any
	if len(args) > 0 {
		if err := json.Unmarshal(args, &v); err != nil {
			return "", err
		}
	}
	b, err := json.Marshal(withoutNull(v))
	if err != nil {
		return "", err
	}
	if string(b) == "null" {
		b = []byte("{}")
	}
	return name + string(b), nil
}

func withoutNull(v any) any {
	switch t := v.(type) {
	case map[string]any:
		for k, e := range t {
			if e == nil {
				delete(t, k)
				continue
			}
			t[k] = withoutNull(e)
		}
	case []any:
		for i := range t {
			t[i] = withoutNull(t[i])
		}
	}
	return v
}

var fieldName = regexp.MustCompile(`^[a-z][a-z0-9_]*$`)

// structured is a recorded output as the structured content of a result. The benchmark wrote lists and records as YAML; what is
// no record is put into one under "result", as the SDKs for Python do.
func structured(text string) any {
	whole := map[string]any{"result": text}
	var doc yaml.Node
	if err := yaml.Unmarshal([]byte(text), &doc); err != nil || len(doc.Content) != 1 {
		return whole
	}
	n := doc.Content[0]
	v, ok := plain(n)
	switch {
	case !ok || n.Kind == yaml.ScalarNode && n.Tag == "!!str":
		return whole
	case n.Kind != yaml.MappingNode:
		return map[string]any{"result": v}
	}
	for i := 0; i < len(n.Content); i += 2 {
		if !fieldName.MatchString(n.Content[i].Value) {
			return whole // a text with a colon in its lines
		}
	}
	return v
}

// plain is a node as JSON has it; dates stay as they were written.
func plain(n *yaml.Node) (any, bool) {
	switch n.Kind {
	case yaml.MappingNode:
		m := map[string]any{}
		for i := 0; i+1 < len(n.Content); i += 2 {
			v, ok := plain(n.Content[i+1])
			if !ok {
				return nil, false
			}
			m[n.Content[i].Value] = v
		}
		return m, true
	case yaml.SequenceNode:
		list := []any{}
		for _, c := range n.Content {
			v, ok := plain(c)
			if !ok {
				return nil, false
			}
			list = append(list, v)
		}
		return list, true
	case yaml.ScalarNode:
		var v any
		switch n.Tag {
		case "!!int", "!!float", "!!bool", "!!null":
			if n.Decode(&v) != nil {
				return nil, false
			}
			if f, ok := v.(float64); ok && (math.IsNaN(f) || math.IsInf(f, 0)) {
				return n.Value, true
			}
			return v, true
		}
		return n.Value, true
	}
	return nil, false // aliases
}
