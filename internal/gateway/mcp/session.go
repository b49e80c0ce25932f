// SPDX-License-Identifier: Apache-2.0

package mcp

import (
	"context"
	"crypto/rand"
	"errors"
	"sync"
	"time"

	"github.com/modelcontextprotocol/go-sdk/jsonrpc"
)

// session is one of a client of the older era, bound to its caller and run.
type session struct {
	id           string
	owner        string
	server       string // of the address; "" for all
	version      string
	capabilities string // of the client, JSON
	gone         chan struct{}
	once         sync.Once

	mu       sync.Mutex // guards the rest
	at       time.Time  // of the last request
	calls    map[string]context.CancelFunc
	asked    map[string]chan message // what the client was asked, by our id
	next     uint64
	listener chan []byte // of the stream that belongs to no request; nil: none is open
	uris     map[string]bool
	stage    string // of the run when it was used last
	conns    map[*conn]bool
}

// begin makes a session.
func (h *Handler) begin(c *caller, a *asked) (*session, *rpcError) {
	version := a.given
	if !sessionful(version) {
		version = newestSession
	}
	s := &session{id: rand.Text(), owner: c.owner(), server: a.server, version: version, capabilities: capabilitiesOf(a.about.get("capabilities")),
		gone: make(chan struct{}), at: c.at, calls: map[string]context.CancelFunc{}, asked: map[string]chan message{},
		uris: map[string]bool{}, conns: map[*conn]bool{}}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil, closing()
	}
	h.sweep()
	own := 0
	for _, o := range h.sessions {
		if o.owner == s.owner {
			own++
		}
	}
	//remit:guard S35 TestSessionsAreBoundAndBounded
	if own >= maxSessions || len(h.sessions) >= maxAll {
		return nil, &rpcError{code: codeDenied, message: "too many sessions are open: end some", status: 429}
	}
	h.sessions[s.id] = s
	return s, nil
}

// found returns the caller's session of that id at that address; another caller's does not exist.
func (h *Handler) found(c *caller, id, server string) (*session, bool) {
	h.mu.Lock()
	s := h.sessions[id]
	h.mu.Unlock()
	//remit:guard S10 TestSessionsAreBoundAndBounded
	if s == nil || !c.owns(s.owner) || s.server != server {
		return nil, false
	}
	s.mu.Lock()
	s.at = c.at
	s.mu.Unlock()
	return s, true
}

func (s *session) used() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.at
}

// finish ends a session and its connections to servers at addresses.
func (h *Handler) finish(s *session) {
	h.mu.Lock()
	delete(h.sessions, s.id)
	var own []*conn
	for key, k := range h.conns {
		if key.session == s.id {
			delete(h.conns, key)
			own = append(own, k)
		}
	}
	h.mu.Unlock()
	s.end()
	for _, k := range own {
		k.close()
	}
}

func (s *session) end() { s.once.Do(func() { close(s.gone) }) }

// enter notes a call that is under way, so that the client can cancel it.
func (s *session) enter(id string, cancel context.CancelFunc) (leave func(), ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, twice := s.calls[id]; twice || len(s.calls) >= 64 {
		return nil, false
	}
	s.calls[id] = cancel
	return func() {
		s.mu.Lock()
		delete(s.calls, id)
		s.mu.Unlock()
	}, true
}

// told takes a notification of the client.
func (s *session) told(m *message) {
	if m.method != "notifications/cancelled" {
		return
	}
	params, err := parseObject([]byte(m.params))
	if err != nil {
		return
	}
	s.mu.Lock()
	cancel := s.calls[string(params.get("requestId"))]
	s.mu.Unlock()
	if cancel != nil {
		cancel()
	}
}

// answered takes a response of the client to what it was asked.
func (s *session) answered(m *message) bool {
	s.mu.Lock()
	c, ok := s.asked[m.id]
	delete(s.asked, m.id)
	s.mu.Unlock()
	if ok {
		c <- *m // has room for one
	}
	return ok
}

// legacyPeer is the client of one request in a session.
type legacyPeer struct {
	s   *session
	out *reply
}

// notify implements peer.
func (p *legacyPeer) notify(method string, params []byte) {
	p.out.event(appendMessage(nil, "", method, params))
}

// ask implements peer: the question goes out on the request's own stream, and the answer comes with a request of its own.
func (p *legacyPeer) ask(ctx context.Context, method string, params []byte) ([]byte, *rpcError) {
	if !(meta{capabilities: p.s.capabilities}).can(method) {
		return nil, &rpcError{code: jsonrpc.CodeMethodNotFound, message: "the client cannot be asked " + method}
	}
	c := make(chan message, 1)
	p.s.mu.Lock()
	p.s.next++
	id := `"remit-` + number(p.s.next) + `"`
	p.s.asked[id] = c
	p.s.mu.Unlock()
	defer func() {
		p.s.mu.Lock()
		delete(p.s.asked, id)
		p.s.mu.Unlock()
	}()
	if !p.out.event(appendMessage(nil, id, method, params)) {
		return nil, unreachable(errors.New("the client cannot be asked on this stream"))
	}
	select {
	case m := <-c:
		if m.err != "" {
			return nil, serverError(m.err)
		}
		return []byte(m.result), nil
	case <-ctx.Done():
		return nil, unreachable(errors.New("the call was given up"))
	case <-p.s.gone:
		return nil, unreachable(errors.New("the session is over"))
	}
}

// listen opens the session's own stream; there is one.
func (s *session) listen() (events <-chan []byte, leave func(), ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.listener != nil {
		return nil, nil, false
	}
	c := make(chan []byte, 64)
	s.listener = c
	return c, func() {
		s.mu.Lock()
		s.listener = nil
		s.mu.Unlock()
	}, true
}

// broadcast hands a server's notification to the sessions that use the connection. A client that does not read loses some.
func (h *Handler) broadcast(k *conn, method string, params []byte) {
	h.mu.Lock()
	var all []*session
	for _, s := range h.sessions {
		all = append(all, s)
	}
	h.mu.Unlock()
	for _, s := range all {
		s.mu.Lock()
		wanted := s.conns[k]
		if wanted && method == "notifications/resources/updated" {
			p, err := parseObject(params)
			//remit:guard S29 TestUpdatesOfSubscribedResources
			wanted = err == nil && s.uris[p.text("uri")]
		}
		if wanted && s.listener != nil {
			select {
			case s.listener <- appendMessage(nil, "", method, params):
			default:
			}
		}
		s.mu.Unlock()
	}
}
