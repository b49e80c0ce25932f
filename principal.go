// SPDX-License-Identifier: Apache-2.0

package remit

import (
	"crypto/sha256"
	"encoding/base64"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Level says how well the workload behind an identity is known (S3). Higher is better; the zero value is the worst.
type Level uint8

// The attestation levels.
const (
	LevelNone     Level = iota // asserted, unknown, or shares the server's uid
	LevelUser                  // a uid, and what follows from it
	LevelLaunched              // started by Remit, with a socket of its own
	LevelSandbox               // in a sandbox that Remit made
	LevelNode                  // node attestation by SPIRE or a cloud
)

func (l Level) String() string {
	return [...]string{"none", "user", "launched", "sandbox", "node"}[l]
}

// Method says how a Principal proved who it is.
type Method string

// The methods.
const (
	MethodX509    Method = "x509"    // mutual TLS with an X.509-SVID
	MethodJWT     Method = "jwt"     // a fresh single-use JWT-SVID
	MethodSocket  Method = "socket"  // peer credentials of the admin socket
	MethodSession Method = "session" // a person's session over HTTPS, bound to a key
)

// Principal is a verified caller: either a workload with a SPIFFE ID or a Person, never both. Only verifiers make one.
type Principal struct {
	ID         spiffeid.ID // zero for a Person
	Person     Name        // "operator/NAME"; empty for a workload
	Roles      []string    // a Person's roles
	Groups     []string    // a Person's groups, as the provider stated them at the login
	Account    string      // who a Person is at the provider: issuer and subject; empty on the admin socket and for CI jobs
	Method     Method
	Level      Level
	Credential string            // certificate serial in hex, or jti; the ledger joins on it
	Thumbprint string            // x5t#S256 (RFC 8705) of the certificate, empty unless mTLS
	Launch     LaunchID          // the launch whose socket the SVID was fetched over, if any (S8)
	Expires    time.Time         // end of the SVID
	Workload   map[string]string // attested attributes; nil means unknown, and rules on the workload deny (S8)
}

// Thumbprint is x5t#S256 of a certificate in DER (RFC 8705 section 3.1): what sessions and run tokens are bound to.
func Thumbprint(certificate []byte) string {
	sum := sha256.Sum256(certificate)
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// IsZero reports whether nobody was verified.
func (p Principal) IsZero() bool { return p.ID.IsZero() && p.Person == "" }

// String returns the SPIFFE ID or the person's name.
func (p Principal) String() string {
	if p.Person != "" {
		return string(p.Person)
	}
	return p.ID.String()
}

// HasRole reports whether p is a Person with the role; "admin" includes every other.
func (p Principal) HasRole(role string) bool {
	if p.Person == "" {
		return false
	}
	for _, r := range p.Roles {
		if r == role || r == "admin" {
			return true
		}
	}
	return false
}
