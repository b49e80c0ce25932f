// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"

	"remit/internal/tool"
	"remit/internal/tool/tooltest"
)

// makeBoxes puts a hostile MCP server where the laboratory's tools in sandboxes have theirs, and a payment service where they post to: at
// an address of the loopback that clients do not take for their own.
func (l *lab) makeBoxes(context.Context, string) error {
	program, err := tooltest.Build(tooltest.Hostile)
	if err != nil {
		return err
	}
	b, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	for _, folder := range []string{"refund", "altered"} {
		if err := errors.Join(os.Mkdir(l.path(folder), 0o755), os.WriteFile(l.path(folder, "hostile"), b, 0o755)); err != nil {
			return err
		}
		d, err := tool.Digest(l.path(folder))
		if err != nil {
			return err
		}
		l.boxes = append(l.boxes, "@"+strings.ToUpper(folder)+"@", string(d))
	}
	if err := os.WriteFile(l.path("altered", "more"), []byte("what nobody reviewed"), 0o600); err != nil {
		return err
	}
	at, err := net.Listen("tcp", "127.0.0.2:0")
	if err != nil {
		return err
	}
	l.payments = &httptest.Server{Listener: at, Config: &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "paid") })}}
	l.payments.Start()
	l.boxes = append(l.boxes, "@PAYMENTS@", l.payments.URL)
	return nil
}

const boxFiles = `
---
kind: Tool
name: issue-refund
server:
  command: [/tool/hostile]
  files: {from: @DIR@/refund, digest: "@REFUND@"}
  environment: {PAYMENTS: "@PAYMENTS@"}
---
kind: Tool
name: altered
server:
  command: [/tool/hostile]
  files: {from: @DIR@/altered, digest: "@ALTERED@"}
---
kind: Target
name: payments
type: http
url: "@PAYMENTS@"
private: true
---
kind: Workflow
name: box-refund
parameters: {customer: {type: integer}}
start: {by: [operator/ci], expires: 1h}
stages:
- name: refund
  may:
  - {name: ask, who: agent/deploy, action: mcp.call, target: issue-refund/refund, where: {customer: $customer, amount: {min: 0.01, max: 100}, post: {any: true}}}
  - {name: pay, who: tool/issue-refund, under: ask, action: http.post, target: payments, where: {path: /refunds, body: {customer: $customer, amount: $call.amount}}}
  - {name: later, who: agent/deploy, action: mcp.call, target: issue-refund/later, where: {customer: $customer, amount: {any: true}}}
  - {name: lately, who: agent/deploy, action: mcp.call, target: issue-refund/lately}
  - {name: identity, who: agent/deploy, action: mcp.call, target: issue-refund/identity}
  - {name: echo, who: agent/deploy, action: mcp.call, target: issue-refund/echo, where: {text: {any: true}}}
  - {name: altered, who: agent/deploy, action: mcp.call, target: altered/echo, where: {text: {any: true}}}
`

// mcp HOLDER TOKEN SERVER TOOL [ARGUMENTS]: a call of a tool. That its own request was refused is a refusal, too.
func (a *attack) mcp(_ *testscript.TestScript, args []string) (*answer, error) {
	h, err := a.holder(args[0])
	if err != nil {
		return nil, err
	}
	arguments := "{}"
	if len(args) > 4 {
		arguments = args[4]
	}
	header := http.Header{"Content-Type": {"application/json"}, "Txn-Token": {args[1]}, "Mcp-Protocol-Version": {"2026-07-28"}, "Mcp-Method": {"tools/call"}, "Mcp-Name": {args[3]}}
	got, err := a.do(h, http.MethodPost, "/mcp/"+args[2], header, []byte(`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"`+args[3]+`","arguments":`+
		arguments+`,"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{}}}}`))
	if err != nil {
		return nil, err
	}
	var m struct {
		Result struct {
			Content []struct{ Text string } `json:"content"`
			Failed  bool                    `json:"isError"`
		} `json:"result"`
	}
	if json.Unmarshal([]byte(got.text), &m) != nil || len(m.Result.Content) != 1 {
		got.allowed = false
		return got, nil
	}
	got.text = m.Result.Content[0].Text
	got.allowed = got.allowed && !m.Result.Failed && !refusedInside.MatchString(got.text)
	got.ids = decisionPattern.FindAllString(got.text, 3)
	return got, nil
}

// refusedInside is how the hostile tool says that its own request was refused.
var refusedInside = regexp.MustCompile(`^4[0-9][0-9] `)

// carry NAME: NAME holds the identity that a tool gave away in the last answer, with its key.
func (a *attack) carry(_ *testscript.TestScript, args []string) error {
	id, chain, _ := strings.Cut(a.last.text, "\n")
	cert, err := tls.X509KeyPair([]byte(chain), []byte(chain))
	if err != nil {
		return err
	}
	return a.hold(args[0], fetched{ID: id, Chain: chain, Key: chain}, &cert)
}
