// SPDX-License-Identifier: Apache-2.0

package signal

import (
	"encoding/json"
	"testing"
)

// TestBare: a signal without its entry's own text is still one, of every kind and form.
func TestBare(t *testing.T) {
	for kind := range topics {
		s := Signal{Seq: 7, Kind: kind, Agent: "agent/deploy", Data: json.RawMessage(`{"text":"x"}`)}
		b := s.Bare()
		if out := b.OCSF(Source{TrustDomain: "company.com"}); !json.Valid(out) {
			t.Errorf("%s: %s", kind, out)
		}
		if out := b.Webhook(); !json.Valid(out) {
			t.Errorf("%s: %s", kind, out)
		}
	}
}
