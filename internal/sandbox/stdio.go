// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"
)

// Pipes are the standard streams of a sandbox. They are pipes because a sandbox sets non-blocking mode on what it is given and keeps
// its own position in files.
type Pipes struct {
	guest          [3]*os.File // the tool's ends; closed once it has them
	stdin          *os.File
	stdout, stderr *os.File
}

// NewPipes makes the three.
func NewPipes() (*Pipes, error) {
	p := &Pipes{}
	var err error
	for i, ours := range []**os.File{&p.stdin, &p.stdout, &p.stderr} {
		read, write, e := os.Pipe()
		if e != nil {
			err = e
			break
		}
		p.guest[i], *ours = write, read
		if i == 0 {
			p.guest[i], *ours = read, write
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make the streams of a sandbox: %w", err), p.Close())
	}
	return p, nil
}

// Guest returns the ends for the tool: standard input, output and error.
func (p *Pipes) Guest() [3]*os.File { return p.guest }

// Given closes the tool's ends in this process, after the tool has them: else nobody would see it end.
func (p *Pipes) Given() {
	for i, f := range p.guest {
		_ = f.Close()
		p.guest[i] = nil
	}
}

// Complaint returns what a sandbox that could not be made wrote to standard error. Given was called before.
func (p *Pipes) Complaint() []byte {
	b := make([]byte, 4<<10)
	_ = p.stderr.SetReadDeadline(time.Now().Add(time.Second))
	n, _ := io.ReadFull(p.stderr, b)
	return b[:n]
}

// Close closes all that is open.
func (p *Pipes) Close() error {
	var errs []error
	for _, f := range append(p.guest[:], p.stdin, p.stdout, p.stderr) {
		if f == nil {
			continue
		}
		if err := f.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// ErrOutput is what a reader of standard output sees after the tool wrote more than it may.
var ErrOutput = errors.New("the tool wrote more than it may")

// meter counts what is read off both streams, and says once that it was too much.
type meter struct {
	mu    sync.Mutex
	n     int64 // guarded by mu
	limit int64
	over  func()
}

// add counts n more bytes and returns how many of them are within the limit.
func (m *meter) add(n int) (int, bool) {
	m.mu.Lock()
	before := m.n
	m.n += int64(n)
	total := m.n
	m.mu.Unlock()
	if total <= m.limit {
		return n, true
	}
	if before <= m.limit {
		m.over()
	}
	return int(max(0, m.limit-before)), false
}

func (m *meter) total() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.n
}

// metered is standard output as the caller reads it.
type metered struct {
	file  *os.File
	meter *meter
}

func (r *metered) Read(b []byte) (int, error) {
	n, err := r.file.Read(b)
	if n > 0 {
		within, ok := r.meter.add(n)
		if !ok {
			return within, ErrOutput
		}
	}
	if errors.Is(err, os.ErrClosed) {
		err = io.EOF
	}
	return n, err
}

func (r *metered) Close() error { return r.file.Close() }

// tail keeps the last bytes that were written to it.
type tail struct {
	mu  sync.Mutex
	buf []byte // guarded by mu
}

const tailSize = 16 << 10

func (t *tail) write(b []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, b...)
	if over := len(t.buf) - tailSize; over > 0 {
		t.buf = append(t.buf[:0], t.buf[over:]...)
	}
}

func (t *tail) bytes() []byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	return append([]byte(nil), t.buf...)
}
