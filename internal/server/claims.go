// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"

	"remit"
	"remit/internal/gateway/egress"
	"remit/internal/gateway/mcp"
	"remit/internal/tool"
)

// openTools builds what runs tools: drivers of sandboxes, copies of files, the way out, and the catalogue of what is claimed. Nothing
// of it touches the host before a tool needs it.
func (s *Server) openTools(executable string) (err error) {
	if executable == "" {
		if executable, err = os.Executable(); err != nil {
			return fmt.Errorf("find this program: %w", err)
		}
	}
	folder := filepath.Dir(s.cfg.Workload) // its path is short, as those of sockets have to be
	s.sandboxes = sandboxes{executable: executable, drivers: filepath.Join(folder, "s"), sockets: filepath.Join(folder, "b")}
	s.spares = spares{server: s, byTool: map[remit.Name]*spare{}}
	s.spares.ctx, s.spares.stop = context.WithCancel(context.Background())
	s.toolImages = toolImages{server: s, byTool: map[remit.Name]toolImage{}}
	if err := s.toolImages.reset(); err != nil {
		return fmt.Errorf("remove checkpoints of an earlier process: %w", err)
	}
	if s.toolFiles, err = tool.NewFiles(s.path(dirTools)); err != nil {
		return err
	}
	s.egress, err = egress.New(egress.Config{Line: line{s}, Acts: line{s}, Targets: func() *egress.Targets { return s.rev.Load().outside }, Quota: s.agents,
		Log: s.log, Now: s.now})
	if err != nil {
		return err
	}
	s.claims, err = tool.New(tool.Config{Make: s.makeBox, Stands: s.mayHaveSandbox, Commit: s.store.Commit, Log: s.log, Now: s.now})
	return err
}

// sweepSandboxes removes what an earlier process left running, and says so in the ledger. It runs before anything is served.
func (s *Server) sweepSandboxes(ctx context.Context) error {
	if !s.sandboxes.left() {
		return nil
	}
	if _, err := s.sandboxes.open(ctx); err != nil {
		s.log.Error("sandboxes of an earlier process may be left", "err", err)
	}
	change := remit.Change{}
	for _, l := range s.store.LiveLaunches() {
		if l.Tier == "" || len(change.Rows) == 1000 {
			continue
		}
		l.Ended = s.now()
		change.Rows = append(change.Rows, l)
		change.Events = append(change.Events, tool.Left(l))
	}
	if len(change.Rows) == 0 {
		return nil
	}
	_, err := s.store.Commit(ctx, change)
	return err
}

// closeTools ends all sandboxes.
func (s *Server) closeTools() error {
	s.claims.Close()
	s.spares.close()
	return s.sandboxes.close()
}

// mayHaveSandbox says from memory why a claim may not have a sandbox: the run is elsewhere, the tool is suspended or another one.
func (s *Server) mayHaveSandbox(c tool.Claim, t *remit.Tool) error {
	now, ok := s.rev.Load().set.Tools[c.Tool]
	r, known := s.store.Run(c.Run)
	switch {
	case !ok || !sameTool(&now, t):
		return &remit.Error{Code: remit.CodeConflict, Msg: fmt.Sprintf("%s is configured otherwise now", c.Tool)}
	case !known || !r.Live(s.now()) || r.Stage != c.Stage:
		return &remit.Error{Code: remit.CodeConflict, Msg: fmt.Sprintf("run %s is not in stage %s any more", c.Run, c.Stage)}
	case s.store.Posture(c.Tool).Suspended:
		return &remit.Error{Code: remit.CodeForbidden, Msg: string(c.Tool) + " is suspended"}
	}
	return nil
}

// sameTool reports whether two revisions run a tool in the same way. What was reviewed of it is compared at each call.
func sameTool(a, b *remit.Tool) bool {
	x, y := *a, *b
	x.Line, y.Line, x.Pins, y.Pins = "", "", "", ""
	return reflect.DeepEqual(x, y)
}

// endClaims ends sandboxes within a few seconds; their identity and their way out end first.
func (s *Server) endClaims(ctx context.Context, why string, match func(tool.Claim, *remit.Tool) bool) {
	ctx, cancel := context.WithTimeout(ctx, endWithin)
	defer cancel()
	s.claims.End(ctx, why, match)
}

// endChanged ends the sandboxes of tools that the revision has not, or has otherwise.
func (s *Server) endChanged(ctx context.Context, next *revision) {
	changed := func(name remit.Name, t *remit.Tool) bool {
		now, ok := next.set.Tools[name]
		return !ok || !sameTool(&now, t)
	}
	s.spares.giveUp(func(o *spare) bool { return changed(o.tool.Name, &o.tool) })
	s.toolImages.giveUp(func(i *toolImage) bool { return changed(i.tool.Name, &i.tool) })
	s.endClaims(ctx, "the tool's configuration changed", func(c tool.Claim, t *remit.Tool) bool { return changed(c.Tool, t) })
}

// describeLocal starts the tool's server in a sandbox outside any run, without identity and way out, and asks for its tools.
func (s *Server) describeLocal(ctx context.Context, t *remit.Tool) (pins *mcp.Pins, err error) {
	b, err := s.prepareBox(ctx, t, false, "")
	if err != nil {
		return nil, err
	}
	defer func() {
		_, derr := b.Destroy(ctx)
		err = errors.Join(err, derr)
	}()
	if err := errors.Join(b.instance.Claim(), b.Start(ctx)); err != nil {
		return nil, err
	}
	return s.mcp.Describe(ctx, &mcp.Server{ID: string(b.about.Sandbox), Pipe: func() (mcp.Pipe, error) { return pipe{b}, nil }})
}

// pipe is the standard streams of a sandbox that belongs to no run.
type pipe struct{ box *box }

// Read implements mcp.Pipe.
func (p pipe) Read(b []byte) (int, error) { return p.box.Stdout().Read(b) }

// Write implements mcp.Pipe.
func (p pipe) Write(b []byte) (int, error) { return p.box.Stdin().Write(b) }

// Close implements mcp.Pipe.
func (p pipe) Close() error {
	_, err := p.box.Destroy(context.Background())
	return err
}
