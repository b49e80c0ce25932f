// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// side is one server under load: how connection i connects and which requests it sends, over and over. Every answer must have
// status 200 and contain want.
type side struct {
	name     string
	pid      int
	address  string
	tls      func(i int) *tls.Config
	requests func(i int) [][]byte
	want     []byte
	settle   func() error // waits until work that was put off is done; nil: there is none
	bound    bool         // answers less than what is asked of the first side
	answers  int64        // all that were ever read, warm-up included
}

// sample is one round.
type sample struct {
	rate     float64 // answers a second
	p50, p99 time.Duration
	cpu      float64 // µs of the server's processor time an answer, put-off work included
}

const warmUp = 150 * time.Millisecond

// measure has n requests under way all the time, for a while. Handshakes and the warm-up are not measured. Each of the n senders takes
// turns with its share of at least 64 kept connections: every connection is one agent, and the shipped quota of an agent is
// less than one sender alone can ask.
func (s *side) measure(n int, d time.Duration) (sample, error) {
	conns := make([]*conn, max(n, agents))
	for i := range conns {
		c, err := s.dial(i)
		if err != nil {
			return sample{}, fmt.Errorf("connect to %s: %w", s.name, err)
		}
		defer c.Close() //nolint:errcheck // read to the end
		conns[i] = c
	}
	var phase atomic.Int32 // 0 warm-up, 1 measuring, 2 stop
	var wg sync.WaitGroup
	errs := make([]error, n)
	for i := range n {
		var share []*conn
		for j := i; j < len(conns); j += n {
			share = append(share, conns[j])
		}
		wg.Go(func() { errs[i] = loop(share, &phase) })
	}
	time.Sleep(warmUp)
	before, err := cpu(s.pid)
	began := time.Now()
	phase.Store(1)
	time.Sleep(d)
	phase.Store(2)
	elapsed := time.Since(began)
	wg.Wait()
	if err := errors.Join(append(errs, err)...); err != nil {
		return sample{}, fmt.Errorf("%s: %w", s.name, err)
	}
	if s.settle != nil {
		if err := s.settle(); err != nil {
			return sample{}, err
		}
	}
	after, err := cpu(s.pid)
	if err != nil {
		return sample{}, err
	}
	return s.sum(conns, elapsed, after-before), nil
}

func (s *side) sum(conns []*conn, elapsed, used time.Duration) sample {
	var all []time.Duration
	for _, c := range conns {
		all = append(all, c.took...)
		s.answers += c.answers
	}
	slices.Sort(all)
	n := float64(len(all))
	return sample{rate: n / elapsed.Seconds(), p50: quantile(all, 0.5), p99: quantile(all, 0.99), cpu: float64(used.Microseconds()) / n}
}

// conn is one keep-alive connection. It sends bytes that were built before and reads of the answer only what it must, so that
// the client costs little and the same for both sides.
type conn struct {
	net.Conn
	in       *bufio.Reader
	requests [][]byte
	want     []byte
	took     []time.Duration
	answers  int64
}

func (s *side) dial(i int) (*conn, error) {
	c, err := tls.DialWithDialer(&net.Dialer{Timeout: 10 * time.Second}, "tcp", s.address, s.tls(i))
	if err != nil {
		return nil, err
	}
	if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil { // once: a round is seconds
		return nil, err
	}
	return &conn{Conn: c, in: bufio.NewReaderSize(c, 16<<10), requests: s.requests(i), want: s.want, took: make([]time.Duration, 0, 1<<14)}, nil
}

func loop(conns []*conn, phase *atomic.Int32) error {
	for n := 0; ; n++ {
		p, c := phase.Load(), conns[n%len(conns)]
		if p == 2 {
			return nil
		}
		began := time.Now()
		if err := c.ask(c.requests[n/len(conns)%len(c.requests)]); err != nil {
			return err
		}
		c.answers++
		if p == 1 {
			c.took = append(c.took, time.Since(began))
		}
	}
}

var contentLength = []byte("Content-Length: ")

// ask demands what is wanted.
func (c *conn) ask(request []byte) error {
	ok, body, err := c.exchange(request)
	if err != nil {
		return err
	}
	if !ok || !bytes.Contains(body, c.want) {
		return fmt.Errorf("unexpected answer: %.600s", body)
	}
	_, err = c.in.Discard(len(body))
	return err
}

// exchange sends and reads one answer: whether its status is 200, and its body, which must be discarded.
func (c *conn) exchange(request []byte) (ok bool, body []byte, err error) {
	if _, err := c.Write(request); err != nil {
		return false, nil, err
	}
	length := -1
	for first := true; ; first = false {
		line, err := c.in.ReadSlice('\n')
		if err != nil {
			return false, nil, err
		}
		if first {
			ok = bytes.HasPrefix(line, []byte("HTTP/1.1 200 "))
		}
		if len(line) <= 2 {
			break
		}
		if rest, found := bytes.CutPrefix(line, contentLength); found {
			if length, err = strconv.Atoi(string(bytes.TrimSpace(rest))); err != nil {
				return false, nil, err
			}
		}
	}
	if length < 0 {
		return false, nil, errors.New("the answer has no Content-Length")
	}
	body, err = c.in.Peek(length)
	return ok, body, err
}

// post builds a request.
func post(host, path string, body []byte) []byte {
	return append(fmt.Appendf(nil, "POST %s HTTP/1.1\r\nHost: %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n",
		path, host, len(body)), body...)
}
