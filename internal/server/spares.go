// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"sync"
	"time"

	"remit"
)

// A spare is a sandbox that is prepared before anybody claims it: no credential has been near it, and who takes it keeps it until its
// end. A tool that was used lately has one, so that its next run does not wait for a kernel to start.
const (
	spareLife = 10 * time.Minute
	maxSpares = 16
)

// spares holds at most one for each tool. It owns the goroutines that prepare and drop them.
type spares struct {
	server *Server
	ctx    context.Context // of what is being prepared; close ends it
	stop   context.CancelFunc
	work   sync.WaitGroup

	mu     sync.Mutex // guards the rest
	closed bool
	byTool map[remit.Name]*spare // present while one is prepared or being prepared
}

type spare struct {
	tool  remit.Tool
	box   *box // nil: it is being prepared
	timer *time.Timer
}

// take returns the tool's spare, if there is one that is as its file says now.
func (p *spares) take(ctx context.Context, t *remit.Tool) *box {
	p.mu.Lock()
	s := p.byTool[t.Name]
	if s == nil || s.box == nil || !sameTool(&s.tool, t) {
		p.mu.Unlock()
		return nil
	}
	delete(p.byTool, t.Name)
	p.mu.Unlock()
	s.timer.Stop()
	//remit:guard S27 TestSpares
	if !p.fits(ctx, s) {
		p.drop(s.box)
		return nil
	}
	s.box.about.Warm = true
	return s.box
}

// fits reports whether what was prepared still is what would be made: its files were not changed, and nothing ended it meanwhile.
func (p *spares) fits(ctx context.Context, s *spare) bool {
	if s.tool.Files.From != "" {
		if _, err := p.server.toolFiles.Take(s.tool.Files); err != nil {
			return false // makeBox says why
		}
	}
	d, _, err := p.server.sandboxes.choose(ctx, &s.tool)
	return err == nil && d.Name() == s.box.about.Driver
}

// refill prepares one for the tool's next run, in the background.
func (p *spares) refill(t *remit.Tool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || p.byTool[t.Name] != nil || len(p.byTool) >= maxSpares {
		return
	}
	s := &spare{tool: *t}
	p.byTool[t.Name] = s
	p.work.Go(func() { p.prepare(s) })
}

func (p *spares) prepare(s *spare) {
	ctx, cancel := context.WithTimeout(p.ctx, 2*time.Minute)
	defer cancel()
	p.server.toolImages.ensure(ctx, &s.tool)
	b, err := p.server.prepareToolBox(ctx, &s.tool)
	if err != nil {
		p.server.log.Debug("no sandbox is prepared for the next run of a tool", "tool", s.tool.Name, "err", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.byTool[s.tool.Name] != s { // it was given up meanwhile
		if b != nil {
			p.work.Go(func() { p.drop(b) })
		}
		return
	}
	if b == nil {
		delete(p.byTool, s.tool.Name)
		return
	}
	s.box = b
	s.timer = time.AfterFunc(spareLife, func() { p.giveUp(func(o *spare) bool { return o == s }) })
}

// giveUp drops those that match.
func (p *spares) giveUp(match func(*spare) bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for name, s := range p.byTool {
		if !match(s) {
			continue
		}
		delete(p.byTool, name)
		if s.box != nil {
			s.timer.Stop()
			p.work.Go(func() { p.drop(s.box) })
		}
	}
}

func (p *spares) drop(b *box) {
	if _, err := b.Destroy(context.Background()); err != nil {
		p.server.log.Error("a prepared sandbox is not gone", "sandbox", b.about.Sandbox, "err", err)
	}
}

// close drops all and waits until they are gone.
func (p *spares) close() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.stop() // a tool that is slow to start, or never answers, does not keep the server
	p.giveUp(func(*spare) bool { return true })
	p.work.Wait()
}
