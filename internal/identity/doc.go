// SPDX-License-Identifier: Apache-2.0

// Package identity says who is calling. Verifier turns an X.509-SVID or a JWT-SVID into a remit.Principal; Attestor says what
// runs at the other end of a Unix socket; Registry holds who is configured. issuer/ is the embedded SPIFFE authority,
// workloadapi/ serves its SVIDs.
//
// It never takes a caller's word: a name counts only if a key of the name's own trust domain signed it, or the kernel vouches
// for the process. SPIFFE IDs are compared as parsed values, never as strings with a prefix. It starts no goroutine.
package identity
