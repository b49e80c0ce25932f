// SPDX-License-Identifier: Apache-2.0

package token

import "testing"

// FuzzClaimJTI: whatever is handed in for revocation gives one jti, or none.
func FuzzClaimJTI(f *testing.F) {
	for _, s := range []string{"e30.eyJqdGkiOiJhIn0.x", "a.b.c", "e30.e30.", "e30.eyJqdGkiOiJhIiwianRpIjoiYiJ9.x", "..", "e30.eyJqdGkiOjF9.x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if jti, err := claimJTI(s); err == nil && jti == "" {
			t.Errorf("%q has an empty jti", s)
		}
	})
}
