// SPDX-License-Identifier: Apache-2.0

package attestation_test

import (
	"testing"
	"time"

	spb "github.com/in-toto/attestation/go/v1"
	"google.golang.org/protobuf/encoding/protojson"

	"remit"
	"remit/internal/evidence/attestation"
	"remit/internal/evidence/evidencetest"
)

func seeds(t testing.TB) [][]byte {
	t.Helper()
	var out [][]byte
	for _, st := range []evidencetest.Statement{
		scan("scan-789", image("foo"), noon, "low", "").Statement(), scan("scan-789", image("foo"), noon, "HIGH").CosignStatement(),
		provenance("foo").Statement(),
	} {
		b, err := st.JSON()
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, b)
	}
	return out
}

// TestStatementsAreInToto holds our statements against the reference implementation.
func TestStatementsAreInToto(t *testing.T) {
	for _, b := range seeds(t) {
		var st spb.Statement
		if err := protojson.Unmarshal(b, &st); err != nil {
			t.Errorf("%s: %v", b, err)
		} else if err := st.Validate(); err != nil {
			t.Errorf("%s: %v", b, err)
		}
	}
}

func fuzzSource(f *testing.F) (*attestation.Source, *evidencetest.Signer) {
	s := newSigner(f, "trivy")
	return trusting(f, s), s
}

func trusting(t testing.TB, s *evidencetest.Signer) *attestation.Source {
	source, err := attestation.New(attestation.Config{Signers: []attestation.Signer{{Name: "trivy", Key: attestation.Key{PEM: s.PublicPEM()}}}},
		attestation.Deps{Name: "trivy-ci", Statements: &rows{}})
	if err != nil {
		t.Fatal(err)
	}
	return source
}

// FuzzEnvelope: nothing but what the signer signed is ever taken. Each time by a new source: one that remembers an input answers the second
// time from memory, and the fuzzer takes that for an input without interest.
func FuzzEnvelope(f *testing.F) {
	s := newSigner(f, "trivy")
	stranger := newSigner(f, "stranger")
	for _, b := range seeds(f) {
		env, err := stranger.Envelope(b)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(env)
	}
	// Short ones: in a long one nearly every change is in the middle of its payload.
	for _, b := range []string{
		`{"payloadType":"application/vnd.in-toto+json","payload":"e30=","signatures":[{"keyid":"trivy","sig":"AA=="}]}`,
		`{"payloadType":"application/vnd.in-toto+json","payload":"e30=","signatures":[{"sig":"AA=="},{"keyid":"","sig":"AA=="}]}`,
		`{"payloadType":"application/vnd.in-toto+json","payload":"e30","signatures":[]}`, `{"payloadType":"text/plain","payload":"","signatures":[{}]}`,
		`{"payload":"e30=","payload":"e30="}`, `{"signatures":{}}`, `{"a":[1,{"b":null}]}`, `[]`, `{}`, ``, `{"payloadType":1}`, "{\"payload\":\"\\u0000\xff\"}",
	} {
		f.Add([]byte(b))
	}
	f.Fuzz(func(t *testing.T, envelope []byte) {
		if _, _, err := hand(trusting(t, s), envelope, "operator/ci", noon); err == nil {
			t.Fatalf("%q is taken", envelope)
		}
	})
}

// FuzzStatement: whatever a signer signs is read without panic, and what is taken is whole.
func FuzzStatement(f *testing.F) {
	source, s := fuzzSource(f)
	for _, b := range seeds(f) {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, statement []byte) {
		env, err := s.Envelope(statement)
		if err != nil {
			t.Fatal(err)
		}
		row, e, err := hand(source, env, "operator/ci", noon)
		if err != nil {
			return
		}
		if len(row.Subjects) == 0 || row.Kind != e.Kind || (e.Kind == remit.EvidenceScan) != (e.Worst != remit.SeverityUnset) {
			t.Fatalf("%q gave %+v", statement, e)
		}
		if e.Kind == remit.EvidenceScan && (e.Made.IsZero() || e.Made.After(noon.Add(time.Minute))) {
			t.Fatalf("made %s", e.Made)
		}
	})
}
