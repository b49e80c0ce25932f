// SPDX-License-Identifier: Apache-2.0

package remit

import "time"

// SessionID names one login of a person.
type SessionID string

// NewSessionID returns a fresh random ID.
func NewSessionID() SessionID { return SessionID(newID("sess")) }

// Session is one login of a person at the company's identity provider: what a management call over HTTPS is made under (S2).
// It holds no secret: of the token only a hash. What the person may do is computed from Claims at every call.
type Session struct {
	ID         SessionID           `json:"id"`
	Person     Name                `json:"person"`        // operator/NAME
	Job        bool                `json:"job,omitempty"` // a CI job's, by its own token: no person logged in
	Issuer     string              `json:"issuer"`
	Subject    string              `json:"subject"`  // who it is there, for ever
	Claims     map[string][]string `json:"claims"`   // those that roles hang on
	TokenHash  string              `json:"token"`    // SHA-256 of the token, in hex
	Thumbprint string              `json:"x5t#S256"` // of the certificate whose key must make each call
	Started    time.Time           `json:"started"`
	Expires    time.Time           `json:"expires"`
	Ended      time.Time           `json:"ended,omitzero"`
}

// EpochKey makes a key of its own.
func (s Session) EpochKey() EpochKey { return EpochKey("session/" + string(s.ID)) }

// PersonRecord pins a person's name to the account that logged in with it first: nobody else is ever given that name, whatever
// a provider puts into the claim. An empty Subject frees the name.
type PersonRecord struct {
	Name    Name      `json:"name"`
	Issuer  string    `json:"issuer"`
	Subject string    `json:"subject"`
	First   time.Time `json:"first"`
}

// EpochKey makes a key of its own: requiring what was seen keeps two accounts from taking one name at once.
func (p PersonRecord) EpochKey() EpochKey { return PersonKey(p.Name) }

// PersonKey is moved when a name is pinned or freed.
func PersonKey(n Name) EpochKey { return EpochKey("person/" + string(n)) }
