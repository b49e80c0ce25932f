// SPDX-License-Identifier: Apache-2.0

package server

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"

	"remit"
	"remit/internal/telemetry/telemetrytest"
)

// setUpTraced is a server that sends to a collector.
func setUpTraced(t *testing.T, url string, ca []byte) *fixture {
	t.Helper()
	dir := t.TempDir()
	for name, b := range map[string][]byte{"ca.pem": ca, "token": []byte("a-token-of-the-collector")} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return setUp(t, "# Who manages", fmt.Sprintf("telemetry: {url: %q, token: {file: %q}, ca: %q}\n# Who manages", url, filepath.Join(dir, "token"), filepath.Join(dir, "ca.pem")))
}

// spansOf waits for the first span of that name and those below it, by their names.
func spansOf(t *testing.T, c *telemetrytest.Collector, name, effect string) (top telemetrytest.Span, below map[string]telemetrytest.Span) {
	t.Helper()
	below = map[string]telemetrytest.Span{}
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		for _, s := range c.Spans() {
			if s.Name == name && s.Attributes["remit.effect"] == effect {
				top = s
			}
		}
		for _, s := range c.Spans() {
			if top.ID != "" && s.Parent == top.ID {
				below[s.Name] = s
			}
		}
		if top.ID != "" {
			return top, below
		}
	}
	t.Fatalf("no span %s with %s: %+v", name, effect, c.Spans())
	return top, below
}

// TestTraces: a request is a span of its caller's trace, with its parts, who asked for what, the answer, and where it stands in the ledger; the
// metrics are those of /metrics. No value, token or credential is among it.
func TestTraces(t *testing.T) {
	c := telemetrytest.Start(t, "a-token-of-the-collector")
	f := setUpTraced(t, c.URL, c.CA)
	withCRM(f, "")
	f.must("/v1/apply", nil, nil)
	r := f.startRun()
	w := f.agent("agent/deploy", f.shared()).enter(r)
	plain := w.http.Transport
	w.http.Transport = &headed{plain, "Traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"}
	g := w.ask("write")
	if g.Secret == "" {
		t.Fatalf("%+v", g)
	}
	top, below := spansOf(t, c, "grant", "allow")
	for key, want := range map[string]string{"remit.agent": "agent/deploy", "remit.run": string(r.ID), "remit.workflow": r.Workflow, "remit.action": "memory.write", "remit.grant": string(g.Grant),
		"remit.via": "token", "service.name": "remit"} {
		if top.Attributes[key] != want {
			t.Errorf("%s is %q, not %q", key, top.Attributes[key], want)
		}
	}
	if top.Trace != "0af7651916cd43dd8448eb211c80319c" || top.Parent != "b7ad6b7169203331" || top.Attributes["remit.ledger.entry"] == "" || top.Attributes["remit.decision"] == "" {
		t.Errorf("%+v", top)
	}
	for _, part := range []string{"evidence", "policy", "record", "mint"} {
		if s := below[part]; s.Trace != top.Trace || s.Failed {
			t.Errorf("%s: %+v", part, s)
		}
	}
	w.http.Transport = plain
	w = w.enter(f.supportRun())
	s, err := w.mcpClient("")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	const secret = "a-value-that-nobody-traces"
	if _, err := s.CallTool(t.Context(), &sdk.CallToolParams{Name: "look", Arguments: map[string]any{"app": secret},
		Meta: sdk.Meta{"traceparent": "00-1bf7651916cd43dd8448eb211c80319c-c7ad6b7169203331-01"}}); err != nil {
		t.Fatal(err)
	}
	if top, _ = spansOf(t, c, "decide", "deny"); top.Trace != "1bf7651916cd43dd8448eb211c80319c" || top.Attributes["remit.reason"] != string(remit.ReasonArgument) || top.Failed {
		t.Errorf("%+v", top)
	}
	f.restart() // which sends what is left
	if n, _ := c.Figure(`remit_decisions_total{effect="allow"}`); n != 1 {
		t.Errorf("%v allowed", n)
	}
	raw, wrong := c.Raw()
	for _, not := range []string{secret, g.Secret, w.token} {
		if strings.Contains(raw, not) {
			t.Errorf("%q is sent", not)
		}
	}
	if len(wrong) > 0 {
		t.Error(wrong)
	}
}

// TestCollectorHoldsUpNothing: decisions are as fast as ever while the collector hangs.
func TestCollectorHoldsUpNothing(t *testing.T) {
	hung := make(chan struct{})
	srv := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-hung }))
	t.Cleanup(func() { close(hung); srv.Close() })
	f := setUpTraced(t, srv.URL, pemOf(srv))
	w := f.agent("agent/deploy", f.shared()).enter(f.startRun())
	began := time.Now()
	for range 20 {
		if g := w.ask("write"); g.Secret == "" {
			t.Fatalf("%+v", g)
		}
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("20 grants took %s", took)
	}
}
