// SPDX-License-Identifier: Apache-2.0

package gateway_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"remit"
	"remit/internal/gateway"
)

func TestBody(t *testing.T) {
	for body, want := range map[string]remit.Code{`{"a":"x"}`: "", ` {"a":"x"} ` + "\n": "", `{"a":"x"} {}`: remit.CodeInvalid, `{"a":"x"}x`: remit.CodeInvalid,
		`{"b":1}`: remit.CodeInvalid, `{`: remit.CodeInvalid, ``: remit.CodeInvalid, `{"a":"` + strings.Repeat("x", 100) + `"}`: remit.CodeExhausted} {
		r := httptest.NewRequest(http.MethodPost, "/", strings.NewReader(body))
		var v struct {
			A string `json:"a"`
		}
		b, err := gateway.ReadBody(httptest.NewRecorder(), r, 50)
		if err == nil {
			err = gateway.DecodeBody(b, &v)
		}
		if remit.CodeOf(err) != want {
			t.Errorf("%.40s: %v, want %q", body, err, want)
		}
	}
}
