// SPDX-License-Identifier: Apache-2.0

package bundle

import "remit"

// Refusal is why a bundle is not taken. It is the cause of the *remit.Error that says so, for callers that tell cases apart.
type Refusal string

// The refusals.
const (
	Unsigned   Refusal = "bundle_unsigned"           // there is no bundle
	Malformed  Refusal = "bundle_malformed"          // the envelope or manifest cannot be read
	OfAnother  Refusal = "bundle_of_another"         // it is of something else, or for another installation
	Changed    Refusal = "bundle_file_changed"       // a file is not as it was signed
	Missing    Refusal = "bundle_signatures_missing" // fewer authors signed than must
	Twice      Refusal = "bundle_signed_twice"       // one author signed twice
	Unknown    Refusal = "bundle_signer_unknown"     // somebody signed who is not listed
	BadSigning Refusal = "bundle_signature_invalid"  // a signature is not of this manifest
	Replayed   Refusal = "bundle_replayed"           // an older version
	Taken      Refusal = "bundle_version_taken"      // the active version with other content
	NotNext    Refusal = "bundle_not_next"           // made from another version than the active one
)

func (r Refusal) Error() string { return string(r) }

const remake = "make it again with remit policy bundle and have it signed"

func refuse(r Refusal, msg, hint string) error {
	return &remit.Error{Code: remit.CodeInvalid, Msg: msg, Hint: hint, Cause: r}
}

// NotSigned is the refusal of files without a bundle, where authors are configured.
func NotSigned(what string) error {
	return refuse(Unsigned, "the "+what+" is not signed: there is no "+File, "remit policy bundle makes it, remit policy sign signs it")
}
