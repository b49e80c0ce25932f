// SPDX-License-Identifier: Apache-2.0

package mcp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/modelcontextprotocol/go-sdk/jsonrpc"

	"remit"
	"remit/internal/gateway"
)

// reply is the answer to one POST: one JSON text, or, once something comes before the result, a stream of events.
type reply struct {
	mu      sync.Mutex // guards the rest
	w       http.ResponseWriter
	may     bool // the client takes a stream
	stream  bool
	over    bool
	session string
}

// event writes a message before the result; false means that it could not be.
func (o *reply) event(data []byte) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.over || !o.may {
		return false
	}
	if !o.stream {
		o.stream = true
		o.open("text/event-stream", http.StatusOK)
	}
	return o.write(data)
}

func (o *reply) open(kind string, status int) {
	head := o.w.Header()
	head.Set("Content-Type", kind)
	head.Set("Cache-Control", "no-store")
	head.Set("X-Accel-Buffering", "no")
	if o.session != "" {
		head.Set("Mcp-Session-Id", o.session)
	}
	o.w.WriteHeader(status)
}

func (o *reply) write(data []byte) bool {
	//remit:guard S29 TestOneMessageAnEvent
	data = oneLine(data)
	b := append(append([]byte("event: message\ndata: "), data...), "\n\n"...)
	rc := http.NewResponseController(o.w)
	_ = rc.SetWriteDeadline(time.Now().Add(time.Minute))
	if _, err := o.w.Write(b); err != nil {
		return false
	}
	return rc.Flush() == nil
}

// end writes the response and sends it at once: what is recorded afterwards keeps nobody waiting.
func (o *reply) end(id string, result []byte, e *rpcError, modern bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.over {
		return
	}
	o.over = true
	status, body := http.StatusOK, []byte(nil)
	if e != nil {
		body = appendError(nil, id, e)
		if modern && e.status != 0 {
			status = e.status
		}
	} else {
		body = appendResult(make([]byte, 0, len(result)+64), id, result)
	}
	if o.stream {
		o.write(body)
		return
	}
	_ = http.NewResponseController(o.w).SetWriteDeadline(time.Now().Add(time.Minute)) // the server's began with the request
	o.w.Header().Set("Content-Length", fmt.Sprint(len(body)))
	o.open("application/json", status)
	_, _ = o.w.Write(body)
	_ = http.NewResponseController(o.w).Flush()
}

// refuse answers a POST that is no request that could be served.
func refuse(w http.ResponseWriter, status int, id string, e *rpcError) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = w.Write(appendError(nil, id, e))
}

// post reads one message.
func (h *Handler) post(w http.ResponseWriter, r *http.Request, server string) {
	c, err := h.caller(r)
	if err != nil {
		h.challenge(w, r, server, err)
		return
	}
	kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || kind != "application/json" {
		http.Error(w, "Content-Type must be application/json", http.StatusUnsupportedMediaType)
		return
	}
	_, stream := accepts(r.Header["Accept"])
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if _, large := errors.AsType[*http.MaxBytesError](err); large {
		refuse(w, http.StatusRequestEntityTooLarge, "", &rpcError{code: jsonrpc.CodeInvalidRequest, message: fmt.Sprintf("a message of more than %d bytes", maxBody)})
		return
	}
	if err != nil {
		return // the client is gone
	}
	_ = http.NewResponseController(w).SetReadDeadline(time.Time{}) // what is waited for now is the tool
	account, ok := h.enter(&c, len(body))
	//remit:guard S35 TestQuota
	if !ok {
		h.cfg.Quota.Brake(r.Context())
		w.Header().Set("Retry-After", "1")
		refuse(w, http.StatusTooManyRequests, "", &rpcError{code: codeDenied, message: "more requests than this agent's quota"})
		return
	}
	c.account = account
	defer c.leave()
	m, err := parseMessage(string(body))
	if err != nil {
		code := int64(jsonrpc.CodeInvalidRequest)
		if remit.CodeOf(err) == remit.CodeInvalid {
			code = jsonrpc.CodeParseError
		}
		refuse(w, http.StatusBadRequest, "", &rpcError{code: code, message: err.Error()})
		return
	}
	h.dispatch(r, &c, &m, server, &reply{w: w, may: stream})
}

// enter asks the quota of the agent, or of all unknown workloads of its trust domain.
func (h *Handler) enter(c *caller, bytes int) (*gateway.Account, bool) {
	key := string(c.agent)
	if key == "" {
		key = "unknown in " + c.who.ID.TrustDomain().Name()
	}
	return h.cfg.Quota.Enter(key, bytes, c.at)
}

// leave gives back the caller's place: before it waits for a server, since a slow tool is no load here.
func (c *caller) leave() {
	c.account.Leave()
	c.account = nil
}

func accepts(values []string) (json, stream bool) {
	for _, v := range values {
		for part := range strings.SplitSeq(v, ",") {
			base, _, _ := strings.Cut(part, ";")
			switch strings.ToLower(strings.TrimSpace(base)) {
			case "application/json", "application/*":
				json = true
			case "text/event-stream", "text/*":
				stream = true
			case "*/*":
				json, stream = true, true
			}
		}
	}
	return json, stream
}

// dispatch tells the eras apart.
func (h *Handler) dispatch(r *http.Request, c *caller, m *message, server string, out *reply) {
	given := r.Header["Mcp-Protocol-Version"]
	version := ""
	if len(given) > 0 {
		version = given[0]
	}
	switch {
	//remit:guard S29 TestVersions
	case len(given) > 1 || version != "" && version != stateless && !sessionful(version):
		data := append(gateway.AppendTexts([]byte(`{"supported":`), versions[1:]), `,"requested":`...)
		refuse(out.w, http.StatusBadRequest, m.id, &rpcError{code: codeVersion, message: "this protocol version is not spoken here",
			data: append(remit.AppendJSONString(data, clip(version)), '}')})
	case version == stateless:
		h.modern(r, c, m, server, out)
	default:
		h.legacy(r, c, m, server, out)
	}
}

func clip(s string) string { return strings.ToValidUTF8(s[:min(len(s), 40)], "") }

// modern serves a request of the stateless era.
func (h *Handler) modern(r *http.Request, c *caller, m *message, server string, out *reply) {
	if m.isResponse() {
		refuse(out.w, http.StatusBadRequest, m.id, &rpcError{code: jsonrpc.CodeInvalidRequest, message: "nothing was asked: answers belong into inputResponses"})
		return
	}
	//remit:guard S29 TestHeadersEqualTheBody
	if e := h.equal(r.Header, "Mcp-Method", m.method); e != nil {
		refuse(out.w, http.StatusBadRequest, m.id, e)
		return
	}
	if m.id == "" {
		out.w.WriteHeader(http.StatusAccepted)
		return
	}
	var a *asked
	e := unknownMethod(m.method)
	if methods[m.method].era != newestSession {
		a, e = parseAsked(m, server)
	}
	if e == nil {
		e = a.stateless()
	}
	if e == nil && a.method.name != "" {
		//remit:guard S29 TestHeadersEqualTheBody
		e = h.equal(r.Header, "Mcp-Name", a.nameSent(server))
	}
	if e != nil {
		status := e.status
		if status == 0 {
			status = http.StatusBadRequest
		}
		refuse(out.w, status, m.id, e)
		return
	}
	k := &call{h: h, c: c, a: a, id: m.id, header: r.Header}
	result, e := h.answerModern(r, k, out)
	if e == nil {
		result, e = a.stamp(result)
	}
	out.end(m.id, result, e, true)
	k.record()
}

// nameSent is what Mcp-Name must repeat: the name as the client wrote it.
func (a *asked) nameSent(server string) string {
	switch {
	case a.method.name == "uri":
		return a.uri
	case server == "" && a.verb == "tools/call" && a.server != a.name:
		return shown(a.server, a.name)
	}
	return a.name
}

// equal compares a header that repeats something of the body with the body, before anything reads the header.
func (h *Handler) equal(head http.Header, name, body string) *rpcError {
	given := head[name]
	if len(given) == 1 {
		if text, ok := headerText(given[0]); ok && text == body {
			return nil
		}
	}
	return &rpcError{code: CodeHeaderMismatch, message: name + " is not what the body says", status: http.StatusBadRequest}
}

// stateless checks what every request of that era carries.
func (a *asked) stateless() *rpcError {
	switch {
	case a.meta.version == "":
		return invalid("_meta lacks " + metaPrefix + "protocolVersion")
	//remit:guard S29 TestVersions
	case a.meta.version != stateless:
		return &rpcError{code: CodeHeaderMismatch, message: "MCP-Protocol-Version is not what the body says", status: http.StatusBadRequest}
	case a.meta.capabilities == "":
		return invalid("_meta lacks " + metaPrefix + "clientCapabilities")
	}
	return nil
}

func (h *Handler) answerModern(r *http.Request, k *call, out *reply) ([]byte, *rpcError) {
	ctx := r.Context()
	state, e := h.back(r, k)
	if e != nil {
		return nil, e
	}
	result, e := k.prepare(ctx)
	k.c.leave()
	if result != nil || e != nil {
		return result, e
	}
	if k.a.verb == "server/discover" {
		return k.discovered(ctx)
	}
	if k.a.kind == streamed {
		return h.listenModern(ctx, k, out)
	}
	if e := state.answers(k.a); e != nil {
		return nil, e
	}
	if state.Flight != "" {
		f, e := h.resume(ctx, k, state.Flight, out)
		if e != nil {
			return nil, e
		}
		k.acted = nil // the call's own goroutine records it
		return h.wait(ctx, k, f)
	}
	if k.a.verb != "tools/list" {
		if e := k.open(ctx); e != nil {
			return nil, e
		}
		if !k.conn.greet.modern {
			f, e := h.start(&call{h: h, c: k.c, a: k.a, id: k.id, header: k.header, view: k.view, conn: k.conn, tool: k.tool, decision: k.decision, acted: k.acted}, out)
			k.acted = nil
			if e != nil {
				return nil, e
			}
			return h.wait(ctx, k, f)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, h.cfg.Timeout)
	defer cancel()
	return k.perform(ctx, &modernPeer{out}, state.State, k.a.inputs)
}

// modernPeer is a stateless client in front of a stateless server: nobody asks it anything but by input_required.
type modernPeer struct{ out *reply }

// notify implements peer.
func (p *modernPeer) notify(method string, params []byte) {
	p.out.event(appendMessage(nil, "", method, params))
}

// ask implements peer.
func (p *modernPeer) ask(context.Context, string, []byte) ([]byte, *rpcError) {
	return nil, unknownMethod("of a server")
}
