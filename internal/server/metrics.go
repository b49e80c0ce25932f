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
	"remit/internal/store"
)

// metrics counts what the ledger says since the process began, for Prometheus. It reads behind what is durable: nothing waits for it.
type metrics struct {
	token remit.Secret

	mu     sync.Mutex         // guards counts
	counts map[string]float64 // by name and labels; labels are words of Remit's own, so that their number is bounded
}

func (s *Server) openMetrics() (err error) {
	s.metrics.counts = map[string]float64{}
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
	for seq := s.before; !s.metrics.token.IsZero(); {
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
	m.counts[fmt.Sprintf("remit_events_total{kind=%q}", kind)]++
	switch kind {
	case remit.EventDecision:
		m.counts[fmt.Sprintf("remit_decisions_total{effect=%q}", v.Data.Effect)]++
		var reasons []struct{ Code remit.ReasonCode }
		if v.Data.Effect == "deny" && json.Unmarshal(v.Data.Reasons, &reasons) == nil && len(reasons) > 0 {
			m.counts[fmt.Sprintf("remit_denials_total{reason=%q}", reasons[0].Code)]++
		}
	case remit.EventFolded:
		m.counts[`remit_decisions_total{effect="deny"}`] += v.Data.Count
	case remit.EventRaised:
		m.counts[fmt.Sprintf("remit_findings_total{kind=%q,response=%q}", v.Data.Kind, v.Data.Response)]++
	case remit.EventSuspended:
		m.counts["remit_suspension_seconds_sum"] += v.Data.MS / 1e3
		m.counts["remit_suspension_seconds_count"]++
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

// measured are the lines of the text format.
func (s *Server) measured() (out []string) {
	s.metrics.mu.Lock()
	now := maps.Clone(s.metrics.counts)
	s.metrics.mu.Unlock()
	st := s.status()
	now["remit_leases_live"], now["remit_runs_live"] = float64(len(s.store.Leases(store.LeaseFilter{}))), float64(len(s.store.LiveRuns()))
	now["remit_ledger_entries"], now["remit_ledger_unsequenced"] = float64(st.LedgerSize), float64(st.LedgerSize-min(st.LedgerSize, st.Sequenced))
	for _, r := range s.receivers {
		if seq, ok, err := s.store.Followed(signalPrefix + r.cfg.Name); ok && err == nil {
			now[fmt.Sprintf("remit_signal_position{receiver=%q}", r.cfg.Name)] = float64(seq)
		}
		now[fmt.Sprintf("remit_signal_failures{receiver=%q}", r.cfg.Name)] = float64(r.wrong().tries)
	}
	last := ""
	for _, key := range slices.Sorted(maps.Keys(now)) {
		name, _, _ := strings.Cut(key, "{")
		family := strings.TrimSuffix(strings.TrimSuffix(name, "_sum"), "_count")
		if family != last {
			kind := "gauge"
			if strings.HasSuffix(name, "_total") {
				kind = "counter"
			} else if family != name {
				kind = "summary"
			}
			out, last = append(out, "# TYPE "+family+" "+kind), family
		}
		out = append(out, fmt.Sprintf("%s %g", key, now[key]))
	}
	return out
}
