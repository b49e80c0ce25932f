// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"remit/test/story"
)

// The names that lead to the loopback for everything that is part of the story.
const (
	deskHost     = "desk.company.example"
	attackerHost = "collect.attacker.example"
)

func (s *support) hosts(context.Context) error { return s.Hosts(deskHost, attackerHost) }

// outside is what tools and the attacker can want to reach: the internal API and the attacker's host. Both note whatever comes.
type outside struct {
	story.API
	tickets map[string]string // texts by id
	records map[string]string // by customer

	mu    sync.Mutex // guards calls
	calls []string   // of the attacker's host
}

func (o *outside) called() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.calls)
}

// answer is the internal API's. Like some real ones it repeats, when asked what it received, the key that it received.
func (o *outside) answer(r *http.Request, _ []byte) any {
	id := r.URL.Query().Get("id")
	switch r.Method + " " + r.URL.Path {
	case "GET /v1/tickets":
		return map[string]string{"id": id, "text": o.tickets[id]}
	case "GET /v1/customers":
		return map[string]string{"id": id, "record": o.records[id]}
	case "POST /v1/notes":
		return map[string]bool{"stored": true}
	case "GET /v1/diagnose":
		return map[string]any{"headers": r.Header}
	}
	return nil
}

// startDesk starts the internal API.
func (s *support) startDesk(context.Context) (err error) {
	s.desk, err = s.ServeAPI(&s.API, deskHost, s.Path("desk-ca.pem"))
	return err
}

// startAttacker listens for whoever calls.
func (s *support) startAttacker(context.Context) error {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	s.attacker = net.JoinHostPort(attackerHost, story.Port(ln))
	var work sync.WaitGroup
	work.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			_ = c.SetDeadline(time.Now().Add(time.Second))
			b := make([]byte, 200)
			n, _ := c.Read(b)
			s.outside.mu.Lock()
			s.outside.calls = append(s.outside.calls, string(b[:n]))
			s.outside.mu.Unlock()
			_ = c.Close()
		}
	})
	s.Stop(func() { _ = ln.Close(); work.Wait() })
	return nil
}
