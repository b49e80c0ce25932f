// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"

	"remit"
	"remit/internal/api"
)

// tillStory is a workflow whose larger payments by a tool a person of finance approves.
const tillStory = `---
kind: Tool
name: till
server: {url: "URL", ca: CA}
---
kind: Workflow
name: payments
parameters: {customer: {type: integer}}
start: {by: [operator/dave], expires: 1h}
stages:
- name: pay
  end: {by: [operator/dave]}
  may:
  - {name: pay, who: agent/deploy, action: mcp.call, target: till/pay, sandbox: remote,
     where: {customer: $customer, amount: {min: 1, max: 1000}},
     evidence: [{approval: {when: {amount: {above: 100}}, group: finance, people: 1, by: not-starter, within: 15m}}]}
`

type payIn struct {
	Customer int `json:"customer"`
	Amount   int `json:"amount"`
}

// withTill puts a real server behind the gateway that counts what it paid.
func (d *refundDesk) withTill() (paid *atomic.Int64) {
	d.t.Helper()
	paid = &atomic.Int64{}
	s := sdk.NewServer(&sdk.Implementation{Name: "till", Version: "1"}, nil)
	sdk.AddTool(s, &sdk.Tool{Name: "pay"}, func(_ context.Context, _ *sdk.CallToolRequest, in payIn) (*sdk.CallToolResult, any, error) {
		paid.Add(int64(in.Amount))
		return &sdk.CallToolResult{Content: []sdk.Content{&sdk.TextContent{Text: fmt.Sprint("paid ", in.Amount)}}}, nil, nil
	})
	srv := httptest.NewTLSServer(sdk.NewStreamableHTTPHandler(func(*http.Request) *sdk.Server { return s }, &sdk.StreamableHTTPOptions{Stateless: true}))
	d.t.Cleanup(func() { srv.CloseClientConnections(); srv.Close() })
	ca := filepath.Join(d.dir, "till.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw}), 0o600); err != nil {
		d.t.Fatal(err)
	}
	d.files += strings.NewReplacer("URL", srv.URL, "CA", ca).Replace(tillStory)
	d.write(d.files)
	d.must("/v1/apply", nil, nil)
	return paid
}

// payer is a real client of the gateway, of one era.
func (w *workload) payer(version string, o *sdk.ClientOptions) func(amount int) (string, bool) {
	w.f.t.Helper()
	c := sdk.NewClient(&sdk.Implementation{Name: "test", Version: "1"}, o)
	s, err := c.Connect(w.f.t.Context(), &sdk.StreamableClientTransport{Endpoint: "https://" + w.f.port + "/mcp/till",
		HTTPClient: &http.Client{Transport: &headed{w.http.Transport, "Txn-Token", w.token}}}, &sdk.ClientSessionOptions{ProtocolVersion: version})
	if err != nil {
		w.f.t.Fatal(err)
	}
	w.f.t.Cleanup(func() { _ = s.Close() })
	return func(amount int) (string, bool) {
		w.f.t.Helper()
		r, err := s.CallTool(w.f.t.Context(), &sdk.CallToolParams{Name: "pay", Arguments: map[string]any{"customer": 555, "amount": amount}})
		if err != nil {
			w.f.t.Fatal(err)
		}
		return r.Content[0].(*sdk.TextContent).Text, r.IsError
	}
}

// TestHeldCallOverMCP: a real client of either era calls a tool whose call a person has to approve. Approved, exactly that call passes,
// once; a changed one does not.
func TestHeldCallOverMCP(t *testing.T) {
	d := setUpApprovals(t, 1)
	paid := d.withTill()
	run := func() *workload {
		var r remit.Run
		if err := d.as("dave").Post(t.Context(), "/v1/runs", api.StartRun{Workflow: "payments", Params: map[string]string{"customer": "555"}}, &r); err != nil {
			t.Fatal(err)
		}
		return d.agent("agent/deploy", d.shared()).enter(r)
	}
	approve := func() {
		if _, err := d.answer("bob", "approve", d.newest().ID); err != nil {
			t.Fatal(err)
		}
	}
	held := func(text string, failed bool) {
		t.Helper()
		if !failed || !strings.HasPrefix(text, "Held") || !strings.Contains(text, string(d.newest().ID)) {
			t.Errorf("%v %s", failed, text)
		}
	}

	older := run().payer("2025-11-25", nil)
	held(older(900))
	approve()
	held(older(901))
	if text, failed := older(900); failed || text != "paid 900" {
		t.Errorf("approved: %s", text)
	}
	held(older(900))
	if text, _ := older(40); text != "paid 40" {
		t.Errorf("a small one: %s", text)
	}
	if paid.Load() != 940 {
		t.Fatalf("paid %d", paid.Load())
	}

	asked := 0
	newer := run().payer("2026-07-28", &sdk.ClientOptions{
		Capabilities: &sdk.ClientCapabilities{Elicitation: &sdk.ElicitationCapabilities{URL: &sdk.URLElicitationCapabilities{}}},
		ElicitationHandler: func(_ context.Context, r *sdk.ElicitRequest) (*sdk.ElicitResult, error) {
			if asked++; asked > 1 || !strings.HasSuffix(r.Params.URL, "/approvals/"+string(d.newest().ID)) {
				return &sdk.ElicitResult{Action: "cancel"}, nil
			}
			approve()
			return &sdk.ElicitResult{Action: "accept"}, nil
		}})
	if text, failed := newer(900); failed || text != "paid 900" {
		t.Errorf("asked for and approved: %s", text)
	}
	held(newer(900))
	if paid.Load() != 1840 || asked != 2 {
		t.Errorf("paid %d, asked %d times", paid.Load(), asked)
	}
}

// TestAccessRequestOnTheWire: an agent's own enforcement point asks by AuthZEN, opens a task, sees it approved, and evaluates again: once.
func TestAccessRequestOnTheWire(t *testing.T) {
	d := setUpApprovals(t, 1)
	w := d.agent("agent/deploy", d.shared()).enter(d.refunds(d.as("dave")))
	body := func(amount int, more string) string {
		return fmt.Sprintf(`{"subject":{"type":"agent","id":%q},"action":{"name":"memory.pay"},"resource":{"type":"memory","id":"cluster",`+
			`"properties":{"customer":555,"amount":%d}},"context":{"run_token":%q%s}`, w.svid.ID, amount, w.token, more)
	}
	evaluate := func(amount int, more string) (a struct {
		Decision bool
		Context  struct {
			EvaluationID string                           `json:"evaluation_id"`
			Access       *struct{ Endpoint, Hold string } `json:"access_request"`
			Next         string                           `json:"next_action"`
			Reason       string                           `json:"next_reason"`
		}
	}) {
		t.Helper()
		w.call("/access/v1/evaluation", "application/json", strings.NewReader(body(amount, more)+"}"), &a)
		return a
	}
	first := evaluate(900, "")
	if first.Decision || first.Context.Access == nil || !strings.HasSuffix(first.Context.Access.Endpoint, "/access/v1/requests") {
		t.Fatalf("%+v", first)
	}
	var task struct {
		Task struct {
			ID, Status string
			Result     *struct {
				Approval json.RawMessage
			}
		}
	}
	if w.call("/access/v1/requests", "application/json", strings.NewReader(body(900, "")+`,"denial":{"evaluation_id":"`+first.Context.EvaluationID+`"}}`), &task); task.Task.Status != "pending" {
		t.Fatalf("%+v", task)
	}
	var refused string
	if status := w.call("/access/v1/requests", "application/json", strings.NewReader(body(901, "")+`,"denial":{"evaluation_id":"`+first.Context.EvaluationID+`"}}`), &refused); status != http.StatusBadRequest {
		t.Errorf("of another request: %d %s", status, refused)
	}
	if _, err := d.answer("bob", "approve", d.newest().ID); err != nil {
		t.Fatal(err)
	}
	res, err := w.http.Get("https://" + w.f.port + "/access/v1/requests/" + task.Task.ID)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if err := json.NewDecoder(res.Body).Decode(&task); err != nil || task.Task.Status != "approved" || task.Task.Result == nil {
		t.Fatalf("%v %+v", err, task)
	}
	approval := `,"approval":` + string(task.Task.Result.Approval)
	if got := evaluate(901, approval); got.Decision || got.Context.Next != "request" || got.Context.Reason != "out_of_scope" {
		t.Errorf("another payload: %+v", got)
	}
	if got := evaluate(900, approval); !got.Decision {
		t.Errorf("approved: %+v", got)
	}
	if got := evaluate(900, approval); got.Decision || got.Context.Next != "request" || got.Context.Reason != "approval_expired" {
		t.Errorf("a second time: %+v", got)
	}
}
