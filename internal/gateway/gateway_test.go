// SPDX-License-Identifier: Apache-2.0

package gateway_test

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"remit"
	"remit/internal/gateway"
	"remit/internal/gateway/gatewaytest"
)

func TestCallerIsVerifiedOncePerConnectionAndRecheck(t *testing.T) {
	w := gatewaytest.New(t, "company.com", "")
	id := w.ID("/agent/deploy")
	r := httptest.NewRequest(http.MethodPost, "/", nil)
	r = r.WithContext(gateway.Connection(context.Background(), nil))
	r.TLS = gatewaytest.State(w.SVID(id))
	now := time.Now()
	ask := func(at time.Time) error {
		p, err := gateway.Caller(r, w, at)
		if err == nil && p.ID != id {
			t.Fatalf("caller is %s", p)
		}
		return err
	}
	for range 10 {
		if err := ask(now); err != nil {
			t.Fatal(err)
		}
	}
	if n := w.Verified.Load(); n != 1 {
		t.Errorf("verified %d times for ten requests", n)
	}
	if err := ask(now.Add(gateway.Recheck)); err != nil || w.Verified.Load() != 2 {
		t.Errorf("after Recheck: %v, verified %d times", err, w.Verified.Load())
	}
	end := r.TLS.PeerCertificates[0].NotAfter
	if err := ask(end.Add(-time.Second)); err != nil {
		t.Fatal(err)
	}
	if err := ask(end.Add(time.Second)); remit.CodeOf(err) != remit.CodeUnauthenticated {
		t.Errorf("an SVID that ended a second after it was looked at was accepted: %v", err)
	}
	if err := ask(now.Add(2 * time.Hour)); remit.CodeOf(err) != remit.CodeUnauthenticated {
		t.Errorf("an SVID that ended was accepted: %v", err)
	}
	r2 := httptest.NewRequest(http.MethodPost, "/", nil)
	r2.TLS = nil
	if _, err := gateway.Caller(r2, w, now); remit.CodeOf(err) != remit.CodeUnauthenticated {
		t.Errorf("no certificate: %v", err)
	}
	other := gatewaytest.New(t, "company.com", "")
	r2.TLS = gatewaytest.State(other.SVID(id))
	if _, err := gateway.Caller(r2, w, now); remit.CodeOf(err) != remit.CodeUnauthenticated {
		t.Errorf("a certificate of another authority was accepted: %v", err)
	}
}

func TestSpeaks(t *testing.T) {
	company, other := spiffeid.RequireTrustDomainFromString("company.com"), spiffeid.RequireTrustDomainFromString("company.com.evil.org")
	p := &remit.EnforcementPoint{Actions: []string{"kubernetes.apply", "mcp.*", "bad*", "*"}, TrustDomains: []spiffeid.TrustDomain{company}}
	for _, c := range []struct {
		action string
		td     spiffeid.TrustDomain
		want   bool
	}{
		{"kubernetes.apply", company, true}, {"kubernetes.apply", other, false}, {"kubernetes.applyx", company, false},
		{"kubernetes.delete", company, false}, {"mcp.call", company, true}, {"mcp.", company, false}, {"mcpx.call", company, false},
		{"bad.call", company, false}, {"badly", company, false}, {"", company, false}, {"Kubernetes.apply", company, false},
	} {
		if got := gateway.Speaks(p, c.action, c.td); got != c.want {
			t.Errorf("%s for %s: %v", c.action, c.td, got)
		}
	}
}

// TestByteQuota: bodies have a budget of their own, which always holds one of the largest.
func TestByteQuota(t *testing.T) {
	now := time.Now()
	q := gateway.NewQuota(gateway.Limits{Rate: 1000, Burst: 1000, Concurrent: 1000, Bytes: 1000})
	enter := func(key string, bytes int, at time.Time) bool {
		_, ok := q.Enter(key, bytes, at)
		return ok
	}
	if !enter("x", gateway.MaxBody, now) {
		t.Error("one largest body was refused")
	}
	if enter("x", 1, now) {
		t.Error("more bytes than the budget")
	}
	if !enter("x", 0, now) || !enter("y", gateway.MaxBody, now) {
		t.Error("an empty body, or another principal, pays for it")
	}
	if enter("x", 2000, now.Add(time.Second)) || !enter("x", 900, now.Add(time.Second)) {
		t.Error("after a second there are a thousand bytes")
	}
}

// TestBrake: what was refused waits, but not longer than its caller, and not without end.
func TestBrake(t *testing.T) {
	q := gateway.NewQuota(gateway.Limits{Rate: 1, Burst: 1, Concurrent: 1})
	gone, cancel := context.WithCancel(context.Background())
	cancel()
	q.Brake(gone)
	began := time.Now()
	q.Brake(context.Background())
	if took := time.Since(began); took < 50*time.Millisecond {
		t.Errorf("waited %s", took)
	}
	var none *gateway.Quota
	none.Brake(context.Background())
}

func TestQuota(t *testing.T) {
	now := time.Now()
	q := gateway.NewQuota(gateway.Limits{Rate: 10, Burst: 3, Concurrent: 2})
	enter := func(key string, bytes int, at time.Time) *gateway.Account {
		a, ok := q.Enter(key, bytes, at)
		if !ok {
			return nil
		}
		return a
	}
	a, b := enter("x", 0, now), enter("x", 0, now)
	if a == nil || b == nil {
		t.Fatal("the burst was refused")
	}
	if enter("x", 0, now) != nil {
		t.Error("a third at once was admitted")
	}
	if enter("y", 0, now) == nil {
		t.Error("another principal pays for the first")
	}
	a.Leave()
	b.Leave()
	if c := enter("x", 0, now); c == nil {
		t.Error("the burst's last was refused")
	} else {
		c.Leave()
	}
	if enter("x", 0, now) != nil {
		t.Error("beyond the burst")
	}
	if enter("x", 0, now.Add(-time.Hour)) != nil {
		t.Error("a clock that went back gave more")
	}
	if enter("x", 0, now) != nil {
		t.Error("a clock that came back gave more")
	}
	if c := enter("x", 0, now.Add(time.Hour)); c == nil || c.More(5, now.Add(time.Hour)) || !c.More(2, now.Add(time.Hour)) {
		t.Error("More")
	}
	var none *gateway.Quota
	if a, ok := none.Enter("x", 1<<30, now); !ok || !a.More(1<<20, now) {
		t.Error("no quota is a quota")
	} else {
		a.Leave()
	}
}

func TestAnswerParts(t *testing.T) {
	r := &remit.Receipt{Seq: 7, Leaf: []byte{1, 2}, First: 5, Size: 3, Path: [][]byte{{3}, {4, 5}}, Key: "ledger", Signature: []byte("sig")}
	want, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	if got := string(gateway.AppendReceipt(nil, r)); got != string(want) {
		t.Errorf("receipt:\n%s\n%s", got, want)
	}
	got := string(gateway.AppendReasons(nil, []remit.Reason{{Code: remit.ReasonArgument, Of: "where.image", Want: "secret-limit", Got: "x"}, {Code: remit.ReasonHours}}))
	if d := cmp.Diff(`[{"code":"argument_mismatch","of":"where.image"},{"code":"outside_hours"}]`, got); d != "" {
		t.Error(d)
	}
	if strings.Contains(got, "secret-limit") {
		t.Error("S30: what policy wanted left")
	}
}
