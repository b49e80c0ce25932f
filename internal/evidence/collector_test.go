// SPDX-License-Identifier: Apache-2.0

package evidence_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"remit"
	"remit/internal/evidence"
)

// source answers by a func.
type source func(ctx context.Context, need remit.Need) (*remit.Evidence, *remit.Reason)

func (s source) Find(ctx context.Context, need remit.Need, _ *remit.Request) (*remit.Evidence, *remit.Reason) {
	return s(ctx, need)
}

func good(_ context.Context, need remit.Need) (*remit.Evidence, *remit.Reason) {
	return &remit.Evidence{Kind: need.Kind, Source: need.Source, Name: need.ID}, nil
}

func collector(t *testing.T, sources map[string]evidence.Source) *evidence.Collector {
	t.Helper()
	c, err := evidence.New(evidence.Config{Sources: sources, MaxParallel: 2})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestCollectInOrder(t *testing.T) {
	c := collector(t, map[string]evidence.Source{"a": source(good), "b": source(good)})
	var needs []remit.Need
	for _, id := range []string{"1", "2", "3", "4", "5"} {
		needs = append(needs, remit.Need{Kind: remit.EvidenceScan, Source: "a", ID: id}, remit.Need{Kind: remit.EvidenceTicket, Source: "b", ID: id})
	}
	found := c.Collect(context.Background(), needs, &remit.Request{})
	if len(found) != len(needs) {
		t.Fatalf("%d found", len(found))
	}
	for i, f := range found {
		if f.Reason != nil || f.Evidence.Name != needs[i].ID || f.Evidence.Kind != needs[i].Kind {
			t.Errorf("need %d: %+v", i, f)
		}
	}
	if c.Collect(context.Background(), nil, &remit.Request{}) != nil {
		t.Error("no needs, but something found")
	}
}

func TestCollectDenies(t *testing.T) {
	c := collector(t, map[string]evidence.Source{
		"panics":  source(func(context.Context, remit.Need) (*remit.Evidence, *remit.Reason) { panic("boom") }),
		"nothing": source(func(context.Context, remit.Need) (*remit.Evidence, *remit.Reason) { return nil, nil }),
		"both": source(func(ctx context.Context, n remit.Need) (*remit.Evidence, *remit.Reason) {
			e, _ := good(ctx, n)
			return e, &remit.Reason{Code: remit.ReasonEvidenceStale}
		}),
		"other kind": source(func(_ context.Context, n remit.Need) (*remit.Evidence, *remit.Reason) {
			return &remit.Evidence{Kind: remit.EvidenceTicket, Source: n.Source}, nil
		}),
		"other source": source(func(_ context.Context, n remit.Need) (*remit.Evidence, *remit.Reason) {
			return &remit.Evidence{Kind: n.Kind, Source: "x"}, nil
		}),
	})
	for name, code := range map[string]remit.ReasonCode{"panics": remit.ReasonFault, "nothing": remit.ReasonFault, "both": remit.ReasonEvidenceStale,
		"other kind": remit.ReasonFault, "other source": remit.ReasonFault, "unknown": remit.ReasonEvidenceMissing} {
		f := c.Collect(context.Background(), []remit.Need{{Kind: remit.EvidenceScan, Source: name}}, &remit.Request{})[0]
		if f.Evidence != nil || f.Reason == nil || f.Reason.Code != code || f.Reason.Of != "evidence.scan" {
			t.Errorf("%s: %+v", name, f)
		}
	}
	f := c.Collect(context.Background(), []remit.Need{{Kind: remit.EvidenceApproval}}, &remit.Request{})[0]
	if f.Evidence != nil || f.Reason == nil || f.Reason.Code != remit.ReasonApproval {
		t.Errorf("approval: %+v", f)
	}
}

// TestHangingSource: a source that ignores its context costs the timeout once, takes nothing from others, and Close waits.
func TestHangingSource(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		var asked atomic.Int32
		c := collector(t, map[string]evidence.Source{"good": source(good),
			"hangs": source(func(context.Context, remit.Need) (*remit.Evidence, *remit.Reason) {
				asked.Add(1)
				<-release
				return nil, &remit.Reason{Code: remit.ReasonEvidenceMissing}
			})})
		for range 3 {
			start := time.Now()
			needs := []remit.Need{{Kind: remit.EvidenceScan, Source: "hangs"}, {Kind: remit.EvidenceScan, Source: "good"}}
			found := c.Collect(context.Background(), needs, &remit.Request{})
			if took := time.Since(start); took != evidence.DefaultTimeout {
				t.Errorf("took %s", took)
			}
			if found[0].Reason == nil || found[0].Reason.Code != remit.ReasonEvidenceSource || found[1].Evidence == nil {
				t.Errorf("found %+v", found)
			}
		}
		if asked.Load() != 2 {
			t.Errorf("%d questions open at one source, the bound is 2", asked.Load())
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if err := c.Close(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Close did not wait: %v", err)
		}
		close(release)
		if err := c.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
}

func TestAddToSource(t *testing.T) {
	c := collector(t, map[string]evidence.Source{"desk": source(good)})
	if _, err := c.Add(t.Context(), "none", nil, "", time.Time{}); remit.CodeOf(err) != remit.CodeNotFound {
		t.Errorf("unknown source: %v", err)
	}
	if _, err := c.Add(t.Context(), "desk", nil, "", time.Time{}); remit.CodeOf(err) != remit.CodeInvalid {
		t.Errorf("source without statements: %v", err)
	}
	if _, err := evidence.New(evidence.Config{Sources: map[string]evidence.Source{"x": nil}}); err == nil {
		t.Error("nil source taken")
	}
}

func FuzzParseJSON(f *testing.F) {
	for _, s := range []string{`{"a":[1,"x",null,true,{"b":-0.5e3}]}`, `[[[[]]]]`, `{"a":1,"a":2}`, "\"\\ud800\"", "", "{} {}", `{"a"`} {
		f.Add([]byte(s), "/a/0")
	}
	f.Fuzz(func(t *testing.T, b []byte, pointer string) {
		n, err := evidence.ParseJSON(b, 1<<16)
		if err != nil && n.Exists() {
			t.Fatalf("%q: a value and an error", b)
		}
		n.At(pointer)
	})
}

func TestParseJSONRefuses(t *testing.T) {
	deep := make([]byte, 200)
	for i := range deep {
		deep[i] = '['
	}
	for _, s := range []string{"", "{", `{"a":1,"a":2}`, `{"a":1,"\u0061":2}`, `{"x":{"b":1,"b":1}}`, "{} {}", "\"\xff\"", `[1,]`, `[1 2]`, string(deep)} {
		if _, err := evidence.ParseJSON([]byte(s), 1000); err == nil {
			t.Errorf("%q parses", s)
		}
	}
	if _, err := evidence.ParseJSON([]byte("[1234567]"), 5); err == nil {
		t.Error("over the limit parses")
	}
	if _, err := evidence.ParseJSON([]byte(strings.Repeat("[", 60)+strings.Repeat("]", 60)), 1000); err == nil {
		t.Error("sixty levels parse")
	}
	if _, err := evidence.ParseJSON([]byte("["+strings.Repeat("1,", 200_000)+"1]"), 1<<20); err == nil {
		t.Error("more than 200,000 values parse")
	}
	n, err := evidence.ParseJSON([]byte(`{"a/b":[{"~":"x"}],"t":true,"n":1.50}`), 1000)
	if err != nil || n.At("/a~1b/0/~0").Text() != "x" || n.At("/a~1b/00").Exists() || n.At("a").Exists() || n.Get("t").Scalar() != "true" || n.Get("n").Scalar() != "1.50" {
		t.Errorf("%v, %v", n, err)
	}
}
