// SPDX-License-Identifier: Apache-2.0

package mcp

import (
	"context"
	"encoding/json"
	"slices"
	"strings"

	"remit"
)

// toolsFor is tools/list: of one server, or of all that the stage names, cut to what the stage shows.
func (h *Handler) toolsFor(ctx context.Context, k *call) ([]byte, *rpcError) {
	if k.a.cursor != "" {
		return nil, invalid("there is one page only")
	}
	b := []byte(`{"tools":[`)
	first := true
	add := func(server string, list []described, name func(server, tool string) string) {
		for _, d := range list {
			//remit:guard S29 TestListsAreCut
			if !k.view.shows(server, d.name) {
				continue
			}
			if !first {
				b = append(b, ',')
			}
			first = false
			b = append(b, d.named(name(server, d.name))...)
		}
	}
	if k.a.server != "" {
		list, e := k.toolsOf(ctx, k.a.server)
		if e != nil {
			return nil, e
		}
		add(k.a.server, list, func(_, tool string) string { return tool })
		return append(b, `]}`...), nil
	}
	for _, server := range k.view.servers() {
		one := *k
		one.conn = nil
		list, e := one.toolsOf(ctx, server)
		if e != nil { // one server that is down must not hide the others
			h.cfg.Log.Warn("list a server's tools", "tool", server, "err", e)
			continue
		}
		add(server, list, shown)
	}
	return append(b, `]}`...), nil
}

// toolsOf are a server's reviewed tools. Where all are pinned, nothing is started only to list them.
func (k *call) toolsOf(ctx context.Context, server string) ([]described, *rpcError) {
	pins := k.h.cfg.Tools.Pins(remit.Name("tool/" + server))
	if pins != nil && k.a.server == "" {
		var out []described
		for name, pin := range pins.Tools {
			out = append(out, described{name: name, raw: pin.Tool, digest: pin.Digest})
		}
		slices.SortFunc(out, func(a, b described) int { return strings.Compare(a.name, b.name) })
		return out, nil
	}
	k.a = &asked{method: k.a.method, verb: k.a.verb, server: server}
	if e := k.open(ctx); e != nil {
		return nil, e
	}
	set, e := k.conn.listTools(ctx)
	if e != nil {
		return nil, e
	}
	if pins, e = k.pinned(ctx, &set); e != nil {
		return nil, e
	}
	return reviewed(pins, &set), nil
}

// named returns the tool's description under another name.
func (d *described) named(name string) []byte {
	if name == d.name {
		return d.raw
	}
	o, err := parseObject(d.raw)
	if err != nil {
		return d.raw // describe has read it before
	}
	out := object{{"name", remit.AppendJSONString(nil, name)}}
	for _, m := range o {
		if m.name != "name" {
			out = append(out, m)
		}
	}
	return out.append(nil)
}

// servers are those of which the stage shows something, in order.
func (v *View) servers() []string {
	seen := map[string]bool{}
	var out []string
	for _, targets := range []map[string]bool{v.Call, v.List} {
		for t := range targets {
			if name, _, _ := strings.Cut(t, "/"); !seen[name] {
				seen[name] = true
				out = append(out, name)
			}
		}
	}
	slices.Sort(out)
	return out
}

// hello answers initialize and server/discover: what the server behind the address can do, of which we pass on what we understand.
func (k *call) hello(ctx context.Context) (capabilities, info json.RawMessage, instructions string, e *rpcError) {
	if k.a.server == "" {
		return json.RawMessage(`{"tools":{}}`), json.RawMessage(`{"name":"remit","title":"Remit MCP gateway","version":"1"}`),
			"A tool that is denied says which reason, and what to do about it.", nil
	}
	if e := k.open(ctx); e != nil {
		return nil, nil, "", e
	}
	c := object{}
	for _, m := range k.conn.greet.capabilities {
		switch m.name {
		case "tools", "resources", "prompts", "completions", "logging":
			c = append(c, m)
		}
	}
	info = k.conn.greet.info
	if _, err := parseObject(info); err != nil {
		info = json.RawMessage(ourselves)
	}
	return c.append(nil), info, k.conn.greet.instructions, nil
}

// discovered is the result of server/discover.
func (k *call) discovered(ctx context.Context) ([]byte, *rpcError) {
	c, info, instructions, e := k.hello(ctx)
	if e != nil {
		return nil, e
	}
	out := map[string]any{"supportedVersions": versions[1:], "capabilities": c, "resultType": "complete", "ttlMs": 0, "cacheScope": "private",
		"_meta": map[string]any{metaPrefix + "serverInfo": info}}
	if instructions != "" {
		out["instructions"] = instructions
	}
	b, err := json.Marshal(out)
	if err != nil {
		return nil, unreachable(err)
	}
	return b, nil
}

// initialized is the result of initialize.
func (k *call) initialized(ctx context.Context, version string) ([]byte, *rpcError) {
	c, info, instructions, e := k.hello(ctx)
	if e != nil {
		return nil, e
	}
	out := map[string]any{"protocolVersion": version, "capabilities": c, "serverInfo": info}
	if instructions != "" {
		out["instructions"] = instructions
	}
	b, err := json.Marshal(out)
	if err != nil {
		return nil, unreachable(err)
	}
	return b, nil
}
