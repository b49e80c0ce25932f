// SPDX-License-Identifier: Apache-2.0

package mcp

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strings"
	"sync/atomic"
	"time"
)

// overHTTP speaks Streamable HTTP. Sessions of the older era are known by session; the stateless one has none.
type overHTTP struct {
	url     string
	client  *http.Client
	modern  bool
	event   func(m *message) // what belongs to no request; may be nil
	next    atomic.Uint64
	session atomic.Pointer[string]
	version atomic.Pointer[string]
}

// exchange implements speaker.
func (s *overHTTP) exchange(ctx context.Context, o *outgoing, p peer) ([]byte, *rpcError) {
	id := number(s.next.Add(1))
	res, err := s.post(ctx, o.body(id, s.modern), o)
	if err != nil {
		return nil, unreachable(err)
	}
	defer res.Body.Close()
	if sid := res.Header.Get("Mcp-Session-Id"); o.method == "initialize" && sid != "" && len(sid) < 1024 {
		s.session.Store(&sid)
	}
	result, e := s.read(ctx, res, o, p, id)
	if ctx.Err() != nil && !s.modern && o.method != "initialize" {
		cancelled, stop := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		defer stop()
		s.notify(cancelled, "notifications/cancelled", []byte(`{"requestId":`+id+`}`))
	}
	return result, e
}

// post sends a message. Nothing of the client's own request is in it but what stands in body and Mcp-Param headers.
func (s *overHTTP) post(ctx context.Context, body []byte, o *outgoing) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.url, bytes.NewReader(body))
	if err != nil {
		return nil, errors.New("its address cannot be used")
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/json, text/event-stream")
	s.head(req)
	if s.modern && o != nil {
		req.Header.Set("Mcp-Method", o.method)
		if o.name != "" {
			req.Header.Set("Mcp-Name", headerValue(o.name))
		}
		for k, v := range o.headers {
			req.Header.Set(k, v)
		}
	}
	res, err := s.client.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return nil, errors.New("no answer in time")
		}
		return nil, errors.New("it cannot be reached")
	}
	return res, nil
}

func (s *overHTTP) head(req *http.Request) {
	if s.modern {
		req.Header.Set("Mcp-Protocol-Version", stateless)
		return
	}
	if v := s.version.Load(); v != nil {
		req.Header.Set("Mcp-Protocol-Version", *v)
	}
	if sid := s.session.Load(); sid != nil {
		req.Header.Set("Mcp-Session-Id", *sid)
	}
}

// headerValue encodes what does not fit into a header as it is.
func headerValue(s string) string {
	plain := s == strings.TrimSpace(s) && !(strings.HasPrefix(s, "=?base64?") && strings.HasSuffix(s, "?="))
	for i := range len(s) {
		plain = plain && s[i] >= 0x20 && s[i] <= 0x7e
	}
	if plain {
		return s
	}
	return "=?base64?" + base64.StdEncoding.EncodeToString([]byte(s)) + "?="
}

func (s *overHTTP) read(ctx context.Context, res *http.Response, o *outgoing, p peer, id string) ([]byte, *rpcError) {
	kind, _, _ := mime.ParseMediaType(res.Header.Get("Content-Type"))
	switch {
	case res.StatusCode == http.StatusNotFound && !s.modern && s.session.Load() != nil:
		return nil, unreachable(errSession)
	case kind == "application/json":
		raw, err := io.ReadAll(io.LimitReader(res.Body, maxMessage+1))
		if err != nil || len(raw) > maxMessage {
			return nil, unreachable(tooLong(ctx, err))
		}
		m, err := parseServer(raw)
		if err != nil || !m.isResponse() {
			return nil, unreachable(fmt.Errorf("it answered %d with no JSON-RPC response", res.StatusCode))
		}
		//remit:guard S29 TestServerMessages
		if m.id != id && m.err == "" {
			return nil, unreachable(errors.New("it answered another request"))
		}
		result, e := outcome(&m)
		if e != nil && res.StatusCode >= 400 {
			e.status = res.StatusCode
		}
		return result, e
	case res.StatusCode == http.StatusOK && kind == "text/event-stream":
		return s.stream(ctx, res.Body, o, p, id)
	}
	return nil, unreachable(fmt.Errorf("it answered %d", res.StatusCode))
}

func tooLong(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return errors.New("no answer in time")
	}
	if err != nil {
		return errors.New("its answer broke off")
	}
	return fmt.Errorf("its answer has more than %d bytes", maxMessage)
}

// stream reads events until the response to our request. An older server may break off and go on when asked with the last
// event's id.
func (s *overHTTP) stream(ctx context.Context, body io.Reader, o *outgoing, p peer, id string) ([]byte, *rpcError) {
	e := newEvents(body)
	for again := 0; ; {
		data, err := e.next()
		if err != nil {
			if s.modern || ctx.Err() != nil || e.last == "" || again >= 10 || errors.Is(err, errLong) {
				return nil, unreachable(tooLong(ctx, errors.Join(err, io.ErrUnexpectedEOF)))
			}
			again++
			res, err := s.resume(ctx, e)
			if err != nil {
				return nil, unreachable(err)
			}
			defer res.Body.Close()
			e.src = bufio.NewReaderSize(res.Body, 4096)
			continue
		}
		m, err := parseServer(data)
		if err != nil {
			return nil, unreachable(errors.New("its event is no JSON-RPC message"))
		}
		switch {
		case m.isResponse():
			//remit:guard S29 TestServerMessages
			if m.id != id {
				continue
			}
			return outcome(&m)
		case m.isCall() && !s.modern:
			if res, err := s.post(ctx, answer(ctx, p, &m), nil); err == nil {
				_ = res.Body.Close()
			}
		case m.isCall(): // the stateless era has none
		case unsolicited[m.method] && s.event != nil && o.method != "subscriptions/listen":
			s.event(&m)
		default:
			o.forward(p, id, &m)
		}
	}
}

func (s *overHTTP) resume(ctx context.Context, e *events) (*http.Response, error) {
	select {
	case <-ctx.Done():
		return nil, errors.New("no answer in time")
	case <-time.After(min(max(e.retry, 10*time.Millisecond), 5*time.Second)):
	}
	return s.listen(ctx, e.last)
}

// listen opens the stream of what belongs to no request, or resumes one.
func (s *overHTTP) listen(ctx context.Context, last string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url, nil)
	if err != nil {
		return nil, errors.New("its address cannot be used")
	}
	req.Header.Set("Accept", "text/event-stream")
	if last != "" {
		req.Header.Set("Last-Event-Id", last)
	}
	s.head(req)
	res, err := s.client.Do(req)
	if err != nil {
		return nil, errors.New("its answer broke off")
	}
	if res.StatusCode != http.StatusOK {
		_ = res.Body.Close()
		return nil, errors.New("its answer broke off and does not go on")
	}
	return res, nil
}

// notify implements speaker.
func (s *overHTTP) notify(ctx context.Context, method string, params []byte) {
	if s.modern {
		return
	}
	if res, err := s.post(ctx, appendMessage(nil, "", method, params), nil); err == nil {
		_ = res.Body.Close()
	}
}

// close implements speaker: it ends the session.
func (s *overHTTP) close() {
	if s.modern || s.session.Load() == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodDelete, s.url, nil)
	if err != nil {
		return
	}
	s.head(req)
	if res, err := s.client.Do(req); err == nil {
		_ = res.Body.Close()
	}
}

// events reads server-sent events.
type events struct {
	src   *bufio.Reader
	last  string // id of the last event that had one
	retry time.Duration
}

var errLong = errors.New("an event that is too long")

func newEvents(r io.Reader) *events { return &events{src: bufio.NewReaderSize(r, 4096)} }

// next returns the data of the next event that has some.
func (e *events) next() ([]byte, error) {
	var data []byte
	for {
		line, err := e.line(maxMessage - len(data))
		if err != nil {
			return nil, err
		}
		if len(line) == 0 {
			if len(data) > 0 {
				return data, nil
			}
			continue
		}
		name, value, _ := bytes.Cut(line, []byte(":"))
		value = bytes.TrimPrefix(value, []byte(" "))
		switch string(name) {
		case "data":
			if len(data) > 0 {
				data = append(data, '\n')
			}
			data = append(data, value...)
		case "id":
			if len(value) < 1024 {
				e.last = string(value)
			}
		case "retry":
			if d, err := time.ParseDuration(string(value) + "ms"); err == nil {
				e.retry = d
			}
		}
	}
}

func (e *events) line(most int) ([]byte, error) {
	var out []byte
	for {
		part, err := e.src.ReadSlice('\n')
		//remit:guard S35 TestServerFloods
		if len(out)+len(part) > most {
			return nil, errLong
		}
		out = append(out, part...)
		if err == nil {
			return bytes.TrimRight(out, "\r\n"), nil
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return nil, err
		}
	}
}
