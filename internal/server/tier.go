// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"strings"

	"remit"
)

// tierOf is the tier in which an act runs (S27): for mcp.* that of the tool that would be called, else that of the sandbox in which
// the caller is. It is what the server knows, never what a request says; "" is nothing known.
func (s *Server) tierOf(req *remit.Request) remit.Tier {
	if strings.HasPrefix(req.Action, "mcp.") {
		name, _, _ := strings.Cut(req.Target, "/")
		t, ok := s.rev.Load().set.Tools[remit.Name("tool/"+name)]
		if !ok {
			return "" // an identity only, or a target: it runs where Remit has no hand
		}
		return s.tierOfTool(&t)
	}
	if req.Caller.Launch == "" {
		return ""
	}
	l, ok := s.store.Launch(req.Caller.Launch)
	if !ok || !l.Ended.IsZero() {
		return ""
	}
	return l.Tier
}

// tierOfTool is what a tool's server would run in on this host: nothing where no driver has a sandbox of the tier that its file asks
// for.
func (s *Server) tierOfTool(t *remit.Tool) remit.Tier {
	if t.URL != "" {
		return remit.TierRemote
	}
	d, _, err := s.sandboxes.choose(context.Background(), t)
	if err != nil {
		return ""
	}
	return d.Tier()
}
