// SPDX-License-Identifier: Apache-2.0

package mcp

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"remit"
)

// Pins are what a server's tools are held to: what was reviewed of them, so that what a model reads is what a person read; or what was
// read of them first.
type Pins struct {
	Tools map[string]Pin `json:"tools"`
}

// Pin is one tool, as it was reviewed or first read.
type Pin = remit.ToolPin

// ParsePins reads a file of pins and checks that each digest is that of its tool.
func ParsePins(b []byte) (*Pins, error) {
	var p Pins
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&p); err != nil {
		return nil, fmt.Errorf("read pins: %w", err)
	}
	for name, pin := range p.Tools {
		d, err := describe(pin.Tool)
		if err != nil || d.name != name || d.digest != pin.Digest {
			return nil, &remit.Error{Code: remit.CodeInvalid, Msg: fmt.Sprintf("the pin of %.80q is not what its digest says", name),
				Hint: "make the file with remit tool pin, and read it"}
		}
	}
	return &p, nil
}

// DigestTool is the digest of a tool's description: over its canonical JSON, without _meta.
func DigestTool(raw json.RawMessage) (remit.Digest, error) {
	d, err := describe(raw)
	return d.digest, err
}

func digestOf(o object) (remit.Digest, error) {
	o = o.with("_meta", nil)
	var v any
	dec := json.NewDecoder(bytes.NewReader(o.append(nil)))
	dec.UseNumber()
	if err := dec.Decode(&v); err != nil {
		return "", errors.New("it lists a tool that cannot be read")
	}
	b, err := json.Marshal(v) // keys sorted
	if err != nil {
		return "", errors.New("it lists a tool that cannot be read")
	}
	return remit.DigestOf(b), nil
}

// Arguments are the top-level arguments that a tool's schema has; all is true where it takes others, too.
func Arguments(p *Pin) (names []string, all bool) {
	var t struct {
		Schema struct {
			Properties map[string]json.RawMessage `json:"properties"`
			Additional json.RawMessage            `json:"additionalProperties"`
			Others     json.RawMessage            `json:"patternProperties"`
			AllOf      json.RawMessage            `json:"allOf"`
			AnyOf      json.RawMessage            `json:"anyOf"`
			OneOf      json.RawMessage            `json:"oneOf"`
			Ref        json.RawMessage            `json:"$ref"`
		} `json:"inputSchema"`
	}
	if json.Unmarshal(p.Tool, &t) != nil {
		return nil, true
	}
	s := &t.Schema
	for name := range s.Properties {
		names = append(names, name)
	}
	slices.Sort(names)
	open := s.Additional != nil && string(s.Additional) != "false"
	return names, open || s.Others != nil || s.AllOf != nil || s.AnyOf != nil || s.OneOf != nil || s.Ref != nil
}

// reviewed is what of a server's tools may be shown and called: those whose digest is the pinned one, as they were pinned.
func reviewed(p *Pins, t *toolset) []described {
	var out []described
	for _, d := range t.list {
		pin, ok := p.Tools[d.name]
		//remit:guard S27 TestChangedToolIsHeld
		if !ok || pin.Digest != d.digest {
			continue
		}
		d.raw = pin.Tool // a name that stands twice deep inside could read differently elsewhere
		out = append(out, d)
	}
	return out
}

// pinned is what the server's list is held to. A list that is the first one ever is remembered before anything of it is used.
func (k *call) pinned(ctx context.Context, set *toolset) (*Pins, *rpcError) {
	tool := remit.Name("tool/" + k.a.server)
	if p := k.h.cfg.Tools.Pins(tool); p != nil {
		return p, nil
	}
	now := &Pins{Tools: make(map[string]Pin, len(set.list))}
	for _, d := range set.list {
		now.Tools[d.name] = Pin{Digest: d.digest, Tool: d.raw}
	}
	p, err := k.h.cfg.Tools.First(ctx, tool, k.conn.server, now)
	//remit:guard S27 TestFirstListIsRemembered
	if err != nil {
		k.h.cfg.Log.Error("remember what a tool's server says", "tool", tool, "err", err)
		return nil, unreachable(errors.New("what it says of its tools could not be put on record"))
	}
	return p, nil
}

// Describe asks a server for its tools as they are now, for a person to read; nothing of it is shown to agents.
func (h *Handler) Describe(ctx context.Context, s *Server) (*Pins, error) {
	k := &conn{h: h, server: s, opened: make(chan struct{})}
	defer k.close()
	if e := k.greetServer(ctx, nil); e != nil {
		return nil, &remit.Error{Code: remit.CodeUnavailable, Msg: e.message}
	}
	set, e := k.listTools(ctx)
	if e != nil {
		return nil, &remit.Error{Code: remit.CodeUnavailable, Msg: e.message}
	}
	out := &Pins{Tools: map[string]Pin{}}
	for _, d := range set.list {
		o, err := parseObject(d.raw)
		if err != nil {
			return nil, fmt.Errorf("describe %q: %w", d.name, err)
		}
		raw := json.RawMessage(oneLine(o.with("_meta", nil).append(nil)))
		if again, err := DigestTool(raw); err != nil || again != d.digest {
			return nil, fmt.Errorf("describe %q: it does not read the same twice", d.name)
		}
		out.Tools[d.name] = Pin{Digest: d.digest, Tool: raw}
	}
	return out, nil
}
