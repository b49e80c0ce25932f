// SPDX-License-Identifier: Apache-2.0

package ticket

import (
	"testing"
)

// FuzzReply: a reply that is read holds every field that is required, with one printable value.
func FuzzReply(f *testing.F) {
	cfg := Config{Fields: map[string]string{"requester_groups": "/rg", "approver_groups": "/ag"}}
	for _, name := range required[:8] {
		cfg.Fields[name] = "/" + name
	}
	f.Add([]byte(`{"id":"CHG-1","state":"approved","service":"foo","namespace":"production","start":"2026-11-23T11:00:00Z",` +
		`"end":"2026-11-23T13:00:00Z","requester":"rita","approver":"abe","rg":["platform"],"ag":"change-board"}`))
	f.Add([]byte(`{"id":{},"state":null}`))
	f.Add([]byte(`[]`))
	f.Fuzz(func(t *testing.T, body []byte) {
		r, err := parse(body, &cfg)
		if err != nil {
			return
		}
		for _, name := range required[:8] {
			if r.fields[name] == "" {
				t.Fatalf("%q: no %s", body, name)
			}
		}
		if r.start.IsZero() && r.end.IsZero() {
			t.Fatalf("%q: no window", body)
		}
	})
}
