// SPDX-License-Identifier: Apache-2.0

package mcp_test

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"

	"remit"
	"remit/internal/gateway/mcp"
)

// people hold what is asked until they have approved; what the line says of one request, they say of all.
type people struct {
	hold     remit.HoldID
	until    time.Time
	approved chan struct{}
	once     sync.Once
}

func newPeople() *people {
	return &people{hold: remit.NewHoldID(), until: time.Now().Add(time.Minute), approved: make(chan struct{})}
}

func (p *people) approve() { p.once.Do(func() { close(p.approved) }) }

func (p *people) answer(*remit.Request) remit.Decision {
	select {
	case <-p.approved:
		return remit.Decision{Effect: remit.Allow}
	default:
	}
	return remit.Decision{Effect: remit.Hold, Hold: p.hold, Until: p.until, Reasons: []remit.Reason{{Code: remit.ReasonApproval, Of: "evidence.approval"}}}
}

func (p *people) answered(ctx context.Context, id remit.HoldID) {
	if id == p.hold {
		select {
		case <-p.approved:
		case <-ctx.Done():
		}
	}
}

// opener is a client that shows its user addresses.
func opener(f func(*sdk.ElicitParams) string) *sdk.ClientOptions {
	return &sdk.ClientOptions{Capabilities: &sdk.ClientCapabilities{Elicitation: &sdk.ElicitationCapabilities{URL: &sdk.URLElicitationCapabilities{}}},
		ElicitationHandler: func(_ context.Context, r *sdk.ElicitRequest) (*sdk.ElicitResult, error) {
			return &sdk.ElicitResult{Action: f(r.Params)}, nil
		}}
}

// TestHeldCallAsksForPeople: a stateless client is shown where people approve, comes back, and its call is decided again then.
func TestHeldCallAsksForPeople(t *testing.T) {
	for _, upstream := range []bool{true, false} {
		p := newPeople()
		w := deskWorld(t, upstream, func(c *mcp.Config) { c.Answered = p.answered })
		w.set(func() { w.answer = p.answer })
		var shown atomic.Pointer[sdk.ElicitParams]
		s := w.client("/mcp/desk", true, opener(func(q *sdk.ElicitParams) string {
			shown.Store(q)
			time.AfterFunc(300*time.Millisecond, p.approve) // while the call that came back waits
			return "accept"
		}))
		r, err := s.CallTool(t.Context(), &sdk.CallToolParams{Name: "greet", Arguments: map[string]any{"name": "Ann"}})
		if err != nil || r.IsError || text(r) != "hello Ann" {
			t.Fatalf("%v %+v", err, r)
		}
		q := shown.Load()
		if q == nil || q.Mode != "url" || q.URL != base+"/approvals/"+string(p.hold) || q.ElicitationID != string(p.hold) || strings.Contains(q.Message, "Ann") {
			t.Errorf("%+v", q)
		}
		for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) { // acts are on record a little later
			w.mu.Lock()
			n := len(w.acts)
			w.mu.Unlock()
			if n > 0 {
				break
			}
		}
		w.mu.Lock()
		if len(w.asked) != 2 || len(w.acts) != 1 || !w.asked[1].At.After(w.asked[0].At) {
			t.Errorf("%d decisions, %d acts", len(w.asked), len(w.acts))
		}
		w.mu.Unlock()
	}
}

// TestHeldCallInWords: who cannot be asked, or does not want to be, gets a result that says how to ask again; and asking again works.
func TestHeldCallInWords(t *testing.T) {
	declining := opener(func(*sdk.ElicitParams) string { return "decline" })
	for name, c := range map[string]struct {
		stateless bool
		o         *sdk.ClientOptions
	}{"a client of the older era": {false, declining}, "a client without addresses": {true, nil}, "a user who declines": {true, declining}} {
		p := newPeople()
		w := deskWorld(t, true, func(c *mcp.Config) { c.Answered = p.answered })
		w.set(func() { w.answer = p.answer })
		s := w.client("/mcp/desk", c.stateless, c.o)
		call := &sdk.CallToolParams{Name: "greet", Arguments: map[string]any{"name": "Ann"}}
		r, err := s.CallTool(t.Context(), call)
		if err != nil || !r.IsError || !strings.Contains(text(r), string(p.hold)) || !strings.Contains(text(r), "same arguments again, every 10 seconds") {
			t.Fatalf("%s: %v %+v", name, err, r)
		}
		denial, _ := r.Meta["remit.internal/denial"].(map[string]any)
		if denial["held"] != true || denial["hold"] != string(p.hold) || denial["retry_after_s"] != 10.0 || denial["until"] != p.until.UTC().Format(time.RFC3339) {
			t.Errorf("%s: %+v", name, denial)
		}
		p.approve()
		if r, err = s.CallTool(t.Context(), call); err != nil || r.IsError || text(r) != "hello Ann" {
			t.Errorf("%s: approved: %v %+v", name, err, r)
		}
	}
}

const opens = `,"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{"elicitation":{"url":{}}}}`

// held makes a held call by hand and returns what brings it back.
func (w *world) held(t *testing.T) (back string) {
	t.Helper()
	_, body := w.modernOpens(greetAnn)
	if !strings.Contains(body, `"input_required"`) {
		t.Fatal(body)
	}
	return fmt.Sprintf(`,"requestState":%q`, stateOf(t, body))
}

func (w *world) modernOpens(params string) (int, string) {
	status, body, _ := w.send("/mcp/desk", `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{`+opens[1:]+params+`}}`,
		"Mcp-Protocol-Version", "2026-07-28", "Mcp-Method", "tools/call", "Mcp-Name", "greet")
	return status, body
}

// TestHeldStateIsBound: what a held call comes back with is of no other call, and allows nothing by itself.
func TestHeldStateIsBound(t *testing.T) {
	p := newPeople()
	w := deskWorld(t, true)
	w.set(func() { w.answer = p.answer })
	back := w.held(t)
	n := len(w.asked)
	if status, body := w.modernOpens(`,"name":"greet","arguments":{"name":"Bob"}` + back); status != http.StatusBadRequest || len(w.asked) != n {
		t.Errorf("another call was decided on: %d %s", status, body)
	}
	if _, body := w.modernOpens(greetAnn + back + `,"inputResponses":{"input":{"action":"accept"}}`); !strings.Contains(body, `"input_required"`) {
		t.Errorf("nobody approved: %s", body)
	}
	w.set(func() {
		w.answer = func(*remit.Request) remit.Decision {
			return remit.Decision{Reasons: []remit.Reason{{Code: remit.ReasonApprovalDenied, Of: "approval"}}}
		}
	})
	if _, body := w.modernOpens(greetAnn + back); !strings.Contains(body, "approval_denied") || strings.Contains(body, "hello") {
		t.Errorf("denied: %s", body)
	}
}

// TestWhoWaitsIsVerifiedAgain: an identity that ends while people think is nobody's when they have thought.
func TestWhoWaitsIsVerifiedAgain(t *testing.T) {
	p := newPeople()
	var ahead atomic.Int64
	w := deskWorld(t, true, func(c *mcp.Config) {
		c.Now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
		c.Answered = func(context.Context, remit.HoldID) { ahead.Store(int64(2 * time.Hour)); p.approve() }
	})
	w.set(func() { w.answer = p.answer })
	if status, body := w.modernOpens(greetAnn + w.held(t)); status != http.StatusUnauthorized || strings.Contains(body, "hello") {
		t.Errorf("%d %s", status, body)
	}
}

// TestWaitsForPeopleAreBounded: an agent cannot pile up calls that wait.
func TestWaitsForPeopleAreBounded(t *testing.T) {
	p := newPeople()
	entered := make(chan struct{}, 32)
	w := deskWorld(t, true, func(c *mcp.Config) {
		c.Answered = func(ctx context.Context, id remit.HoldID) { entered <- struct{}{}; p.answered(ctx, id) }
	})
	w.set(func() { w.answer = p.answer })
	back := w.held(t)
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() { w.modernOpens(greetAnn + back) })
	}
	for range 16 {
		<-entered
	}
	done := make(chan int, 1)
	go func() { status, _ := w.modernOpens(greetAnn + back); done <- status }()
	select {
	case status := <-done:
		if status != http.StatusTooManyRequests {
			t.Errorf("one more: %d", status)
		}
	case <-entered:
		t.Error("one more waits, too")
	}
	p.approve()
	wg.Wait()
}
