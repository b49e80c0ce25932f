// SPDX-License-Identifier: Apache-2.0

package mcp

import (
	"bytes"
	"encoding/json"
	"testing"

	"remit"
)

// FuzzClientMessage: whatever a client sends, what goes upstream is valid, and its arguments are those that are decided.
func FuzzClientMessage(f *testing.F) {
	for _, s := range []string{
		`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a__b","arguments":{"x":1.50,"y":null,"z":[{"a":null}]},"_meta":{"progressToken":7}}}`,
		`{"jsonrpc":"2.0","id":"x","method":"resources/read","params":{"uri":"a://b"}}`,
		`{"jsonrpc":"2.0","id":1,"method":"completion/complete","params":{"ref":{"type":"ref/prompt","name":"p"},"argument":{"name":"a","value":"b"}}}`,
		`{"jsonrpc":"2.0","id":1,"method":"subscriptions/listen","params":{"notifications":{"toolsListChanged":true}}}`,
		`{"jsonrpc":"2.0","id":1,"result":{}}`, `[]`, `{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1}}`,
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		m, err := parseMessage(text)
		if err != nil || m.method == "" {
			return
		}
		for _, server := range []string{"", "desk"} {
			a, e := parseAsked(&m, server)
			if e != nil {
				continue
			}
			for _, modern := range []bool{true, false} {
				body := (&outgoing{method: a.verb, params: a.params, meta: a.meta, inputs: a.inputs, state: a.state}).body("1", modern)
				sent, err := parseServer(body)
				if err != nil || !json.Valid(body) {
					t.Fatalf("%v: %s", err, body)
				}
				o, err := parseObject([]byte(sent.params))
				if err != nil {
					t.Fatalf("%v: %s", err, sent.params)
				}
				if a.verb != "tools/call" {
					continue
				}
				var got remit.Args
				if err := got.UnmarshalJSON(o.get("arguments")); err != nil || !remit.ObjectValue(got).Equal(remit.ObjectValue(a.args)) && len(a.args) > 0 {
					t.Fatalf("%v: sent %s, decided %s", err, o.get("arguments"), a.args.AppendJSON(nil))
				}
			}
		}
	})
}

// FuzzServerMessage: whatever a server sends is read within bounds, and what is passed on is valid.
func FuzzServerMessage(f *testing.F) {
	f.Add([]byte("id: 1\ndata: {\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{\"tools\":[{\"name\":\"a\",\"inputSchema\":{\"properties\":{\"x\":{\"x-mcp-header\":\"X\"}}}}]}}\n\n"))
	f.Add([]byte("retry: 5\n\n: x\ndata: {}\ndata: {}\n\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		for e := newEvents(bytes.NewReader(b)); ; {
			data, err := e.next()
			if err != nil {
				break
			}
			m, err := parseServer(data)
			if err != nil || m.err != "" {
				continue
			}
			var set toolset
			_, _ = set.add([]byte(m.result))
			for _, d := range set.list {
				if !json.Valid(d.named("x")) {
					t.Fatalf("%s", d.raw)
				}
			}
			if out, e := (&asked{verb: "tools/list"}).stamp([]byte(m.result)); e == nil && m.result != "" && json.Valid([]byte(m.result)) && !json.Valid(out) {
				t.Fatalf("%s", out)
			}
		}
	})
}
