// SPDX-License-Identifier: Apache-2.0

package kubernetes

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"strings"

	"remit"
)

// Claims are what a grant token says to the API server; the AuthenticationConfiguration in deploy/kubernetes maps them.
type Claims struct {
	Issuer    string      `json:"iss"`
	Audience  []string    `json:"aud"`
	Subject   string      `json:"sub"` // the agent's SPIFFE ID
	ID        string      `json:"jti"` // the lease's id: the audit log joins without any record of ours
	IssuedAt  int64       `json:"iat"`
	NotBefore int64       `json:"nbf"`
	Expires   int64       `json:"exp"`
	Remit     RemitClaims `json:"remit"`
}

// RemitClaims name the lease.
type RemitClaims struct {
	Lease  string   `json:"lease"`
	Name   string   `json:"name"` // of the objects made for the lease; the lease's group ends in it
	Grant  string   `json:"grant"`
	Run    string   `json:"run,omitempty"`
	Groups []string `json:"groups"` // the group that the lease's RoleBinding names, and GroupAgents
}

// signToken makes a grant token that ends with the lease, to the second before.
func (d *Driver) signToken(l remit.Lease) (token, error) {
	claims := Claims{
		Issuer: d.cfg.Issuer, Audience: []string{d.cfg.Audience}, Subject: l.AgentID, ID: string(l.ID),
		IssuedAt: l.Issued.Unix(), NotBefore: l.Issued.Unix(), Expires: l.Expires.Unix(),
		Remit: RemitClaims{Lease: string(l.ID), Name: d.name(l.ID), Grant: string(l.Grant), Run: string(l.Run),
			Groups: []string{GroupAgents, groupLease + d.name(l.ID)}},
	}
	if l.AgentID == "" {
		return token{}, invalid("", "lease %s names no SPIFFE ID", l.ID)
	}
	signed, err := d.cfg.Signer.Sign(claims)
	if err != nil {
		return token{}, &remit.Error{Code: remit.CodeUnavailable, Msg: "kubernetes: the grant issuer did not sign", Cause: err}
	}
	return token{remit.NewSecret(signed), string(l.ID), l.Expires.Truncate(1e9)}, nil
}

// tokenID reads the jti of a token that the API server just issued to us over TLS; its signature is for the API server.
func tokenID(jwt string) (string, error) {
	parts := strings.Split(jwt, ".")
	if len(parts) != 3 || len(jwt) > 16<<10 {
		return "", errors.New("not a compact JWS")
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return "", errors.New("payload is not base64url")
	}
	var claims struct {
		ID string `json:"jti"`
	}
	if err := json.Unmarshal(payload, &claims); err != nil {
		return "", errors.New("payload is not JSON")
	}
	if claims.ID == "" || len(claims.ID) > 128 {
		return "", errors.New("no jti: the cluster is older than Kubernetes 1.32, and acts could not be joined to leases")
	}
	return claims.ID, nil
}
