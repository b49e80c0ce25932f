// SPDX-License-Identifier: Apache-2.0

package mcp

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"sync"
	"time"

	"github.com/modelcontextprotocol/go-sdk/jsonrpc"
)

// flight is a call of a stateless client to a server of the older era. When the server asks its client something, the call is
// suspended: the client gets input_required, and finds the call again when it comes back with the answer.
type flight struct {
	id      string
	owner   string
	park    time.Duration
	can     func(method string) bool
	asks    chan question
	answers chan []byte
	done    chan struct{} // closed when result and failed are settled
	result  []byte
	failed  *rpcError
	cancel  context.CancelFunc

	mu  sync.Mutex // guards out
	out *reply     // of the client's present request; nil while suspended
}

type question struct {
	method string
	params []byte
}

// notify implements peer. While nobody listens it is dropped.
func (f *flight) notify(method string, params []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.out != nil {
		f.out.event(appendMessage(nil, "", method, params))
	}
}

func (f *flight) attach(out *reply) {
	f.mu.Lock()
	f.out = out
	f.mu.Unlock()
}

// ask implements peer: it suspends the call until the client comes back, for a bounded time.
func (f *flight) ask(ctx context.Context, method string, params []byte) ([]byte, *rpcError) {
	if !f.can(method) {
		return nil, &rpcError{code: jsonrpc.CodeMethodNotFound, message: "the client cannot be asked " + method}
	}
	timer := time.NewTimer(f.park)
	defer timer.Stop()
	select {
	case f.asks <- question{method, params}:
	case <-ctx.Done():
		return nil, unreachable(errors.New("the call was given up"))
	case <-timer.C:
		return nil, unreachable(errors.New("the client did not come back"))
	}
	select {
	case a := <-f.answers:
		return a, nil
	case <-ctx.Done():
		return nil, unreachable(errors.New("the call was given up"))
	case <-timer.C:
		f.cancel() // nobody will fetch a result either
		return nil, unreachable(errors.New("the client did not come back"))
	}
}

// start begins a call that may be suspended. What it holds, the call's own goroutine gives back.
func (h *Handler) start(k *call, out *reply) (*flight, *rpcError) {
	ctx, cancel := context.WithTimeout(h.ctx, h.cfg.Timeout)
	f := &flight{id: rand.Text(), owner: k.c.owner(), park: h.cfg.Park, can: k.a.meta.can, asks: make(chan question), answers: make(chan []byte),
		done: make(chan struct{}), cancel: cancel, out: out}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		cancel()
		return nil, closing()
	}
	n := 0
	for _, other := range h.flights {
		if other.owner == f.owner {
			n++
		}
	}
	//remit:guard S35 TestSuspendedCallsAreBounded
	if n >= maxFlights {
		cancel()
		return nil, &rpcError{code: codeDenied, message: "too many calls wait for your answers", status: 429}
	}
	h.flights[f.id] = f
	h.wg.Go(func() {
		defer cancel()
		f.result, f.failed = k.perform(ctx, f, "", "")
		k.record()
		h.mu.Lock()
		delete(h.flights, f.id)
		h.mu.Unlock()
		close(f.done)
	})
	return f, nil
}

// resume finds the call that a client comes back to and gives it the answer.
func (h *Handler) resume(ctx context.Context, k *call, id string, out *reply) (*flight, *rpcError) {
	h.mu.Lock()
	f := h.flights[id]
	h.mu.Unlock()
	if f == nil || !k.c.owns(f.owner) {
		return nil, invalid("the call is over: make it again")
	}
	inputs, err := parseObject([]byte(k.a.inputs))
	if err != nil {
		return nil, invalid("inputResponses is missing")
	}
	answer := inputs.get(inputKey)
	if _, err := parseObject(answer); err != nil {
		return nil, invalid("inputResponses lacks " + inputKey)
	}
	f.attach(out)
	select {
	case f.answers <- answer:
		return f, nil
	case <-f.done:
		return f, nil
	case <-ctx.Done():
		return nil, unreachable(errors.New("the call was given up"))
	}
}

// wait returns the call's result, or what the server asks of the client.
func (h *Handler) wait(ctx context.Context, k *call, f *flight) ([]byte, *rpcError) {
	defer f.attach(nil)
	select {
	case <-f.done:
		return f.result, f.failed
	case q := <-f.asks:
		return inputRequired(q.method, q.params, h.seal(k.c, k.a, sealed{Flight: f.id})), nil
	case <-ctx.Done():
		f.cancel()
		<-f.done
		return nil, unreachable(errors.New("the call was given up"))
	}
}

// can reports whether a client declared that it can be asked.
func (m meta) can(method string) bool {
	var c map[string]json.RawMessage
	if json.Unmarshal([]byte(m.capabilities), &c) != nil {
		return false
	}
	name := map[string]string{"elicitation/create": "elicitation", "sampling/createMessage": "sampling", "roots/list": "roots"}[method]
	_, ok := c[name]
	return ok
}
