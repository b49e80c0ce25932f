// SPDX-License-Identifier: Apache-2.0

package authzen_test

import (
	"encoding/json"
	"net/http"
	"testing"
)

// FuzzEvaluation: any body gets an answer of a documented kind; what is allowed had a subject, an action and a resource.
func FuzzEvaluation(f *testing.F) {
	for _, s := range []string{sound, `{` + defaults + `,"evaluations":[` + targets("0", "1") + `,{},7]}`, `{"evaluations":[],"options":{"evaluations_semantic":"x"}}`,
		`{"context":{"run_token":"rt","run":"x","under":"dec-x"}}`, `{"subject":null}`, `{"subject":{"type":"agent","id":"spiffe://company.com/agent/deploy","properties":{"token":"a.b.c"}}}`} {
		f.Add(s)
	}
	fix := newFixture(f, allow)
	f.Fuzz(func(t *testing.T, body string) {
		for _, endpoint := range []string{single, batch} {
			w := fix.post("/pep/gate", endpoint, body)
			switch w.Code {
			case http.StatusOK:
				got := read(t, w)
				if (got.Decision == nil) == (got.Evaluations == nil) {
					t.Fatalf("%q: %s", body, w.Body)
				}
			case http.StatusBadRequest:
				var msg string
				if json.Unmarshal(w.Body.Bytes(), &msg) != nil {
					t.Fatalf("%q: %s", body, w.Body)
				}
			default:
				t.Fatalf("%q: %d %s", body, w.Code, w.Body)
			}
		}
		for _, req := range fix.line.asked {
			if req.Action == "" || req.Target == "" {
				t.Fatalf("%q reached the line as %+v", body, req)
			}
		}
		fix.line.asked = nil
	})
}
