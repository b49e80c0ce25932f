// SPDX-License-Identifier: Apache-2.0

package store

import (
	"bytes"
	"encoding/json"
	"testing"
	"time"

	"remit"
)

// TestQuickHead: the short way of reading a head says what encoding/json says, or nothing.
func TestQuickHead(t *testing.T) {
	for _, agent := range []remit.Name{"", "agent/a", `agent/"},"kind":"x`, `agent/\`, "agent/é"} {
		for _, data := range []string{"", `{"kind":"other","agent":"agent/b"}`, `"x"`} {
			e := remit.Event{At: time.Now(), Kind: remit.EventDecision, Agent: agent, Run: "run-1", Decision: "dec-1", Grant: "grant-1", Lease: "lease-1", By: `some"one`, Data: []byte(data)}
			for _, by := range []string{"", `some"one`, "operator/ann"} {
				e.By = by
				body := e.AppendJSON(nil, 12)
				var want head
				if err := json.Unmarshal(body, &want); err != nil {
					t.Fatal(err)
				}
				got, ok := quickHead(body)
				if plain := !bytes.Contains(body[:len(body)-len(data)-1], []byte{'\\'}); ok != plain || ok && got != want {
					t.Errorf("%s: %v %+v", body, ok, got)
				}
			}
		}
	}
	for _, body := range []string{``, `{}`, `{"v":1,"seq":1,"kind":"decision"}`, `{"v":2,"seq":1`, `{"v":2,"seq":1,"kind":"x`, `{"v":2,"seq":1,"kind":1}`, `{"v":2,"seq":1,"kind":"a","more":"b"}`,
		`{"v":2,"seq":1,"kind":"a"} `} {
		if h, ok := quickHead([]byte(body)); ok {
			t.Errorf("%s: %+v", body, h)
		}
	}
}

// BenchmarkFilter looks at a decision as a list does.
func BenchmarkFilter(b *testing.B) {
	d := remit.Decision{ID: remit.NewDecisionID(), Args: remit.Args{}, Reasons: []remit.Reason{{Code: remit.ReasonArgument, Of: "args.amount", Want: "no more than 100"}}}
	for i := range 12 {
		d.Args[string(rune('a'+i))] = remit.StringValue("a value of some length")
	}
	e := remit.Event{At: time.Now(), Kind: remit.EventDecision, Agent: "agent/deploy", Decision: d.ID, Data: d.AppendSealed(nil, &remit.Seal{})}
	body, f := e.AppendJSON(nil, 1), EventFilter{Kind: remit.EventDecision}
	for b.Loop() {
		if !f.matches(body) {
			b.Fatal("it does not match")
		}
	}
}
