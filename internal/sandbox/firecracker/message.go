// SPDX-License-Identifier: Apache-2.0

package firecracker

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"

	"remit/internal/sandbox"
)

// Ports of the host on which a virtual machine finds what it may reach. The machine opens every connection; the host opens none.
const (
	controlPort = 1024
	stdinPort   = 1025
	stdoutPort  = 1026
	stderrPort  = 1027
	socketPort  = 2048 // and the next ones: one for each socket of Spec.Sockets
	maxSockets  = 8
	hostCID     = 2
	guestCID    = 3
)

// protocol is spoken by both sides, or nothing runs: the agent in a root image may be of another build.
const protocol = 1

// The control connection carries lines of JSON: orders to the agent, reports back.
type (
	// order is one of two: Build first, Run once.
	order struct {
		Build *build `json:"build,omitempty"`
		Run   *run   `json:"run,omitempty"`
	}
	build struct {
		Files   bool  `json:"files"` // the second drive holds an archive
		Scratch int64 `json:"scratch"`
	}
	run struct {
		Command   []string     `json:"command"`
		Env       []string     `json:"env"`
		Processes int          `json:"processes"`
		Sockets   []string     `json:"sockets"` // names in SocketsAt; the first is at socketPort
		Files     []sharedFile `json:"files"`   // in SocketsAt, beside them
	}
	sharedFile struct {
		Name string `json:"name"`
		Data []byte `json:"data"`
	}
	report struct {
		Hello int             `json:"hello,omitempty"` // the protocol
		Built bool            `json:"built,omitempty"`
		Full  bool            `json:"full,omitempty"`  // the tool has as many processes as it may have
		Kills uint64          `json:"kills,omitempty"` // processes killed for want of memory
		Exit  *sandbox.Status `json:"exit,omitempty"`
		Fault string          `json:"fault,omitempty"` // the agent cannot go on
	}
)

const (
	maxReport = 16 << 10 // of a machine, which is not trusted
	maxOrder  = 16 << 20
)

// stream is a connection whose two directions end separately.
type stream interface {
	net.Conn
	CloseWrite() error
}

// lines sends and receives messages. Sending is safe for concurrent use.
type lines struct {
	conn io.ReadWriteCloser
	scan *bufio.Scanner
	mu   sync.Mutex
}

func newLines(conn io.ReadWriteCloser, most int) *lines {
	s := bufio.NewScanner(conn)
	s.Buffer(make([]byte, 0, 4<<10), most)
	return &lines{conn: conn, scan: s}
}

func (l *lines) send(v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	_, err = l.conn.Write(append(b, '\n'))
	return err
}

func (l *lines) receive(v any) error {
	if !l.scan.Scan() {
		return errors.Join(io.EOF, l.scan.Err())
	}
	if err := json.Unmarshal(l.scan.Bytes(), v); err != nil {
		return fmt.Errorf("read a message of a virtual machine: %w", err)
	}
	return nil
}

// splice copies both ways until both ended, and closes both.
func splice(a, b stream) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(a, b)
		_ = a.CloseWrite()
	}()
	_, _ = io.Copy(b, a)
	_ = b.CloseWrite()
	<-done
	_, _ = a.Close(), b.Close()
}
