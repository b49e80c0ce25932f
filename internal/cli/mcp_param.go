// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"

	"remit/internal/gateway/mcp"
)

// maxKnown bounds the tools that the bridge remembers.
const maxKnown = 4096

func (m *mcpMessage) stateless() bool {
	return string(m.Params.Meta[metaVersion]) == `"`+statelessEra+`"`
}

// learn remembers the tools of an answer to tools/list: some of their arguments are repeated in headers.
func (b *bridge) learn(body []byte, m mcpMessage) {
	if m.Method != "tools/list" || !m.stateless() {
		return
	}
	var r struct {
		Result struct {
			Tools []json.RawMessage `json:"tools"`
		} `json:"result"`
	}
	if json.Unmarshal(body, &r) != nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.tools == nil || len(b.tools)+len(r.Result.Tools) > maxKnown {
		b.tools = map[string]json.RawMessage{}
	}
	for _, raw := range r.Result.Tools[:min(len(r.Result.Tools), maxKnown)] {
		var t struct {
			Name string `json:"name"`
		}
		if json.Unmarshal(raw, &t) == nil {
			b.tools[t.Name] = raw
		}
	}
}

// paramHeaders repeats arguments of a call. What cannot be read goes without: the gateway refuses it, with its own words.
func (b *bridge) paramHeaders(m mcpMessage) map[string]string {
	b.mu.Lock()
	tool := b.tools[m.Params.Name]
	b.mu.Unlock()
	if m.Method != "tools/call" || tool == nil {
		return nil
	}
	heads, err := mcp.ParamHeaders(tool, m.Params.Arguments)
	if err != nil {
		return nil
	}
	return heads
}

// again sends a call once more that lacked headers because its tool was not known, or has changed.
func (b *bridge) again(ctx context.Context, line []byte, m mcpMessage, res *http.Response) (*http.Response, error) {
	if res.StatusCode != http.StatusBadRequest || m.Method != "tools/call" || !m.stateless() {
		return res, nil
	}
	body, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	_ = res.Body.Close()
	if err != nil {
		return nil, errBrokeOff
	}
	res.Body = io.NopCloser(bytes.NewReader(body))
	var r struct {
		Error struct {
			Code int64 `json:"code"`
		} `json:"error"`
	}
	if json.Unmarshal(body, &r) != nil || r.Error.Code != mcp.CodeHeaderMismatch {
		return res, nil
	}
	if err := b.list(ctx, m); err != nil {
		return nil, err
	}
	return b.send(ctx, line, m)
}

// list asks for the tools on behalf of the client that sent m.
func (b *bridge) list(ctx context.Context, m mcpMessage) error {
	ask := mcpMessage{ID: json.RawMessage(`"remit-tools"`), Method: "tools/list"}
	ask.Params.Meta = map[string]json.RawMessage{}
	for name, raw := range m.Params.Meta {
		if strings.HasPrefix(name, metaPrefix) {
			ask.Params.Meta[name] = raw
		}
	}
	line, err := json.Marshal(map[string]any{"jsonrpc": "2.0", "id": ask.ID, "method": ask.Method, "params": map[string]any{"_meta": ask.Params.Meta}})
	if err != nil {
		return errors.New("the message's _meta cannot be read")
	}
	res, err := b.send(ctx, line, ask)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, maxMCPLine))
	if err != nil {
		return errBrokeOff
	}
	b.learn(body, ask)
	return nil
}
