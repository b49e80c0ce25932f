// SPDX-License-Identifier: Apache-2.0

package server

import (
	"net/http"
	"testing"
)

// S33: nothing of the log is served to who connects, with an identity or without.
func TestTilesAreNotServed(t *testing.T) {
	f := setUp(t)
	w := f.agent("agent/deploy", f.shared())
	for _, path := range []string{"/checkpoint", "/tile/0/000", "/tile/entries/000", "/ledger/checkpoint", "/v1/ledger", "/v1/ledger/1"} {
		res, err := w.http.Get("https://" + f.port + path)
		if err != nil {
			t.Fatal(err)
		}
		_ = res.Body.Close()
		if res.StatusCode != http.StatusNotFound {
			t.Errorf("%s: %d", path, res.StatusCode)
		}
	}
}
