// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"crypto/subtle"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"remit"
	"remit/internal/behaviour"
	"remit/internal/telemetry"
)

// metrics counts what the ledger says since the process began, for Prometheus and OpenTelemetry. It reads behind what is durable: nothing waits for it.
type metrics struct {
	token remit.Secret

	mu     sync.Mutex // guards counts
	counts map[series]float64
}

// series is a name and its labels: words of Remit's own, so that their number is bounded.
type series struct {
	name   string
	labels [2]telemetry.Label
}

func labelled(name string, labels ...telemetry.Label) series {
	s := series{name: name}
	copy(s.labels[:], labels)
	return s
}

func label(name, value string) telemetry.Label { return telemetry.Label{Name: name, Value: value} }

// String is the series as the text format of Prometheus has it.
func (s series) String() string {
	var in []string
	for _, l := range s.labels {
		if l.Name != "" {
			in = append(in, fmt.Sprintf("%s=%q", l.Name, l.Value))
		}
	}
	if len(in) == 0 {
		return s.name
	}
	return s.name + "{" + strings.Join(in, ",") + "}"
}

func (s *Server) openMetrics() (err error) {
	s.metrics.counts = map[series]float64{}
	if s.cfg.Metrics.IsZero() {
		return nil
	}
	if s.metrics.token, err = s.cfg.Metrics.Resolve(); err != nil {
		return fmt.Errorf("metrics: token: %w", err)
	}
	if len(s.metrics.token.Reveal()) < 24 {
		return &remit.Error{Code: remit.CodeInvalid, Msg: "metrics: the token has fewer than 24 characters"}
	}
	return nil
}

// countEntries follows the ledger until ctx ends.
func (s *Server) countEntries(ctx context.Context) error {
	for seq := s.before; !s.metrics.token.IsZero() || s.telemetry != nil; {
		committed := s.store.Committed()
		entries, err := s.store.Entries(seq, followed)
		if err != nil {
			s.log.Warn("the ledger is not read for metrics; it is tried again", "err", err)
			if !sleep(ctx, time.Second) {
				return nil
			}
			continue
		}
		for _, e := range entries {
			s.metrics.count(e)
			seq = e.Seq
		}
		if len(entries) > 0 && ctx.Err() == nil {
			continue
		}
		select {
		case <-ctx.Done():
			return nil
		case <-committed:
		}
	}
	<-ctx.Done()
	return nil
}

// count takes one entry.
func (m *metrics) count(e remit.Entry) {
	var v struct {
		Data struct {
			Effect   string          `json:"effect"`
			Reasons  json.RawMessage `json:"reasons"`
			Count    float64         `json:"count"`
			Kind     string          `json:"kind"`
			Response string          `json:"response"`
			MS       float64         `json:"ms"`
		} `json:"data"`
	}
	kind := behaviour.KindOf(e.Body)
	switch kind {
	case remit.EventDecision, remit.EventFolded, remit.EventRaised, remit.EventSuspended:
		if json.Unmarshal(e.Body, &v) != nil {
			return
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.counts[labelled("remit_events_total", label("kind", string(kind)))]++
	switch kind {
	case remit.EventDecision:
		m.counts[labelled("remit_decisions_total", label("effect", v.Data.Effect))]++
		var reasons []struct{ Code remit.ReasonCode }
		if v.Data.Effect == "deny" && json.Unmarshal(v.Data.Reasons, &reasons) == nil && len(reasons) > 0 {
			m.counts[labelled("remit_denials_total", label("reason", string(reasons[0].Code)))]++
		}
	case remit.EventFolded:
		m.counts[labelled("remit_decisions_total", label("effect", "deny"))] += v.Data.Count
	case remit.EventRaised:
		m.counts[labelled("remit_findings_total", label("kind", v.Data.Kind), label("response", v.Data.Response))]++
	case remit.EventSuspended:
		m.counts[labelled("remit_suspension_seconds_sum")] += v.Data.MS / 1e3
		m.counts[labelled("remit_suspension_seconds_count")]++
	}
}

// metricsRoute serves them to who has the token. Without one in remit.yaml there is nothing.
func (s *Server) metricsRoute(mux *http.ServeMux) {
	if s.metrics.token.IsZero() {
		return
	}
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, r *http.Request) {
		given, bearer := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		//remit:guard S30 TestMetrics
		if !bearer || subtle.ConstantTimeCompare([]byte(given), []byte(s.metrics.token.Reveal())) != 1 {
			w.Header().Set("WWW-Authenticate", "Bearer")
			http.Error(w, "the token of metrics is needed", http.StatusUnauthorized)
			return
		}
		w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
		for _, line := range s.measured() {
			_, _ = fmt.Fprintln(w, line)
		}
	})
}

// series are all that is counted and measured at this moment.
func (s *Server) series() map[series]float64 {
	s.metrics.mu.Lock()
	now := maps.Clone(s.metrics.counts)
	s.metrics.mu.Unlock()
	st := s.status()
	now[labelled("remit_leases_live")], now[labelled("remit_runs_live")] = float64(len(s.store.LiveLeases(nil))), float64(len(s.store.LiveRuns()))
	now[labelled("remit_ledger_entries")], now[labelled("remit_ledger_unsequenced")] = float64(st.LedgerSize), float64(st.LedgerSize-min(st.LedgerSize, st.Sequenced))
	for _, r := range s.receivers {
		name := label("receiver", r.cfg.Name)
		if seq, ok, err := s.store.Followed(signalPrefix + r.cfg.Name); ok && err == nil {
			now[labelled("remit_signal_position", name)] = float64(seq)
		}
		now[labelled("remit_signal_failures", name)] = float64(r.wrong().tries)
	}
	if s.telemetry != nil {
		sent, lost := s.telemetry.Spans()
		now[labelled("remit_spans_total", label("outcome", "sent"))], now[labelled("remit_spans_total", label("outcome", "lost"))] = float64(sent), float64(lost)
	}
	return now
}

// family is what a series is called in the text format, and what kind it is: the two of a summary are one.
func (s series) family() (name, kind string) {
	name = strings.TrimSuffix(strings.TrimSuffix(s.name, "_sum"), "_count")
	switch {
	case strings.HasSuffix(s.name, "_total"):
		return name, "counter"
	case name != s.name:
		return name, "summary"
	}
	return name, "gauge"
}

// measured are the lines of the text format.
func (s *Server) measured() (out []string) {
	now, last := s.series(), ""
	for _, key := range slices.SortedFunc(maps.Keys(now), func(a, b series) int { return strings.Compare(a.String(), b.String()) }) {
		family, kind := key.family()
		if family != last {
			out, last = append(out, "# TYPE "+family+" "+kind), family
		}
		out = append(out, fmt.Sprintf("%s %g", key, now[key]))
	}
	return out
}

// figures are the same for OpenTelemetry, in no order.
func (s *Server) figures() (out []telemetry.Figure) {
	for key, value := range s.series() {
		_, kind := key.family()
		out = append(out, telemetry.Figure{Name: key.name, Labels: key.labels, Counter: kind != "gauge", Value: value})
	}
	return out
}
