// SPDX-License-Identifier: Apache-2.0

// Package signal turns entries of the ledger into what others are told: signed events for webhooks, and security event tokens (RFC 8417)
// with the events of CAEP 1.0, and events in the form of OCSF 1.9. It is pure: it reads entries, keeps nothing, and sends nothing. Only what stands in clear in the ledger is
// told: no value of an argument is in it.
package signal

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base32"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"

	"remit"
)

// Signal is one thing that is told.
type Signal struct {
	Seq      uint64           `json:"-"` // of the entry that says it
	Kind     remit.EventKind  `json:"-"`
	At       time.Time        `json:"at"`
	Agent    remit.Name       `json:"agent"`
	Run      remit.RunID      `json:"run"`
	Decision remit.DecisionID `json:"decision"`
	Grant    remit.GrantID    `json:"grant"`
	Lease    remit.LeaseID    `json:"lease"`
	By       string           `json:"by"`
	Data     json.RawMessage  `json:"data"`
}

// Topic is what a receiver can be told of.
type Topic string

// The topics.
const (
	Findings    Topic = "findings"    // what was found, and what was ended and given back
	Decisions   Topic = "decisions"   // every answer
	Credentials Topic = "credentials" // grants, and how their credentials come and go
)

// topics are the kinds of entries that are told.
var topics = map[remit.EventKind]Topic{
	remit.EventRaised: Findings, remit.EventClosed: Findings, remit.EventSuspended: Findings, remit.EventReinstated: Findings,
	remit.EventDecision: Decisions, remit.EventFolded: Decisions,
	remit.EventGrant: Credentials, remit.EventLeaseActive: Credentials, remit.EventLeaseFailed: Credentials, remit.EventLeaseRevoking: Credentials,
	remit.EventLeaseEnded: Credentials,
}

// TopicOf is the topic of a kind of entries; empty for one that nobody is told.
func TopicOf(kind remit.EventKind) Topic { return topics[kind] }

// Of reads an entry; ok is false for one that nobody is told.
func Of(kind remit.EventKind, e remit.Entry) (s Signal, ok bool) {
	if TopicOf(kind) == "" || json.Unmarshal(e.Body, &s) != nil {
		return Signal{}, false
	}
	s.Seq, s.Kind = e.Seq, kind
	return s, true
}

// ID is the same each time that this entry is told to this receiver, who can know a repeated delivery by it.
func (s *Signal) ID(receiver string) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "remit signal v1 %q %d", receiver, s.Seq))
	return "sig-" + strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(sum[:16]))
}

// Bare is the signal without what the entry says beyond its kind, agent and ids: without any text that an agent can choose.
func (s *Signal) Bare() Signal {
	bare := *s
	bare.Data = nil
	return bare
}

// Webhook is the event as JSON.
func (s *Signal) Webhook() []byte {
	type data struct {
		Seq      uint64           `json:"seq"`
		Agent    remit.Name       `json:"agent,omitempty"`
		Run      remit.RunID      `json:"run,omitempty"`
		Decision remit.DecisionID `json:"decision,omitempty"`
		Grant    remit.GrantID    `json:"grant,omitempty"`
		Lease    remit.LeaseID    `json:"lease,omitempty"`
		By       string           `json:"by"`
		Event    json.RawMessage  `json:"event,omitempty"`
	}
	b, err := json.Marshal(struct {
		Type string    `json:"type"`
		At   time.Time `json:"timestamp"`
		Data data      `json:"data"`
	}{string(s.Kind), s.At.UTC(), data{s.Seq, s.Agent, s.Run, s.Decision, s.Grant, s.Lease, s.By, s.Data}})
	if err != nil {
		panic("signal: " + err.Error()) // the ledger holds valid JSON
	}
	return b
}

// The types of events: of CAEP 1.0, and of SSF 1.0.
const (
	SessionRevoked   = "https://schemas.openid.net/secevent/caep/event-type/session-revoked"
	RiskLevelChange  = "https://schemas.openid.net/secevent/caep/event-type/risk-level-change"
	CredentialChange = "https://schemas.openid.net/secevent/caep/event-type/credential-change"
	verification     = "https://schemas.openid.net/secevent/ssf/event-type/verification"
)

// EventsOf are the types of events that a topic has in CAEP.
func EventsOf(t Topic) []string {
	return map[Topic][]string{Findings: {SessionRevoked, RiskLevelChange}, Credentials: {CredentialChange}}[t]
}

// events are what a receiver of CAEP is told: one event in each token. A finding that was closed has no event there.
func (s *Signal) event() (name string, event map[string]any) {
	event = map[string]any{"event_timestamp": s.At.Unix(), "initiating_entity": "policy"}
	if strings.HasPrefix(s.By, "operator/") {
		event["initiating_entity"] = "admin"
	}
	var d struct {
		Kind     remit.FindingKind `json:"kind"`
		Severity remit.Severity    `json:"severity"`
		Reason   string            `json:"reason"`
		Early    bool              `json:"early"`
	}
	_ = json.Unmarshal(s.Data, &d) // the ledger's own
	credential := func(change string) (string, map[string]any) {
		event["credential_type"], event["change_type"], event["friendly_name"] = "lease", change, string(s.Lease)
		return CredentialChange, event
	}
	level := func(current, reason string) {
		event["principal"], event["current_level"], event["risk_reason"] = "USER", current, reason
	}
	switch s.Kind {
	case remit.EventSuspended:
		event["reason_admin"] = map[string]string{"en": d.Reason}
		return SessionRevoked, event
	case remit.EventLeaseActive:
		return credential("create")
	case remit.EventLeaseEnded:
		if !d.Early {
			return "", nil // it expired, as its receiver knew it would
		}
		return credential("revoke")
	case remit.EventReinstated:
		level("LOW", "reinstated")
		return RiskLevelChange, event
	case remit.EventRaised:
		if s.Agent == "" {
			return "", nil // nobody whose risk could change
		}
		current := map[remit.Severity]string{remit.SeverityLow: "LOW", remit.SeverityMedium: "MEDIUM"}[d.Severity]
		if current == "" {
			current = "HIGH"
		}
		level(current, string(d.Kind))
		return RiskLevelChange, event
	}
	return "", nil
}

// Signer makes security event tokens. It is safe for concurrent use.
type Signer struct {
	signer           jose.Signer
	public           jose.JSONWebKey
	issuer, audience string
}

// NewSigner reads the private key, as PEM. RSA signs with RS256, which the interoperability profile of CAEP asks for; ECDSA P-256 with ES256.
func NewSigner(key remit.Secret, issuer, audience string) (*Signer, error) {
	block, _ := pem.Decode([]byte(key.Reveal()))
	if block == nil {
		return nil, errors.New("the signing key is no PEM")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, errors.New("the signing key is no PKCS #8 private key") // the cause could hold parts of it
	}
	var public crypto.PublicKey
	var alg jose.SignatureAlgorithm
	switch k := parsed.(type) {
	case *rsa.PrivateKey:
		public, alg = k.Public(), jose.RS256
		//remit:guard S7 TestSigningKeys
		if k.N.BitLen() < 2048 {
			return nil, errors.New("the signing key has fewer than 2048 bits")
		}
	case *ecdsa.PrivateKey:
		public, alg = k.Public(), jose.ES256
		if k.Curve != elliptic.P256() {
			return nil, errors.New("the signing key is not on P-256")
		}
	default:
		return nil, errors.New("the signing key is neither RSA nor ECDSA P-256")
	}
	jwk := jose.JSONWebKey{Key: public, Algorithm: string(alg), Use: "sig"}
	thumb, err := jwk.Thumbprint(crypto.SHA256)
	if err != nil {
		return nil, err
	}
	jwk.KeyID = base64.RawURLEncoding.EncodeToString(thumb)
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: parsed}, (&jose.SignerOptions{}).WithType("secevent+jwt").WithHeader("kid", jwk.KeyID))
	return &Signer{signer, jwk, issuer, audience}, err
}

// Public is the key that verifies.
func (k *Signer) Public() jose.JSONWebKey { return k.public }

// SET signs a token about the agent of that SPIFFE ID, with its id as jti; ok is false where CAEP has no event for the signal. It has
// neither exp nor sub, as SSF 1.0 says; its subject is a URI (RFC 9493 section 3.2.7).
func (k *Signer) SET(s *Signal, subject, id string, now time.Time) (token string, ok bool, err error) {
	name, event := s.event()
	if name == "" || subject == "" {
		return "", false, nil
	}
	token, err = k.sign(id, now, map[string]string{"format": "uri", "uri": subject}, name, event)
	return token, err == nil, err
}

// Verification signs a token that says nothing but that the stream works (SSF 1.0 section 8.1.4); state is the receiver's own.
func (k *Signer) Verification(stream, state, id string, now time.Time) (string, error) {
	event := map[string]any{}
	if state != "" {
		event["state"] = state
	}
	return k.sign(id, now, map[string]string{"format": "opaque", "id": stream}, verification, event)
}

func (k *Signer) sign(id string, now time.Time, subject map[string]string, name string, event map[string]any) (string, error) {
	claims, err := json.Marshal(map[string]any{"iss": k.issuer, "aud": k.audience, "iat": now.Unix(), "jti": id, "sub_id": subject, "events": map[string]any{name: event}})
	if err != nil {
		return "", err
	}
	signed, err := k.signer.Sign(claims)
	if err != nil {
		return "", err
	}
	return signed.CompactSerialize()
}

// Audience is who the tokens are for.
func (k *Signer) Audience() string { return k.audience }
