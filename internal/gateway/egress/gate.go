// SPDX-License-Identifier: Apache-2.0

package egress

import (
	"bufio"
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"remit"
	"remit/internal/gateway"
)

// Bounds of one box.
const (
	maxConnections = 128
	maxExchanges   = 64
	maxHead        = 64 << 10
	headTimeout    = 30 * time.Second
	idleTimeout    = 2 * time.Minute  // of a kept connection
	streamTimeout  = 10 * time.Minute // without a byte in either direction
)

// Gate is the proxy of one box. It is safe for concurrent use.
type Gate struct {
	proxy     *Proxy
	box       Box
	authority *authorityOf
	http      *http.Server
	feed      *feed
	slots     chan struct{} // one for each exchange
	recorder  *gateway.Recorder

	ctx  context.Context // of all that the gate does; ends with Close
	stop context.CancelFunc
	work sync.WaitGroup // all goroutines but the recorder's
	once sync.Once      // of Close

	mu         sync.Mutex // guards the rest
	closed     bool
	conns      map[net.Conn]bool
	transports map[*Target]*http.Transport
}

func newGate(p *Proxy, b Box, a *authorityOf) *Gate {
	g := &Gate{proxy: p, box: b, authority: a, slots: make(chan struct{}, maxExchanges), conns: map[net.Conn]bool{}, transports: map[*Target]*http.Transport{}}
	g.ctx, g.stop = context.WithCancel(context.Background())
	g.feed = &feed{conns: make(chan net.Conn), done: g.ctx.Done()}
	g.recorder = gateway.NewRecorder(g.ctx, p.cfg.Acts.Executed, p.cfg.Log.With("tool", b.Tool))
	g.http = &http.Server{Handler: http.HandlerFunc(g.serve), ReadHeaderTimeout: headTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: maxHead,
		ErrorLog: slog.NewLogLogger(p.cfg.Log.Handler(), slog.LevelDebug), ConnContext: withOrigin,
		BaseContext: func(net.Listener) context.Context { return g.ctx },
		// The tool's TLS is in each connection's own configuration; this one makes the server ready for HTTP/2.
		TLSConfig: &tls.Config{NextProtos: []string{"h2", "http/1.1"}, MinVersion: tls.VersionTLS12}}
	return g
}

// Serve serves what ln accepts until ctx ends or Close; it closes ln. Whoever reaches ln is the box's tool.
func (g *Gate) Serve(ctx context.Context, ln net.Listener) error {
	defer g.Close()
	defer context.AfterFunc(ctx, g.stop)()
	defer context.AfterFunc(g.ctx, func() { _ = ln.Close() })()
	if !g.start(func() { _ = g.http.Serve(g.feed) }) {
		return ln.Close() // it was closed before it began
	}
	for {
		conn, err := ln.Accept()
		if err != nil {
			if g.ctx.Err() != nil {
				return nil
			}
			return err
		}
		if !g.track(conn) {
			_ = conn.Close()
			continue
		}
		if !g.start(func() { g.welcome(conn) }) {
			_ = conn.Close()
		}
	}
}

// start runs f, for whose end Close waits; false: the gate is closed.
func (g *Gate) start(f func()) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return false
	}
	g.work.Go(f)
	return true
}

// enter is start for a request that the HTTP server answers in a goroutine of its own; leave with work.Done.
func (g *Gate) enter() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.closed {
		g.work.Add(1)
	}
	return !g.closed
}

// Cut ends everything that is open, at once; nothing opens any more. Close must follow.
func (g *Gate) Cut() {
	g.mu.Lock()
	g.closed = true
	g.stop()
	//remit:guard S20 TestCloseCutsAtOnce
	for c := range g.conns {
		_ = c.Close()
	}
	for _, t := range g.transports {
		t.CloseIdleConnections()
	}
	g.mu.Unlock()
	_ = g.http.Close()
}

// Close cuts, and waits until nothing of it runs and what it did is on record, or cannot be.
func (g *Gate) Close() {
	g.Cut()
	g.once.Do(func() {
		g.work.Wait()
		g.recorder.End()
	})
}

// note queues what came of a decided request.
func (g *Gate) note(d *remit.Decision, o remit.Outcome) {
	o.At, o.Target, o.Decision, o.Permission, o.Agent, o.Run, o.Source = g.proxy.cfg.Now(), d.Target, d.ID, d.Permission, g.box.Tool, g.box.Run, "egress"
	if o.Verb == "" {
		o.Verb = d.Action
	}
	g.recorder.Note(o)
}

// track notes an open connection, so that Close ends it; false: there are too many, or the gate is closed.
func (g *Gate) track(c net.Conn) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	//remit:guard S35 TestConnectionsAreBounded
	if g.closed || len(g.conns) >= maxConnections {
		return false
	}
	g.conns[c] = true
	return true
}

func (g *Gate) forget(c net.Conn) {
	g.mu.Lock()
	delete(g.conns, c)
	g.mu.Unlock()
}

// origin is where a connection leads by an earlier CONNECT; the zero one says so in each request.
type origin struct{ scheme, host, port string }

type originKey struct{}

// conn is a connection of the tool.
type conn struct {
	net.Conn
	gate *Gate
	raw  net.Conn // as it was accepted
	in   *bufio.Reader
	to   origin
}

func (c *conn) Read(b []byte) (int, error) { return c.in.Read(b) }

func (c *conn) Close() error {
	c.gate.forget(c.raw)
	return c.Conn.Close()
}

func withOrigin(ctx context.Context, c net.Conn) context.Context {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	own, _ := c.(*conn)
	return context.WithValue(ctx, originKey{}, own.to)
}

// welcome looks at the first byte: SOCKS has its version there, anything else is HTTP.
func (g *Gate) welcome(raw net.Conn) {
	c := &conn{Conn: raw, gate: g, raw: raw, in: bufio.NewReaderSize(raw, 4<<10)}
	_ = raw.SetReadDeadline(time.Now().Add(headTimeout))
	first, err := c.in.Peek(1)
	_ = raw.SetReadDeadline(time.Time{})
	switch {
	case err != nil:
		_ = c.Close()
	case first[0] == socksVersion:
		g.socks(c)
	default:
		g.feed.give(c)
	}
}

// feed hands connections to the HTTP server.
type feed struct {
	conns chan net.Conn
	done  <-chan struct{}
}

func (f *feed) give(c net.Conn) {
	select {
	case f.conns <- c:
	case <-f.done:
		_ = c.Close()
	}
}

// Accept implements net.Listener.
func (f *feed) Accept() (net.Conn, error) {
	select {
	case c := <-f.conns:
		return c, nil
	case <-f.done:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener; the gate's end ends the feed.
func (f *feed) Close() error { return nil }

// Addr implements net.Listener.
func (f *feed) Addr() net.Addr { return &net.UnixAddr{Name: "egress", Net: "unix"} }

// transport is for one target of one box: connections are shared with nobody, so what one box does to one is no other's matter.
func (g *Gate) transport(t *Target) *http.Transport {
	g.mu.Lock()
	defer g.mu.Unlock()
	tr := g.transports[t]
	if tr == nil {
		for old, otr := range g.transports { // of targets that a new revision replaced
			if old.name == t.name {
				otr.CloseIdleConnections()
				delete(g.transports, old)
			}
		}
		tr = &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return g.proxy.dial(ctx, t) },
			TLSClientConfig:   &tls.Config{RootCAs: t.roots, ServerName: t.host, MinVersion: tls.VersionTLS12},
			ForceAttemptHTTP2: true, DisableCompression: true, MaxIdleConnsPerHost: 16, IdleConnTimeout: idleTimeout, TLSHandshakeTimeout: dialTimeout,
			ResponseHeaderTimeout: t.timeout, MaxResponseHeaderBytes: 4 * maxHead, WriteBufferSize: 16 << 10, ReadBufferSize: 16 << 10}
		g.transports[t] = tr
	}
	return tr
}

// systemRoots are those that most systems keep in one of these files.
func systemRoots() []byte {
	for _, name := range []string{"/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"} {
		if b, err := os.ReadFile(name); err == nil {
			return b
		}
	}
	return nil
}
