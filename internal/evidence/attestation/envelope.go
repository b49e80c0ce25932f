// SPDX-License-Identifier: Apache-2.0

package attestation

import (
	"fmt"
	"slices"

	"github.com/secure-systems-lab/go-securesystemslib/dsse"

	"remit"
	"remit/internal/evidence"
)

// PayloadType is the only DSSE payload type that is read: an in-toto statement in JSON.
const PayloadType = "application/vnd.in-toto+json"

// MaxEnvelope is the greatest length of an envelope, in bytes.
const MaxEnvelope = 1 << 20

const maxSignatures = 16

// opened is an envelope whose signature was verified.
type opened struct {
	payload []byte
	digest  remit.Digest // of the signed bytes: the same statement in another envelope has the same
	signers []*signer    // whose signatures verified, at least one
}

// openEnvelope parses a DSSE v1 envelope and verifies it. Members that DSSE does not know are ignored, as it demands
// (envelope.md); everything that it does know is exact.
func openEnvelope(b []byte, signers []signer) (opened, *remit.Reason) {
	doc, err := evidence.ParseJSON(b, MaxEnvelope)
	if err != nil {
		return opened{}, bad("envelope: %v", err)
	}
	//remit:guard S14 TestPayloadTypeIsNamed
	if t := doc.Get("payloadType").Text(); t != PayloadType {
		return opened{}, &remit.Reason{Code: remit.ReasonEvidenceInvalid, Want: "payload type " + PayloadType, Got: clip(t)}
	}
	env := dsse.Envelope{PayloadType: PayloadType, Payload: doc.Get("payload").Text()}
	payload, err := env.DecodeB64Payload()
	if err != nil || len(payload) == 0 {
		return opened{}, bad("envelope: the payload is not base64")
	}
	signatures, _ := doc.Get("signatures").List()
	//remit:guard S35 TestWrongEvidenceHasItsOwnReason
	if len(signatures) == 0 || len(signatures) > maxSignatures {
		return opened{}, bad("envelope: %d signatures, not 1 to %d", len(signatures), maxSignatures)
	}
	text := dsse.PAE(PayloadType, payload)
	o := opened{payload: payload, digest: remit.DigestOf(text)}
	listed := false // whether a signature says that it is of a listed key, or does not say of whom it is
	for _, s := range signatures {
		keyID := s.Get("keyid").Text()
		raw, err := (&dsse.Envelope{Payload: s.Get("sig").Text()}).DecodeB64Payload()
		if err != nil {
			return opened{}, bad("envelope: a signature is not base64")
		}
		listed = listed || keyID == ""
		for i := range signers {
			listed = listed || slices.Contains(signers[i].ids, keyID)
			if signers[i].key.Verifies(text, raw) && !slices.Contains(o.signers, &signers[i]) {
				o.signers = append(o.signers, &signers[i])
			}
		}
	}
	switch {
	//remit:guard S14 TestWrongEvidenceHasItsOwnReason
	case len(o.signers) > 0:
		return o, nil
	case listed:
		return opened{}, bad("no signature of a listed signer is valid for this content")
	}
	return opened{}, &remit.Reason{Code: remit.ReasonEvidenceSigner, Want: "a listed signer",
		Got: "key id " + clip(signatures[0].Get("keyid").Text())}
}

// bad is a reason of evidence_invalid.
func bad(format string, args ...any) *remit.Reason {
	return &remit.Reason{Code: remit.ReasonEvidenceInvalid, Got: fmt.Sprintf(format, args...)}
}

// clip bounds a stranger's text that stands in a reason.
func clip(s string) string { return fmt.Sprintf("%.120q", s) }
