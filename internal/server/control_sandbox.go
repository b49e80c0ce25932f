// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"time"

	"remit"
	"remit/internal/api"
	"remit/internal/gateway/admin"
	"remit/internal/store"
	"remit/internal/tool"
)

// DigestTool returns the digest over a tool's files, as its file pins it.
func DigestTool(folder string) (remit.Digest, error) { return tool.Digest(folder) }

func (s *Server) opTools(_ context.Context, c admin.Call) (any, error) {
	limit, after, err := page(c.Query)
	if err != nil {
		return nil, err
	}
	out := []api.Tool{}
	for _, name := range slices.Sorted(maps.Keys(s.rev.Load().set.Agents)) {
		if strings.HasPrefix(string(name), "tool/") && string(name) > after && len(out) < limit {
			out = append(out, s.toolView(name))
		}
	}
	return listed(out, limit, func(t api.Tool) string { return string(t.Name) }), nil
}

// opTool also looks at what would keep the tool from starting: its files, and what sandboxes the host has.
func (s *Server) opTool(ctx context.Context, c admin.Call) (any, error) {
	name := remit.Name("tool/" + c.Path("name"))
	rev := s.rev.Load()
	if _, ok := rev.set.Agents[name]; !ok {
		return nil, notFound("tool", string(name))
	}
	out := s.toolView(name)
	t, ok := rev.set.Tools[name]
	if !ok || t.URL != "" {
		return out, nil
	}
	if d, _, err := s.sandboxes.choose(ctx, &t); err != nil {
		out.Problems = append(out.Problems, err.Error())
	} else {
		out.Tier, out.Driver = d.Tier(), d.Name()
	}
	if t.Files.From != "" {
		now, err := tool.Digest(t.Files.From)
		switch {
		case err != nil:
			out.Problems = append(out.Problems, err.Error())
		case now != t.Files.Digest:
			out.Problems = append(out.Problems, "its files have the digest "+string(now)+": they are not what was reviewed, and are not run")
		}
	}
	return out, nil
}

func (s *Server) toolView(name remit.Name) api.Tool {
	rev := s.rev.Load()
	a := rev.set.Agents[name]
	out := api.Tool{Name: name, ID: a.ID.String(), Owner: a.Owner, Suspended: s.store.Posture(name).Suspended, Pinned: rev.pins[name] != nil}
	t, ok := rev.set.Tools[name]
	if !ok {
		return out
	}
	out.Command, out.Files, out.Digest, out.URL, out.Asked = t.Command, t.Files.From, t.Files.Digest, t.URL, t.Tier()
	for _, c := range s.claims.List() {
		if c.Claim.Tool == name {
			out.Sandboxes++
		}
	}
	return out
}

func (s *Server) opSandboxes(_ context.Context, c admin.Call) (any, error) {
	limit, after, err := page(c.Query)
	if err != nil {
		return nil, err
	}
	out := []api.Sandbox{}
	for _, l := range s.claims.List() {
		if string(l.About.Sandbox) > after {
			out = append(out, sandboxView(&l))
		}
	}
	slices.SortFunc(out, func(a, b api.Sandbox) int { return strings.Compare(string(a.ID), string(b.ID)) })
	return listed(out[:min(limit, len(out))], limit, func(b api.Sandbox) string { return string(b.ID) }), nil
}

func sandboxView(c *tool.Claimed) api.Sandbox {
	return api.Sandbox{ID: c.About.Sandbox, Tool: c.Claim.Tool, Run: c.Claim.Run, Stage: c.Claim.Stage, Tier: c.About.Tier, Driver: c.About.Driver,
		Program: c.About.Program, Files: c.About.Files, Warm: c.About.Warm, Launch: c.Launch, Started: c.Started, Calls: c.Calls, Call: c.Call}
}

// opSandbox shows a sandbox: as it is, or as the ledger knows it.
func (s *Server) opSandbox(_ context.Context, c admin.Call) (any, error) {
	id, err := remit.ParseSandboxID(c.Path("id"))
	if err != nil {
		return nil, err
	}
	for _, l := range s.claims.List() {
		if l.About.Sandbox != id {
			continue
		}
		out := sandboxView(&l)
		usage, activity := l.Now()
		out.Usage, out.Activity = encoded(usage), encoded(activity)
		return out, nil
	}
	return s.endedSandbox(id)
}

// sandboxData is what start and end of a sandbox have in the ledger.
type sandboxData struct {
	tool.About
	Launch   remit.LaunchID  `json:"launch"`
	Stage    string          `json:"stage"`
	Why      string          `json:"why"`
	Cause    string          `json:"cause"`
	Code     int             `json:"code"`
	Detail   string          `json:"detail"`
	Calls    uint64          `json:"calls"`
	Took     time.Duration   `json:"took"`
	Usage    json.RawMessage `json:"usage"`
	Activity json.RawMessage `json:"activity"`
}

func (s *Server) endedSandbox(id remit.SandboxID) (any, error) {
	out := api.Sandbox{ID: id}
	for _, kind := range []remit.EventKind{remit.EventSandboxStarted, remit.EventSandboxEnded} {
		e, d, err := s.sandboxEvent(kind, id)
		if err != nil {
			return nil, err
		}
		switch {
		case e == nil && kind == remit.EventSandboxStarted:
			return nil, notFound("sandbox", string(id))
		case e == nil: // it is ending, or its end is not on record yet
		case kind == remit.EventSandboxStarted:
			out.Tool, out.Run, out.Started, out.Stage, out.Launch = e.Agent, e.Run, e.At, d.Stage, d.Launch
			out.Tier, out.Driver, out.Program, out.Files, out.Warm = d.Tier, d.Driver, d.Program, d.About.Files, d.Warm
		default:
			out.Ended, out.Why, out.Cause, out.Code, out.Detail, out.Calls = e.At, d.Why, d.Cause, d.Code, d.Detail, d.Calls
			out.Usage, out.Activity = d.Usage, d.Activity
		}
	}
	return out, nil
}

type sandboxHead struct {
	At    time.Time   `json:"at"`
	Agent remit.Name  `json:"agent"`
	Run   remit.RunID `json:"run"`
	Data  sandboxData `json:"data"`
}

// sandboxEvent looks for one; nil: there is none.
func (s *Server) sandboxEvent(kind remit.EventKind, id remit.SandboxID) (*sandboxHead, *sandboxData, error) {
	for after := uint64(0); ; {
		entries, next, err := s.store.Events(store.EventFilter{Kind: kind}, after, 1000)
		if err != nil {
			return nil, nil, err
		}
		for _, e := range entries {
			var h sandboxHead
			if json.Unmarshal(e.Body, &h) == nil && h.Data.Sandbox == id {
				return &h, &h.Data, nil
			}
		}
		if next == 0 {
			return nil, nil, nil
		}
		after = next
	}
}

func encoded(v any) json.RawMessage {
	b, err := json.Marshal(v)
	if err != nil || string(b) == "null" {
		return nil
	}
	return b
}
