// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"remit"
	"remit/internal/api"
)

// flood has an agent ask for what it is denied over n connections until ctx ends, and counts the answers: denials, and what
// was beyond its quota.
func (f *fixture) flood(ctx context.Context, t *testing.T, n int) (denied, refused *atomic.Int64, wait func()) {
	t.Helper()
	denied, refused = &atomic.Int64{}, &atomic.Int64{}
	var wg sync.WaitGroup
	for range n {
		w := f.agent("agent/other", f.shared()) // a connection of its own
		wg.Go(func() {
			for ctx.Err() == nil {
				switch g := w.ask("write"); {
				case g.Secret != "":
					t.Errorf("the flooder was given %+v", g)
				case g.Error == "slow_down":
					refused.Add(1)
				default:
					denied.Add(1)
				}
			}
		})
	}
	return denied, refused, wg.Wait
}

// TestFloodIsFolded: an agent that asks for what it is denied leaves some events on record, not one an answer, and their counts
// add up. Revocation and the other agent's work go on meanwhile.
func TestFloodIsFolded(t *testing.T) {
	f := setUp(t)
	r := f.startRun()
	w := f.agent("agent/deploy", f.shared()).enter(r)
	g := w.ask("write")
	if g.Secret == "" {
		t.Fatal("no credential")
	}
	before := f.events(remit.EventDecision)
	ctx, cancel := context.WithCancel(t.Context())
	denied, _, wait := f.flood(ctx, t, 4)
	for end := time.Now().Add(30 * time.Second); denied.Load() < 300 && time.Now().Before(end); time.Sleep(time.Millisecond) {
	}
	f.must("/v1/grants/"+string(g.Grant)+"/revoke", api.Reasoned{Reason: "flood"}, nil)
	if n := f.backend.count(); n != 0 {
		t.Errorf("under the flood, %d leases stand after their revocation", n)
	}
	if g := w.ask("write"); g.Secret == "" {
		t.Errorf("under the flood, another agent gets %+v", g)
	}
	cancel()
	wait()
	f.srv.recordFolded(context.Background(), true)
	answered := denied.Load()
	if n := f.events(remit.EventDecision) - before; n < 2 || int64(n) > answered/4 {
		t.Errorf("%d decisions are on record of %d denials", n, answered)
	}
	if counted := f.folded(t); int64(counted) > answered || counted == 0 {
		t.Errorf("%d denials counted as folded of %d", counted, answered)
	}
	t.Logf("%d denials: %d decisions on record, %d folded", answered, f.events(remit.EventDecision)-before, f.folded(t))
}

// allowed asks for a decision as an agent does for itself.
func (w *workload) allowed() bool {
	body, _ := json.Marshal(map[string]any{"subject": map[string]any{"type": "agent", "id": w.svid.ID.String()}, "action": map[string]any{"name": "memory.write"},
		"resource": map[string]any{"type": "memory", "id": "cluster", "properties": map[string]any{"app": "foo"}}, "context": map[string]any{"run_token": w.token}})
	var out struct{ Decision bool }
	w.call("/access/v1/evaluation", "application/json", strings.NewReader(string(body)), &out)
	return out.Decision
}

// folded sums what the ledger says about folded denials.
func (f *fixture) folded(t *testing.T) (sum uint64) {
	t.Helper()
	entries, err := f.srv.store.Entries(0, 100000)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !strings.Contains(string(e.Body), `"kind":"decision.folded"`) {
			continue
		}
		var x struct{ Data struct{ Count uint64 } }
		if err := json.Unmarshal(e.Open().Body, &x); err != nil {
			t.Fatal(err)
		}
		sum += x.Data.Count
	}
	return sum
}

// TestStrangersWriteNothing: calls that nobody proved an identity for leave no event (S35).
func TestStrangersWriteNothing(t *testing.T) {
	f := setUp(t)
	w := f.agent("agent/deploy", f.shared())
	stranger := workload{f: f, svid: w.svid, http: &http.Client{Timeout: 10 * time.Second,
		Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}} //nolint:gosec // it has no reason to trust us
	before := f.srv.store.LastSeq()
	for _, path := range []string{"/oauth2/token", "/oauth2/revoke", "/access/v1/evaluation", "/access/v1/evaluations", "/v1/runs",
		"/v1/runs/run-x/advance", "/kubernetes/cluster/audit", "/kubernetes/cluster/authorize", "/nothing"} {
		for _, kind := range []string{"application/json", "application/x-www-form-urlencoded"} {
			if status := stranger.call(path, kind, strings.NewReader("grant_type=client_credentials&client_id=x"), nil); status < 400 {
				t.Errorf("%s: %d", path, status)
			}
		}
	}
	if n := f.srv.store.LastSeq() - before; n != 0 {
		t.Errorf("strangers wrote %d events", n)
	}
}

// TestFloodLeavesOthersFast compares an agent's p99 alone with its p99 beside a flooder. On a machine that others use, too, the
// figures are worth little: it demands that every answer comes, and not ten times as late. make bench measures against the target.
func TestFloodLeavesOthersFast(t *testing.T) {
	if testing.Short() {
		t.Skip("SHORT=1 leaves out some seconds of flooding")
	}
	f := setUp(t)
	w := f.agent("agent/deploy", f.shared()).enter(f.startRun())
	p99 := func() time.Duration {
		took := make([]time.Duration, 400)
		for i := range took {
			began := time.Now()
			if !w.allowed() {
				t.Fatal("denied")
			}
			took[i] = time.Since(began)
		}
		slices.Sort(took)
		return took[len(took)*99/100]
	}
	p99() // warm
	alone := p99()
	ctx, cancel := context.WithCancel(t.Context())
	denied, refused, wait := f.flood(ctx, t, 16)
	for end := time.Now().Add(time.Minute); refused.Load() == 0 && time.Now().Before(end); time.Sleep(time.Millisecond) {
	}
	began, first := time.Now(), denied.Load()+refused.Load()
	beside := p99()
	rate := float64(denied.Load()+refused.Load()-first) / time.Since(began).Seconds()
	cancel()
	wait()
	ratio := float64(beside) / float64(alone)
	t.Logf("p99 alone %s, beside a flooder of %.0f requests/s %s: %.1fx", alone, rate, beside, ratio)
	if ratio > 10 && beside > 100*time.Millisecond {
		t.Errorf("p99 grew %.1fx", ratio)
	}
}
