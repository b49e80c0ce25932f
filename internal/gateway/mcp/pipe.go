// SPDX-License-Identifier: Apache-2.0

package mcp

import (
	"bufio"
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"
)

// overPipe speaks newline-delimited JSON to one process. One request is under way at a time, so that what the process does
// meanwhile, on its own network say, is done for that request (S24).
type overPipe struct {
	pipe   Pipe
	modern atomic.Bool
	event  func(m *message) // what belongs to no request

	turn chan struct{} // holds one token
	next uint64        // guarded by turn

	mu      sync.Mutex // guards waiting
	waiting *waiting   // the request that is under way
	write   sync.Mutex // one line at a time
	gone    chan struct{}
	once    sync.Once
}

// waiting is where the reader puts what comes during a request.
type waiting struct {
	in   chan message
	done chan struct{}
}

func newOverPipe(p Pipe, event func(*message)) *overPipe {
	s := &overPipe{pipe: p, event: event, turn: make(chan struct{}, 1), gone: make(chan struct{})}
	s.turn <- struct{}{}
	return s
}

// read runs until the process is gone. A process that floods while a request is under way waits until it is read; what nobody
// waits for is dropped.
func (s *overPipe) read() {
	defer close(s.gone)
	scan := bufio.NewScanner(s.pipe)
	scan.Buffer(make([]byte, 0, 4096), maxMessage)
	for scan.Scan() {
		m, err := parseServer(scan.Bytes())
		if err != nil {
			continue // a server that writes something else to its output, too, is common; it is no message
		}
		if unsolicited[m.method] && m.id == "" {
			s.event(&m)
			continue
		}
		s.mu.Lock()
		w := s.waiting
		s.mu.Unlock()
		if w == nil {
			continue
		}
		select {
		case w.in <- m:
		case <-w.done:
		}
	}
	s.close()
}

// exchange implements speaker.
func (s *overPipe) exchange(ctx context.Context, o *outgoing, p peer) ([]byte, *rpcError) {
	select {
	case <-s.turn:
		defer func() { s.turn <- struct{}{} }()
	case <-s.gone:
		return nil, unreachable(errGone)
	case <-ctx.Done():
		return nil, unreachable(errors.New("no answer in time"))
	}
	s.next++
	id := number(s.next)
	w := &waiting{in: make(chan message), done: make(chan struct{})}
	s.mu.Lock()
	s.waiting = w
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		s.waiting = nil
		s.mu.Unlock()
		close(w.done)
	}()
	if err := s.send(o.body(id, s.modern.Load())); err != nil {
		return nil, unreachable(errGone)
	}
	return s.await(ctx, o, p, id, w)
}

func (s *overPipe) await(ctx context.Context, o *outgoing, p peer, id string, w *waiting) ([]byte, *rpcError) {
	for {
		select {
		case m := <-w.in:
			switch {
			case m.isResponse():
				if m.id != id {
					continue // of a request that was given up
				}
				return outcome(&m)
			case m.isCall():
				if err := s.send(answer(ctx, p, &m)); err != nil {
					return nil, unreachable(errGone)
				}
			default:
				o.forward(p, id, &m)
			}
		case <-s.gone:
			return nil, unreachable(errGone)
		case <-ctx.Done():
			if o.method != "initialize" {
				s.notify(ctx, "notifications/cancelled", []byte(`{"requestId":`+id+`}`))
			}
			return nil, unreachable(errors.New("no answer in time"))
		}
	}
}

// send writes a line. A process that reads nothing for long is ended.
func (s *overPipe) send(b []byte) error {
	s.write.Lock()
	defer s.write.Unlock()
	stuck := time.AfterFunc(30*time.Second, s.close)
	defer stuck.Stop()
	//remit:guard S29 TestOneMessageALine
	b = oneLine(b)
	_, err := s.pipe.Write(append(b, '\n'))
	return err
}

// notify implements speaker.
func (s *overPipe) notify(_ context.Context, method string, params []byte) {
	_ = s.send(appendMessage(nil, "", method, params))
}

// close implements speaker.
func (s *overPipe) close() { s.once.Do(func() { _ = s.pipe.Close() }) }

// unsolicited are notifications that belong to no request.
var unsolicited = map[string]bool{"notifications/tools/list_changed": true, "notifications/prompts/list_changed": true,
	"notifications/resources/list_changed": true, "notifications/resources/updated": true}
