// SPDX-License-Identifier: Apache-2.0

package mcp

import (
	"context"
	"encoding/json"

	"github.com/modelcontextprotocol/go-sdk/jsonrpc"
)

// listenModern is subscriptions/listen: a stream of the notifications that a stateless client asked for. A stateless server is
// asked for the same; one of the older era is subscribed to and heard.
func (h *Handler) listenModern(ctx context.Context, k *call, out *reply) ([]byte, *rpcError) {
	if e := k.open(ctx); e != nil {
		return nil, e
	}
	ctx, cancel := h.long(ctx, k.c, k.a.server, k.view.Stage)
	defer cancel()
	if !k.conn.greet.modern {
		return nil, &rpcError{code: jsonrpc.CodeMethodNotFound, message: "this tool's server does not tell of changes: ask again", status: 404}
	}
	o := &outgoing{method: k.a.verb, params: k.a.params, meta: k.a.meta}
	return k.conn.speak.exchange(ctx, o, &listener{out: out, id: k.id})
}

// listener passes the notifications of a subscription on, under the client's own id.
type listener struct {
	out *reply
	id  string
}

// notify implements peer.
func (l *listener) notify(method string, params []byte) {
	o, err := parseObject(params)
	if err != nil {
		return
	}
	m, err := parseObject(o.get("_meta"))
	if err != nil {
		m = nil
	}
	m = m.with(metaPrefix+"subscriptionId", json.RawMessage(l.id))
	l.out.event(appendMessage(nil, "", method, o.with("_meta", m.append(nil)).append(nil)))
}

// ask implements peer.
func (l *listener) ask(context.Context, string, []byte) ([]byte, *rpcError) {
	return nil, unknownMethod("of a server")
}
