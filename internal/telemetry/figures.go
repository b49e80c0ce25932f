// SPDX-License-Identifier: Apache-2.0

package telemetry

import (
	"context"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/sdk/instrumentation"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
)

// Label is one of a figure's.
type Label struct{ Name, Value string }

// Figure is a number at a moment.
type Figure struct {
	Name    string
	Labels  [2]Label // an empty name ends them
	Counter bool     // it only grows, since the process began
	Value   float64
}

// sendFigures sends them every so often, and at the end. One delivery that fails is made up for by the next one: counters are cumulative.
func (t *Telemetry) sendFigures(ctx context.Context) {
	tick := time.NewTicker(t.cfg.Every)
	defer tick.Stop()
	for failed := false; ; {
		out, limit := ctx, sendLimit
		select {
		case <-tick.C:
		case <-ctx.Done():
			out, limit = context.WithoutCancel(ctx), lastLimit
		}
		over := ctx.Err() != nil
		out, cancel := context.WithTimeout(out, limit)
		err := t.metrics.Export(out, t.collected(time.Now()))
		cancel()
		if err != nil && !failed {
			t.cfg.Log.Warn("metrics were not taken; they are sent again with the next ones", "err", err)
		}
		if failed = err != nil; over {
			return
		}
	}
}

// collected are the figures as OpenTelemetry has them, those of one name together.
func (t *Telemetry) collected(now time.Time) *metricdata.ResourceMetrics {
	var all []metricdata.Metrics
	place := map[string]int{}
	for _, f := range t.cfg.Figures() {
		var labels []attribute.KeyValue
		for _, l := range f.Labels {
			if l.Name != "" {
				labels = append(labels, attribute.String(l.Name, l.Value))
			}
		}
		point := metricdata.DataPoint[float64]{Attributes: attribute.NewSet(labels...), StartTime: t.cfg.Started, Time: now, Value: f.Value}
		at, ok := place[f.Name]
		if !ok {
			at = len(all)
			place[f.Name] = at
			all = append(all, metricdata.Metrics{Name: f.Name})
		}
		m := &all[at]
		if !f.Counter {
			points, _ := m.Data.(metricdata.Gauge[float64])
			m.Data = metricdata.Gauge[float64]{DataPoints: append(points.DataPoints, point)}
			continue
		}
		points, _ := m.Data.(metricdata.Sum[float64])
		m.Data = metricdata.Sum[float64]{DataPoints: append(points.DataPoints, point), Temporality: metricdata.CumulativeTemporality, IsMonotonic: true}
	}
	return &metricdata.ResourceMetrics{Resource: t.about, ScopeMetrics: []metricdata.ScopeMetrics{{Scope: instrumentation.Scope{Name: scope, Version: t.cfg.Version}, Metrics: all}}}
}
