// SPDX-License-Identifier: Apache-2.0

package mcp

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"

	"remit"
)

// Versions of the protocol, oldest first; the last one is the stateless era.
var versions = []string{"2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25", stateless}

const (
	stateless     = "2026-07-28"
	newestSession = "2025-11-25"
)

func sessionful(version string) bool {
	return version != stateless && slices.Contains(versions, version)
}

// kind says what has to be true before a method is served.
type kind uint8

const (
	unknown  kind = iota // refused
	own                  // answered here
	listed               // the agent must see the server; what it sees of the answer is cut to its stage
	decided              // a decision of the line
	streamed             // subscriptions/listen
)

// method is how one is served.
type method struct {
	kind   kind
	action string
	name   string // the member of params that Mcp-Name repeats
	era    string // "" both, else only this one: stateless or newestSession
	tools  bool   // also where many servers are behind one address
}

// methods are all that are understood. Tasks are not, nor is what comes with the next version.
var methods = map[string]method{
	"initialize":               {kind: own, era: newestSession, tools: true},
	"ping":                     {kind: own, era: newestSession, tools: true},
	"server/discover":          {kind: own, tools: true},
	"tools/list":               {kind: listed, tools: true},
	"tools/call":               {kind: decided, action: "mcp.call", name: "name", tools: true},
	"resources/list":           {kind: listed},
	"resources/templates/list": {kind: listed},
	"resources/read":           {kind: decided, action: "mcp.read", name: "uri"},
	"resources/subscribe":      {kind: decided, action: "mcp.read", era: newestSession},
	"resources/unsubscribe":    {kind: listed, era: newestSession},
	"prompts/list":             {kind: listed},
	"prompts/get":              {kind: decided, action: "mcp.prompt", name: "name"},
	"completion/complete":      {kind: decided},
	"logging/setLevel":         {kind: listed, era: newestSession},
	"subscriptions/listen":     {kind: streamed, era: stateless},
}

// toolName is a tool's name without its kind, as it stands in addresses and in front of its server's tools.
var toolName = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`) })

// separator stands between a server and its tool where many servers are behind one address; no server's name holds it.
const separator = "__"

// target names a server's tool as workflows do: by the server alone where both have one name.
func target(server, tool string) string {
	if server == tool {
		return server
	}
	return server + "/" + tool
}

// shown is a tool's name where many servers are behind one address.
func shown(server, tool string) string {
	if server == tool {
		return server
	}
	return server + separator + tool
}

// meta is what counts of a request's _meta; nothing else of it goes upstream.
type meta struct {
	version      string // stateless era
	capabilities string // JSON of clientCapabilities
	logLevel     string
	progress     string // JSON of progressToken
	traceparent  string
}

// asked is one request of a client.
type asked struct {
	method
	verb   string // the method's name
	server string // the tool's name without its kind
	name   string // of the server's tool or prompt
	uri    string
	args   remit.Args // what is decided
	params object     // what goes upstream, written from what was read; without _meta
	meta   meta
	state  string            // requestState
	inputs string            // inputResponses
	listen map[string]string // of subscriptions/listen, as JSON
	level  string
	cursor string
	given  string // protocolVersion of initialize
	about  object // capabilities and clientInfo of initialize
}

// parseAsked reads params. server is that of the address; "" where many are behind it.
func parseAsked(m *message, server string) (*asked, *rpcError) {
	a := &asked{method: methods[m.method], verb: m.method, server: server}
	//remit:guard S29 TestUnknownMethods
	if a.kind == unknown || server == "" && !a.tools {
		return nil, unknownMethod(m.method)
	}
	if m.params != "" {
		d := remit.NewDecoder(m.params)
		if err := d.Object(func(name string) error { return a.member(&d, name) }); err != nil {
			return nil, invalid("params: " + err.Error())
		}
	}
	if err := a.settle(); err != nil {
		return nil, err
	}
	return a, nil
}

func (a *asked) member(d *remit.Decoder, name string) (err error) {
	if d.Null() {
		return nil
	}
	//remit:guard S29 TestBadMessages
	if name == "task" {
		return fmt.Errorf("tasks are not understood here")
	}
	switch name {
	case "_meta":
		return d.Object(func(name string) error { return a.meta.member(d, name) })
	case "name":
		a.name, err = d.Text()
	case "uri":
		a.uri, err = d.Text()
	case "cursor":
		a.cursor, err = d.Text()
	case "level":
		a.level, err = d.Text()
	case "protocolVersion":
		a.given, err = d.Text()
	case "arguments":
		a.args, err = arguments(d)
	case "requestState":
		a.state, err = d.Text()
	case "inputResponses":
		a.inputs, err = d.Raw()
	case "capabilities", "clientInfo", "ref", "argument", "context", "notifications":
		raw, rerr := d.Raw()
		a.about, err = append(a.about, member{name, []byte(raw)}), rerr
	default: // does not go upstream
		err = d.Skip()
	}
	return err
}

// arguments reads a call's arguments. Members that are null are left out, in objects of any depth: policy counts them as absent, so the
// tool must not see them (S29).
func arguments(d *remit.Decoder) (remit.Args, error) {
	v, err := d.Value()
	if err != nil {
		return nil, err
	}
	if v.Kind() != remit.Object {
		return nil, fmt.Errorf("arguments must be an object")
	}
	//remit:guard S29 TestNullArgumentsAreAbsent
	v = withoutNulls(v)
	return v.Fields(), nil
}

func withoutNulls(v remit.Value) remit.Value {
	switch v.Kind() {
	case remit.Object:
		out := make(map[string]remit.Value, len(v.Fields()))
		for k, f := range v.Fields() {
			if !f.IsNull() {
				out[k] = withoutNulls(f)
			}
		}
		return remit.ObjectValue(out)
	case remit.List:
		out := make([]remit.Value, len(v.Elements()))
		for i, e := range v.Elements() {
			out[i] = withoutNulls(e)
		}
		return remit.ListValue(out...)
	}
	return v
}

func (m *meta) member(d *remit.Decoder, name string) (err error) {
	raw, err := d.Raw()
	if err != nil || raw == "null" {
		return err
	}
	text := func(into *string) {
		t := remit.NewDecoder(raw)
		if *into, err = t.Text(); err != nil {
			err = fmt.Errorf("_meta %s: %w", name, err)
		}
	}
	switch name {
	case metaPrefix + "protocolVersion":
		text(&m.version)
	case metaPrefix + "clientCapabilities":
		m.capabilities = raw
	case metaPrefix + "logLevel":
		text(&m.logLevel)
	case "progressToken":
		m.progress = raw
	case "traceparent":
		text(&m.traceparent)
	}
	return err
}

// traceparent is version 00 of W3C Trace Context. Its companion tracestate is free text, and does not go upstream.
var traceparent = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$`) })

var levels = []string{"debug", "info", "notice", "warning", "error", "critical", "alert", "emergency"}

const metaPrefix = "io.modelcontextprotocol/"

// settle checks what the method needs, splits the name where many servers are behind one address, and writes params.
func (a *asked) settle() *rpcError {
	if a.meta.capabilities != "" && a.meta.capabilities[0] != '{' {
		return invalid("_meta: clientCapabilities is an object")
	}
	//remit:guard S29 TestNothingUndecidedGoesUpstream
	if a.meta.traceparent != "" && !traceparent().MatchString(a.meta.traceparent) {
		return invalid("_meta: traceparent is none of W3C Trace Context")
	}
	for _, l := range []string{a.meta.logLevel, a.level} {
		//remit:guard S29 TestNothingUndecidedGoesUpstream
		if l != "" && !slices.Contains(levels, l) {
			return invalid("no such level of logging")
		}
	}
	p := func(name, value string) {
		a.params = append(a.params, member{name, remit.AppendJSONString(nil, value)})
	}
	switch a.verb {
	case "tools/call":
		return a.settleCall()
	case "resources/read", "resources/subscribe", "resources/unsubscribe":
		if a.uri == "" {
			return invalid("uri is missing")
		}
		a.args = remit.Args{"uri": remit.StringValue(a.uri)}
		p("uri", a.uri)
	case "prompts/get":
		if a.name == "" {
			return invalid("name is missing")
		}
		p("name", a.name)
		args := remit.Args{"name": remit.StringValue(a.name)}
		if a.args != nil {
			a.params = append(a.params, member{"arguments", a.args.AppendJSON(nil)})
			args["arguments"] = remit.ObjectValue(a.args)
		}
		a.args = args
	case "completion/complete":
		return a.settleCompletion()
	case "logging/setLevel":
		if a.level == "" {
			return invalid("level is missing")
		}
		p("level", a.level)
	case "subscriptions/listen":
		return a.settleListen()
	default:
		if a.cursor != "" {
			p("cursor", a.cursor)
		}
	}
	return nil
}

func (a *asked) settleCall() *rpcError {
	if a.name == "" || len(a.name) > 256 {
		return invalid("name is missing")
	}
	if a.server == "" {
		server, tool, cut := strings.Cut(a.name, separator)
		if !cut {
			tool = server
		}
		if !toolName().MatchString(server) || tool == "" || cut && tool == server {
			server, tool = a.name, a.name // of no server; the line denies it under the name that it came with
		}
		a.server, a.name = server, tool
	}
	args := a.args.AppendJSON(nil)
	//remit:guard S35 TestBadMessages
	if len(args) > maxArguments {
		return invalid(fmt.Sprintf("arguments of more than %d bytes", maxArguments))
	}
	a.params = object{{"name", remit.AppendJSONString(nil, a.name)}, {"arguments", args}}
	return nil
}

// settleCompletion: completing is asking for a part of what is completed, so it is decided as that.
func (a *asked) settleCompletion() *rpcError {
	var ref, argument, context remit.Value
	for name, into := range map[string]*remit.Value{"ref": &ref, "argument": &argument, "context": &context} {
		if raw := a.about.get(name); raw != nil {
			d := remit.NewDecoder(string(raw))
			v, err := d.Value()
			if err != nil || v.Kind() != remit.Object {
				return invalid(name + " must be an object")
			}
			*into = withoutNulls(v)
		}
	}
	if argument.Field("name").Kind() != remit.String || argument.Field("value").Kind() != remit.String {
		return invalid("argument must have name and value")
	}
	filled := map[string]remit.Value{}
	for k, v := range context.Field("arguments").Fields() {
		//remit:guard S29 TestCompletionsAreDecided
		if k == argument.Field("name").Text() {
			return invalid("the argument that is completed stands in the context, too")
		}
		filled[k] = v
	}
	filled[argument.Field("name").Text()] = argument.Field("value")
	out := map[string]remit.Value{"type": ref.Field("type")}
	switch ref.Field("type").Text() {
	case "ref/prompt":
		a.action, a.args = "mcp.prompt", remit.Args{"name": ref.Field("name"), "arguments": remit.ObjectValue(filled)}
		out["name"] = ref.Field("name")
	case "ref/resource":
		a.action, a.args = "mcp.read", remit.Args{"uri": ref.Field("uri"), "arguments": remit.ObjectValue(filled)}
		out["uri"] = ref.Field("uri")
	default:
		return invalid("ref must be of ref/prompt or ref/resource")
	}
	a.params = object{{"ref", remit.ObjectValue(out).AppendJSON(nil)},
		{"argument", remit.ObjectValue(map[string]remit.Value{"name": argument.Field("name"), "value": argument.Field("value")}).AppendJSON(nil)}}
	if c := context.Field("arguments"); c.Kind() == remit.Object {
		a.params = append(a.params, member{"context", remit.ObjectValue(map[string]remit.Value{"arguments": c}).AppendJSON(nil)})
	}
	return nil
}

// settleListen reads which notifications a client wants.
func (a *asked) settleListen() *rpcError {
	raw := a.about.get("notifications")
	if raw == nil {
		return invalid("notifications is missing")
	}
	d := remit.NewDecoder(string(raw))
	a.listen = map[string]string{}
	if err := d.Object(func(name string) (err error) {
		switch name {
		case "toolsListChanged", "promptsListChanged", "resourcesListChanged", "resourceSubscriptions":
			a.listen[name], err = d.Raw()
			return err
		}
		return d.Skip()
	}); err != nil {
		return invalid("notifications: " + err.Error())
	}
	return nil
}
