// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"remit/internal/api"
	"remit/internal/signal"
)

// failed notes that a delivery failed: in the server's log, for doctor and metrics, and, when it goes on, in the ledger.
func (s *Server) failed(ctx context.Context, r *receiver, sig *signal.Signal, err error) {
	now := s.now()
	status := refusalError(0)
	_ = errors.As(err, &status) // 0: it did not answer
	r.mu.Lock()
	t := &r.trouble
	if t.tries == 0 {
		t.since = now
	}
	t.tries++
	t.entry, t.why, t.status = sig.Seq, err.Error(), int(status)
	tell := t.tries >= signalStuck && (t.noted.IsZero() || now.Sub(t.noted) >= signalNoted)
	if tell {
		t.noted = now
	}
	tries, since := t.tries, t.since
	r.mu.Unlock()
	if !tell {
		s.log.Warn("a signal was not delivered", "receiver", r.cfg.Name, "entry", sig.Seq, "tries", tries, "err", err)
		return
	}
	s.log.Error("a receiver of signals takes nothing: it is tried again, and what comes after waits", "receiver", r.cfg.Name, "entry", sig.Seq,
		"tries", tries, "since", since, "err", err)
	s.recordSignal(ctx, sig, map[string]any{"finding": "signal_undelivered", "receiver": r.cfg.Name, "entry": sig.Seq, "answered": int(status)})
}

func (r *receiver) recovered() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.trouble = trouble{noted: r.trouble.noted}
}

// wrong is what is wrong with the receiver now; tries 0: nothing.
func (r *receiver) wrong() trouble {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.trouble
}

// checkSignals says which receivers are not told.
func (s *Server) checkSignals() api.Check {
	out := api.Check{Name: "signals", OK: true, Text: "no receiver is configured"}
	if len(s.receivers) > 0 {
		out.Text = fmt.Sprintf("%d receivers, all are told", len(s.receivers))
	}
	var bad []string
	for _, r := range s.receivers {
		t := r.wrong()
		if t.tries == 0 {
			continue
		}
		bad = append(bad, fmt.Sprintf("%s was not told of entry %d and what follows: %s (%d tries since %s)", r.cfg.Name, t.entry, t.why, t.tries, t.since.UTC().Format(time.RFC3339)))
		switch t.status {
		case http.StatusUnauthorized, http.StatusForbidden:
			out.Fix = "give the receiver's token or secret in remit.yaml anew, and restart"
		case http.StatusNotFound:
			out.Fix = "correct the receiver's url in remit.yaml, and restart"
		default:
			out.Fix = "nothing is lost: mend the receiver, or take it out of remit.yaml"
		}
	}
	if len(bad) > 0 {
		out.OK, out.Text = false, strings.Join(bad, "; ")
	}
	return out
}
