// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"encoding/json"
	"testing"
	"time"

	"remit"
)

func TestEntrySeq(t *testing.T) {
	e := remit.Event{At: time.Now(), Kind: remit.EventDecision, Data: []byte(`{"a":1}`)}
	if seq, err := entrySeq(e.AppendJSON(nil, 42)); err != nil || seq != 42 {
		t.Fatal(seq, err)
	}
	for _, bad := range []string{``, `{}`, `{"v":1,"seq":0,"at":""}`, `{"v":1,"seq":01,"at":""}`, `{"v":1,"seq":-1,"at":""}`,
		`{"v":1,"seq":1}`, `{"seq":1,"v":1,"at":""}`, `{"v":1, "seq":1,"at":""}`, `{"v":1,"seq":1,"at":""}x`, `{"v":x,"seq":1,"at":""}`,
		`{"v":1,"seq":18446744073709551616,"at":""}`} {
		if seq, err := entrySeq([]byte(bad)); err == nil {
			t.Errorf("%s has number %d", bad, seq)
		}
	}
}

func FuzzEntrySeq(f *testing.F) {
	f.Add([]byte(`{"v":1,"seq":7,"at":"2026-01-01T00:00:00Z","kind":"decision"}`))
	f.Add([]byte(`{"v":1,"seq":7,"seq":8}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		seq, err := entrySeq(b)
		if err == nil && (seq == 0 || !json.Valid(b)) {
			t.Fatalf("%s has number %d", b, seq)
		}
	})
}
