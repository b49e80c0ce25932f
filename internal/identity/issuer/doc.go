// SPDX-License-Identifier: Apache-2.0

// Package issuer is the embedded SPIFFE authority: a root and an issuing certificate that sign X.509-SVIDs, and a key ring that
// signs JWT-SVIDs. Beside it stand the grant issuer and the key rings for other tokens, which share code with it and no key (S1,
// S7): targets trust grant tokens, and nobody gets one by fetching an SVID.
//
// A ring's keys go through three states: next (published, so that verifiers learn it), current (signs), old (still published
// until all that it signed has ended). Every step is written to the ring's file before it takes effect, and is reported after.
// What a key signs never outlives the key.
//
// The package never hands out a private key of an authority, attests nobody and decides nothing. It owns no goroutine: Run is
// the caller's.
package issuer
