// SPDX-License-Identifier: Apache-2.0

package egress

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/textproto"
	"net/url"
	"slices"
	"strings"
	"unicode/utf8"

	"remit"
)

// message is one request as it goes upstream, but for the credential. What is decided is computed from it and from nothing else
// (S29): it is built from the parsed parts, and the bytes that the tool sent are forgotten.
type message struct {
	method  string
	path    string // decoded; encoded again when it is sent
	query   []pair
	header  http.Header
	body    []byte // parsed bodies
	stream  io.ReadCloser
	length  int64 // of stream; -1: unknown
	upgrade bool  // to a WebSocket
	args    remit.Args
}

type pair struct {
	name, value string
	bare        bool // without "="
}

const (
	maxParsed = 48 << 10 // bytes of a body that is parsed
	maxArgs   = 60 << 10 // of all arguments as JSON: less than can be read again
	maxOpaque = 64 << 20
	maxPairs  = 256
)

// read builds the message of r for t. An error is a *remit.Error that tells the tool what to send instead.
func read(r *http.Request, t *Target) (*message, error) {
	m := &message{method: r.Method, args: remit.Args{}}
	if _, ok := methods[r.Method]; !ok {
		return nil, unacceptable("the method %.20q is never let through", r.Method)
	}
	var err error
	if m.path, err = canonicalPath(r.URL); err != nil {
		return nil, err
	}
	m.args["path"] = remit.StringValue(m.path)
	if m.query, err = parsePairs(r.URL.RawQuery, "the query"); err != nil {
		return nil, err
	}
	if t.inject != nil && t.inject.query != "" {
		//remit:guard S28 TestInjection
		m.query = slices.DeleteFunc(m.query, func(p pair) bool { return p.name == t.inject.query })
	}
	if len(m.query) > 0 {
		m.args["query"] = valueOf(m.query)
	}
	if err := m.readHeaders(r, t); err != nil {
		return nil, err
	}
	if err := m.readBody(r, t); err != nil {
		return nil, err
	}
	//remit:guard S35 TestMessageRefuses
	if len(m.args.AppendJSON(nil)) > maxArgs {
		return nil, unacceptable("path, query, headers and body are more than %d bytes together", maxArgs)
	}
	return m, nil
}

// canonicalPath returns the decoded path. What different servers read differently is refused: dot segments, empty segments, encoded
// slashes, what is encoded twice, path parameters that hide a dot segment, control characters.
func canonicalPath(u *url.URL) (string, error) {
	raw, p := u.EscapedPath(), u.Path
	if p == "" && raw == "" {
		return "/", nil
	}
	lower := strings.ToLower(raw)
	for _, bad := range []string{"%2f", "%5c", "%3f", "%23", "%00"} {
		//remit:guard S29 TestPathRefuses
		if strings.Contains(lower, bad) {
			return "", unacceptable("the path has %s, which servers read differently", bad)
		}
	}
	//remit:guard S29 TestPathRefuses
	if !strings.HasPrefix(p, "/") || !utf8.ValidString(p) || strings.ContainsFunc(p, unprintable) || strings.Contains(p, `\`) || u.Opaque != "" {
		return "", unacceptable("the path is no plain absolute path")
	}
	//remit:guard S29 TestPathRefuses
	if twice(p) {
		return "", unacceptable("the path is encoded twice")
	}
	segments := strings.Split(p[1:], "/")
	for i, s := range segments {
		bare, _, _ := strings.Cut(s, ";")
		//remit:guard S29 TestPathRefuses
		if bare == "." || bare == ".." || bare == "" && (s != "" || i < len(segments)-1) {
			return "", unacceptable("the path has empty segments or dots: send the path that is meant")
		}
	}
	return p, nil
}

// twice reports whether decoding s once more would change it.
func twice(s string) bool {
	again, err := url.PathUnescape(s)
	return err == nil && again != s
}

func unprintable(r rune) bool { return r < 0x20 || r == 0x7f }

// parsePairs parses NAME=VALUE&… strictly, in order.
func parsePairs(raw, where string) ([]pair, error) {
	var out []pair
	if raw == "" {
		return nil, nil
	}
	for part := range strings.SplitSeq(raw, "&") {
		if part == "" {
			continue
		}
		name, value, has := strings.Cut(part, "=")
		n, err1 := url.QueryUnescape(name)
		v, err2 := url.QueryUnescape(value)
		//remit:guard S29 TestMessageRefuses
		if err1 != nil || err2 != nil || n == "" || strings.Contains(part, ";") || !utf8.ValidString(n+v) {
			return nil, unacceptable("%s is not NAME=VALUE&NAME=VALUE in UTF-8 with every other character encoded", where)
		}
		if out = append(out, pair{n, v, !has}); len(out) > maxPairs {
			return nil, unacceptable("%s has more than %d parameters", where, maxPairs)
		}
	}
	return out, nil
}

// valueOf is an object of texts; a name that stands several times has the list of its values.
func valueOf(pairs []pair) remit.Value {
	lists := map[string][]remit.Value{}
	for _, p := range pairs {
		lists[p.name] = append(lists[p.name], remit.StringValue(p.value))
	}
	out := make(map[string]remit.Value, len(lists))
	for name, l := range lists {
		if out[name] = l[0]; len(l) > 1 {
			out[name] = remit.ListValue(l...)
		}
	}
	return remit.ObjectValue(out)
}

// encode writes pairs so that every server reads the same: a space is %20, for "+" is a plus to some.
func encode(pairs []pair) string {
	var b strings.Builder
	for i, p := range pairs {
		if i > 0 {
			b.WriteByte('&')
		}
		b.WriteString(escape(p.name))
		if !p.bare {
			b.WriteString("=" + escape(p.value))
		}
	}
	return b.String()
}

func escape(s string) string { return strings.ReplaceAll(url.QueryEscape(s), "+", "%20") }

// harmless headers go upstream as they are. They say how to answer, not what to do; Prefer is none, since it makes an insertion an update
// at some servers.
var harmless = set("Accept", "Accept-Encoding", "Accept-Language", "Cache-Control", "Content-Encoding", "Content-Language", "If-Match",
	"If-Modified-Since", "If-None-Match", "If-Range", "If-Unmodified-Since", "Last-Event-Id", "Pragma", "Range", "Traceparent", "Tracestate",
	"User-Agent", "X-Request-Id")

// overriding headers tell some servers to act on another method or path than the one that was decided.
var overriding = set("X-Http-Method", "X-Http-Method-Override", "X-Method-Override", "X-Original-Url", "X-Rewrite-Url", "X-Original-Method",
	"X-Override-Url")

// connectional headers belong to a connection or to its message's framing, or are credentials: no target lets them through by name.
var connectional = set("Authorization", "Connection", "Content-Length", "Content-Type", "Cookie", "Expect", "Host", "Keep-Alive", "Te", "Trailer",
	"Transfer-Encoding", "Upgrade", "Sec-Websocket-Key", "Sec-Websocket-Version", "Sec-Websocket-Protocol", "Sec-Websocket-Extensions",
	"X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "Forwarded", "X-Amz-Date", "X-Amz-Security-Token", "X-Amz-Content-Sha256")

func set(names ...string) map[string]bool {
	out := map[string]bool{}
	for _, n := range names {
		out[textproto.CanonicalMIMEHeaderKey(n)] = true
	}
	return out
}

func forbidden(h string) bool {
	return overriding[h] || connectional[h] || strings.HasPrefix(h, "Proxy-")
}

func (m *message) readHeaders(r *http.Request, t *Target) error {
	m.header = http.Header{}
	for h := range r.Header {
		//remit:guard S29 TestMessageRefuses
		if overriding[h] {
			return unacceptable("the header %s would change what was decided", h)
		}
		if harmless[h] {
			m.header[h] = r.Header[h]
		}
	}
	decided := map[string]remit.Value{}
	for _, h := range t.headers {
		if vs := r.Header[h]; len(vs) > 0 {
			m.header[h] = vs
			list := make([]remit.Value, len(vs))
			for i, v := range vs {
				list[i] = remit.StringValue(v)
			}
			if decided[strings.ToLower(h)] = list[0]; len(vs) > 1 {
				decided[strings.ToLower(h)] = remit.ListValue(list...)
			}
		}
	}
	if len(decided) > 0 {
		m.args["headers"] = remit.ObjectValue(decided)
	}
	if t.inject != nil {
		// An encoded answer, or a part of one, could carry the secret unseen.
		for _, h := range []string{"Accept-Encoding", "Range", "If-Range"} {
			//remit:guard S28 TestNoPartsOfASecret
			m.header.Del(h)
		}
		m.header.Set("Accept-Encoding", "identity")
	}
	return m.readUpgrade(r, t)
}

// readUpgrade: a WebSocket is a channel that nobody looks into, so a permission has to name the argument upgrade.
func (m *message) readUpgrade(r *http.Request, t *Target) error {
	if r.Header.Get("Upgrade") == "" {
		return nil
	}
	if !strings.EqualFold(r.Header.Get("Upgrade"), "websocket") || r.Method != http.MethodGet || len(r.Header["Upgrade"]) != 1 {
		return unacceptable("only a GET can be upgraded, and only to a websocket")
	}
	m.upgrade = true
	m.args["upgrade"] = remit.StringValue("websocket")
	names := []string{"Sec-Websocket-Key", "Sec-Websocket-Version", "Sec-Websocket-Protocol", "Sec-Websocket-Extensions"}
	if t.inject != nil {
		names = names[:3] // no compression: what comes back is searched for the secret
	}
	for _, h := range names {
		if vs := r.Header[h]; len(vs) > 0 {
			m.header[h] = vs
		}
	}
	m.header.Set("Connection", "Upgrade")
	m.header.Set("Upgrade", "websocket")
	return nil
}

const typeJSON, typeForm = "application/json", "application/x-www-form-urlencoded"

// readBody reads and parses the body, or keeps it for streaming. A JSON body is the argument body; a form is, too, with
// content_type beside it; of any other only content_type is known, which a permission must name.
func (m *message) readBody(r *http.Request, t *Target) error {
	if r.ContentLength == 0 || r.Body == nil || r.Body == http.NoBody {
		return nil
	}
	if len(r.Header["Content-Type"]) > 1 {
		return unacceptable("there is more than one Content-Type")
	}
	declared := r.Header.Get("Content-Type")
	media, params, err := mime.ParseMediaType(declared)
	if declared == "" {
		media, err = "application/octet-stream", nil
	}
	canonical := mime.FormatMediaType(media, params)
	//remit:guard S29 TestMessageRefuses
	if err != nil || canonical == "" {
		return unacceptable("the Content-Type cannot be read")
	}
	m.header.Set("Content-Type", canonical)
	json := media == typeJSON || strings.HasPrefix(media, "application/") && strings.HasSuffix(media, "+json") || strings.HasPrefix(media, "application/x-amz-json-")
	if media != typeJSON || t.opaque {
		m.args["content_type"] = remit.StringValue(media)
	}
	if t.opaque || !json && media != typeForm {
		m.stream, m.length = r.Body, r.ContentLength
		//remit:guard S35 TestOpaqueBodies
		if m.length > maxOpaque {
			return tooLarge(maxOpaque)
		}
		return nil
	}
	charset, encoding := params["charset"], r.Header.Get("Content-Encoding")
	//remit:guard S29 TestMessageRefuses
	if charset != "" && !strings.EqualFold(charset, "utf-8") || encoding != "" && !strings.EqualFold(encoding, "identity") {
		return unacceptable("the body is decided on, so it has to come in UTF-8 and without Content-Encoding")
	}
	m.header.Del("Content-Encoding")
	raw, err := io.ReadAll(io.LimitReader(r.Body, maxParsed+1))
	if err != nil {
		return &remit.Error{Code: remit.CodeInvalid, Msg: "the body did not arrive", Cause: err}
	}
	//remit:guard S35 TestMessageRefuses
	if len(raw) > maxParsed {
		return tooLarge(maxParsed)
	}
	if json {
		return m.readJSON(raw)
	}
	return m.readForm(raw)
}

func (m *message) readForm(raw []byte) error {
	pairs, err := parsePairs(string(raw), "the form")
	if err != nil {
		return err
	}
	m.args["body"], m.body = valueOf(pairs), []byte(encode(pairs))
	return nil
}

// readJSON: what goes upstream is the canonical form of the value that was decided, so that no two readers see two things. A member
// that is null counts as absent in a decision, so it is left out; in a PATCH null means to delete, so there it is refused.
func (m *message) readJSON(raw []byte) error {
	if len(bytes.TrimSpace(raw)) == 0 {
		return nil
	}
	d := remit.NewDecoder(string(raw))
	v, err := d.Value()
	if err == nil {
		err = d.End()
	}
	if err != nil {
		return unacceptable("the body: %s", text(err))
	}
	clean := withoutNull(v)
	//remit:guard S29 TestMessageRefuses
	if v.IsNull() || m.method == http.MethodPatch && !clean.Equal(v) {
		return unacceptable("a null in the body is not decided on: leave the member out")
	}
	m.args["body"], m.body = clean, clean.AppendJSON(nil)
	return nil
}

func withoutNull(v remit.Value) remit.Value {
	switch v.Kind() {
	case remit.Object:
		out := map[string]remit.Value{}
		for k, f := range v.Fields() {
			if !f.IsNull() {
				out[k] = withoutNull(f)
			}
		}
		return remit.ObjectValue(out)
	case remit.List:
		out := make([]remit.Value, 0, len(v.Elements()))
		for _, e := range v.Elements() {
			out = append(out, withoutNull(e))
		}
		return remit.ListValue(out...)
	}
	return v
}

// upstream builds the request that is sent.
func (m *message) upstream(t *Target) *http.Request {
	u := &url.URL{Scheme: t.scheme, Host: t.hostPort(), Path: m.path, RawQuery: encode(m.query)}
	r := &http.Request{Method: m.method, URL: u, Host: t.hostHeader(), Header: m.header, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1}
	if _, ok := r.Header["User-Agent"]; !ok {
		r.Header["User-Agent"] = nil // none is made up
	}
	switch {
	case m.stream != nil:
		r.Body, r.ContentLength = m.stream, m.length
	case len(m.body) > 0:
		r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(m.body)), int64(len(m.body))
		r.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(m.body)), nil }
	}
	return r
}

func unacceptable(format string, args ...any) error {
	return &remit.Error{Code: remit.CodeInvalid, Msg: fmt.Sprintf(format, args...), Hint: "nothing was sent; send it in another form"}
}

func tooLarge(most int) error {
	return &remit.Error{Code: remit.CodeExhausted, Msg: fmt.Sprintf("the body has more than %d bytes", most),
		Hint: "larger bodies need a target with bodies: opaque, whose permission names content_type"}
}

func text(err error) string {
	if e, ok := asError(err); ok {
		return e.Msg
	}
	return err.Error()
}

func asError(err error) (*remit.Error, bool) { return errors.AsType[*remit.Error](err) }
