// SPDX-License-Identifier: Apache-2.0

package token

import (
	"context"
	"net/http"

	"remit"
	"remit/internal/gateway"
)

// assertionType is that of JWT-SVIDs (draft-ietf-oauth-spiffe-client-auth section 3.1). The generic jwt-bearer type is
// refused: its rules for iss and key discovery are others.
const assertionType = "urn:ietf:params:oauth:client-assertion-type:jwt-spiffe"

// authenticate verifies the client's SVID or SVIDs. client_id is compared byte by byte with the verified identity.
func (h *Handler) authenticate(ctx context.Context, r *http.Request, c *call) (remit.Principal, error) {
	clientID, assertion := c.form.get("client_id"), c.form.get("client_assertion")
	if c.form.get("client_secret") != "" {
		return remit.Principal{}, bad("client_secret is not used here: authenticate with an SVID")
	}
	if assertion == "" && c.form.get("client_assertion_type") != "" {
		return remit.Principal{}, bad("client_assertion_type without client_assertion")
	}
	certified := r.TLS != nil && len(r.TLS.PeerCertificates) > 0
	//remit:guard S5 TestClientAuthentication
	if !certified && assertion == "" {
		return remit.Principal{}, unauthenticated(nil, "no client certificate and no client_assertion")
	}
	var p remit.Principal
	if certified {
		var err error
		if p, err = gateway.Caller(r, h.cfg.Authenticator, c.at); err != nil {
			return p, unauthenticated(err, "the client certificate was not accepted")
		}
		if assertion == "" && clientID == "" {
			return p, unauthenticated(nil, "client_id is missing: it is the certificate's SPIFFE ID")
		}
		//remit:guard S6 TestClientAuthentication
		if clientID != "" && clientID != p.ID.String() {
			return p, unauthenticated(nil, "client_id is not the certificate's SPIFFE ID")
		}
	}
	if assertion == "" {
		return p, nil
	}
	//remit:guard S5 TestClientAuthentication
	if c.form.get("client_assertion_type") != assertionType {
		return p, unauthenticated(nil, "client_assertion_type must be "+assertionType)
	}
	q, err := h.cfg.Authenticator.Assertion(ctx, assertion)
	if err != nil {
		return q, unauthenticated(err, "client_assertion was not accepted")
	}
	switch {
	case q.IsZero() || q.Person != "" || !c.at.Before(q.Expires):
		return q, unauthenticated(nil, "client_assertion proves no workload now")
	//remit:guard S6 TestClientAuthentication
	case clientID != "" && clientID != q.ID.String():
		return q, unauthenticated(nil, "client_id is not the subject of client_assertion")
	//remit:guard S6 TestClientAuthentication
	case certified && q.ID != p.ID:
		return q, unauthenticated(nil, "client certificate and client_assertion are of different identities")
	case certified:
		return p, nil // the certificate is what run tokens are bound to
	}
	return q, nil
}

// unauthenticated says text to the caller, and why to nobody: which check failed helps only an attacker.
func unauthenticated(err error, text string) error {
	if remit.CodeOf(err) == remit.CodeUnavailable {
		return &problem{status: http.StatusServiceUnavailable, code: unavailable, retry: true, cause: err,
			text: "the client cannot be verified now"}
	}
	return &problem{status: http.StatusUnauthorized, code: "invalid_client", text: text, cause: err}
}
