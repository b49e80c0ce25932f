// SPDX-License-Identifier: Apache-2.0

package token_test

import (
	"net/http"
	"net/url"
	"testing"
)

// FuzzForm: any body gets an answer of a documented kind, and a credential only for what names a type or a permission.
func FuzzForm(f *testing.F) {
	for _, s := range []string{form().Encode(), form("token", "e30.e30.x").Encode(), "a=1&a=2", "%zz", "grant_type=client_credentials&authorization_details=%5B%7B%7D%5D"} {
		f.Add(s)
	}
	fix := newFixture(f, narrowed)
	f.Fuzz(func(t *testing.T, body string) {
		for _, path := range []string{"/oauth2/token", "/oauth2/revoke"} {
			w := fix.post("/agent/deploy", path, body)
			if w.Code != http.StatusOK && w.Code != http.StatusBadRequest && w.Code != http.StatusUnauthorized {
				t.Fatalf("%q: %d %s", body, w.Code, w.Body)
			}
			if values, err := url.ParseQuery(body); w.Code == http.StatusOK && err == nil {
				for name, v := range values {
					if len(v) > 1 {
						t.Fatalf("%q: %s stands %d times and was accepted", body, name, len(v))
					}
				}
			}
		}
		fix.line.asked = nil
	})
}

// FuzzDetails: any authorization_details is refused or reaches the line with an action or a permission.
func FuzzDetails(f *testing.F) {
	for _, s := range []string{entry, `[{"type":"","permission":"p","ttl":"5m"}]`, `[{"type":"a","locations":["urn:remit:target:x"]}]`, `[{}]`, `[{"type":"a","type":"b"}]`, `[[]]`} {
		f.Add(s)
	}
	fix := newFixture(f, narrowed)
	f.Fuzz(func(t *testing.T, details string) {
		w := fix.post("/agent/deploy", "/oauth2/token", form("authorization_details", details).Encode())
		if w.Code != http.StatusOK && w.Code != http.StatusBadRequest {
			t.Fatalf("%q: %d %s", details, w.Code, w.Body)
		}
		for _, req := range fix.line.asked {
			if req.Permission == "" && (req.Action == "" || req.Target == "") || req.TTL < 0 {
				t.Fatalf("%q reached the line as %+v", details, req)
			}
		}
		fix.line.asked = nil
	})
}
