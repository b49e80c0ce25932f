// SPDX-License-Identifier: Apache-2.0

// Package telemetrytest is a collector of OpenTelemetry for tests: it reads OTLP over HTTP by OpenTelemetry's own definition of it.
package telemetrytest

import (
	"compress/gzip"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	metrics "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
	traces "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	metric "go.opentelemetry.io/proto/otlp/metrics/v1"
	"google.golang.org/protobuf/proto"
)

// Span is one that was sent. IDs are hexadecimal.
type Span struct {
	Name, Trace, ID, Parent string
	Attributes              map[string]string
	Failed                  bool
}

// Collector takes what is sent until the test ends.
type Collector struct {
	*httptest.Server
	CA []byte // PEM

	mu      sync.Mutex // guards what follows
	spans   []Span
	figures map[string]float64
	raw     []byte
	wrong   []string
}

// Start starts one that wants the bearer token, unless that is empty.
func Start(t *testing.T, token string) *Collector {
	t.Helper()
	c := &Collector{figures: map[string]float64{}}
	c.Server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c.mu.Lock()
		defer c.mu.Unlock()
		if err := c.take(r, token); err != nil {
			c.wrong = append(c.wrong, err.Error())
			w.WriteHeader(http.StatusBadRequest)
		}
	}))
	c.CA = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Certificate().Raw})
	t.Cleanup(c.Close)
	return c
}

func (c *Collector) take(r *http.Request, token string) error {
	if token != "" && r.Header.Get("Authorization") != "Bearer "+token {
		return fmt.Errorf("%s: authorization %q", r.URL.Path, r.Header.Get("Authorization"))
	}
	in := io.Reader(r.Body)
	if r.Header.Get("Content-Encoding") == "gzip" {
		z, err := gzip.NewReader(r.Body)
		if err != nil {
			return err
		}
		in = z
	}
	body, err := io.ReadAll(in)
	if err != nil || r.Header.Get("Content-Type") != "application/x-protobuf" {
		return fmt.Errorf("%w, content type %q", err, r.Header.Get("Content-Type"))
	}
	c.raw = append(c.raw, body...)
	switch r.URL.Path {
	case "/v1/traces":
		return c.takeSpans(body)
	case "/v1/metrics":
		return c.takeFigures(body)
	}
	return fmt.Errorf("nothing is at %s", r.URL.Path)
}

func (c *Collector) takeSpans(body []byte) error {
	var in traces.ExportTraceServiceRequest
	if err := proto.Unmarshal(body, &in); err != nil {
		return err
	}
	for _, r := range in.ResourceSpans {
		for _, s := range r.ScopeSpans {
			for _, x := range s.Spans {
				if x.EndTimeUnixNano < x.StartTimeUnixNano || x.StartTimeUnixNano == 0 {
					return fmt.Errorf("span %s ends before it begins", x.Name)
				}
				c.spans = append(c.spans, Span{x.Name, hex.EncodeToString(x.TraceId), hex.EncodeToString(x.SpanId), hex.EncodeToString(x.ParentSpanId),
					texts(append(x.Attributes, r.Resource.Attributes...)), x.Status.GetCode() == 2})
			}
		}
	}
	return nil
}

func (c *Collector) takeFigures(body []byte) error {
	var in metrics.ExportMetricsServiceRequest
	if err := proto.Unmarshal(body, &in); err != nil {
		return err
	}
	for _, r := range in.ResourceMetrics {
		for _, s := range r.ScopeMetrics {
			for _, m := range s.Metrics {
				points := append(slices.Clone(m.GetSum().GetDataPoints()), m.GetGauge().GetDataPoints()...)
				if sum := m.GetSum(); sum != nil && (!sum.IsMonotonic || sum.AggregationTemporality != metric.AggregationTemporality_AGGREGATION_TEMPORALITY_CUMULATIVE) {
					return fmt.Errorf("%s is no counter", m.Name)
				}
				for _, p := range points {
					var labels []string
					for k, v := range texts(p.Attributes) {
						labels = append(labels, fmt.Sprintf("%s=%q", k, v))
					}
					slices.Sort(labels)
					c.figures[m.Name+"{"+strings.Join(labels, ",")+"}"] = p.GetAsDouble()
				}
			}
		}
	}
	return nil
}

func texts(in []*common.KeyValue) map[string]string {
	out := map[string]string{}
	for _, kv := range in {
		switch v := kv.Value.Value.(type) {
		case *common.AnyValue_StringValue:
			out[kv.Key] = v.StringValue
		case *common.AnyValue_IntValue:
			out[kv.Key] = fmt.Sprint(v.IntValue)
		}
	}
	return out
}

// Spans are those that came, in their order.
func (c *Collector) Spans() []Span {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.spans)
}

// Figure is the newest of a series, as NAME{LABEL="VALUE",…}.
func (c *Collector) Figure(series string) (float64, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	v, ok := c.figures[series]
	return v, ok
}

// Raw is all that came, and Wrong what was wrong with it.
func (c *Collector) Raw() (raw string, wrong []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return string(c.raw), slices.Clone(c.wrong)
}
