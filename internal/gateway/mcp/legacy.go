// SPDX-License-Identifier: Apache-2.0

package mcp

import (
	"context"
	"net/http"
	"strconv"
	"time"

	"github.com/modelcontextprotocol/go-sdk/jsonrpc"
)

// legacy serves a message in a session.
func (h *Handler) legacy(r *http.Request, c *caller, m *message, server string, out *reply) {
	ids := r.Header["Mcp-Session-Id"]
	if m.method == "initialize" && m.id != "" && len(ids) == 0 {
		h.initialize(r.Context(), c, m, server, out)
		return
	}
	if len(ids) != 1 {
		refuse(out.w, http.StatusBadRequest, m.id, &rpcError{code: jsonrpc.CodeInvalidRequest, message: "Mcp-Session-Id is missing: begin with initialize"})
		return
	}
	s, ok := h.found(c, ids[0], server)
	if !ok {
		refuse(out.w, http.StatusNotFound, m.id, &rpcError{code: jsonrpc.CodeInvalidRequest, message: "there is no such session: begin with initialize"})
		return
	}
	switch {
	case m.isResponse():
		if !s.answered(m) {
			refuse(out.w, http.StatusBadRequest, m.id, &rpcError{code: jsonrpc.CodeInvalidRequest, message: "nothing was asked under this id"})
			return
		}
		out.w.WriteHeader(http.StatusAccepted)
	case m.id == "":
		s.told(m)
		out.w.WriteHeader(http.StatusAccepted)
	default:
		h.answerLegacy(r, c, m, s, out)
	}
}

func (h *Handler) initialize(ctx context.Context, c *caller, m *message, server string, out *reply) {
	a, e := parseAsked(m, server)
	if e == nil && a.meta.version != "" {
		e = invalid("the stateless era has no initialize")
	}
	if e != nil {
		out.end(m.id, nil, e, false)
		return
	}
	k := &call{h: h, c: c, a: a}
	if _, e = k.prepare(ctx); e != nil {
		out.end(m.id, nil, e, false)
		return
	}
	c.leave()
	s, e := h.begin(c, a)
	if e != nil {
		out.end(m.id, nil, e, false)
		return
	}
	k.session = s
	result, e := k.initialized(ctx, s.version)
	if e != nil {
		h.finish(s)
		out.end(m.id, nil, e, false)
		return
	}
	if k.conn != nil {
		s.attach(k.conn)
	}
	out.session = s.id
	out.end(m.id, result, nil, false)
}

// attach lets the session hear of the connection's notifications.
func (s *session) attach(k *conn) {
	s.mu.Lock()
	s.conns[k] = true
	s.mu.Unlock()
}

func (h *Handler) answerLegacy(r *http.Request, c *caller, m *message, s *session, out *reply) {
	a, e := parseAsked(m, s.server)
	switch {
	case e != nil:
	//remit:guard S29 TestVersions
	case a.meta.version != "":
		e = &rpcError{code: CodeHeaderMismatch, message: "MCP-Protocol-Version is missing", status: http.StatusBadRequest}
		refuse(out.w, http.StatusBadRequest, m.id, e)
		return
	case a.era == stateless || a.verb == "initialize":
		e = unknownMethod(m.method)
	}
	if e != nil {
		out.end(m.id, nil, e, false)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), h.cfg.Timeout)
	defer cancel()
	leave, ok := s.enter(m.id, cancel)
	if !ok {
		refuse(out.w, http.StatusBadRequest, m.id, &rpcError{code: jsonrpc.CodeInvalidRequest, message: "this id is under way, or too many are"})
		return
	}
	defer leave()
	k := &call{h: h, c: c, a: a, session: s}
	result, e := k.prepare(ctx)
	c.leave()
	if result == nil && e == nil {
		if a.verb == "server/discover" {
			result, e = k.discovered(ctx)
		} else {
			result, e = k.perform(ctx, &legacyPeer{s, out}, "", "")
		}
		if k.conn != nil {
			s.attach(k.conn)
		}
	}
	if e == nil {
		s.in(k.view.Stage)
		s.subscribed(a)
	}
	out.end(m.id, result, e, false)
	k.record()
}

// in notes the stage that the session is used in: what was subscribed to in another is not heard in this one.
func (s *session) in(stage string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	//remit:guard S12 TestStreamsEnd
	if s.stage != stage {
		clear(s.uris)
	}
	s.stage = stage
}

func (s *session) subscribed(a *asked) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case a.verb == "resources/subscribe" && len(s.uris) < 256:
		s.uris[a.uri] = true
	case a.verb == "resources/unsubscribe":
		delete(s.uris, a.uri)
	}
}

// get opens the stream of what belongs to no request of a session. It ends with the caller's identity: the client opens another.
func (h *Handler) get(w http.ResponseWriter, r *http.Request, server string) {
	c, err := h.caller(r)
	if err != nil {
		h.challenge(w, r, server, err)
		return
	}
	stage, why := h.hears(&c, server)
	//remit:guard S23 TestStreamsEnd
	if why != nil {
		refuse(w, http.StatusForbidden, "", (&call{c: &c, view: View{Stage: stage}}).denial(*why))
		return
	}
	s, ok := h.found(&c, r.Header.Get("Mcp-Session-Id"), server)
	if !ok {
		http.Error(w, "no such session", map[bool]int{true: http.StatusBadRequest, false: http.StatusNotFound}[r.Header.Get("Mcp-Session-Id") == ""])
		return
	}
	if _, stream := accepts(r.Header["Accept"]); !stream {
		http.Error(w, "Accept must have text/event-stream", http.StatusNotAcceptable)
		return
	}
	events, leave, ok := s.listen()
	if !ok {
		http.Error(w, "this session has its stream already", http.StatusConflict)
		return
	}
	defer leave()
	s.in(stage)
	ctx, cancel := h.long(r.Context(), &c, server, stage)
	defer cancel()
	if stop := h.relayEvents(ctx, s); stop != nil {
		defer stop()
	}
	_ = http.NewResponseController(w).SetReadDeadline(time.Time{})
	out := &reply{w: w, may: true, stream: true}
	out.open("text/event-stream", http.StatusOK)
	_, _ = w.Write([]byte(": open\n\n"))
	_ = http.NewResponseController(w).Flush()
	for {
		select {
		case b := <-events:
			if !out.event(b) {
				return
			}
		case <-time.After(15 * time.Second):
			if !out.alive() {
				return
			}
		case <-s.gone:
			return
		case <-ctx.Done():
			return
		}
	}
}

// alive writes a comment, so that a client that is gone is noticed.
func (o *reply) alive() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	rc := http.NewResponseController(o.w)
	_ = rc.SetWriteDeadline(time.Now().Add(time.Minute))
	_, err := o.w.Write([]byte(": \n\n"))
	return err == nil && rc.Flush() == nil
}

// relayEvents opens the same stream at the servers behind a session that are at addresses.
func (h *Handler) relayEvents(ctx context.Context, s *session) (stop func()) {
	s.mu.Lock()
	var all []*conn
	for k := range s.conns {
		all = append(all, k)
	}
	s.mu.Unlock()
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	n := 0
	for _, k := range all {
		o, ok := k.speak.(*overHTTP)
		if !ok || o.modern {
			continue
		}
		if h.spawn(func() {
			defer func() { done <- struct{}{} }()
			k.hear(ctx, o)
		}) {
			n++
		}
	}
	return func() {
		cancel()
		for range n {
			<-done
		}
	}
}

// hear reads a server's stream of what belongs to no request.
func (k *conn) hear(ctx context.Context, o *overHTTP) {
	res, err := o.listen(ctx, "")
	if err != nil {
		return
	}
	defer res.Body.Close()
	for e := newEvents(res.Body); ; {
		data, err := e.next()
		if err != nil {
			return
		}
		m, err := parseServer(data)
		switch {
		case err != nil:
			return
		case m.isCall():
			if res, err := o.post(ctx, answer(ctx, nobody{}, &m), nil); err == nil {
				_ = res.Body.Close()
			}
		case unsolicited[m.method] || m.method == "notifications/message":
			k.event(m.method, []byte(m.params))
		}
	}
}

// delete ends a session.
func (h *Handler) delete(w http.ResponseWriter, r *http.Request, server string) {
	c, err := h.caller(r)
	if err != nil {
		h.challenge(w, r, server, err)
		return
	}
	s, ok := h.found(&c, r.Header.Get("Mcp-Session-Id"), server)
	if !ok {
		http.Error(w, "no such session", http.StatusNotFound)
		return
	}
	h.finish(s)
	w.WriteHeader(http.StatusNoContent)
}

// stamp completes a result for the stateless era: what kind it is, and that nobody else may be shown it.
func (a *asked) stamp(raw []byte) ([]byte, *rpcError) {
	o, err := parseObject(raw)
	if err != nil {
		return raw, nil //nolint:nilerr // it is the server's affair what it returns
	}
	if o.get("resultType") == nil {
		o = o.with("resultType", []byte(`"complete"`))
	}
	if cached[a.verb] {
		ttl := 0
		if n, err := strconv.Atoi(string(o.get("ttlMs"))); err == nil && n > 0 {
			ttl = min(n, int(fresh/time.Millisecond))
		}
		//remit:guard S29 TestListsArePrivate
		o = o.with("cacheScope", []byte(`"private"`))
		o = o.with("ttlMs", strconv.AppendInt(nil, int64(ttl), 10))
	}
	return o.append(nil), nil
}

// cached are the methods whose results clients may keep for a while.
var cached = map[string]bool{"tools/list": true, "resources/list": true, "resources/templates/list": true, "resources/read": true,
	"prompts/list": true, "server/discover": true}
