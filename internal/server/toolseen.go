// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"remit"
	"remit/internal/api"
	"remit/internal/config"
	"remit/internal/gateway/mcp"
)

// What a tool's server says is trusted once: what is read first is remembered, and what differs from it later is held, as if it were
// pinned. Pins are the stronger form: there, a person has read it.

// Pins implements mcp.Tools.
func (t tools) Pins(tool remit.Name) *mcp.Pins { return t.s.pinsOf(t.s.rev.Load(), tool) }

// First implements mcp.Tools.
func (t tools) First(ctx context.Context, tool remit.Name, srv *mcp.Server, now *mcp.Pins) (*mcp.Pins, error) {
	return t.s.firstSeen(ctx, tool, srv.Origin, now)
}

func (s *Server) pinsOf(rev *revision, name remit.Name) *mcp.Pins {
	if p := rev.pins[name]; p != nil {
		return p
	}
	//remit:guard S27 TestFirstListOfAnotherServer
	if r, _ := s.store.Tool(name); r != nil && r.Of == rev.origins[name] {
		return &mcp.Pins{Tools: r.Tools}
	}
	return nil
}

// maxSeenEvent bounds what one entry names.
const maxSeenEvent = 32 << 10

type seenData struct {
	Origin remit.Digest            `json:"origin"`
	Tools  map[string]remit.Digest `json:"tools"`
}

// firstSeen puts on record what a server said first. An empty list is none: a server that still starts would be held for good.
func (s *Server) firstSeen(ctx context.Context, name remit.Name, origin remit.Digest, now *mcp.Pins) (*mcp.Pins, error) {
	if len(now.Tools) == 0 {
		return now, nil
	}
	_, epoch := s.store.Tool(name)
	//remit:guard S27 TestFirstListOfAnotherServer
	if rev := s.rev.Load(); rev.origins[name] != origin {
		return nil, &remit.Error{Code: remit.CodeConflict, Msg: fmt.Sprintf("%s is configured otherwise now", name)}
	} else if p := s.pinsOf(rev, name); p != nil {
		return p, nil
	}
	r := remit.ToolRecord{Tool: name, Of: origin, First: s.now(), Tools: now.Tools}
	events, err := seenEvents(&r)
	if err != nil {
		return nil, err
	}
	_, err = s.store.Commit(ctx, remit.Change{Rows: []remit.Row{r}, Events: events, Require: []remit.Precondition{{Key: remit.ToolKey(name), Epoch: epoch}}})
	if err != nil && remit.CodeOf(err) != remit.CodeConflict { // at a conflict another list was first
		return nil, fmt.Errorf("remember the tools of %s: %w", name, err)
	}
	if p := s.pinsOf(s.rev.Load(), name); p != nil {
		return p, nil
	}
	return nil, &remit.Error{Code: remit.CodeConflict, Msg: fmt.Sprintf("%s is configured otherwise now", name)}
}

// seenEvents name the digest of each tool, in as many entries as they need.
func seenEvents(r *remit.ToolRecord) ([]remit.Event, error) {
	var out []remit.Event
	data, size := seenData{r.Of, map[string]remit.Digest{}}, 0
	flush := func() error {
		body, err := json.Marshal(data)
		out = append(out, remit.Event{At: r.First, Kind: remit.EventToolSeen, Agent: r.Tool, By: "remit", Data: body})
		data.Tools, size = map[string]remit.Digest{}, 0
		return err
	}
	for _, n := range slices.Sorted(maps.Keys(r.Tools)) {
		data.Tools[n] = r.Tools[n].Digest
		if size += len(remit.AppendJSONString(nil, n)) + 80; size > maxSeenEvent {
			if err := flush(); err != nil {
				return nil, err
			}
		}
	}
	if size > 0 {
		if err := flush(); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// misfit is a permission whose rule its tool cannot meet.
type misfit struct {
	permission *remit.Permission
	err        error
}

// misfits compares the rules about a server's tools with their schemas. A rule that names an argument which the tool does not have
// would deny for ever, or bind nothing.
func (r *revision) misfits(name remit.Name, pins *mcp.Pins) []misfit {
	server := strings.TrimPrefix(string(name), "tool/")
	var out []misfit
	for _, w := range r.set.Workflows {
		for _, st := range w.Stages {
			for i := range st.May {
				p := &st.May[i]
				at, tool, cut := strings.Cut(p.Target, "/")
				if p.Action != "mcp.call" || at != server {
					continue
				}
				if !cut {
					tool = server
				}
				if err := checkRule(p, pins, tool); err != nil {
					out = append(out, misfit{p, err})
				}
			}
		}
	}
	return out
}

func checkRule(p *remit.Permission, pins *mcp.Pins, tool string) error {
	pin, ok := pins.Tools[tool]
	//remit:guard S27 TestRulesAboutPinnedTools
	if !ok {
		return &remit.Error{Code: remit.CodeInvalid, Msg: fmt.Sprintf("%s: %s: its server, as it was reviewed or first read, has no tool %q", p.Line, p.Name, tool),
			Hint: "pin it (remit tool pin), or correct the target"}
	}
	names, all := mcp.Arguments(&pin)
	for _, arg := range slices.Sorted(maps.Keys(p.Where)) {
		//remit:guard S27 TestRulesAboutPinnedTools
		if !all && !slices.Contains(names, arg) {
			return &remit.Error{Code: remit.CodeInvalid, Msg: fmt.Sprintf("%s: %s: where: the tool has no argument %q", p.Line, p.Name, arg),
				Hint: "it has: " + strings.Join(names, ", ")}
		}
	}
	return nil
}

// misfitsSeen are those of a server that has no pins, found once: what was first seen of an origin never changes.
func (s *Server) misfitsSeen(rev *revision, name remit.Name) []misfit {
	if m, ok := rev.unfit.Load(name); ok {
		return m.([]misfit)
	}
	pins := s.pinsOf(rev, name)
	if pins == nil || rev.pins[name] != nil { // at pins, a revision with misfits is not built
		return nil
	}
	m := rev.misfits(name, pins)
	rev.unfit.Store(name, m)
	return m
}

// checkSeen refuses a revision whose rules do not fit what is remembered.
func (s *Server) checkSeen(rev *revision) error {
	for _, name := range slices.Sorted(maps.Keys(rev.set.Tools)) {
		//remit:guard S27 TestRulesAboutFirstLists
		for _, m := range s.misfitsSeen(rev, name) {
			return m.err
		}
	}
	return nil
}

// refuseUnfit denies a call under a rule that turned out not to fit once the tool's list was read. Where an agent has several rules about
// one tool in a stage, one that does not fit denies under all.
func (s *Server) refuseUnfit(req *remit.Request) {
	if req.Action != "mcp.call" {
		return
	}
	server, _, _ := strings.Cut(req.Target, "/")
	rev := s.rev.Load()
	all := s.misfitsSeen(rev, remit.Name("tool/"+server))
	if len(all) == 0 {
		return
	}
	r, _ := s.store.Run(req.Run)
	w, ok := rev.workflow(r.Workflow)
	if !ok {
		return // no rule is about it
	}
	for _, st := range w.Stages {
		for i := range st.May {
			p := &st.May[i]
			if st.Name != r.Stage || p.Who != req.Agent || p.Target != req.Target {
				continue
			}
			at := slices.IndexFunc(all, func(m misfit) bool { return m.permission == p })
			//remit:guard S27 TestRulesAboutFirstLists
			if at >= 0 {
				req.Refused = append(req.Refused, remit.Reason{Code: remit.ReasonTarget, Of: "rule", Got: remit.Clip(all[at].err.Error(), 200)})
			}
		}
	}
}

// unpinned are the tools of which nothing was reviewed or read. next is nil where the revision could not be built.
func (s *Server) unpinned(set *config.Set, next *revision) []remit.Name {
	var out []remit.Name
	for _, name := range slices.Sorted(maps.Keys(set.Tools)) {
		if next != nil && s.pinsOf(next, name) == nil {
			out = append(out, name)
		}
	}
	return out
}

// checkTools says which tools nobody reviewed, and whose rules do not fit.
func (s *Server) checkTools() api.Check {
	out := api.Check{Name: "tools", OK: true, Text: "what their servers say of them was reviewed"}
	rev := s.rev.Load()
	var first, none, bad []string
	for _, name := range slices.Sorted(maps.Keys(rev.set.Tools)) {
		switch pins := s.pinsOf(rev, name); {
		case pins == nil:
			none = append(none, string(name))
		case rev.pins[name] == nil:
			first = append(first, string(name))
		}
		for _, m := range s.misfitsSeen(rev, name) {
			bad = append(bad, m.err.Error())
		}
	}
	var said []string
	for _, x := range []struct {
		text string
		of   []string
	}{{"not pinned yet, the first list will be trusted: ", none}, {"held to the list that was read first, reviewed by nobody: ", first},
		{"rules that deny until they are mended: ", bad}} {
		if len(x.of) > 0 {
			said = append(said, x.text+strings.Join(x.of, ", "))
		}
	}
	switch {
	case len(rev.set.Tools) == 0:
		out.Text = "none has a server"
	case len(said) > 0:
		out.OK, out.Warn, out.Text = len(bad) == 0, true, strings.Join(said, "; ")
		out.Fix = "remit tool pin NAME --file NAME.pins.json, read it, name it as pins: in the tool's file, and remit apply"
		if len(bad) > 0 {
			out.Fix = "mend the rules, then remit apply"
		}
	}
	return out
}
