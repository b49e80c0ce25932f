// SPDX-License-Identifier: Apache-2.0

package telemetry_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"remit"
	"remit/internal/telemetry"
	"remit/internal/telemetry/telemetrytest"
)

func clientOf(cert *x509.Certificate) *http.Client {
	roots := x509.NewCertPool()
	roots.AddCert(cert)
	return &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots}}}
}

// begin starts one that sends to a collector; stop ends it and waits.
func begin(t *testing.T, srv *httptest.Server, oneIn int) (tel *telemetry.Telemetry, stop func()) {
	t.Helper()
	tel, err := telemetry.New(t.Context(), telemetry.Config{URL: srv.URL, Token: remit.NewSecret("a-token"), Client: clientOf(srv.Certificate()), OneIn: oneIn, Every: 20 * time.Millisecond,
		Figures: func() []telemetry.Figure {
			return []telemetry.Figure{{Name: "x_total", Labels: [2]telemetry.Label{{Name: "kind", Value: "a"}}, Counter: true, Value: 3},
				{Name: "x_total", Labels: [2]telemetry.Label{{Name: "kind", Value: "b"}}, Counter: true, Value: 4}, {Name: "y", Value: 5}}
		}, Started: time.Now(), Version: "1", TrustDomain: "company.com", Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); _ = tel.Run(ctx) }()
	return tel, func() { cancel(); <-done }
}

// TestSpansAndFigures: a request is a span of the caller's trace, its parts are spans below it, and figures are sums and gauges.
func TestSpansAndFigures(t *testing.T) {
	c := telemetrytest.Start(t, "a-token")
	tel, stop := begin(t, c.Server, 1)
	ctx, request := tel.Request(t.Context(), "decide", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00")
	_, part := telemetry.Part(ctx, "record")
	part.End(true)
	request.Set("remit.agent", "agent/a")
	request.Set("remit.long", strings.Repeat("x", 1000))
	request.SetNumber("remit.ledger.entry", 7)
	request.End(false)
	stop()
	spans := c.Spans()
	if len(spans) != 2 || spans[0].Name != "record" || !spans[0].Failed || spans[0].Parent != spans[1].ID || spans[1].Failed {
		t.Fatalf("%+v", spans)
	}
	if s := spans[1]; s.Trace != "0af7651916cd43dd8448eb211c80319c" || s.Parent != "b7ad6b7169203331" || s.Attributes["remit.agent"] != "agent/a" || s.Attributes["remit.ledger.entry"] != "7" ||
		len(s.Attributes["remit.long"]) != 256 || s.Attributes["service.name"] != "remit" {
		t.Errorf("%+v", s)
	}
	for series, want := range map[string]float64{`x_total{kind="a"}`: 3, `x_total{kind="b"}`: 4, `y{}`: 5} {
		if got, _ := c.Figure(series); got != want {
			t.Errorf("%s is %v", series, got)
		}
	}
	if sent, lost := tel.Spans(); sent != 2 || lost != 0 {
		t.Errorf("%d sent, %d lost", sent, lost)
	}
	if _, wrong := c.Raw(); len(wrong) > 0 {
		t.Error(wrong)
	}
}

// TestCallersDoNotSample: a caller neither hides by his traceparent nor makes everything be traced.
func TestCallersDoNotSample(t *testing.T) {
	c := telemetrytest.Start(t, "a-token")
	for flag := range 2 {
		all, stop := begin(t, c.Server, 1)
		few, stopFew := begin(t, c.Server, 1<<40)
		for i := range 50 {
			parent := fmt.Sprintf("00-%032x-%016x-%02x", i+1, i+1, flag)
			ctx, s := all.Request(t.Context(), "all", parent)
			if _, part := telemetry.Part(ctx, "part"); !s.Wanted() || !part.Wanted() {
				t.Errorf("%s is not traced", parent)
			}
			if _, s := few.Request(t.Context(), "few", parent); s.Wanted() {
				t.Errorf("%s is traced", parent)
			}
		}
		stop()
		stopFew()
	}
	tel, stop := begin(t, c.Server, 1)
	defer stop()
	for _, bad := range []string{"x", "00-0-0-0", "00-" + strings.Repeat("0", 32) + "-b7ad6b7169203331-01", strings.Repeat("a", 1<<16)} {
		if _, s := tel.Request(t.Context(), "bad", bad); !s.Wanted() {
			t.Errorf("%.40s: not traced", bad)
		}
	}
}

// TestCollectorThatHangs: nothing waits for it, what is kept is bounded, and what is lost is counted; ending does not wait for it either.
func TestCollectorThatHangs(t *testing.T) {
	hung := make(chan struct{})
	srv := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-hung }))
	defer srv.Close()
	defer close(hung)
	tel, stop := begin(t, srv, 1)
	const many = 20000
	began := time.Now()
	for range many {
		_, s := tel.Request(t.Context(), "decide", "")
		s.End(false)
	}
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("%d spans took %s", many, took)
	}
	if _, lost := tel.Spans(); lost < many-2*4096 {
		t.Errorf("%d are lost", lost)
	}
	began = time.Now()
	stop()
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("ending took %s", took)
	}
	if sent, lost := tel.Spans(); sent != 0 || lost != many {
		t.Errorf("%d sent, %d lost", sent, lost)
	}
}

// TestCollectorRedirects: what is sent goes to no other place.
func TestCollectorRedirects(t *testing.T) {
	elsewhere := telemetrytest.Start(t, "")
	srv := httptest.NewTLSServer(http.RedirectHandler(elsewhere.URL+"/v1/traces", http.StatusTemporaryRedirect))
	defer srv.Close()
	tel, stop := begin(t, srv, 1)
	_, s := tel.Request(t.Context(), "decide", "")
	s.End(false)
	stop()
	if raw, _ := elsewhere.Raw(); raw != "" {
		t.Error("a redirect was followed")
	}
	if sent, lost := tel.Spans(); sent != 0 || lost != 1 {
		t.Errorf("%d sent, %d lost", sent, lost)
	}
}

// TestNoCollectorCostsNothing: without one, a span is nothing.
func TestNoCollectorCostsNothing(t *testing.T) {
	var tel *telemetry.Telemetry
	ctx := t.Context()
	if n := testing.AllocsPerRun(100, func() {
		ctx, s := tel.Request(ctx, "decide", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
		s.Set("remit.agent", "agent/a")
		_, part := telemetry.Part(ctx, "record")
		part.End(false)
		s.End(false)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
