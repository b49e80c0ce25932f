// SPDX-License-Identifier: Apache-2.0

package mcp

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"

	"remit"
)

// described is a tool as its server describes it.
type described struct {
	name    string
	raw     json.RawMessage
	digest  remit.Digest
	headers []headerOf // of its input schema
}

// headerOf is an argument that the stateless era repeats in a header.
type headerOf struct {
	path   []string
	header string
}

// toolset is what a server's tools/list said, and when.
type toolset struct {
	at   time.Time
	list []described
}

func (t *toolset) named(name string) *described {
	for i := range t.list {
		if t.list[i].name == name {
			return &t.list[i]
		}
	}
	return nil
}

// fresh is how long a server's own list counts where it cannot tell us about changes.
const fresh = 10 * time.Second

// listTools returns the server's tools. A process tells when they change; an address is asked again every few seconds.
func (k *conn) listTools(ctx context.Context) (toolset, *rpcError) {
	now := k.h.cfg.Now()
	k.mu.Lock()
	have, changes := k.tools, k.changes
	k.mu.Unlock()
	if !have.at.IsZero() && (k.server.Pipe != nil || now.Sub(have.at) < fresh) {
		return have, nil
	}
	ctx, cancel := context.WithTimeout(ctx, k.h.cfg.Timeout) // a client may wait for ever
	defer cancel()
	got := toolset{at: now}
	for cursor, page := "", 0; ; page++ {
		o := &outgoing{method: "tools/list"}
		if cursor != "" {
			o.params = object{{"cursor", remit.AppendJSONString(nil, cursor)}}
		}
		raw, e := k.exchange(ctx, o, nobody{})
		if e != nil {
			return got, e
		}
		var err error
		if cursor, err = got.add(raw); err != nil {
			return got, unreachable(err)
		}
		//remit:guard S35 TestServerFloods
		if page > 100 || len(got.list) > maxTools {
			return got, unreachable(fmt.Errorf("it lists more than %d tools", maxTools))
		}
		if cursor == "" {
			break
		}
	}
	k.mu.Lock()
	if k.changes == changes { // else what was read may be older than what the server told meanwhile
		k.tools = got
	}
	k.mu.Unlock()
	return got, nil
}

func (t *toolset) add(raw []byte) (next string, err error) {
	o, err := parseObject(raw)
	if err != nil {
		return "", errors.New("its list of tools cannot be read")
	}
	var list []json.RawMessage
	if json.Unmarshal(o.get("tools"), &list) != nil {
		return "", errors.New("its list of tools cannot be read")
	}
	for _, raw := range list {
		d, err := describe(raw)
		if err != nil {
			return "", err
		}
		//remit:guard S27 TestServerMessages
		if t.named(d.name) != nil {
			return "", fmt.Errorf("it lists %.80q twice", d.name)
		}
		t.list = append(t.list, d)
	}
	return o.text("nextCursor"), nil
}

// describe reads one tool. Its digest is over everything that a model or client reads of it.
func describe(raw json.RawMessage) (described, error) {
	d := described{raw: raw}
	o, err := parseObject(raw)
	if err != nil {
		return d, errors.New("it lists a tool that cannot be read")
	}
	d.name = o.text("name")
	if d.name == "" || len(d.name) > 256 {
		return d, errors.New("it lists a tool without a name")
	}
	if d.digest, err = digestOf(o); err != nil {
		return d, err
	}
	var s schema
	if raw := o.get("inputSchema"); raw != nil && json.Unmarshal(raw, &s) == nil {
		d.headers = s.headers(nil, nil)
	}
	return d, nil
}

// schema is the part of an input schema that headers come from.
type schema struct {
	Header     string            `json:"x-mcp-header"`
	Properties map[string]schema `json:"properties"`
}

func (s *schema) headers(path []string, out []headerOf) []headerOf {
	if len(path) > 8 {
		return out
	}
	for name, p := range s.Properties {
		at := append(append([]string{}, path...), name)
		if p.Header != "" {
			out = append(out, headerOf{at, p.Header})
		}
		out = p.headers(at, out)
	}
	return out
}

// paramHeaders compares the headers that repeat arguments with the arguments, and writes those that go upstream from the
// arguments alone.
func (d *described) paramHeaders(r http.Header, args remit.Args) (map[string]string, *rpcError) {
	if d == nil || len(d.headers) == 0 {
		return nil, nil
	}
	out := map[string]string{}
	for _, h := range d.headers {
		name := http.CanonicalHeaderKey("Mcp-Param-" + h.header)
		v := remit.ObjectValue(args)
		for _, p := range h.path {
			v = v.Field(p)
		}
		given, stands := r[name]
		//remit:guard S29 TestHeadersEqualTheBody
		if r != nil && (v.IsNull() == stands || stands && (len(given) != 1 || !sameValue(given[0], v))) {
			return nil, &rpcError{code: CodeHeaderMismatch, message: name + " is not what the body says", status: http.StatusBadRequest}
		}
		if !v.IsNull() {
			out[name] = headerValue(v.Text())
		}
	}
	return out, nil
}

func sameValue(header string, v remit.Value) bool {
	text, ok := headerText(header)
	if !ok {
		return false
	}
	if v.Kind() == remit.Number {
		f, err := strconv.ParseFloat(text, 64)
		return err == nil && f == math.Trunc(f) && math.Abs(f) <= 1<<53-1 && strconv.FormatInt(int64(f), 10) == v.Text()
	}
	return (v.Kind() == remit.String || v.Kind() == remit.Bool) && text == v.Text()
}

// headerText decodes a header that may be in Base64.
func headerText(s string) (string, bool) {
	encoded, ok := strings.CutPrefix(s, "=?base64?")
	if !ok || !strings.HasSuffix(encoded, "?=") {
		return s, true
	}
	b, err := base64.StdEncoding.DecodeString(strings.TrimSuffix(encoded, "?="))
	return string(b), err == nil
}

// ParamHeaders are the headers in which a stateless call of the tool, as tools/list describes it, repeats some of its arguments.
func ParamHeaders(tool, args json.RawMessage) (map[string]string, error) {
	t, err := describe(tool)
	if err != nil || len(t.headers) == 0 {
		return nil, err
	}
	d := remit.NewDecoder(string(args))
	given, err := arguments(&d)
	if err != nil {
		return nil, err
	}
	out, e := t.paramHeaders(nil, given)
	if e != nil {
		return nil, e
	}
	return out, nil
}
