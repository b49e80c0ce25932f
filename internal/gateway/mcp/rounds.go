// SPDX-License-Identifier: Apache-2.0

package mcp

import (
	"context"
	"encoding/json"
	"errors"

	"remit"
)

// maxRounds bounds how often one call may ask its client for something.
const maxRounds = 10

// rounds is exchange for a client of the older era in front of a stateless server: what the server needs, the client is asked, and
// the request is made again with the answers.
func (k *conn) rounds(ctx context.Context, o *outgoing, p peer) ([]byte, *rpcError) {
	for range maxRounds {
		raw, e := k.exchange(ctx, o, p)
		if e != nil {
			return nil, e
		}
		r, err := parseObject(raw)
		if err != nil {
			return nil, unreachable(errors.New("its result cannot be read"))
		}
		if r.text("resultType") != "input_required" {
			return r.with("resultType", nil).append(nil), nil
		}
		requests, err := parseObject(r.get("inputRequests"))
		if err != nil || len(requests) > 16 {
			return nil, unreachable(errors.New("what it asks cannot be read"))
		}
		answers := object{}
		for _, q := range requests {
			var ask struct {
				Method string          `json:"method"`
				Params json.RawMessage `json:"params"`
			}
			if json.Unmarshal(q.raw, &ask) != nil || !askable[ask.Method] {
				return nil, unreachable(errors.New("what it asks is not understood"))
			}
			result, e := p.ask(ctx, ask.Method, ask.Params)
			if e != nil {
				return nil, e
			}
			answers = append(answers, member{q.name, result})
		}
		next := *o
		next.state, next.inputs = r.text("requestState"), string(answers.append(nil))
		o = &next
	}
	return nil, unreachable(errors.New("it asks without end"))
}

// askable are the requests of servers that clients know.
var askable = map[string]bool{"elicitation/create": true, "sampling/createMessage": true, "roots/list": true}

// inputKey is under which a suspended call asks; there is one question at a time.
const inputKey = "input"

// inputRequired is the result that asks a stateless client for something.
func inputRequired(method string, params []byte, state string) []byte {
	b := []byte(`{"resultType":"input_required","inputRequests":{"` + inputKey + `":{"method":"` + method + `"`)
	if len(params) > 0 {
		b = append(append(b, `,"params":`...), params...)
	}
	b = remit.AppendJSONString(append(b, `}},"requestState":`...), state)
	return append(b, '}')
}
