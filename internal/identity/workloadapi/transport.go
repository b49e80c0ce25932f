// SPDX-License-Identifier: Apache-2.0

package workloadapi

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"

	"google.golang.org/grpc/credentials"

	"remit/internal/identity"
)

// maxConnections bounds those of all users together.
const maxConnections = 4096

// listener marks what it accepts with the launch that its socket is bound to, if any.
type listener struct {
	*net.UnixListener
	bound *Bound
}

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	c, err := l.AcceptUnix()
	if err != nil {
		return nil, err
	}
	return &accepted{UnixConn: c, bound: l.bound}, nil
}

type accepted struct {
	*net.UnixConn
	bound *Bound
}

// transport attests the peer in place of a TLS handshake: the Workload API must work without any (SPIFFE_Workload_Endpoint,
// section 4).
type transport struct{ limits *limits }

// caller is what the handshake found out. It lives as long as the connection.
type caller struct {
	credentials.CommonAuthInfo
	peer  *identity.Peer
	bound *Bound // nil: the shared socket
}

// AuthType implements credentials.AuthInfo.
func (*caller) AuthType() string { return "unix" }

// ServerHandshake implements credentials.TransportCredentials. A connection whose peer the kernel does not name is refused.
func (t *transport) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	a, ok := raw.(*accepted)
	if !ok {
		return nil, nil, errors.New("workloadapi: not a connection of ours")
	}
	p, err := identity.PeerOf(a.UnixConn)
	if err != nil {
		return nil, nil, err
	}
	c := &connection{Conn: a.UnixConn, leave: p.Close}
	if a.bound == nil || a.bound.Sandbox == nil {
		if err := t.limits.enter(p.UID); err != nil {
			p.Close()
			return nil, nil, err
		}
		c.leave = func() { p.Close(); t.limits.leave(p.UID) }
	}
	if a.bound != nil && !a.bound.join(c) {
		_ = c.Close()
		return nil, nil, errors.New("workloadapi: the launch has ended, or its sandbox has too many connections")
	}
	info := &caller{CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.NoSecurity}, peer: p, bound: a.bound}
	return c, info, nil
}

// ClientHandshake implements credentials.TransportCredentials; nobody dials with it.
func (*transport) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("workloadapi: this is a server")
}

// Info implements credentials.TransportCredentials.
func (*transport) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "unix"}
}

// Clone implements credentials.TransportCredentials.
func (t *transport) Clone() credentials.TransportCredentials { return t }

// OverrideServerName implements credentials.TransportCredentials.
func (*transport) OverrideServerName(string) error { return nil }

// connection lets go of the peer's pidfd when it closes.
type connection struct {
	net.Conn
	once  sync.Once
	leave func()
}

// Close implements net.Conn.
func (c *connection) Close() error {
	c.once.Do(c.leave)
	return c.Conn.Close()
}

// limits counts connections: one user's flood must not lock out another's agent (S35).
type limits struct {
	perUser int

	mu    sync.Mutex // guards the rest
	users map[uint32]int
	all   int
}

func (l *limits) enter(uid uint32) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.users == nil {
		l.users = map[uint32]int{}
	}
	//remit:guard S35 TestConnectionsPerUser
	if l.users[uid] >= l.perUser || l.all >= maxConnections {
		return fmt.Errorf("workloadapi: user %d has too many connections", uid)
	}
	l.users[uid]++
	l.all++
	return nil
}

func (l *limits) leave(uid uint32) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all--
	if l.users[uid]--; l.users[uid] == 0 {
		delete(l.users, uid)
	}
}
