// SPDX-License-Identifier: Apache-2.0

package egress

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net/http"
	"net/netip"
	"strconv"
	"time"
)

// SOCKS version 5 (RFC 1928), the command CONNECT without authentication: who connects is known by the socket.
const (
	socksVersion    = 5
	socksConnect    = 1
	socksNoMethod   = 0xff
	socksNotAllowed = 2
	socksNoCommand  = 7
	socksNoAddress  = 8
)

// socksError is an error with the code by which the tool is told.
type socksError struct{ code byte }

func (e *socksError) Error() string { return "SOCKS refusal " + strconv.Itoa(int(e.code)) }

// readSOCKS reads greeting and request, answering the greeting.
func readSOCKS(rw io.ReadWriter) (host, port string, err error) {
	var head [2]byte
	if _, err := io.ReadFull(rw, head[:]); err != nil || head[0] != socksVersion {
		return "", "", errors.New("no SOCKS greeting")
	}
	offered := make([]byte, head[1])
	if _, err := io.ReadFull(rw, offered); err != nil {
		return "", "", err
	}
	if !bytes.Contains(offered, []byte{0}) {
		_, _ = rw.Write([]byte{socksVersion, socksNoMethod})
		return "", "", errors.New("no common SOCKS authentication")
	}
	if _, err := rw.Write([]byte{socksVersion, 0}); err != nil {
		return "", "", err
	}
	var ask [4]byte
	if _, err := io.ReadFull(rw, ask[:]); err != nil || ask[0] != socksVersion || ask[2] != 0 {
		return "", "", errors.New("no SOCKS request")
	}
	if host, err = readSOCKSHost(rw, ask[3]); err != nil {
		return "", "", err
	}
	var p [2]byte
	if _, err := io.ReadFull(rw, p[:]); err != nil {
		return "", "", err
	}
	if ask[1] != socksConnect {
		return "", "", &socksError{socksNoCommand}
	}
	host, port, ok := authority(joinHostPort(host, strconv.Itoa(int(p[0])<<8|int(p[1]))), "")
	if !ok {
		return "", "", &socksError{socksNoAddress}
	}
	return host, port, nil
}

func readSOCKSHost(r io.Reader, kind byte) (string, error) {
	switch n := map[byte]int{1: 4, 4: 16}[kind]; {
	case n > 0:
		b := make([]byte, n)
		if _, err := io.ReadFull(r, b); err != nil {
			return "", err
		}
		a, _ := netip.AddrFromSlice(b)
		return a.String(), nil
	case kind == 3:
		var n [1]byte
		if _, err := io.ReadFull(r, n[:]); err != nil {
			return "", err
		}
		b := make([]byte, n[0])
		_, err := io.ReadFull(r, b)
		return string(b), err
	}
	return "", &socksError{socksNoAddress}
}

// socks serves a SOCKS connection: after it, the same as after CONNECT.
func (g *Gate) socks(c *conn) {
	at := g.proxy.cfg.Now()
	_ = c.SetDeadline(time.Now().Add(headTimeout))
	host, port, err := readSOCKS(c)
	_ = c.SetDeadline(time.Time{})
	if err != nil {
		var se *socksError
		if errors.As(err, &se) {
			_, _ = c.Write(socksReply(se.code))
		}
		_ = c.Close()
		return
	}
	account, ok := g.proxy.cfg.Quota.Enter(string(g.box.Tool), 0, at)
	if !ok {
		_, _ = c.Write(socksReply(socksNotAllowed))
		_ = c.Close()
		return
	}
	t, d, done := g.admit(&discarded{}, g.ctx, at, host, port)
	account.Leave()
	if t == nil {
		_, _ = c.Write(socksReply(socksNotAllowed))
		_ = c.Close()
		return
	}
	if _, err := c.Write(socksReply(0)); err != nil {
		_ = c.Close()
		return
	}
	g.through(&conn{Conn: c.Conn, gate: g, raw: c.raw, in: bufio.NewReader(c.in), to: origin{t.scheme, host, port}}, t, d, done)
}

func socksReply(code byte) []byte { return []byte{socksVersion, code, 0, 1, 0, 0, 0, 0, 0, 0} }

// discarded takes a refusal that SOCKS has no words for; the reason is in the ledger.
type discarded struct{ header http.Header }

func (d *discarded) Header() http.Header {
	if d.header == nil {
		d.header = http.Header{}
	}
	return d.header
}
func (*discarded) Write(b []byte) (int, error) { return len(b), nil }
func (*discarded) WriteHeader(int)             {}
