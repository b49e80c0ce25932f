// SPDX-License-Identifier: Apache-2.0

package server

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"remit"
)

// TestMetrics: who has the token reads what happened; nobody else reads anything.
func TestMetrics(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token")
	const token = "a-token-of-prometheus-for-tests"
	if err := os.WriteFile(file, []byte(token), 0o600); err != nil {
		t.Fatal(err)
	}
	f := setUp(t, "# Who manages", fmt.Sprintf("metrics: {token: {file: %q}}\n# Who manages", file))
	read := func(authorization string) (int, string) {
		mux := http.NewServeMux()
		f.srv.metricsRoute(mux)
		r := httptest.NewRequest(http.MethodGet, "/metrics", http.NoBody)
		r.Header.Set("Authorization", authorization)
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, r)
		return w.Code, w.Body.String()
	}
	for _, wrong := range []string{"", "Bearer ", "Bearer " + token[1:], "Bearer " + token + "x", token, "Basic " + token} {
		if code, body := read(wrong); code != http.StatusUnauthorized || strings.Contains(body, "remit_") {
			t.Errorf("%q: %d %s", wrong, code, body)
		}
	}
	r := f.startRun()
	if g := f.agent("agent/deploy", f.shared()).enter(r).ask("write"); g.Secret == "" {
		t.Fatalf("%+v", g)
	}
	f.stolen(r)
	f.eventually("the suspension is on record", func() bool { return f.events(remit.EventSuspended) == 1 })
	f.eventually("it is counted", func() bool {
		_, body := read("Bearer " + token)
		return strings.Contains(body, "remit_suspension_seconds_count 1\n")
	})
	code, body := read("Bearer " + token)
	for _, want := range []string{"# TYPE remit_decisions_total counter\n", `remit_decisions_total{effect="allow"} 1` + "\n", `remit_denials_total{reason="` + string(remit.ReasonRunToken) + `"} 1` + "\n",
		`remit_findings_total{kind="credential_of_another",response="suspend"} 1` + "\n", "# TYPE remit_suspension_seconds summary\n", "remit_leases_live ", "remit_ledger_entries "} {
		if code != http.StatusOK || !strings.Contains(body, want) {
			t.Errorf("%d: no %q in\n%s", code, want, body)
		}
	}
}
