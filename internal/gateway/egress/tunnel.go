// SPDX-License-Identifier: Apache-2.0

package egress

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"remit"
)

// connect answers CONNECT. Requests inside are decided one by one; only a tunnel is decided here, once.
func (g *Gate) connect(w http.ResponseWriter, r *http.Request, at time.Time) {
	host, port, ok := authority(r.Host, "")
	if !ok {
		g.refuse(w, r, at, r.Host, nil, unacceptable("CONNECT names no HOST:PORT"))
		return
	}
	t, d, done := g.admit(w, r.Context(), at, host, port)
	if t == nil {
		return
	}
	raw, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		unrecorded().write(w)
		return
	}
	own := raw.(*conn)
	if _, err := io.WriteString(raw, "HTTP/1.1 200 Connection Established\r\n\r\n"); err != nil {
		_ = raw.Close()
		return
	}
	g.through(&conn{Conn: own.Conn, gate: g, raw: own.raw, in: buffered.Reader, to: origin{t.scheme, host, port}}, t, d, done)
}

// admit says whether a connection to host and port may be opened, and answers when not. d is the decision of a tunnel, else nil.
func (g *Gate) admit(w http.ResponseWriter, ctx context.Context, at time.Time, host, port string) (*Target, *remit.Decision, <-chan struct{}) {
	t := g.proxy.cfg.Targets().at(host, port)
	name := joinHostPort(host, port)
	if t != nil {
		name = t.name
	}
	req := newRequest(&g.box, at, connectAction, name, nil)
	//remit:guard S28 TestUnlistedHost
	if t == nil {
		req.Refused = []remit.Reason{{Code: remit.ReasonNoPermission, Of: "host"}}
	}
	_, _, inside := g.box.Call()
	if t != nil && !t.tunnel && inside {
		return t, nil, nil // what is sent through it is decided
	}
	d, done := g.decide(w, ctx, req)
	if d == nil {
		return nil, nil, nil
	}
	if t == nil || !t.tunnel { // a call began in between: nothing was decided for this connection
		unrecorded().write(w)
		return nil, nil, nil
	}
	return t, d, done
}

// through carries what follows CONNECT: bytes to a tunnel, or TLS or HTTP to the server that decides each request.
func (g *Gate) through(c *conn, t *Target, d *remit.Decision, done <-chan struct{}) {
	if t.tunnel {
		g.tunnel(c, t, d, done)
		return
	}
	_ = c.SetReadDeadline(time.Now().Add(headTimeout))
	first, err := c.in.Peek(1)
	_ = c.SetReadDeadline(time.Time{})
	const handshake = 22 // TLS record type (RFC 8446, section 5.1)
	switch {
	case err != nil:
		_ = c.Close()
	case first[0] == handshake:
		c.to.scheme = "https"
		g.feed.give(tls.Server(c, g.authority.config(c.to.host)))
	default:
		c.to.scheme = "http"
		g.feed.give(c)
	}
}

// tunnel copies bytes both ways until either side ends, the call ends, or nothing moves for too long.
func (g *Gate) tunnel(c *conn, t *Target, d *remit.Decision, done <-chan struct{}) {
	defer c.Close() //nolint:errcheck // it is over
	o := remit.Outcome{Status: http.StatusOK, Allowed: true, Effective: true, Detail: map[string]string{}}
	var sent, received int64
	err := func() error {
		hello, err := c.helloFor(t)
		if err != nil {
			return err
		}
		ctx, cancel := during(g.ctx, done)
		defer cancel(nil)
		up, err := g.proxy.dial(ctx, t)
		if err != nil {
			return err
		}
		p := pipe{tool: c, server: up, first: hello, fromServer: up}
		err = p.run(ctx)
		sent, received = p.sent.Load(), p.received.Load()
		return err
	}()
	if err != nil {
		o.Detail["error"] = remit.Clip(err.Error(), 200)
	}
	if err != nil && received == 0 {
		o.Status, o.Allowed, o.Effective = http.StatusBadGateway, sent > 0, false
	}
	o.Detail["sent"], o.Detail["received"] = strconv.FormatInt(sent, 10), strconv.FormatInt(received, 10)
	g.note(d, o)
}

// helloFor reads the beginning of TLS in a tunnel to an https target, and refuses it when it names another host. The bytes are
// returned, to be sent on as they are.
func (c *conn) helloFor(t *Target) ([]byte, error) {
	if t.scheme != "https" {
		return nil, nil
	}
	_ = c.SetReadDeadline(time.Now().Add(headTimeout))
	defer c.SetReadDeadline(time.Time{}) //nolint:errcheck // the next read tells
	rec := &recording{Conn: c}
	var name string
	seen := false
	err := tls.Server(rec, &tls.Config{MinVersion: tls.VersionTLS12, GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		name, seen = h.ServerName, true
		return nil, errSeen
	}}).Handshake()
	if !seen {
		return nil, fmt.Errorf("this tunnel is for TLS: %w", err)
	}
	//remit:guard S28 TestTunnelServerName
	if !sameName(name, t.host) {
		return nil, fmt.Errorf("the handshake names %.80q, CONNECT named %s", name, t.host)
	}
	return rec.read.Bytes(), nil
}

var errSeen = errors.New("seen")

// recording keeps what is read and sends nothing.
type recording struct {
	net.Conn
	read bytes.Buffer
}

func (r *recording) Read(b []byte) (int, error) {
	n, err := r.Conn.Read(b)
	r.read.Write(b[:n])
	return n, err
}

func (*recording) Write(b []byte) (int, error) { return len(b), nil }

// pipe is two copies that end together.
type pipe struct {
	tool           io.ReadWriteCloser
	server         io.WriteCloser
	first          []byte // to the server, before anything else
	fromServer     io.Reader
	sent, received atomic.Int64
}

func (p *pipe) run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	idle := time.AfterFunc(streamTimeout, func() { cancel(errors.New("nothing moved for too long")) })
	defer idle.Stop()
	closeBoth := sync.OnceFunc(func() { _, _ = p.tool.Close(), p.server.Close() })
	var wg sync.WaitGroup
	copyTo := func(w io.Writer, r io.Reader, n *atomic.Int64) {
		buf := make([]byte, 32<<10)
		for {
			k, err := r.Read(buf)
			if k > 0 {
				idle.Reset(streamTimeout)
				n.Add(int64(k))
				if _, werr := w.Write(buf[:k]); werr != nil {
					err = werr
				}
			}
			if err != nil {
				if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) {
					err = io.EOF
				}
				cancel(err)
				return
			}
		}
	}
	wg.Go(func() { copyTo(p.server, io.MultiReader(bytes.NewReader(p.first), p.tool), &p.sent) })
	wg.Go(func() { copyTo(p.tool, p.fromServer, &p.received) })
	<-ctx.Done()
	closeBoth()
	wg.Wait()
	if err := context.Cause(ctx); !errors.Is(err, io.EOF) && !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// upgrade joins the tool with a server that agreed to a WebSocket.
func (x *exchange) upgrade(ctx context.Context, w http.ResponseWriter, resp *http.Response) {
	server, ok := resp.Body.(io.ReadWriteCloser)
	if !ok {
		x.fail(w, errors.New("the server's connection cannot be joined"))
		return
	}
	raw, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		x.fail(w, err)
		return
	}
	defer raw.Close() //nolint:errcheck // it is over
	head := http.Header{}
	passHeader(head, resp.Header)
	head.Set("Connection", "Upgrade")
	head.Set("Upgrade", "websocket")
	out := bufio.NewWriter(raw)
	_, _ = out.WriteString("HTTP/1.1 101 Switching Protocols\r\n")
	_ = head.Write(out)
	_, _ = out.WriteString("\r\n")
	if x.err = out.Flush(); x.err != nil {
		return
	}
	tool := struct {
		io.Reader
		io.WriteCloser
	}{buffered.Reader, raw}
	p := pipe{tool: tool, server: server, fromServer: server}
	x.err = p.run(ctx) // ctx ends with the call
	x.sent.Store(p.sent.Load())
	x.received.Store(p.received.Load())
}
