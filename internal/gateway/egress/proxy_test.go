// SPDX-License-Identifier: Apache-2.0

package egress_test

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"remit"
	"remit/internal/gateway"
	"remit/internal/gateway/egress"
)

func certificate(t *testing.T, host string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: host}, DNSNames: []string{host}, IsCA: true,
		BasicConstraintsValid: true, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// TestPasses: plain and TLS, HTTP/1.1 and HTTP/2, decided on the message that goes upstream, and on record after.
func TestPasses(t *testing.T) {
	for _, secure := range []bool{false, true} {
		up := newUpstream(t, secure, nil)
		w := newWorld(t, up.target(t, nil))
		resp, body := w.do("POST", up.url()+"/v1/refunds?b=2&a=1&a=3%20x", "application/json", `{ "amount": 40.0, "to": {"x":null,"y":"\u0061"} }`, "X-Secret-Channel", "data", "Cookie", "a=b")
		if resp == nil || resp.StatusCode != 200 || body != "hello" {
			t.Fatalf("secure %v: %v %s", secure, resp, body)
		}
		if secure && resp.ProtoMajor != 2 {
			t.Errorf("the tool got %s", resp.Proto)
		}
		got := w.last()
		if s := string(got.Args.AppendJSON(nil)); s != `{"body":{"amount":40,"to":{"y":"a"}},"path":"/v1/refunds","query":{"a":["1","3 x"],"b":"2"}}` {
			t.Errorf("decided on %s", s)
		}
		if got.Action != "http.post" || got.Target != "api" || got.Agent != "tool/pay" || got.Under == "" || got.Run == "" || got.Sandbox != "kernel" || got.Caller.ID.Path() != "/tool/pay" {
			t.Errorf("asked %+v", got)
		}
		sent := up.requests()[0]
		if sent.uri != "/v1/refunds?b=2&a=1&a=3%20x" || sent.body != `{"amount":40,"to":{"y":"a"}}` || sent.host != "api.test:"+up.port {
			t.Errorf("sent %+v", sent)
		}
		for _, h := range []string{"X-Secret-Channel", "Cookie", "X-Forwarded-For", "Proxy-Connection"} {
			if sent.header.Get(h) != "" {
				t.Errorf("the header %s went upstream", h)
			}
		}
		acts := w.recorded()
		if len(acts) != 1 || acts[0].Status != 200 || acts[0].Detail["received"] != "5" || acts[0].Detail["sent"] != "28" || acts[0].Decision == "" || !acts[0].Effective {
			t.Errorf("recorded %+v", acts)
		}
	}
}

// TestOutsideACall: without a call nothing gets out, by no protocol, and the refusal is on record (S24).
func TestOutsideACall(t *testing.T) {
	up := newUpstream(t, false, nil)
	safe := newUpstream(t, true, nil)
	tun := newUpstream(t, true, nil)
	w := newWorld(t, up.target(t, nil), safe.target(t, nil), tun.target(t, func(c *egress.TargetConfig) { c.Tunnel = true }))
	w.set(func() { w.call = "" })
	if resp, body := w.do("GET", up.url()+"/", "", ""); resp.StatusCode != 403 || !strings.Contains(body, `"code":"not_inside_call"`) {
		t.Errorf("%s %s", resp.Status, body)
	}
	for _, u := range []*upstream{safe, tun} {
		if resp, body := w.do("GET", u.url()+"/", "", ""); resp != nil || !strings.Contains(body, "Forbidden") {
			t.Errorf("CONNECT: %v %s", resp, body)
		}
		c := w.dial()
		fmt.Fprintf(c, "\x05\x01\x00")
		fmt.Fprintf(c, "\x05\x01\x00\x03\x08api.test%c%c", port(u)>>8, port(u)&255)
		if got := string(must(io.ReadAll(c))); got != "\x05\x00\x05\x02\x00\x01\x00\x00\x00\x00\x00\x00" {
			t.Errorf("SOCKS: %q", got)
		}
	}
	if n := len(up.requests()) + len(safe.requests()) + len(tun.requests()); n != 0 || w.asks() != 5 {
		t.Errorf("%d requests went out, %d were recorded", n, w.asks())
	}
}

func port(u *upstream) int {
	var n int
	_, _ = fmt.Sscan(u.port, &n)
	return n
}

func must(b []byte, _ error) []byte { return b }

// TestUnlistedHost: what is no target is refused by every protocol, and recorded; so are near misses of a target.
func TestUnlistedHost(t *testing.T) {
	up := newUpstream(t, false, nil)
	w := newWorld(t, up.target(t, nil))
	for _, u := range []string{"http://evil.example/x", "http://api.test/", "http://api.test.:" + up.port + "/", "http://127.0.0.1:" + up.port + "/",
		"http://xapi.test:" + up.port + "/", "http://2130706433:" + up.port + "/"} {
		before := w.asks()
		resp, body := w.do("GET", u, "", "")
		if resp == nil || resp.StatusCode != 403 && resp.StatusCode != 400 || w.asks() != before+1 || len(w.last().Refused) == 0 {
			t.Errorf("%s: %v %s", u, resp, body)
		}
	}
	for _, target := range []string{"evil.example:443", "127.0.0.1:22", "api.test:443", "api.test", "[::1]:" + up.port} {
		c := w.dial()
		fmt.Fprintf(c, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n", target, target)
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil || resp.StatusCode != 403 && resp.StatusCode != 400 {
			t.Errorf("CONNECT %s: %v %v", target, resp, err)
		}
	}
	if len(up.requests()) != 0 {
		t.Errorf("it got %v", up.requests())
	}
}

// TestExactOrigin: http and https of one host and port are two things.
func TestExactOrigin(t *testing.T) {
	up := newUpstream(t, true, nil)
	w := newWorld(t, up.target(t, nil))
	if resp, body := w.do("GET", "http://api.test:"+up.port+"/", "", ""); resp == nil || resp.StatusCode != 403 {
		t.Errorf("%v %s", resp, body)
	}
	c := w.dial()
	fmt.Fprintf(c, "CONNECT api.test:%s HTTP/1.1\r\nHost: api.test:%s\r\n\r\n", up.port, up.port)
	br := bufio.NewReader(c)
	if resp, err := http.ReadResponse(br, &http.Request{Method: "CONNECT"}); err != nil || resp.StatusCode != 200 {
		t.Fatal(resp, err)
	}
	fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: api.test:%s\r\n\r\n", up.port)
	if resp, err := http.ReadResponse(br, nil); err != nil || resp.StatusCode != 403 {
		t.Errorf("plain HTTP in a tunnel to https: %v %v", resp, err)
	}
}

// tlsThrough opens a TLS connection through CONNECT.
func (w *world) tlsThrough(up *upstream, name string) (*tls.Conn, error) {
	c := w.dial()
	fmt.Fprintf(c, "CONNECT api.test:%s HTTP/1.1\r\nHost: api.test:%s\r\n\r\n", up.port, up.port)
	if resp, err := http.ReadResponse(bufio.NewReaderSize(c, 16), &http.Request{Method: "CONNECT"}); err != nil || resp.StatusCode != 200 {
		return nil, fmt.Errorf("%v %w", resp, err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(w.gate.Bundle())
	conn := tls.Client(c, &tls.Config{RootCAs: pool, ServerName: name, InsecureSkipVerify: name != "api.test"}) //nolint:gosec // an attacker's
	return conn, conn.Handshake()
}

// TestServerNameIsTheHost: a handshake that names another host, or none, is refused.
func TestServerNameIsTheHost(t *testing.T) {
	up := newUpstream(t, true, nil)
	w := newWorld(t, up.target(t, nil))
	if _, err := w.tlsThrough(up, "api.test"); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"other.test", "127.0.0.1", "x.api.test"} {
		if _, err := w.tlsThrough(up, name); err == nil {
			t.Errorf("%q was answered", name)
		}
	}
}

// TestTunnelServerName: the same where the bytes pass as they are.
func TestTunnelServerName(t *testing.T) {
	up := newUpstream(t, true, nil)
	w := newWorld(t, up.target(t, func(c *egress.TargetConfig) { c.Tunnel = true }))
	if resp, body := w.do("GET", up.url()+"/", "", ""); resp == nil || body != "hello" {
		t.Fatal(resp, body)
	}
	if a := w.last(); a.Action != "http.connect" || a.Target != "api" || len(a.Args) != 0 {
		t.Errorf("asked %+v", a)
	}
	if _, err := w.tlsThrough(up, "other.test"); err == nil {
		t.Error("another name was let through")
	}
	c := w.dial()
	fmt.Fprintf(c, "CONNECT api.test:%s HTTP/1.1\r\nHost: api.test:%s\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n", up.port, up.port)
	if got := string(must(io.ReadAll(c))); strings.Contains(got, "400") {
		t.Errorf("plain bytes reached a TLS server: %q", got)
	}
	for _, a := range w.recorded() {
		if a.Detail["error"] == "" && (a.Detail["sent"] == "0" || a.Detail["received"] == "0") {
			t.Errorf("bytes of a tunnel: %+v", a)
		}
	}
}

// TestHostIsTheTunnels: inside a connection to one host no request is for another.
func TestHostIsTheTunnels(t *testing.T) {
	up := newUpstream(t, true, nil)
	w := newWorld(t, up.target(t, nil))
	for _, head := range []string{"GET / HTTP/1.1\r\nHost: other.test\r\n\r\n", "GET https://other.test/ HTTP/1.1\r\nHost: api.test:" + up.port + "\r\n\r\n",
		"GET http://api.test:" + up.port + "/ HTTP/1.1\r\nHost: api.test\r\n\r\n", "GET / HTTP/1.1\r\nHost: api.test\r\n\r\n"} {
		conn, err := w.tlsThrough(up, "api.test")
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(conn, head)
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil || resp.StatusCode != 400 {
			t.Errorf("%q: %v %v", head, resp, err)
		}
	}
	if len(up.requests()) != 0 {
		t.Errorf("it got %v", up.requests())
	}
}

// TestRefusalTellsTheTool: reason codes and the next step, and nothing of what would have been right (S30).
func TestRefusalTellsTheTool(t *testing.T) {
	up := newUpstream(t, false, nil)
	w := newWorld(t, up.target(t, nil))
	w.set(func() { w.allow = func(*remit.Request) bool { return false } })
	resp, body := w.do("GET", up.url()+"/", "", "")
	if resp.StatusCode != 403 || !strings.Contains(body, `"code":"denied"`) || !strings.Contains(body, `{"code":"argument_mismatch","of":"where.path"}`) ||
		!strings.Contains(body, `"hint":"ask only`) || strings.Contains(body, "something secret") || !strings.Contains(resp.Header.Get("Proxy-Status"), "remit") {
		t.Errorf("%v %s", resp, body)
	}
	w.set(func() { w.broken = true })
	if resp, body := w.do("GET", up.url()+"/", "", ""); resp.StatusCode != 503 || strings.Contains(body, "disk") {
		t.Errorf("a line that cannot record: %v %s", resp, body)
	}
	if len(up.requests()) != 0 {
		t.Error("something was sent")
	}
}

// TestRebinding: the address that was checked is dialled, and a name that leads elsewhere the next time is refused then.
func TestRebinding(t *testing.T) {
	up := newUpstream(t, false, nil)
	target, err := egress.NewTarget("api", egress.TargetConfig{URL: up.url(), Addresses: []string{"127.0.0.1"}}, secretOf)
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, target)
	if resp, body := w.do("GET", up.url()+"/", "", ""); resp.StatusCode != 200 {
		t.Fatal(resp, body)
	}
	for _, a := range []string{"127.0.0.2", "169.254.169.254", "10.0.0.1", "::1"} {
		w.set(func() { w.names["api.test"] = []netip.Addr{netip.MustParseAddr(a)} })
		w.use(up.target(t, func(c *egress.TargetConfig) { c.Private, c.Addresses = false, []string{"127.0.0.1"} })) // a new connection
		if resp, body := w.do("GET", up.url()+"/", "", ""); resp.StatusCode != 403 || !strings.Contains(body, "no address that may be dialled") {
			t.Errorf("%s: %v %s", a, resp, body)
		}
	}
	if n := len(up.requests()); n != 1 {
		t.Errorf("it got %d requests", n)
	}
}

// TestPublicAndPrivateAtOnce: of the addresses that a name leads to, each is judged by itself, in whatever order they come.
func TestPublicAndPrivateAtOnce(t *testing.T) {
	inside := newUpstream(t, false, nil)
	const public, private = "3ffe::1", "127.0.0.1" // the public one is of a network that was given back: nobody is there
	for _, names := range [][]string{{public, private}, {private, public}, {private, "::ffff:127.0.0.1", public, "10.0.0.1"}} {
		w := newWorld(t, inside.target(t, func(c *egress.TargetConfig) { c.Private = false }))
		w.set(func() {
			w.names["api.test"] = nil
			for _, n := range names {
				w.names["api.test"] = append(w.names["api.test"], netip.MustParseAddr(n))
			}
		})
		if resp, body := w.do("GET", inside.url()+"/", "", ""); resp != nil && resp.StatusCode == 200 {
			t.Errorf("%v: the private one was reached: %s", names, body)
		}
	}
	if n := len(inside.requests()); n != 0 {
		t.Fatalf("the private one got %d requests", n)
	}
	// Where one is allowed, that one is dialled, and no other.
	other := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "the allowed one") }))
	_ = other.Listener.Close()
	var err error
	if other.Listener, err = net.Listen("tcp", "127.0.0.2:"+inside.port); err != nil {
		t.Fatal(err)
	}
	other.Start()
	defer other.Close()
	for _, names := range [][]string{{private, "127.0.0.2"}, {"127.0.0.2", private}} {
		w := newWorld(t, inside.target(t, func(c *egress.TargetConfig) { c.Private, c.Addresses = false, []string{"127.0.0.2"} }))
		w.set(func() {
			w.names["api.test"] = []netip.Addr{netip.MustParseAddr(names[0]), netip.MustParseAddr(names[1])}
		})
		if resp, body := w.do("GET", inside.url()+"/", "", ""); resp == nil || resp.StatusCode != 200 || body != "the allowed one" {
			t.Errorf("%v: %v %s", names, resp, body)
		}
	}
	if n := len(inside.requests()); n != 0 {
		t.Errorf("the other one got %d requests", n)
	}
}

// TestCallEndsWhileDeciding: nothing between check and use (S11).
func TestCallEndsWhileDeciding(t *testing.T) {
	up := newUpstream(t, false, nil)
	w := newWorld(t, up.target(t, nil))
	w.set(func() {
		w.allow = func(*remit.Request) bool { w.call = remit.NewDecisionID(); return true } // another call began
	})
	if resp, body := w.do("GET", up.url()+"/", "", ""); resp.StatusCode != 403 || len(up.requests()) != 0 {
		t.Errorf("%v %s", resp, body)
	}
}

// TestStreamEndsWithItsCall: what a call opened does not outlive it: an answer, a WebSocket, a tunnel.
func TestStreamEndsWithItsCall(t *testing.T) {
	hold := make(chan struct{})
	t.Cleanup(func() { close(hold) })
	up := newUpstream(t, false, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "data: first\n\n")
		w.(http.Flusher).Flush()
		select {
		case <-hold:
		case <-r.Context().Done():
		}
	})
	tun := newUpstream(t, true, func(w http.ResponseWriter, r *http.Request) { up.Config.Handler.ServeHTTP(w, r) })
	w := newWorld(t, up.target(t, nil), tun.target(t, func(c *egress.TargetConfig) { c.Tunnel = true }))
	for _, u := range []*upstream{up, tun} {
		end := w.begin()
		resp, err := w.client().Get(u.url() + "/events")
		if err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 13)
		if _, err := io.ReadFull(resp.Body, b); err != nil || string(b) != "data: first\n\n" {
			t.Fatalf("%q %v", b, err)
		}
		end()
		if rest, err := io.ReadAll(resp.Body); err == nil || len(rest) > 0 {
			t.Errorf("%s: after its call: %q %v", u.url(), rest, err)
		}
		_ = resp.Body.Close()
	}
	for _, a := range w.recorded() {
		if !strings.Contains(a.Detail["error"], "call") {
			t.Errorf("recorded %+v", a)
		}
	}
}

// TestCloseCutsAtOnce: closing the box ends what is open and waits for it.
func TestCloseCutsAtOnce(t *testing.T) {
	up := newUpstream(t, false, func(w http.ResponseWriter, r *http.Request) {
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	})
	w := newWorld(t, up.target(t, nil))
	silent := w.dial() // accepted before the next one
	resp, err := w.client().Get(up.url() + "/")
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	w.gate.Close()
	if _, err := io.ReadAll(resp.Body); err == nil {
		t.Error("the answer ended well")
	}
	if _, err := silent.Read(make([]byte, 1)); err == nil {
		t.Error("a connection is still open")
	}
	if d := time.Since(began); d > 10*time.Second {
		t.Errorf("it took %s", d)
	}
	if len(w.recorded()) != 1 {
		t.Errorf("recorded %+v", w.acts)
	}
}

// TestConnectionsAreBounded: a box that opens many connections has the rest closed.
func TestConnectionsAreBounded(t *testing.T) {
	w := newWorld(t)
	var all []net.Conn
	for range 140 {
		all = append(all, w.dial()) // accepted in this order
	}
	for _, c := range all[128:] {
		if _, err := c.Read(make([]byte, 1)); err == nil || os.IsTimeout(err) {
			t.Fatalf("one of too many connections: %v", err)
		}
	}
	fmt.Fprintf(all[127], "GET http://evil.example/ HTTP/1.1\r\nHost: x\r\n\r\n")
	if resp, err := http.ReadResponse(bufio.NewReader(all[127]), nil); err != nil || resp.StatusCode != 403 {
		t.Errorf("one that was taken: %v %v", resp, err)
	}
}

// TestQuotaOfATool: beyond its quota a tool is told so, and nothing is decided.
func TestQuotaOfATool(t *testing.T) {
	up := newUpstream(t, false, nil)
	w := newWorld(t, up.target(t, nil))
	w.gate, w.sock = w.open(w.newProxy(gateway.NewQuota(gateway.Limits{Rate: 0.001, Burst: 2, Concurrent: 5})))
	for i, want := range []int{200, 200, 429} {
		if resp, body := w.do("GET", up.url()+"/", "", ""); resp.StatusCode != want || w.asks() != min(i+1, 2) {
			t.Errorf("request %d: %v %s, %d decided", i, resp.Status, body, w.asks())
		}
	}
}

// TestQuotaCountsUnknownLengths: a body that comes in pieces counts, too.
func TestQuotaCountsUnknownLengths(t *testing.T) {
	up := newUpstream(t, false, nil)
	w := newWorld(t, up.target(t, nil))
	w.gate, w.sock = w.open(w.newProxy(gateway.NewQuota(gateway.Limits{Rate: 100, Burst: 100, Concurrent: 5, Bytes: 1})))
	for i, want := range []int{200, 429} {
		r, err := http.NewRequest(http.MethodPost, up.url()+"/", io.MultiReader(strings.NewReader(`{"a":"b"}`))) // of no length that a client knows
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", "application/json")
		resp, err := w.client().Do(r)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("request %d: %s", i, resp.Status)
		}
	}
}

// TestBoxNeedsAnIdentity: a box without one is no box.
func TestBoxNeedsAnIdentity(t *testing.T) {
	w := newWorld(t)
	for i, change := range []func(*egress.Box){func(b *egress.Box) { b.Tool = "" }, func(b *egress.Box) { b.Principal = remit.Principal{} },
		func(b *egress.Box) { b.Run = "" }, func(b *egress.Box) { b.Call = nil }} {
		b := w.box()
		change(&b)
		if _, err := w.proxy.Open(b); err == nil {
			t.Errorf("box %d was opened", i)
		}
	}
}
