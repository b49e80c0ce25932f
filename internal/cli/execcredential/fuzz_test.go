// SPDX-License-Identifier: Apache-2.0

package execcredential_test

import (
	"strings"
	"testing"

	"remit/internal/cli/execcredential"
)

// FuzzExecInfo: kubectl's request is accepted only for the version and kind that are answered.
func FuzzExecInfo(f *testing.F) {
	for _, s := range []string{"", `{"apiVersion":"client.authentication.k8s.io/v1","kind":"ExecCredential","spec":{"interactive":true}}`,
		`{"apiVersion":"client.authentication.k8s.io/v1beta1","kind":"ExecCredential"}`, `{"kind":"Pod"}`, `[]`, `{`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if err := execcredential.Check(s); err == nil && s != "" && !strings.Contains(strings.ToLower(s), `"kind"`) && !strings.Contains(s, `\u`) {
			t.Errorf("%q was accepted", s)
		}
	})
}
