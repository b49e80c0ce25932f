// SPDX-License-Identifier: Apache-2.0

package egress

import (
	"bufio"
	"bytes"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"testing"

	"remit"
)

func plain() *Target { return &Target{name: "api", scheme: "http", host: "api.test", port: "80"} }

func parse(t testing.TB, raw string) *http.Request {
	r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(raw)))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestPathRefuses: what two servers could read as two paths.
func TestPathRefuses(t *testing.T) {
	for _, p := range []string{"/a/../b", "/a/./b", "/..", "/a/%2e%2e/b", "/%2E", "/a//b", "//a", "/a%2fb", "/a%2Fb", `/a\b`, "/a%5cb", "/a%00", "/a%0ab", "/a%252fb",
		"/a%25%32%66b", "/a/..;x/b", "/a/.;/b", "/a/;/b", "/a%3fb", "/a%23b", "/a%ff", "*"} {
		u, err := url.ParseRequestURI(p)
		if err != nil {
			continue
		}
		if got, err := canonicalPath(u); err == nil {
			t.Errorf("%s became %q", p, got)
		}
	}
	for p, want := range map[string]string{"/": "/", "/a/b/": "/a/b/", "/a%20b": "/a b", "/a;v=1": "/a;v=1", "/%61": "/a", "/a..b/.c": "/a..b/.c", "/100%25": "/100%", "/ü": "/ü"} {
		u, err := url.ParseRequestURI(p)
		if err != nil {
			t.Fatal(err)
		}
		got, err := canonicalPath(u)
		if err != nil || got != want {
			t.Errorf("%s: %q %v", p, got, err)
		}
	}
}

// TestMessageRefuses: nothing ambiguous, oversized or beside the decision goes on.
func TestMessageRefuses(t *testing.T) {
	post := func(contentType, body string, head ...string) string {
		return "POST /a HTTP/1.1\r\nHost: api.test\r\nContent-Type: " + contentType + "\r\nContent-Length: " + itoa(len(body)) + "\r\n" + strings.Join(head, "") + "\r\n" + body
	}
	for name, raw := range map[string]string{
		"TRACE":            "TRACE /a HTTP/1.1\r\nHost: api.test\r\n\r\n",
		"lower case":       "get /a HTTP/1.1\r\nHost: api.test\r\n\r\n",
		"unknown method":   "PURGE /a HTTP/1.1\r\nHost: api.test\r\n\r\n",
		"override":         "GET /a HTTP/1.1\r\nHost: api.test\r\nX-HTTP-Method-Override: DELETE\r\n\r\n",
		"rewrite":          "GET /a HTTP/1.1\r\nHost: api.test\r\nX-Original-URL: /b\r\n\r\n",
		"semicolon":        "GET /a?b;c HTTP/1.1\r\nHost: api.test\r\n\r\n",
		"bad escape":       "GET /a?b=%zz HTTP/1.1\r\nHost: api.test\r\n\r\n",
		"not UTF-8":        "GET /a?b=%ff HTTP/1.1\r\nHost: api.test\r\n\r\n",
		"no name":          "GET /a?=x HTTP/1.1\r\nHost: api.test\r\n\r\n",
		"many parameters":  "GET /a?" + strings.Repeat("a=b&", 300) + " HTTP/1.1\r\nHost: api.test\r\n\r\n",
		"duplicate key":    post("application/json", `{"a":1,"a":2}`),
		"duplicate inside": post("application/json", `{"a":{"b":1,"b":2}}`),
		"two values":       post("application/json", `{"a":1}{"a":2}`),
		"no JSON":          post("application/json", `a=1`),
		"deep":             post("application/json", strings.Repeat("[", 20)+strings.Repeat("]", 20)),
		"large":            post("application/json", `"`+strings.Repeat("a", maxParsed)+`"`),
		"large form":       post("application/x-www-form-urlencoded", "a=1&b="+strings.Repeat("a", maxParsed)),
		"large as args":    post("application/json", `"`+strings.Repeat(`\n`, 100)+`"`) + "", // refused only together with the query below
		"UTF-7":            post("application/json; charset=utf-7", `{}`),
		"gzip":             post("application/json", `{}`, "Content-Encoding: gzip\r\n"),
		"null":             post("application/json", `null`),
		"bad type":         post("application/json; =", `{}`),
		"two types":        post("text/plain, application/json", `{}`),
		"form":             post("application/x-www-form-urlencoded", "a=%zz"),
		"null in PATCH":    strings.Replace(post("application/json", `{"a":null}`), "POST", "PATCH", 1),
		"upgrade":          "GET /a HTTP/1.1\r\nHost: api.test\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
		"upgraded POST":    post("application/json", `{}`, "Upgrade: websocket\r\n"),
	} {
		if name == "large as args" {
			raw = strings.Replace(post("application/x-www-form-urlencoded", strings.Repeat("a="+strings.Repeat("x", 150)+"&", 250)), "/a", "/a?q="+strings.Repeat("y", 30000), 1)
		}
		if m, err := read(parse(t, raw), plain()); err == nil {
			t.Errorf("%s: %s", name, m.args.AppendJSON(nil))
		} else if c := remit.CodeOf(err); c != remit.CodeInvalid && c != remit.CodeExhausted {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestOpaqueBodies: of a body that is not parsed a permission has to name the type, and its size is bounded.
func TestOpaqueBodies(t *testing.T) {
	m, err := read(parse(t, "PUT /a HTTP/1.1\r\nHost: api.test\r\nContent-Type: text/plain; charset=latin1\r\nContent-Length: 3\r\n\r\nabc"), plain())
	if err != nil || string(m.args.AppendJSON(nil)) != `{"content_type":"text/plain","path":"/a"}` || m.stream == nil {
		t.Fatal(m, err)
	}
	if _, err := read(parse(t, "PUT /a HTTP/1.1\r\nHost: api.test\r\nContent-Length: 99999999999\r\n\r\nabc"), plain()); remit.CodeOf(err) != remit.CodeExhausted {
		t.Error(err)
	}
	opaque := plain()
	opaque.opaque = true
	m, err = read(parse(t, "PUT /a HTTP/1.1\r\nHost: api.test\r\nContent-Type: application/json\r\nContent-Length: 13\r\n\r\n{\"a\":1,\"a\":2}"), opaque)
	if err != nil || string(m.args.AppendJSON(nil)) != `{"content_type":"application/json","path":"/a"}` {
		t.Error(m, err)
	}
	x := exchange{}
	c := counted{io.NopCloser(strings.NewReader("abcdef")), &x.sent, 4}
	if _, err := io.ReadAll(&c); err != errBodyTooLarge {
		t.Error(err)
	}
}

// TestDecidedHeaders: a header that the target names is an argument; others do not go upstream.
func TestDecidedHeaders(t *testing.T) {
	target := plain()
	if err := target.readHeaders([]string{"stripe-account"}); err != nil {
		t.Fatal(err)
	}
	m, err := read(parse(t, "GET /a HTTP/1.1\r\nHost: api.test\r\nStripe-Account: acct_1\r\nX-Other: a\r\nPrefer: resolution=merge-duplicates\r\nAccept: b\r\n\r\n"), target)
	if err != nil || string(m.args.AppendJSON(nil)) != `{"headers":{"stripe-account":"acct_1"},"path":"/a"}` || len(m.header) != 2 {
		t.Error(m, err)
	}
}

// TestAddresses: the public network only, unless the target is private.
func TestAddresses(t *testing.T) {
	private := plain()
	private.private = true
	for a, want := range map[string][2]bool{"8.8.8.8": {true, true}, "2606:4700::1111": {true, true}, "127.0.0.1": {false, true}, "::1": {false, true},
		"10.1.2.3": {false, true}, "172.31.0.1": {false, true}, "192.168.1.1": {false, true}, "100.64.0.1": {false, true}, "fd00::1": {false, true},
		"::ffff:10.0.0.1": {false, true}, "::ffff:8.8.8.8": {true, true}, "0.0.0.0": {}, "::": {}, "169.254.1.1": {}, "fe80::1": {}, "224.0.0.1": {}, "ff02::1": {},
		"255.255.255.255": {}, "240.0.0.1": {}, "64:ff9b::7f00:1": {}, "2002:7f00:1::": {}, "2001:0:1::1": {}, "::7f00:1": {}, "198.18.0.1": {}, "192.0.2.1": {}, "fec0::1": {},
		"2001:db8::1": {}, "64:ff9b:1::a00:1": {}, "0.1.2.3": {}} {
		addr := netip.MustParseAddr(a)
		if got := [2]bool{plain().mayDial(addr), private.mayDial(addr)}; got != want {
			t.Errorf("%s: %v, want %v", a, got, want)
		}
	}
}

// TestMetadataNeedsItsAddress: neither private nor a network that holds it opens a metadata service.
func TestMetadataNeedsItsAddress(t *testing.T) {
	wide, exact := plain(), plain()
	wide.private = true
	for _, n := range []string{"169.254.0.0/16", "fd00::/8", "100.64.0.0/10", "168.63.0.0/16", "192.0.0.0/24"} {
		p, err := parsePrefix(n)
		if err != nil {
			t.Fatal(err)
		}
		wide.addresses = append(wide.addresses, p)
	}
	for _, a := range []string{"169.254.169.254", "::ffff:169.254.169.254", "169.254.170.2", "fd00:ec2::254", "100.100.100.200", "168.63.129.16", "192.0.0.192"} {
		addr := netip.MustParseAddr(a)
		p, _ := parsePrefix(a)
		exact.addresses = []netip.Prefix{p}
		if wide.mayDial(addr) || plain().mayDial(addr) || !exact.mayDial(addr) {
			t.Errorf("%s: wide %v, exact %v", a, wide.mayDial(addr), exact.mayDial(addr))
		}
	}
}

func itoa(n int) string {
	b := remit.IntValue(int64(n))
	return b.Text()
}

// FuzzMessage: whatever is read is decided on as it goes upstream: parsing what is sent gives the same arguments.
func FuzzMessage(f *testing.F) {
	f.Add("POST /a/b%20c?x=1&y HTTP/1.1\r\nHost: api.test\r\nContent-Type: application/json\r\nContent-Length: 13\r\n\r\n{\"a\":[1,\"b\"]}")
	f.Add("POST /a HTTP/1.1\r\nHost: api.test\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 11\r\n\r\na=1&b=%20+x")
	f.Add("GET http://api.test/a;b=c?q=%2B+ HTTP/1.1\r\nHost: other\r\nAccept: x\r\n\r\n")
	f.Fuzz(func(t *testing.T, raw string) {
		r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(raw)))
		if err != nil {
			return
		}
		m, err := read(r, plain())
		if err != nil || m.stream != nil || m.upgrade {
			return
		}
		var sent bytes.Buffer
		if err := m.upstream(plain()).Write(&sent); err != nil {
			t.Fatalf("%q cannot be sent: %v", raw, err)
		}
		again, err := http.ReadRequest(bufio.NewReader(&sent))
		if err != nil {
			t.Fatalf("%q: what is sent cannot be read: %v", raw, err)
		}
		n, err := read(again, plain())
		if err != nil {
			t.Fatalf("%q: what is sent is refused: %v", raw, err)
		}
		if a, b := string(m.args.AppendJSON(nil)), string(n.args.AppendJSON(nil)); a != b {
			t.Fatalf("decided on %s, sent %s", a, b)
		}
	})
}

type half struct {
	io.Reader
	io.Writer
}

// FuzzSOCKS: no panic, and what is read is a host and port that a target can have.
func FuzzSOCKS(f *testing.F) {
	f.Add([]byte("\x05\x01\x00\x05\x01\x00\x03\x08api.test\x01\xbb"))
	f.Add([]byte("\x05\x02\x00\x02\x05\x01\x00\x01\x7f\x00\x00\x01\x00\x50"))
	f.Add([]byte("\x05\x01\x00\x05\x01\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00\x50"))
	f.Fuzz(func(t *testing.T, b []byte) {
		host, port, err := readSOCKS(half{bytes.NewReader(b), io.Discard})
		if err != nil {
			return
		}
		h, p, ok := authority(joinHostPort(host, port), "")
		if !ok || h != host || p != port {
			t.Fatalf("%q: %q %q", b, host, port)
		}
	})
}

// FuzzScan: however an answer is cut, the secret is found, and nothing else is lost.
func FuzzScan(f *testing.F) {
	f.Add("aaaaaaaabaaaaaaaac", "aaaaaaaac", 3)
	f.Add("xx the secret1 yy", "secret1!", 1)
	f.Fuzz(func(t *testing.T, body, secret string, step int) {
		if len(secret) < leastSecret || len(secret) > 100 || len(body) > 4000 || step < 1 {
			return
		}
		in := &injection{forms: forms{newForm(secret)}}
		got, err := io.ReadAll(in.reader(io.NopCloser(&steps{body, step%50 + 1})))
		if strings.Contains(body, secret) {
			if err != errSecret || strings.Contains(string(got), secret) {
				t.Fatalf("%q in %q: %q %v", secret, body, got, err)
			}
		} else if err != nil || string(got) != body {
			t.Fatalf("%q became %q: %v", body, got, err)
		}
	})
}

type steps struct {
	rest string
	n    int
}

func (s *steps) Read(b []byte) (int, error) {
	if s.rest == "" {
		return 0, io.EOF
	}
	n := copy(b[:min(len(b), s.n)], s.rest)
	s.rest = s.rest[n:]
	return n, nil
}
