// SPDX-License-Identifier: Apache-2.0

// Package telemetry sends traces and metrics to an OpenTelemetry collector, by OTLP over HTTP. What cannot be sent is dropped and
// counted: a collector that is dead or hangs holds up nothing. It holds no value and no secret; who makes spans says names only. Its
// one goroutine is Run.
package telemetry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlpmetric/otlpmetrichttp"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"remit"
)

// What is sent at a time, and waits to be.
const (
	sendLimit  = 5 * time.Second // for one delivery
	lastLimit  = 2 * time.Second // for what is left at the end
	sendEvery  = time.Second     // spans wait so long for others
	batchSpans = 256
	waitSpans  = 4096
	textLimit  = 256 // bytes of one attribute
)

// Config is where to, and what of.
type Config struct {
	URL    string       // of the collector; /v1/traces and /v1/metrics are appended
	Token  remit.Secret // a bearer token that it asks for; zero: none
	Client *http.Client
	OneIn  int // one request in so many is traced
	Every  time.Duration
	// Figures are the metrics at a moment; called every Every, by Run alone.
	Figures     func() []Figure
	Started     time.Time // since when counters count
	Version     string    // of Remit
	TrustDomain string
	Log         *slog.Logger
}

// Telemetry makes spans, and sends them. It is safe for concurrent use.
type Telemetry struct {
	cfg     Config
	tracer  trace.Tracer
	spans   queue
	metrics metric.Exporter
	about   *resource.Resource
}

const scope = "remit"

// New connects to nothing yet.
func New(ctx context.Context, cfg Config) (*Telemetry, error) {
	if cfg.OneIn < 1 || cfg.Every <= 0 || cfg.Client == nil {
		return nil, errors.New("telemetry: one in 1 or more, a client and an interval are needed")
	}
	headers := map[string]string{}
	if !cfg.Token.IsZero() {
		headers["Authorization"] = "Bearer " + cfg.Token.Reveal()
	}
	client := *cfg.Client
	client.Timeout = sendLimit
	// What is sent, and the token, goes to no place that nobody configured.
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	spans, err := otlptracehttp.New(ctx, otlptracehttp.WithEndpointURL(cfg.URL+"/v1/traces"), otlptracehttp.WithHTTPClient(&client), otlptracehttp.WithHeaders(headers),
		otlptracehttp.WithTimeout(sendLimit), otlptracehttp.WithRetry(otlptracehttp.RetryConfig{}))
	if err != nil {
		return nil, fmt.Errorf("telemetry: %w", err)
	}
	metrics, err := otlpmetrichttp.New(ctx, otlpmetrichttp.WithEndpointURL(cfg.URL+"/v1/metrics"), otlpmetrichttp.WithHTTPClient(&client), otlpmetrichttp.WithHeaders(headers),
		otlpmetrichttp.WithTimeout(sendLimit), otlpmetrichttp.WithRetry(otlpmetrichttp.RetryConfig{}))
	if err != nil {
		return nil, fmt.Errorf("telemetry: %w", err)
	}
	t := &Telemetry{cfg: cfg, metrics: metrics, spans: queue{to: spans, log: cfg.Log, waiting: make(chan sdktrace.ReadOnlySpan, waitSpans)},
		about: resource.NewSchemaless(attribute.String("service.name", "remit"), attribute.String("service.version", cfg.Version), attribute.String("service.namespace", cfg.TrustDomain))}
	limits := sdktrace.NewSpanLimits()
	limits.AttributeValueLengthLimit, limits.AttributeCountLimit = textLimit, 32
	t.tracer = sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(&t.spans), sdktrace.WithSampler(sampler(cfg.OneIn)), sdktrace.WithResource(t.about),
		sdktrace.WithRawSpanLimits(limits)).Tracer(scope, trace.WithInstrumentationVersion(cfg.Version))
	return t, nil
}

// Run sends until ctx ends, and then once more what is left, within two seconds.
func (t *Telemetry) Run(ctx context.Context) error {
	done := make(chan struct{})
	go func() {
		defer close(done)
		t.sendFigures(ctx)
	}()
	t.spans.run(ctx)
	<-done
	return nil
}

// Spans are how many spans the collector took, and how many it never will.
func (t *Telemetry) Spans() (sent, lost uint64) { return t.spans.sent.Load(), t.spans.lost.Load() }

// sampler traces one request in so many, whatever its caller says: a caller could hide from it, or make it costly, if his sampling decision or
// his trace's number counted. What happens within a request follows it.
type sampler uint64

// ShouldSample implements sdktrace.Sampler.
func (n sampler) ShouldSample(p sdktrace.SamplingParameters) sdktrace.SamplingResult {
	parent := trace.SpanContextFromContext(p.ParentContext)
	yes := parent.IsSampled()
	//remit:guard S35 TestCallersDoNotSample
	if !parent.IsValid() || parent.IsRemote() {
		yes = rand.Uint64N(uint64(n)) == 0
	}
	if yes {
		return sdktrace.SamplingResult{Decision: sdktrace.RecordAndSample}
	}
	return sdktrace.SamplingResult{Decision: sdktrace.Drop}
}

// Description implements sdktrace.Sampler.
func (n sampler) Description() string { return fmt.Sprintf("one request in %d", uint64(n)) }

// queue holds spans until they are sent. It has its own count of what is dropped, which the SDK's batch processor tells nobody.
type queue struct {
	to      sdktrace.SpanExporter
	log     *slog.Logger
	waiting chan sdktrace.ReadOnlySpan

	sent, lost atomic.Uint64
	failed     bool // the last delivery; of run
}

// OnStart implements sdktrace.SpanProcessor.
func (*queue) OnStart(context.Context, sdktrace.ReadWriteSpan) {}

// OnEnd implements sdktrace.SpanProcessor. It never waits.
func (q *queue) OnEnd(s sdktrace.ReadOnlySpan) {
	select {
	case q.waiting <- s:
	default:
		q.lost.Add(1)
	}
}

// Shutdown implements sdktrace.SpanProcessor.
func (*queue) Shutdown(context.Context) error { return nil }

// ForceFlush implements sdktrace.SpanProcessor.
func (*queue) ForceFlush(context.Context) error { return nil }

func (q *queue) run(ctx context.Context) {
	tick := time.NewTicker(sendEvery)
	defer tick.Stop()
	var batch []sdktrace.ReadOnlySpan
	for {
		select {
		case s := <-q.waiting:
			if batch = append(batch, s); len(batch) < batchSpans {
				continue
			}
		case <-tick.C:
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastLimit)
			defer cancel()
			for len(q.waiting) > 0 {
				batch = append(batch, <-q.waiting)
			}
			q.send(last, batch)
			return
		}
		q.send(ctx, batch)
		batch = nil
	}
}

func (q *queue) send(ctx context.Context, batch []sdktrace.ReadOnlySpan) {
	if len(batch) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, sendLimit)
	defer cancel()
	err := q.to.ExportSpans(ctx, batch)
	if err != nil && !q.failed {
		q.log.Warn("spans are not taken, and are dropped", "err", err)
	}
	if q.failed = err != nil; q.failed {
		q.lost.Add(uint64(len(batch)))
		return
	}
	q.sent.Add(uint64(len(batch)))
}

// Span is a part of a request. The zero value is one that nobody wants.
type Span struct{ span trace.Span }

// Request begins a span for a request that came in; ctx, and traceparent where it is not empty, say of which other it is a part (W3C Trace
// Context): what is in them decides nothing, and what is wrong in them is nothing. A nil Telemetry makes none.
func (t *Telemetry) Request(ctx context.Context, name, traceparent string) (context.Context, Span) {
	if t == nil {
		return ctx, Span{}
	}
	if traceparent != "" {
		ctx = withParent(ctx, traceparent)
	}
	ctx, span := t.tracer.Start(ctx, name, trace.WithSpanKind(trace.SpanKindServer))
	return ctx, Span{span}
}

// Part begins a span for a part of the request that ctx is of.
func Part(ctx context.Context, name string) (context.Context, Span) {
	parent := trace.SpanFromContext(ctx)
	if !parent.IsRecording() {
		return ctx, Span{}
	}
	ctx, span := parent.TracerProvider().Tracer(scope).Start(ctx, name)
	return ctx, Span{span}
}

// Wanted reports whether anybody will see the span.
func (s Span) Wanted() bool { return s.span != nil && s.span.IsRecording() }

// Set says something by a name or number of Remit's own; an empty text says nothing.
func (s Span) Set(key, value string) {
	if s.Wanted() && value != "" {
		s.span.SetAttributes(attribute.String(key, value))
	}
}

// SetNumber says a number.
func (s Span) SetNumber(key string, value uint64) {
	if s.Wanted() {
		s.span.SetAttributes(attribute.Int64(key, int64(value))) //nolint:gosec // a number in the ledger
	}
}

// End ends it. Failed says that there was no answer: a denial is one.
func (s Span) End(failed bool) {
	if s.span == nil {
		return
	}
	if failed {
		s.span.SetStatus(codes.Error, "")
	}
	s.span.End()
}

// Handler takes the parent of requests from the header traceparent. tracestate, which is free text, is not read.
func Handler(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if given := r.Header.Get("Traceparent"); given != "" {
			r = r.WithContext(withParent(r.Context(), given))
		}
		next.ServeHTTP(w, r)
	})
}

func withParent(ctx context.Context, traceparent string) context.Context {
	return propagation.TraceContext{}.Extract(ctx, propagation.MapCarrier{"traceparent": traceparent})
}
