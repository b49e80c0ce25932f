// SPDX-License-Identifier: Apache-2.0

//go:build linux

// Package trace receives what the kernel of a gVisor sandbox tells of its tool. It stands apart from the driver, which links parts of gVisor
// that the fuzzer cannot instrument.
package trace

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"gvisor.dev/gvisor/pkg/sentry/seccheck/points/points_go_proto"
	"gvisor.dev/gvisor/pkg/sentry/seccheck/sinks/remote/wire"

	"remit/internal/sandbox"
)

// Trace receives from a sandbox's kernel what its tool executes, opens and connects to. The kernel sends without waiting, and counts
// what it could not send.
type Trace struct {
	listener *net.UnixListener
	reader   sync.WaitGroup

	mu      sync.Mutex
	conn    *net.UnixConn    // guarded by mu, as the next one
	seen    sandbox.Activity // what is distinct is what stands in its lists
	closing bool
	dropped uint64 // as the kernel counts
	unread  uint64
}

// points are what the kernel reports.
const points = `[{"name":"sentry/execve"},{"name":"syscall/open/enter"},{"name":"syscall/openat/enter"},{"name":"syscall/connect/enter"}]`

// traceSocket is the name of the socket in a sandbox's folder.
const traceSocket = "trace.sock"

// New listens in folder, and returns the file that tells gVisor of it. What makes the sandbox is to be started in folder: the address of
// a socket may have 107 bytes, a folder's path more.
func New(folder string) (*Trace, string, error) {
	dir, err := os.Open(folder)
	if err != nil {
		return nil, "", fmt.Errorf("listen for what a sandbox does: %w", err)
	}
	defer dir.Close()
	at := fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), traceSocket)
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: at, Net: "unixpacket"})
	if err != nil {
		return nil, "", fmt.Errorf("listen for what a sandbox does: %w", err)
	}
	l.SetUnlinkOnClose(false) // by that name it would be another's; it goes with the folder
	config := filepath.Join(folder, "trace.json")
	content := fmt.Sprintf(`{"trace_session":{"name":"Default","points":%s,"sinks":[{"name":"remote","config":{"endpoint":%q,"retries":3}}]}}`, points, traceSocket)
	if err := os.WriteFile(config, []byte(content), 0o600); err != nil {
		return nil, "", errors.Join(fmt.Errorf("ask for what a sandbox does: %w", err), l.Close())
	}
	t := &Trace{listener: l}
	t.reader.Go(t.run)
	return t, config, nil
}

// run takes one connection, of the sandbox's kernel, and reads to its end.
func (t *Trace) run() {
	conn, err := t.listener.AcceptUnix()
	_ = t.listener.Close()
	if err != nil {
		return
	}
	defer conn.Close()
	t.mu.Lock()
	t.conn = conn
	closing := t.closing
	t.mu.Unlock()
	b := make([]byte, 64<<10)
	if _, err := conn.Read(b); err != nil || closing { // its handshake
		return
	}
	hello, err := proto.Marshal(&points_go_proto.Handshake{Version: wire.CurrentVersion})
	if err != nil {
		return
	}
	if _, err := conn.Write(hello); err != nil {
		return
	}
	for {
		n, err := conn.Read(b)
		if err != nil || n == 0 {
			return
		}
		t.note(b[:n])
	}
}

// note adds one packet to what was seen. What cannot be read is lost, too. The kernel's own count is a running total.
func (t *Trace) note(packet []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(packet) < wire.HeaderStructSize {
		t.unread++
	} else {
		size := int(binary.LittleEndian.Uint16(packet))
		kind := points_go_proto.MessageType(binary.LittleEndian.Uint16(packet[2:]))
		t.dropped = max(t.dropped, uint64(binary.LittleEndian.Uint32(packet[4:])))
		if size < wire.HeaderStructSize || size > len(packet) || add(&t.seen, kind, packet[size:]) != nil {
			t.unread++
		}
	}
	t.seen.Dropped = t.dropped + t.unread
}

func add(a *sandbox.Activity, kind points_go_proto.MessageType, payload []byte) error {
	switch kind {
	case points_go_proto.MessageType_MESSAGE_SENTRY_EXEC:
		var m points_go_proto.ExecveInfo
		if err := proto.Unmarshal(payload, &m); err != nil {
			return err
		}
		a.Executed++
		a.Programs = distinct(a, a.Programs, m.GetBinaryPath())
	case points_go_proto.MessageType_MESSAGE_SYSCALL_OPEN:
		a.Opened++
	case points_go_proto.MessageType_MESSAGE_SYSCALL_CONNECT:
		var m points_go_proto.Connect
		if err := proto.Unmarshal(payload, &m); err != nil {
			return err
		}
		a.Connected++
		a.Addresses = distinct(a, a.Addresses, address(m.GetAddress()))
	}
	return nil
}

// longest is how much of a program's path or an address is kept.
const longest = 256

// distinct adds s to a list that it is not in, up to MostSeen; beyond, it is counted, maybe more than once.
func distinct(a *sandbox.Activity, list []string, s string) []string {
	s = strings.ToValidUTF8(s[:min(len(s), longest)], "?")
	if slices.Contains(list, s) {
		return list
	}
	if len(list) >= sandbox.MostSeen {
		a.More++
		return list
	}
	return append(list, s)
}

// address reads a socket address as the tool gave it.
func address(b []byte) string {
	if len(b) < 2 {
		return "nothing"
	}
	family := binary.NativeEndian.Uint16(b)
	switch {
	case family == unix.AF_INET && len(b) >= 8:
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[4:8])), binary.BigEndian.Uint16(b[2:])).String()
	case family == unix.AF_INET6 && len(b) >= 24:
		return netip.AddrPortFrom(netip.AddrFrom16([16]byte(b[8:24])), binary.BigEndian.Uint16(b[2:])).String()
	case family == unix.AF_UNIX:
		name := b[2:]
		if len(name) > 0 && name[0] == 0 {
			return "unix:@" + strings.TrimRight(string(name[1:]), "\x00")
		}
		return "unix:" + unix.ByteSliceToString(name)
	}
	return fmt.Sprintf("family %d", family)
}

// Activity is what was seen so far.
func (t *Trace) Activity() *sandbox.Activity {
	t.mu.Lock()
	defer t.mu.Unlock()
	a := t.seen
	a.Programs, a.Addresses = slices.Clone(a.Programs), slices.Clone(a.Addresses)
	return &a
}

// Ended waits until all that a dead sandbox sent was read.
func (t *Trace) Ended() {
	_ = t.listener.Close()
	t.reader.Wait()
}

// Close gives up what was not read yet.
func (t *Trace) Close() {
	t.mu.Lock()
	t.closing = true
	if t.conn != nil {
		_ = t.conn.Close()
	}
	t.mu.Unlock()
	t.Ended()
}
