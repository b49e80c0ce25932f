// SPDX-License-Identifier: Apache-2.0

package mcp_test

import (
	"context"
	"crypto/tls"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"

	"remit"
	"remit/internal/gateway"
	"remit/internal/gateway/gatewaytest"
	"remit/internal/gateway/mcp"
)

const base = "https://remit.company.com"

// world is a gateway in front of real servers, with a stage that is a table.
type world struct {
	*gatewaytest.World
	t       testing.TB
	handler *mcp.Handler
	url     string
	run     remit.RunID

	mu      sync.Mutex
	view    mcp.View
	why     []remit.Reason // why nothing is visible
	answer  func(*remit.Request) remit.Decision
	asked   []remit.Request
	acts    []remit.Outcome
	servers map[remit.Name]*mcp.Server
	pins    map[remit.Name]*mcp.Pins
	opened  int

	remembers bool  // first lists
	forgets   error // why they cannot be

	as  string // who the next request is from
	txn string
}

func newWorld(t testing.TB, change ...func(*mcp.Config)) *world {
	w := &world{World: gatewaytest.New(t, "company.com", base), t: t, run: remit.NewRunID(), servers: map[remit.Name]*mcp.Server{},
		pins: map[remit.Name]*mcp.Pins{}, as: "/agent/support", txn: "rt",
		view: mcp.View{Stage: "work", Call: map[string]bool{}, List: map[string]bool{}}}
	w.Agents[w.ID("/agent/support")], w.Agents[w.ID("/agent/other")] = "agent/support", "agent/other"
	w.Runs["rt"] = gatewaytest.Run{ID: w.run, Agent: w.ID("/agent/support")}
	w.Runs["other"] = gatewaytest.Run{ID: remit.NewRunID(), Agent: w.ID("/agent/other")}
	cfg := mcp.Config{Base: base, Line: w, Authenticator: w.World, RunTokens: w.World, Directory: w.World, Stages: w, Tools: w}
	for _, c := range change {
		c(&cfg)
	}
	h, err := mcp.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	w.handler = h
	mux := http.NewServeMux()
	h.Register(mux)
	certs := map[string]*tls.Certificate{}
	srv := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		w.mu.Lock()
		as, txn := w.as, w.txn
		if certs[as] == nil && as != "" {
			c := w.SVID(w.ID(as))
			certs[as] = &c
		}
		cert := certs[as]
		w.mu.Unlock()
		if as != "" {
			r.TLS = gatewaytest.State(*cert)
		}
		if r.Header.Get("Authorization") == "" && txn != "" && r.Header.Get("Txn-Token") == "" {
			r.Header.Set("Txn-Token", txn)
		}
		mux.ServeHTTP(rw, r)
	}))
	w.url = srv.URL
	t.Cleanup(func() { h.Close(); srv.CloseClientConnections(); srv.Close() })
	return w
}

// Decide implements mcp.Line: what the stage may call is allowed, unless the test says otherwise.
func (w *world) Decide(_ context.Context, req *remit.Request) (remit.Decision, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.asked = append(w.asked, *req)
	d := remit.Decision{ID: remit.NewDecisionID(), At: req.At, Agent: req.Agent, Run: req.Run, Action: req.Action, Target: req.Target, Args: req.Args}
	switch {
	case len(req.Refused) > 0:
		d.Reasons = req.Refused
	case req.Run == "":
		d.Reasons = []remit.Reason{{Code: remit.ReasonNoRun}}
	case w.answer != nil:
		a := w.answer(req)
		d.Effect, d.Reasons, d.Hold, d.Until = a.Effect, a.Reasons, a.Hold, a.Until
	case req.Action == "mcp.call" && w.view.Call[req.Target], req.Action != "mcp.call" && w.view.List[req.Target]:
		d.Effect = remit.Allow
	default:
		d.Reasons = []remit.Reason{{Code: remit.ReasonNoPermission, Of: req.Action + " " + req.Target, Want: "hidden"}}
	}
	return d, nil
}

// Executed implements mcp.Line.
func (w *world) Executed(_ context.Context, acts []remit.Outcome) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.acts = append(w.acts, acts...)
	return nil
}

// Visible implements mcp.Stages.
func (w *world) Visible(req *remit.Request) (mcp.View, []remit.Reason) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case len(req.Refused) > 0:
		return mcp.View{}, req.Refused
	case req.Run == "":
		return mcp.View{}, []remit.Reason{{Code: remit.ReasonNoRun}}
	case req.Agent != "agent/support":
		return mcp.View{Stage: "work"}, nil
	}
	return mcp.View{Stage: w.view.Stage, Call: maps.Clone(w.view.Call), List: maps.Clone(w.view.List)}, w.why
}

// Open implements mcp.Tools.
func (w *world) Open(_ context.Context, c mcp.Claim) (*mcp.Server, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.opened++
	s, ok := w.servers[c.Tool]
	if !ok || c.Run != w.run || c.Stage != "work" {
		return nil, &remit.Error{Code: remit.CodeNotFound, Msg: "no such server"}
	}
	return s, nil
}

// Pins implements mcp.Tools.
func (w *world) Pins(tool remit.Name) *mcp.Pins {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.pins[tool]
}

// First implements mcp.Tools: it remembers where a test says so, else each list is the first.
func (w *world) First(_ context.Context, tool remit.Name, s *mcp.Server, now *mcp.Pins) (*mcp.Pins, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.forgets != nil {
		return nil, w.forgets
	}
	if w.remembers && w.pins[tool] == nil {
		w.pins[tool] = now
	}
	if p := w.pins[tool]; p != nil {
		return p, nil
	}
	return now, nil
}

func (w *world) last() remit.Request {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.asked) == 0 {
		w.t.Fatal("the line was not asked")
	}
	return w.asked[len(w.asked)-1]
}

func (w *world) set(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
}

// serveHTTP puts a server behind the gateway over Streamable HTTP.
func (w *world) serveHTTP(name string, s *sdk.Server, stateless bool) *http.Server {
	h := sdk.NewStreamableHTTPHandler(func(*http.Request) *sdk.Server { return s }, &sdk.StreamableHTTPOptions{Stateless: stateless, PropagateRequestCancellation: true})
	srv := httptest.NewServer(h)
	w.t.Cleanup(func() { srv.CloseClientConnections(); srv.Close() })
	w.at(name, srv.URL)
	return srv.Config
}

func (w *world) at(name, url string) {
	w.set(func() {
		w.servers[remit.Name("tool/"+name)] = &mcp.Server{ID: url, URL: url, HTTP: &http.Client{
			Transport:     &http.Transport{MaxIdleConnsPerHost: 64},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}}
	})
}

// servePipe puts a server behind the gateway over a pipe.
func (w *world) servePipe(name string, s *sdk.Server) {
	ours, theirs := net.Pipe()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Run(ctx, &sdk.IOTransport{Reader: theirs, Writer: theirs})
	}()
	w.t.Cleanup(func() { cancel(); _ = ours.Close(); _ = theirs.Close(); <-done })
	w.set(func() {
		w.servers[remit.Name("tool/"+name)] = &mcp.Server{ID: "pipe-" + name, Pipe: func() (mcp.Pipe, error) { return ours, nil }}
	})
}

// client is a real client of the gateway, of the newest session era or of the stateless one.
func (w *world) client(path string, stateless bool, o *sdk.ClientOptions) *sdk.ClientSession {
	w.t.Helper()
	c := sdk.NewClient(&sdk.Implementation{Name: "test", Version: "1"}, o)
	so := &sdk.ClientSessionOptions{ProtocolVersion: "2025-11-25"}
	if stateless {
		so.ProtocolVersion = "2026-07-28"
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	s, err := c.Connect(ctx, &sdk.StreamableClientTransport{Endpoint: w.url + path}, so)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = s.Close() })
	return s
}

func text(r *sdk.CallToolResult) string {
	var b strings.Builder
	for _, c := range r.Content {
		if t, ok := c.(*sdk.TextContent); ok {
			b.WriteString(t.Text)
		}
	}
	return b.String()
}

var _ gateway.Directory = (*gatewaytest.World)(nil)

func allow(*remit.Request) remit.Decision { return remit.Decision{Effect: remit.Allow} }
