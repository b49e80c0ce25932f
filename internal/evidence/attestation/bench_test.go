// SPDX-License-Identifier: Apache-2.0

package attestation_test

import (
	"context"
	"testing"
	"time"

	"remit/internal/evidence/attestation"
)

// BenchmarkFind is a scan by id, verified before: what every decision pays.
func BenchmarkFind(b *testing.B) {
	s, store := newSigner(b, "trivy"), &rows{}
	source, err := attestation.New(attestation.Config{Signers: []attestation.Signer{{Name: "trivy", Key: attestation.Key{PEM: s.PublicPEM()}}}},
		attestation.Deps{Name: "trivy-ci", Statements: store})
	if err != nil {
		b.Fatal(err)
	}
	row, _, err := hand(source, sign(b, s, scan("scan-789", image("foo"), noon.Add(-time.Hour), "low").Statement()), "operator/ci", noon)
	if err != nil {
		b.Fatal(err)
	}
	store.all = append(store.all, row)
	n, req := need("scan-789", image("foo")), request()
	n.Source = "trivy-ci"
	b.ReportAllocs()
	for b.Loop() {
		if _, reason := source.Find(context.Background(), n, req); reason != nil {
			b.Fatal(reason)
		}
	}
}
