// SPDX-License-Identifier: Apache-2.0

package server

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"

	"remit"
	"remit/internal/sandbox"
	"remit/internal/sandbox/shim"
)

// dirToolImages holds what tools were when they had started. It is as secret as the tools' files: no credential has been near it.
const dirToolImages = "tool-images"

// toolImages are checkpoints of tools that start slowly (checkpoint: true): taken once the tool answers, in a sandbox that is nobody's and
// has no identity and no way out. Each stands until its tool's file changes, and no longer than the server.
type toolImages struct {
	server *Server
	taking sync.Mutex // one at a time: each is a tool's whole memory

	mu     sync.Mutex // guards byTool
	byTool map[remit.Name]toolImage
}

type toolImage struct {
	tool   remit.Tool
	driver string
	folder string // empty: none could be taken, which is not tried again before the tool's file changes
}

// of returns the image from which the driver may start the tool; empty: none.
func (p *toolImages) of(t *remit.Tool, driver string) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	i, ok := p.byTool[t.Name]
	//remit:guard S27 TestToolImage
	if !ok || !sameTool(&i.tool, t) || i.driver != driver {
		return ""
	}
	return i.folder
}

// ensure takes an image of a tool that is to have one and has none.
func (p *toolImages) ensure(ctx context.Context, t *remit.Tool) {
	if !t.Checkpoint {
		return
	}
	p.taking.Lock()
	defer p.taking.Unlock()
	p.mu.Lock()
	old, ok := p.byTool[t.Name]
	p.mu.Unlock()
	if ok && sameTool(&old.tool, t) {
		return
	}
	i, err := p.take(ctx, t)
	if err != nil {
		p.server.log.Warn("no checkpoint of a tool could be taken: it is started from its beginning", "tool", t.Name, "err", err)
	}
	p.mu.Lock()
	p.byTool[t.Name] = i
	p.mu.Unlock()
	_ = os.RemoveAll(old.folder) // who was started from it has read it
}

// forget gives up an image that did not start.
func (p *toolImages) forget(folder string) {
	p.giveUp(func(i *toolImage) bool { return i.folder == folder }) // the next run's preparation takes another
}

// giveUp removes those that match.
func (p *toolImages) giveUp(match func(*toolImage) bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for name, i := range p.byTool {
		if match(&i) {
			delete(p.byTool, name)
			_ = os.RemoveAll(i.folder) // it holds nothing that matters
		}
	}
}

// take starts the tool until it answers, checkpoints it, and tries the image.
func (p *toolImages) take(ctx context.Context, t *remit.Tool) (toolImage, error) {
	i := toolImage{tool: *t}
	first, err := p.try(ctx, t, "")
	if err != nil {
		return i, err
	}
	defer p.server.spares.drop(first)
	folder := filepath.Join(p.server.path(dirToolImages), string(first.about.Sandbox))
	if err := os.MkdirAll(filepath.Dir(folder), 0o700); err != nil {
		return i, fmt.Errorf("make the folder of checkpoints: %w", err)
	}
	if err := first.instance.Checkpoint(ctx, folder); err != nil {
		return i, err
	}
	again, err := p.try(ctx, t, folder)
	if err != nil {
		return i, errors.Join(fmt.Errorf("start from the checkpoint: %w", err), os.RemoveAll(folder))
	}
	p.server.spares.drop(again)
	i.folder, i.driver = folder, first.about.Driver
	return i, nil
}

// try starts the tool in a sandbox of nobody's and waits for its answer to a ping, which the protocol allows before all else.
func (p *toolImages) try(ctx context.Context, t *remit.Tool, from string) (*box, error) {
	b, err := p.server.prepareBox(ctx, t, true, from)
	if err != nil {
		return nil, err
	}
	// The names are what a tool finds when it starts; nothing stands behind them.
	for _, name := range []string{shim.CA, shim.Gateway, runTokenFile} {
		err = errors.Join(err, os.WriteFile(filepath.Join(b.folder, name), nil, 0o644)) //nolint:gosec // empty
	}
	if err == nil {
		err = b.instance.Start(ctx)
	}
	if err == nil {
		stop := context.AfterFunc(ctx, func() { b.instance.End(sandbox.CauseTimeout) })
		err = ping(b.instance.Stdin(), b.instance.Stdout())
		stop()
	}
	if err != nil {
		p.server.spares.drop(b)
		return nil, fmt.Errorf("the tool does not answer a ping: %w; it said %q", err, remit.Clip(string(b.instance.Stderr()), 300))
	}
	return b, nil
}

// maxBeforePing bounds what a tool may say before it answers.
const maxBeforePing = 1 << 20

// ping asks over a stdio transport and reads until the answer, whatever it says: who refuses has started, too.
func ping(in io.Writer, out io.Reader) error {
	const id = "remit-started"
	if _, err := io.WriteString(in, `{"jsonrpc":"2.0","id":"`+id+`","method":"ping"}`+"\n"); err != nil {
		return err
	}
	lines := bufio.NewScanner(io.LimitReader(out, maxBeforePing))
	lines.Buffer(nil, maxBeforePing)
	for lines.Scan() {
		var m struct {
			ID any `json:"id"`
		}
		if json.Unmarshal(lines.Bytes(), &m) == nil && m.ID == id {
			return nil
		}
	}
	return errors.Join(errors.New("it ended, or said too much"), lines.Err())
}

// reset removes what an earlier process left.
func (p *toolImages) reset() error { return os.RemoveAll(p.server.path(dirToolImages)) }
