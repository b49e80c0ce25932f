// SPDX-License-Identifier: Apache-2.0

package server

import (
	"math"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"remit"
	"remit/internal/authorizer"
	"remit/internal/gateway"
)

// paceOf gives each throttled agent n things an hour, of which a tenth may come at once.
func paceOf(n int) authorizer.Pace {
	quota := gateway.NewQuota(gateway.Limits{Rate: float64(n) / 3600, Burst: max(1, float64(n)/10), Concurrent: math.MaxInt})
	return func(agent remit.Name, at time.Time) bool {
		account, ok := quota.Enter(string(agent), 0, at)
		account.Leave()
		return ok
	}
}

// limited is a listener that closes what comes beyond a number of open connections. Whoever opens connections without end
// must not use up the process's descriptors: the sockets of operators and of the Workload API need some (S35).
type limited struct {
	net.Listener
	most int64
	open atomic.Int64
}

// mostConnections leaves half of the descriptors to everything else.
func mostConnections() int64 {
	const most = 16384
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil || l.Cur/2 > most {
		return most
	}
	return max(16, int64(l.Cur/2))
}

// Accept implements net.Listener.
func (l *limited) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		//remit:guard S35 TestLimitedListener
		if l.open.Load() >= l.most { // only Accept adds, and one goroutine calls it
			_ = c.Close()
			continue
		}
		l.open.Add(1)
		return &limitedConn{Conn: c, leave: sync.OnceFunc(func() { l.open.Add(-1) })}, nil
	}
}

// limitedConn gives its place back when it closes.
type limitedConn struct {
	net.Conn
	leave func()
}

// Close implements net.Conn.
func (c *limitedConn) Close() error {
	c.leave()
	return c.Conn.Close()
}
