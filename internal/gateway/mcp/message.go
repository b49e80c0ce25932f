// SPDX-License-Identifier: Apache-2.0

package mcp

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/modelcontextprotocol/go-sdk/jsonrpc"

	"remit"
)

// Error codes. -32000 to -32019 are ours to define, of which -32001 says denied; from -32020 they are MCP's.
const (
	codeDenied     = -32001
	codeCapability = -32021
	codeVersion    = -32022
)

// CodeHeaderMismatch is MCP's error code for a header that does not say what the body says.
const CodeHeaderMismatch = -32020

// rpcError is a JSON-RPC error on its way to a client or server; data is JSON or nil.
type rpcError struct {
	code    int64
	message string
	data    []byte
	status  int    // of HTTP in the stateless era, where it matters; 0: 200
	gone    bool   // the connection to the server is of no more use
	ours    bool   // the gateway says it, not the server
	unfit   string // why the tool's server cannot be had now, for operators; a call that needs it is denied on record
}

func (e *rpcError) Error() string { return fmt.Sprintf("%s (%d)", e.message, e.code) }

func (e *rpcError) append(b []byte) []byte {
	b = strconv.AppendInt(append(b, `{"code":`...), e.code, 10)
	b = remit.AppendJSONString(append(b, `,"message":`...), e.message)
	if len(e.data) > 0 {
		b = append(append(b, `,"data":`...), e.data...)
	}
	return append(b, '}')
}

func invalid(text string) *rpcError {
	return &rpcError{code: jsonrpc.CodeInvalidParams, message: text, status: 400}
}

func unknownMethod(method string) *rpcError {
	return &rpcError{code: jsonrpc.CodeMethodNotFound, message: fmt.Sprintf("method %.80q is not served here", method), status: 404}
}

// message is one JSON-RPC message. All members are JSON texts as they came, but for the method.
type message struct {
	id     string // "" for a notification
	method string // "" for a response
	params string // an object, or ""
	result string
	err    string
}

func (m *message) isCall() bool     { return m.method != "" && m.id != "" }
func (m *message) isResponse() bool { return m.method == "" }

// parseMessage reads one message of a client: no batch, no name twice, nothing deep.
func parseMessage(text string) (message, error) {
	var m message
	d := remit.NewDecoder(text)
	version := ""
	err := d.Object(func(name string) (err error) {
		switch name {
		case "jsonrpc":
			version, err = d.Text()
		case "method":
			m.method, err = d.Text()
		case "id":
			m.id, err = readID(&d)
		case "params":
			m.params, err = d.Raw()
		case "result":
			m.result, err = d.Raw()
		case "error":
			m.err, err = d.Raw()
		default:
			err = d.Skip()
		}
		return err
	})
	if err == nil {
		err = d.End()
	}
	switch {
	case err != nil:
		return m, err
	case version != "2.0":
		return m, fmt.Errorf(`jsonrpc must be "2.0"`)
	case m.params != "" && m.params[0] != '{':
		return m, fmt.Errorf("params must be an object")
	case m.method == "" && (m.id == "" || (m.result == "") == (m.err == "")):
		return m, fmt.Errorf("neither a request nor a response")
	case m.method != "" && (m.result != "" || m.err != ""):
		return m, fmt.Errorf("a request and a response at once")
	}
	return m, nil
}

// readID reads a string or a whole number.
func readID(d *remit.Decoder) (string, error) {
	raw, err := d.Raw()
	if err != nil {
		return "", err
	}
	if raw[0] == '"' && len(raw) < 256 {
		return raw, nil
	}
	if _, err := strconv.ParseInt(raw, 10, 64); err != nil {
		return "", fmt.Errorf("id must be a string or a whole number")
	}
	return raw, nil
}

// appendMessage writes a request, or a notification where id is "".
func appendMessage(b []byte, id, method string, params []byte) []byte {
	b = append(b, `{"jsonrpc":"2.0"`...)
	if id != "" {
		b = append(append(b, `,"id":`...), id...)
	}
	b = remit.AppendJSONString(append(b, `,"method":`...), method)
	if len(params) > 0 {
		b = append(append(b, `,"params":`...), params...)
	}
	return append(b, '}')
}

// appendResult writes a response.
func appendResult(b []byte, id string, result []byte) []byte {
	b = append(append(append(b, `{"jsonrpc":"2.0","id":`...), id...), `,"result":`...)
	return append(append(b, result...), '}')
}

// appendError writes an error response; without an id it is null.
func appendError(b []byte, id string, e *rpcError) []byte {
	if id == "" {
		id = "null"
	}
	b = append(append(append(b, `{"jsonrpc":"2.0","id":`...), id...), `,"error":`...)
	return append(e.append(b), '}')
}

// oneLine takes the line breaks out of a JSON text. Where a line is a message, what stands between two breaks would be a message of
// its own that nobody decided.
func oneLine(b []byte) []byte {
	if !bytes.ContainsAny(b, "\r\n") {
		return b
	}
	var out bytes.Buffer
	if json.Compact(&out, b) != nil {
		return nil
	}
	return out.Bytes()
}

// member is one of an object, with its value as it came.
type member struct {
	name string
	raw  json.RawMessage
}

// object is a JSON object whose values are left alone.
type object []member

// parseObject reads an object of a server's message, which may be large. A name that stands twice is refused.
func parseObject(raw []byte) (object, error) {
	dec := json.NewDecoder(bytes.NewReader(raw))
	if tok, err := dec.Token(); err != nil || tok != json.Delim('{') {
		return nil, fmt.Errorf("not a JSON object")
	}
	var o object
	for dec.More() {
		tok, err := dec.Token()
		if err != nil {
			return nil, fmt.Errorf("not JSON")
		}
		m := member{}
		m.name, _ = tok.(string)
		if err := dec.Decode(&m.raw); err != nil {
			return nil, fmt.Errorf("not JSON")
		}
		//remit:guard S29 TestServerMessages
		if o.get(m.name) != nil {
			return nil, fmt.Errorf("%.40q stands twice", m.name)
		}
		//remit:guard S35 TestServerMessages
		if o = append(o, m); len(o) > 256 {
			return nil, fmt.Errorf("an object of more than 256 members")
		}
	}
	if _, err := dec.Token(); err != nil {
		return nil, fmt.Errorf("not a JSON object")
	}
	return o, nil
}

func (o object) get(name string) json.RawMessage {
	for _, m := range o {
		if m.name == name {
			return m.raw
		}
	}
	return nil
}

func (o object) text(name string) string {
	var s string
	if raw := o.get(name); raw != nil && json.Unmarshal(raw, &s) != nil {
		return ""
	}
	return s
}

// with returns o with the member set; raw nil removes it.
func (o object) with(name string, raw []byte) object {
	out := make(object, 0, len(o)+1)
	for _, m := range o {
		if m.name != name {
			out = append(out, m)
		}
	}
	if raw == nil {
		return out
	}
	return append(out, member{name, raw})
}

func (o object) append(b []byte) []byte {
	b = append(b, '{')
	for i, m := range o {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(append(remit.AppendJSONString(b, m.name), ':'), m.raw...)
	}
	return append(b, '}')
}

// parseServer reads one message of a server.
func parseServer(raw []byte) (message, error) {
	o, err := parseObject(raw)
	if err != nil {
		return message{}, err
	}
	m := message{id: string(o.get("id")), method: o.text("method"), params: string(o.get("params")), result: string(o.get("result")),
		err: string(o.get("error"))}
	switch {
	case !utf8.Valid(raw):
		return m, fmt.Errorf("not UTF-8")
	case o.text("jsonrpc") != "2.0":
		return m, fmt.Errorf(`jsonrpc is not "2.0"`)
	case m.method == "" && (m.result == "") == (m.err == ""):
		return m, fmt.Errorf("neither a request nor a response")
	case m.params != "" && !strings.HasPrefix(m.params, "{"):
		return m, fmt.Errorf("params are no object")
	case len(m.id) > 256:
		return m, fmt.Errorf("an id of %d bytes", len(m.id))
	}
	return m, nil
}

// serverError makes the error of a server's response into one for the client.
func serverError(raw string) *rpcError {
	var e struct {
		Code    int64           `json:"code"`
		Message string          `json:"message"`
		Data    json.RawMessage `json:"data"`
	}
	if json.Unmarshal([]byte(raw), &e) != nil {
		return &rpcError{code: jsonrpc.CodeInternalError, message: "the tool's server sent an invalid error"}
	}
	return &rpcError{code: e.Code, message: e.Message, data: e.Data}
}
