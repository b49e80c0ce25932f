// SPDX-License-Identifier: Apache-2.0

package run

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"remit"
)

// AccessTTL is how long an access token lives: whoever holds it is taken for its agent.
const AccessTTL = 5 * time.Minute

const accessPrefix = "remit-at-"

// Access issues and verifies access tokens for clients that can send nothing but an Authorization header (S10): each is of one agent,
// one run and one audience, for minutes. They are opaque, sealed with a key that lives as long as the process; no other server
// takes them, and none survives a restart. It is safe for concurrent use.
type Access struct{ aead cipher.AEAD }

// NewAccess makes a key.
func NewAccess() (*Access, error) {
	key := make([]byte, 32)
	_, _ = rand.Read(key)
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("make a key for access tokens: %w", err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return nil, fmt.Errorf("make a key for access tokens: %w", err)
	}
	return &Access{aead}, nil
}

// access is what a token holds: who asked for it, as he was verified then.
type access struct {
	ID      string         `json:"id"`
	Subject string         `json:"sub"`
	Run     remit.RunID    `json:"run"`
	Launch  remit.LaunchID `json:"launch,omitempty"`
	Level   remit.Level    `json:"level"`
	SVID    string         `json:"svid"`
	Expires time.Time      `json:"exp"`
}

// Issue returns a token for p inside the run, for the audience, and its id. It ends with the run's stage and p's own SVID.
func (a *Access) Issue(p remit.Principal, r *remit.Run, audience string, at time.Time) (token remit.Secret, id string, expires time.Time, err error) {
	//remit:guard S10 TestAccessTokens
	if p.ID.IsZero() || p.Person != "" || p.Method == MethodAccess || !r.Live(at) {
		return token, "", at, conflict("run %s is not live, or this caller has no identity of its own", "ask with an SVID", r.ID)
	}
	expires = at.Add(AccessTTL)
	for _, end := range []time.Time{p.Expires, r.Expires, r.StageExpires} {
		if end.Before(expires) {
			expires = end
		}
	}
	id = "at-" + rand.Text()
	b, err := json.Marshal(access{id, p.ID.String(), r.ID, p.Launch, p.Level, p.Credential, expires})
	if err != nil {
		return token, "", at, fmt.Errorf("make an access token: %w", err)
	}
	sealed := a.aead.Seal(nil, nil, b, []byte(audience))
	return remit.NewSecret(accessPrefix + base64.RawURLEncoding.EncodeToString(sealed)), id, expires, nil
}

// MethodAccess is how a caller with an access token proved who it is.
const MethodAccess remit.Method = "access"

// AccessToken returns the principal and the run that a token for the audience stands for. Errors are of CodeUnauthenticated.
func (a *Access) AccessToken(token, audience string, at time.Time) (remit.Principal, remit.RunID, error) {
	text, ok := strings.CutPrefix(token, accessPrefix)
	raw, err := base64.RawURLEncoding.DecodeString(text)
	//remit:guard S35 TestAccessTokens
	if !ok || err != nil || len(token) > maxTokenBytes {
		return remit.Principal{}, "", refused("this is not an access token")
	}
	b, err := a.aead.Open(nil, nil, raw, []byte(audience))
	if err != nil {
		return remit.Principal{}, "", refused("the access token is not of this server, or for another audience")
	}
	var c access
	if err := json.Unmarshal(b, &c); err != nil {
		return remit.Principal{}, "", refused("the access token cannot be read")
	}
	//remit:guard S10 TestAccessTokens
	if !at.Before(c.Expires) {
		return remit.Principal{}, "", refused("the access token is over")
	}
	id, err := spiffeid.FromString(c.Subject)
	if err != nil {
		return remit.Principal{}, "", refused("the access token names no identity")
	}
	return remit.Principal{ID: id, Method: MethodAccess, Level: c.Level, Credential: c.ID, Launch: c.Launch, Expires: c.Expires}, c.Run, nil
}
