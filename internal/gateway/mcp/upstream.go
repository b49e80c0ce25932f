// SPDX-License-Identifier: Apache-2.0

package mcp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"

	"github.com/modelcontextprotocol/go-sdk/jsonrpc"

	"remit"
)

// peer is the client whose request a server works on: what the server sends meanwhile goes there.
type peer interface {
	notify(method string, params []byte)
	// ask puts a request of the server to the client and returns its result.
	ask(ctx context.Context, method string, params []byte) ([]byte, *rpcError)
}

// nobody is the peer of requests that the gateway itself makes.
type nobody struct{}

func (nobody) notify(string, []byte) {}
func (nobody) ask(context.Context, string, []byte) ([]byte, *rpcError) {
	return nil, &rpcError{code: jsonrpc.CodeMethodNotFound, message: "there is no client here"}
}

// outgoing is one request to a server, the same for both eras.
type outgoing struct {
	method  string
	params  object
	meta    meta
	state   string            // the server's own requestState
	inputs  string            // inputResponses, JSON
	headers map[string]string // Mcp-Param-*
	name    string            // what Mcp-Name repeats
}

// speaker speaks one era over one transport. It is safe for concurrent use.
type speaker interface {
	exchange(ctx context.Context, o *outgoing, p peer) ([]byte, *rpcError)
	notify(ctx context.Context, method string, params []byte)
	close()
}

// unreachable is an error of the gateway about a server.
func unreachable(err error) *rpcError {
	return &rpcError{code: jsonrpc.CodeInternalError, message: "the tool's server: " + err.Error(),
		gone: errors.Is(err, errSession) || errors.Is(err, errGone), ours: true}
}

// What makes a connection useless.
var (
	errSession = errors.New("its session is over")
	errGone    = errors.New("it has ended")
)

// body writes the request with the era's _meta. id is our own number, which also is the progress token.
func (o *outgoing) body(id string, modern bool) []byte {
	m := make(object, 0, 6)
	if o.meta.progress != "" {
		m = append(m, member{"progressToken", []byte(id)})
	}
	if o.meta.traceparent != "" {
		m = append(m, member{"traceparent", remit.AppendJSONString(nil, o.meta.traceparent)})
	}
	params := o.params
	if modern {
		m = append(m, member{metaPrefix + "protocolVersion", []byte(`"` + stateless + `"`)},
			member{metaPrefix + "clientInfo", []byte(ourselves)}, member{metaPrefix + "clientCapabilities", []byte(capabilitiesOf([]byte(o.meta.capabilities)))})
		if o.meta.logLevel != "" {
			m = append(m, member{metaPrefix + "logLevel", remit.AppendJSONString(nil, o.meta.logLevel)})
		}
		if o.inputs != "" {
			params = params.with("inputResponses", []byte(o.inputs))
		}
		if o.state != "" {
			params = params.with("requestState", remit.AppendJSONString(nil, o.state))
		}
	}
	if len(m) > 0 {
		params = params.with("_meta", m.append(nil))
	}
	return appendMessage(nil, id, o.method, params.append(nil))
}

// ourselves is the clientInfo that servers get. Nothing that a client says of itself goes upstream as it came: a tool would get what nobody
// decided (S29).
const ourselves = `{"name":"remit","version":"1"}`

// capable are the capabilities of clients that servers are told of, with their parts.
var capable = []struct {
	name  string
	parts []string
}{{"elicitation", []string{"form", "url"}}, {"sampling", []string{"context", "tools"}}, {"roots", nil}}

// capabilitiesOf writes a client's capabilities anew: which of those that are known it has, and nothing else of what it sent.
func capabilitiesOf(raw []byte) string {
	given, err := parseObject(raw)
	out := object{}
	if err != nil {
		return string(out.append(nil))
	}
	for _, c := range capable {
		has, err := parseObject(given.get(c.name))
		if err != nil {
			continue
		}
		parts := object{}
		for _, p := range c.parts {
			if _, err := parseObject(has.get(p)); err == nil {
				parts = append(parts, member{p, []byte("{}")})
			}
		}
		out = append(out, member{c.name, parts.append(nil)})
	}
	return string(out.append(nil))
}

// forward hands a notification of the server to the client, with the client's own progress token. What belongs to no call is
// dropped.
func (o *outgoing) forward(p peer, id string, m *message) {
	switch m.method {
	case "notifications/progress":
		params, err := parseObject([]byte(m.params))
		if err != nil || o.meta.progress == "" || string(params.get("progressToken")) != id {
			return
		}
		p.notify(m.method, params.with("progressToken", []byte(o.meta.progress)).append(nil))
	case "notifications/message", "notifications/elicitation/complete":
		p.notify(m.method, []byte(m.params))
	default:
		if o.method == "subscriptions/listen" && (unsolicited[m.method] || m.method == "notifications/subscriptions/acknowledged") {
			p.notify(m.method, []byte(m.params))
		}
	}
}

// answer puts the server's request to the client and returns the response for the server. Only what both sides know is asked.
func answer(ctx context.Context, p peer, m *message) []byte {
	var result []byte
	var e *rpcError
	switch {
	case m.method == "ping":
		result = []byte("{}")
	case askable[m.method]:
		result, e = p.ask(ctx, m.method, []byte(m.params))
	default:
		e = unknownMethod(m.method)
	}
	if e != nil {
		return appendError(nil, m.id, e)
	}
	return appendResult(nil, m.id, result)
}

// outcome reads the response to our request.
func outcome(m *message) ([]byte, *rpcError) {
	if m.err != "" {
		return nil, serverError(m.err)
	}
	if m.result[0] != '{' {
		return nil, unreachable(fmt.Errorf("its result is no object"))
	}
	return []byte(m.result), nil
}

// greeting is what a server says of itself.
type greeting struct {
	modern       bool
	version      string
	capabilities object
	info         json.RawMessage
	instructions string
}

// discover asks for the stateless era; ok is false for a server that does not speak it.
func discover(ctx context.Context, s speaker) (greeting, bool) {
	raw, e := s.exchange(ctx, &outgoing{method: "server/discover", meta: meta{capabilities: "{}"}}, nobody{})
	if e != nil {
		return greeting{}, false
	}
	var r struct {
		Versions     []string                   `json:"supportedVersions"`
		Capabilities json.RawMessage            `json:"capabilities"`
		Instructions string                     `json:"instructions"`
		Meta         map[string]json.RawMessage `json:"_meta"`
	}
	if json.Unmarshal(raw, &r) != nil {
		return greeting{}, false
	}
	for _, v := range r.Versions {
		if v == stateless {
			c, err := parseObject(r.Capabilities)
			return greeting{modern: true, version: v, capabilities: c, info: r.Meta[metaPrefix+"serverInfo"], instructions: r.Instructions}, err == nil
		}
	}
	return greeting{}, false
}

// initialize opens a session of the older era.
func initialize(ctx context.Context, s speaker, capabilities string) (greeting, *rpcError) {
	o := &outgoing{method: "initialize", params: object{{"protocolVersion", []byte(`"` + newestSession + `"`)},
		{"capabilities", []byte(capabilities)}, {"clientInfo", []byte(ourselves)}}}
	raw, e := s.exchange(ctx, o, nobody{})
	if e != nil {
		return greeting{}, e
	}
	var r struct {
		Version      string          `json:"protocolVersion"`
		Capabilities json.RawMessage `json:"capabilities"`
		Info         json.RawMessage `json:"serverInfo"`
		Instructions string          `json:"instructions"`
	}
	if json.Unmarshal(raw, &r) != nil || !sessionful(r.Version) {
		return greeting{}, unreachable(fmt.Errorf("it speaks version %.20q, which is not known here", r.Version))
	}
	c, err := parseObject(r.Capabilities)
	if err != nil {
		return greeting{}, unreachable(fmt.Errorf("its capabilities cannot be read"))
	}
	return greeting{version: r.Version, capabilities: c, info: r.Info, instructions: r.Instructions}, nil
}

func number(n uint64) string { return strconv.FormatUint(n, 10) }
