// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"maps"
	"slices"
	"time"

	"remit"
	"remit/internal/api"
	"remit/internal/gateway/admin"
	"remit/internal/gateway/mcp"
)

// opToolReview compares what a tool's server says of its tools now with what was reviewed or first read. What is read for the first
// time is remembered, as it is when an agent is the first.
func (s *Server) opToolReview(ctx context.Context, c admin.Call) (any, error) {
	name := remit.Name("tool/" + c.Path("name"))
	rev := s.rev.Load()
	if _, ok := rev.set.Tools[name]; !ok {
		return nil, notFound("tool with a server", string(name))
	}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	now, err := s.describe(ctx, rev, name)
	if err != nil {
		return nil, err
	}
	pins := s.pinsOf(rev, name)
	if pins == nil {
		if pins, err = s.firstSeen(ctx, name, rev.origins[name], now); err != nil {
			return nil, err
		}
	}
	out := compareTools(name, pins, now)
	if out.Pinned = rev.pins[name] != nil; !out.Pinned {
		for i := range out.Tools {
			if t := &out.Tools[i]; t.State == api.ToolReviewed {
				t.State = api.ToolSeen
			}
		}
	}
	return out, nil
}

func (s *Server) describe(ctx context.Context, rev *revision, name remit.Name) (*mcp.Pins, error) {
	if srv, ok := rev.remotes[name]; ok {
		return s.mcp.Describe(ctx, srv)
	}
	local := rev.set.Tools[name]
	return s.describeLocal(ctx, &local)
}

func compareTools(name remit.Name, pins, now *mcp.Pins) api.ToolReview {
	out := api.ToolReview{Tool: name, Tools: []api.ReviewedTool{}}
	all := slices.Collect(maps.Keys(now.Tools))
	for n := range pins.Tools {
		if _, ok := now.Tools[n]; !ok {
			all = append(all, n)
		}
	}
	slices.Sort(all)
	for _, n := range all {
		p, was := pins.Tools[n]
		t, is := now.Tools[n]
		r := api.ReviewedTool{Name: n, State: api.ToolReviewed, Digest: t.Digest, Now: t.Tool}
		switch {
		case !is:
			r.State, r.Pinned = api.ToolGone, p.Tool
		case !was:
			r.State = api.ToolNew
		case p.Digest != t.Digest:
			r.State, r.Pinned = api.ToolChanged, p.Tool
		}
		out.Tools = append(out.Tools, r)
	}
	return out
}
