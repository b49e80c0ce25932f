// SPDX-License-Identifier: Apache-2.0

package issuer

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// FuzzParseRing: a key file is read whole or refused; what was read is written and read again as the same.
func FuzzParseRing(f *testing.F) {
	dir := f.TempDir()
	if _, err := New(Config{TrustDomain: spiffeid.RequireTrustDomainFromString("company.com"), Dir: dir}); err != nil {
		f.Fatal(err)
	}
	for _, name := range []string{"root", "issuing", "jwt"} {
		b, err := os.ReadFile(filepath.Join(dir, name+".json"))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte(`{"v":1,"keys":[{"id":"","state":"next","key":"-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----\n"}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		st, err := parseRing(b)
		if err != nil {
			return
		}
		out, err := st.marshal()
		if err != nil {
			t.Fatal(err)
		}
		again, err := parseRing(out)
		if err != nil || len(again.slots) != len(st.slots) {
			t.Fatalf("it is not read again: %v", err)
		}
	})
}
