// SPDX-License-Identifier: Apache-2.0

package mcp

import (
	"context"
	"errors"
	"sync"
	"time"

	"remit"
)

// connKey says who shares a connection to a server. A process has one, whoever calls; an address has one per claim and client,
// so that nothing that a server remembers of a session reaches another agent, run or client.
type connKey struct {
	server  string // Server.ID
	claim   Claim
	owner   string // of an address
	session string // of an address and a client of the older era
}

// conn is an open connection to a server.
type conn struct {
	h      *Handler
	key    connKey
	server *Server
	speak  speaker // set under mu
	greet  greeting
	opened chan struct{} // closed when speak, greet and failed are settled
	failed *rpcError

	mu      sync.Mutex // guards the rest
	used    time.Time
	tools   toolset
	changes int // of the list, as the server told
	ended   bool
}

// open returns a connection to the server of the tool for this caller and session ("" in the stateless era), greeted.
func (h *Handler) open(ctx context.Context, c *caller, view *View, server string, s *session) (*conn, *rpcError) {
	claim := Claim{Tool: remit.Name("tool/" + server), Run: c.run, Stage: view.Stage}
	srv, err := h.cfg.Tools.Open(ctx, claim)
	if err != nil {
		h.cfg.Log.Error("open a tool's server", "tool", claim.Tool, "run", claim.Run, "stage", claim.Stage, "err", err)
		e := unreachable(errors.New("it cannot be started now"))
		if ctx.Err() == nil {
			e.unfit = err.Error()
		}
		return nil, e
	}
	key := connKey{server: srv.ID, claim: claim}
	if srv.Pipe == nil {
		key.owner = c.owner()
		if s != nil {
			key.session = s.id
		}
	}
	h.mu.Lock()
	if h.closed {
		h.mu.Unlock()
		return nil, closing()
	}
	h.sweep()
	k, ok := h.conns[key]
	if !ok {
		k = &conn{h: h, key: key, server: srv, opened: make(chan struct{})}
		h.conns[key] = k
	}
	k.touch(h.cfg.Now())
	h.mu.Unlock()
	if !ok {
		k.failed = k.greetServer(ctx, s)
		if k.failed != nil {
			k.drop()
		}
		close(k.opened)
	}
	select {
	case <-k.opened:
		return k, k.failed
	case <-ctx.Done():
		return nil, unreachable(errors.New("no answer in time"))
	}
}

func (k *conn) touch(at time.Time) {
	k.mu.Lock()
	k.used = at
	k.mu.Unlock()
}

// sweep closes what was idle for too long; h.mu is held.
func (h *Handler) sweep() {
	now := h.cfg.Now()
	for key, k := range h.conns {
		k.mu.Lock()
		idle := now.Sub(k.used) > h.cfg.Idle
		k.mu.Unlock()
		if idle {
			delete(h.conns, key)
			h.wg.Go(k.close)
		}
	}
	for id, s := range h.sessions {
		if now.Sub(s.used()) > h.cfg.Idle {
			delete(h.sessions, id)
			h.wg.Go(s.end)
		}
	}
}

// greetServer finds out the server's era. A process is asked for a session first: what older ones do with an unknown first
// message is anybody's guess.
func (k *conn) greetServer(ctx context.Context, s *session) *rpcError {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if k.server.Pipe != nil {
		return k.greetProcess(ctx)
	}
	capabilities := everything
	if s != nil {
		capabilities = s.capabilities
	}
	event := func(m *message) { k.event(m.method, []byte(m.params)) }
	modern := &overHTTP{url: k.server.URL, client: k.server.HTTP, modern: true, event: event}
	var ok bool
	if k.greet, ok = discover(ctx, modern); ok {
		return k.take(modern)
	}
	older := &overHTTP{url: k.server.URL, client: k.server.HTTP, event: event}
	var e *rpcError
	if k.greet, e = initialize(ctx, older, capabilities); e != nil {
		return e
	}
	older.version.Store(&k.greet.version)
	older.notify(ctx, "notifications/initialized", nil)
	return k.take(older)
}

// take settles how the server is spoken to. A connection that was closed meanwhile is of no use.
func (k *conn) take(s speaker) *rpcError {
	k.mu.Lock()
	ended := k.ended
	k.speak = s
	k.mu.Unlock()
	if ended {
		s.close()
		return unreachable(errGone)
	}
	return nil
}

// everything is what a client in front of the gateway may be able to do. One that cannot is asked nothing; the server's request
// then fails.
const everything = `{"elicitation":{"form":{},"url":{}},"sampling":{},"roots":{}}`

func (k *conn) greetProcess(ctx context.Context) *rpcError {
	pipe, err := k.server.Pipe()
	if err != nil {
		return unreachable(errors.New("it cannot be started now"))
	}
	s := newOverPipe(pipe, func(m *message) { k.event(m.method, []byte(m.params)) })
	if e := k.take(s); e != nil {
		return e
	}
	if !k.h.spawn(s.read) {
		s.close()
		return closing()
	}
	greet, e := initialize(ctx, s, everything)
	if e == nil {
		k.greet = greet
		s.notify(ctx, "notifications/initialized", nil)
		return nil
	}
	if e.ours {
		return e
	}
	s.modern.Store(true)
	var ok bool
	if k.greet, ok = discover(ctx, s); !ok {
		return e
	}
	return nil
}

// drop forgets the connection and closes it.
func (k *conn) drop() {
	k.h.mu.Lock()
	if k.h.conns[k.key] == k {
		delete(k.h.conns, k.key)
	}
	k.h.mu.Unlock()
	k.close()
}

func (k *conn) close() {
	k.mu.Lock()
	ended, speak := k.ended, k.speak
	k.ended = true
	k.mu.Unlock()
	if !ended && speak != nil {
		speak.close()
	}
}

// event is a notification of the server that belongs to no request.
func (k *conn) event(method string, params []byte) {
	if method == "notifications/tools/list_changed" {
		k.mu.Lock()
		k.tools = toolset{}
		k.changes++
		k.mu.Unlock()
	}
	k.h.broadcast(k, method, params)
}

// exchange passes a request on. A server that ended, or knows the session no more, is opened anew with the next request.
func (k *conn) exchange(ctx context.Context, o *outgoing, p peer) ([]byte, *rpcError) {
	raw, e := k.speak.exchange(ctx, o, p)
	if e != nil && e.gone {
		k.drop()
	}
	return raw, e
}
