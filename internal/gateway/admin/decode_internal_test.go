// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"encoding/json"
	"testing"

	"remit"
)

// FuzzDecode: a call's body is one JSON value without members that the call does not know, or an error for the caller.
func FuzzDecode(f *testing.F) {
	for _, s := range []string{`{"reason":"x"}`, `{"reason":"x"}{}`, `{"Reason":"x"}`, `{"more":1}`, `null`, ``, `[]`, `{"reason":1}`, "{\"reason\":\"\xff\"}"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		var in struct {
			Reason string `json:"reason"`
		}
		err := Call{body: body}.Decode(&in)
		if err != nil && remit.CodeOf(err) != remit.CodeInvalid {
			t.Errorf("%q: %v", body, err)
		}
		if err == nil && !json.Valid(body) {
			t.Errorf("%q was read", body)
		}
	})
}
