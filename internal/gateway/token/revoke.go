// SPDX-License-Identifier: Apache-2.0

package token

import (
	"context"
	"encoding/base64"
	"errors"
	"net/http"
	"strings"

	"remit"
)

// revoke is RFC 7009: the token is a grant's id, or a JWT that was handed out. What is unknown, ended or no token at all is
// answered like what was revoked; only a live grant of another agent is an error, because nothing was done.
//
// The JWT's signature is not checked: whoever knows its jti and is the grant's own agent may end the grant.
func (h *Handler) revoke(ctx context.Context, c *call) ([]byte, error) {
	token := c.form.get("token")
	if token == "" {
		return nil, bad("token is missing")
	}
	id, ok := h.find(token)
	if !ok {
		return nil, nil
	}
	g, ok := h.cfg.Grants.Grant(id)
	if !ok {
		return nil, nil
	}
	//remit:guard S20 TestRevoke
	if c.agent == "" || g.Agent != c.agent {
		return nil, &problem{code: "unauthorized_client", text: "only the agent that holds a grant may give it back"}
	}
	// A client that goes away does not keep its authority alive.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), h.cfg.Timeout)
	defer cancel()
	err := h.cfg.Grants.Revoke(ctx, id, "given back by its agent", c.client.String())
	if err != nil && remit.CodeOf(err) != remit.CodeNotFound {
		return nil, &problem{status: http.StatusServiceUnavailable, code: unavailable, retry: true, cause: err,
			text: "the grant is being ended, but its target has not confirmed yet"}
	}
	return nil, nil
}

func (h *Handler) find(token string) (remit.GrantID, bool) {
	if id, err := remit.ParseGrantID(token); err == nil {
		return id, true
	}
	jti, err := claimJTI(token)
	if err != nil {
		return "", false
	}
	return h.cfg.Grants.GrantOf("JTI=" + jti)
}

// claimJTI reads the jti of a compact JWT without believing it.
func claimJTI(token string) (string, error) {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return "", errors.New("not a JWT")
	}
	claims, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return "", err
	}
	jti := ""
	d := remit.NewDecoder(string(claims))
	err = d.Object(func(name string) error {
		if name != "jti" {
			return d.Skip()
		}
		s, err := d.Text()
		jti = s
		return err
	})
	if err == nil && jti == "" {
		err = errors.New("no jti")
	}
	return jti, err
}
