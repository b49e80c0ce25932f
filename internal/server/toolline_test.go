// SPDX-License-Identifier: Apache-2.0

package server

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"remit"
	"remit/internal/store"
)

// lent is the tool's own request for a lease, in a call or after it.
func (r *refunds) lent(details string, more ...string) string {
	args := map[string]any{"path": "/oauth2/token", "details": "[" + details + "]", "customer": 555}
	for i := 0; i+1 < len(more); i += 2 {
		args[more[i]] = more[i+1]
	}
	return r.call("ask", args)
}

// lastDecision is the tool's newest one.
func (r *refunds) lastDecision() remit.Decision {
	r.t.Helper()
	list, _, err := r.srv.store.Events(store.EventFilter{Kind: remit.EventDecision, Agent: "tool/issue-refund"}, 0, 1000)
	if err != nil || len(list) == 0 {
		r.t.Fatalf("%d decisions, %v", len(list), err)
	}
	d, err := decisionOf(list[len(list)-1])
	if err != nil {
		r.t.Fatal(err)
	}
	return d
}

func grantIn(answer string) (g remit.GrantID) {
	var v struct {
		Grant remit.GrantID `json:"grant_id"`
	}
	_ = json.Unmarshal([]byte(answer[strings.IndexByte(answer, '{'):strings.LastIndexByte(answer, '}')+1]), &v)
	return v.Grant
}

// TestToolLeases: a tool in a sandbox gets a lease under its call, whatever call it names; what its permission binds to the call ends with that, the
// rest with the sandbox; after a call it gets nothing, and there is nothing else of Remit behind its socket (S24, S27).
func TestToolLeases(t *testing.T) {
	r := setUpSandboxed(t, "process")
	got := r.lent(`{"permission":"bound","customer":555,"under":"` + string(remit.NewDecisionID()) + `"}`)
	if !strings.HasPrefix(got, "200 ") {
		t.Fatal(got)
	}
	if d := r.lastDecision(); d.Under == "" || d.Permission.Name != "bound" || string(d.Sandbox) != "process" {
		t.Errorf("%+v", d)
	}
	bound := grantIn(got)
	r.eventually("it ends with its call", func() bool { g, ok := r.srv.store.Grant(bound); return ok && g.State != remit.GrantActive })
	if got := r.lent(`{"permission":"bound","customer":556}`); !strings.HasPrefix(got, "400 ") || !strings.Contains(got, "argument_mismatch") {
		t.Errorf("another customer: %s", got)
	}
	free := grantIn(r.lent(`{"permission":"free"}`))
	if got := r.lent(`{"permission":"bound","customer":555}`, "later", "yes"); got != "soon" {
		t.Fatal(got)
	}
	r.eventually("after the call it is denied", func() bool {
		d := r.lastDecision()
		return len(d.Reasons) > 0 && d.Reasons[0].Code == remit.ReasonUnder && d.Under == ""
	})
	if got := r.lent(`{"permission":"bound","customer":555}`, "assertion", "a.b.c"); !strings.HasPrefix(got, "401 ") && !strings.Contains(got, "invalid_client") {
		t.Errorf("an assertion: %s", got)
	}
	for _, path := range []string{"/mcp", "/access/v1/evaluation", "/v1/runs", "/admin/v1/status", "/login/start"} {
		if got := r.lent(`{}`, "path", path); !strings.HasPrefix(got, "404 ") {
			t.Errorf("%s: %s", path, got)
		}
	}
	time.Sleep(100 * time.Millisecond)
	if g, ok := r.srv.store.Grant(free); !ok || g.State != remit.GrantActive {
		t.Errorf("what no call binds: %+v", g)
	}
	r.must("/v1/runs/"+string(r.run.ID)+"/advance", map[string]string{"to": "rest"}, nil)
	if g, ok := r.srv.store.Grant(free); !ok || g.State == remit.GrantActive {
		t.Errorf("after its stage: %+v", g)
	}
}
