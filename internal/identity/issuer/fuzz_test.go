// SPDX-License-Identifier: Apache-2.0

package issuer

import (
	"crypto/ecdsa"
	"crypto/x509"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// FuzzParseRing: a key file is read whole or refused; what was read is written and read again as the same.
func FuzzParseRing(f *testing.F) {
	now := time.Now()
	a := &Authority{cfg: Config{TrustDomain: spiffeid.RequireTrustDomainFromString("company.com")}}
	for _, certify := range []func(*ecdsa.PrivateKey, time.Time, time.Time) ([]*x509.Certificate, error){nil, a.certifyRoot} {
		r := &ring{policy: policy{life: time.Hour}, certify: certify}
		r.state.Store(&state{})
		s, err := r.generate(now)
		if err != nil {
			f.Fatal(err)
		}
		b, err := (&state{sequence: 1, slots: []slot{s}}).marshal()
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
