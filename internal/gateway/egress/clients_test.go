// SPDX-License-Identifier: Apache-2.0

package egress_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"remit/internal/gateway/egress"
)

// TestClients: real clients, with nothing but the usual variables set, get through TLS that is ended here, and through a tunnel.
func TestClients(t *testing.T) {
	up := newUpstream(t, true, func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, "hello from "+r.URL.Path) })
	tun := newUpstream(t, true, func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, "hello from "+r.URL.Path) })
	plain := newUpstream(t, false, func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, "hello from "+r.URL.Path) })
	w := newWorld(t, up.target(t, withHeader), plain.target(t, nil), tun.target(t, func(c *egress.TargetConfig) { c.Tunnel = true }))
	ln, err := net.Listen("tcp", "127.0.0.1:0") // in a box the shim listens there
	if err != nil {
		t.Fatal(err)
	}
	g, err := w.proxy.Open(w.box())
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- g.Serve(context.Background(), ln) }()
	t.Cleanup(func() { g.Close(); <-done })
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, g.Bundle(), 0o600); err != nil {
		t.Fatal(err)
	}
	proxy := "http://" + ln.Addr().String()
	env := append(os.Environ(), "NO_PROXY=", "no_proxy=", "SSL_CERT_FILE="+ca, "NODE_EXTRA_CA_CERTS="+ca, "REQUESTS_CA_BUNDLE="+ca, "CURL_CA_BUNDLE="+ca, "PROXY_PORT="+fmt.Sprint(ln.Addr().(*net.TCPAddr).Port))
	for _, v := range []string{"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"} {
		env = append(env, v+"="+proxy, strings.ToLower(v)+"="+proxy)
	}
	const urllib = "import sys,urllib.request as u;print(u.urlopen(sys.argv[1],timeout=20).read().decode(),end='')"
	const requests = "import sys,requests as r;print(r.get(sys.argv[1],timeout=20).text,end='')"
	const node = `const http=require('http'),tls=require('tls'),u=new URL(process.argv[1]);
const c=http.request({host:'127.0.0.1',port:process.env.PROXY_PORT,method:'CONNECT',path:u.host});
c.on('connect',(r,s)=>{if(r.statusCode!=200){console.log(r.statusCode);return}
const t=u.protocol=='https:'?tls.connect({socket:s,servername:u.hostname}):s;
t.write('GET '+u.pathname+' HTTP/1.1\r\nHost: '+u.host+'\r\nConnection: close\r\n\r\n');let b='';t.on('data',d=>b+=d);t.on('end',()=>process.stdout.write(b.split('\r\n\r\n')[1]));
t.on('error',e=>console.log(e.message))});c.end();`
	for name, argv := range map[string][]string{
		"curl": {"curl", "-sS", "-m", "20"}, "curl 1.1": {"curl", "-sS", "-m", "20", "--http1.1"},
		"curl SOCKS": {"curl", "-sS", "-m", "20", "--proxy", "socks5h://" + ln.Addr().String()},
		"urllib":     {"python3", "-c", urllib}, "requests": {"python3", "-c", requests}, "node": {"node", "-e", node},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := exec.LookPath(argv[0]); err != nil {
				t.Skip(err)
			}
			if name == "requests" && exec.Command("python3", "-c", "import requests").Run() != nil {
				t.Skip("the package requests is not installed")
			}
			for _, u := range []*upstream{up, plain, tun} {
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				cmd := exec.CommandContext(ctx, argv[0], append(argv[1:], u.url()+"/v1/x")...) //nolint:gosec // a test
				cmd.Env = env
				out, err := cmd.CombinedOutput()
				cancel()
				if string(out) != "hello from /v1/x" {
					t.Errorf("%s: %v %s", u.url(), err, out)
				}
			}
		})
	}
}

// TestWebSocket: it passes after its own decision, which a permission makes by naming the argument upgrade; its bytes are counted, and what
// comes back is searched for the secret.
func TestWebSocket(t *testing.T) {
	for _, secure := range []bool{false, true} {
		t.Run(map[bool]string{false: "plain", true: "TLS"}[secure], func(t *testing.T) { webSocket(t, secure) })
	}
}

func webSocket(t *testing.T, secure bool) {
	up := newUpstream(t, secure, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") != "websocket" || r.Header.Get("Sec-Websocket-Extensions") != "" {
			w.WriteHeader(400)
			return
		}
		c, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close() //nolint:errcheck // a test
		_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: x\r\n\r\n")
		b := make([]byte, 4)
		if _, err := io.ReadFull(rw, b); err == nil {
			_, _ = c.Write(append([]byte("you said "), b...))
		}
		if _, err := io.ReadFull(rw, b); err == nil {
			_, _ = io.WriteString(c, "the key is "+secret+" !")
		}
	})
	w := newWorld(t, up.target(t, withHeader))
	var c net.Conn
	at := up.url() + "/v1/ws"
	if secure { // through TLS that is ended here, or the answers could not be searched
		var err error
		if c, err = w.tlsThrough(up, "api.test"); err != nil {
			t.Fatal(err)
		}
		at = "/v1/ws"
	} else {
		c = w.dial()
	}
	fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: api.test:%s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: k\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n", at, up.port)
	br := bufio.NewReader(c)
	resp, err := http.ReadResponse(br, nil)
	if err != nil || resp.StatusCode != 101 || resp.Header.Get("Sec-Websocket-Accept") != "x" {
		t.Fatal(resp, err)
	}
	if s := string(w.last().Args.AppendJSON(nil)); s != `{"path":"/v1/ws","upgrade":"websocket"}` {
		t.Errorf("decided on %s", s)
	}
	_, _ = io.WriteString(c, "ping")
	b := make([]byte, 13)
	if _, err := io.ReadFull(br, b); err != nil || string(b) != "you said ping" {
		t.Fatalf("%q %v", b, err)
	}
	_, _ = io.WriteString(c, "ping")
	if rest, _ := io.ReadAll(br); strings.Contains(string(rest), secret[:12]) {
		t.Errorf("the tool got %q", rest)
	}
	acts := w.recorded()
	if len(acts) != 1 || acts[0].Status != 101 || acts[0].Detail["sent"] != "8" || acts[0].Detail["received"] == "0" || !strings.Contains(acts[0].Detail["error"], "credential") {
		t.Errorf("recorded %+v", acts)
	}
}

// TestBadInput: whatever a tool sends, the gate answers or closes, sends nothing undecided, and still serves.
func TestBadInput(t *testing.T) {
	up := newUpstream(t, false, nil)
	w := newWorld(t, up.target(t, nil))
	at := "api.test:" + up.port
	for name, raw := range map[string]string{
		"nothing":          "\r\n\r\n\r\n",
		"binary":           "\x16\x03\x01\x02\x00\x01\x00",
		"SOCKS4":           "\x04\x01\x00\x50\x7f\x00\x00\x01\x00",
		"SOCKS5, half":     "\x05\x01",
		"SOCKS5, bind":     "\x05\x01\x00\x05\x02\x00\x01\x7f\x00\x00\x01\x00\x50",
		"SOCKS5, password": "\x05\x01\x02",
		"two lengths":      "POST http://" + at + "/ HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabc",
		"bad length":       "POST http://" + at + "/ HTTP/1.1\r\nHost: x\r\nContent-Length: +3\r\n\r\nabc",
		"bad encoding":     "POST http://" + at + "/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
		"folded header":    "GET http://" + at + "/ HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n\tX-HTTP-Method-Override: DELETE\r\n\r\n",
		"space in name":    "GET http://" + at + "/ HTTP/1.1\r\nHost: x\r\nA : b\r\n\r\n",
		"no host":          "GET http:///x HTTP/1.1\r\nHost: " + at + "\r\n\r\n",
		"user":             "GET http://api.test:1@" + at + "/ HTTP/1.1\r\nHost: x\r\n\r\n",
		"origin form":      "GET / HTTP/1.1\r\nHost: " + at + "\r\n\r\n",
		"two hosts":        "GET http://" + at + "#@evil.example/ HTTP/1.1\r\nHost: evil.example\r\n\r\n",
		"file":             "GET file:///etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n",
		"TRACE":            "TRACE http://" + at + "/ HTTP/1.1\r\nHost: x\r\n\r\n",
		"large head":       "GET http://" + at + "/ HTTP/1.1\r\nHost: x\r\nA: " + strings.Repeat("a", 200<<10) + "\r\n\r\n",
	} {
		c := w.dial()
		_, _ = io.WriteString(c, raw)
		if u, ok := c.(*net.UnixConn); ok {
			_ = u.CloseWrite()
		}
		got, _ := io.ReadAll(c)
		if strings.HasPrefix(string(got), "HTTP/1.1 2") && name != "folded header" { // which is one header, and goes no further
			t.Errorf("%s: %.200s", name, got)
		}
	}
	for _, r := range up.requests() {
		if r.header.Get("X-Http-Method-Override") != "" || r.method == "TRACE" {
			t.Errorf("it got %+v", r)
		}
	}
	if resp, body := w.do("GET", up.url()+"/", "", ""); resp == nil || resp.StatusCode != 200 {
		t.Errorf("after all that: %v %s", resp, body)
	}
}
