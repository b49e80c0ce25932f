// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"strings"

	"remit"
	"remit/internal/api"
	"remit/internal/gateway/admin"
	"remit/internal/store"
)

func (s *Server) opGrants(_ context.Context, c admin.Call) (any, error) {
	limit, after, err := page(c.Query)
	if err != nil {
		return nil, err
	}
	grants, err := s.store.Grants(store.GrantFilter{}, limit, remit.GrantID(after))
	for i := range grants {
		grants[i] = grants[i].Shown()
	}
	return listed(grants, limit, func(g remit.Grant) string { return string(g.ID) }), err
}

func (s *Server) opGrant(_ context.Context, c admin.Call) (any, error) {
	id, err := remit.ParseGrantID(c.Path("id"))
	if err != nil {
		return nil, err
	}
	g, ok := s.store.Grant(id)
	if !ok {
		return nil, notFound("grant", string(id))
	}
	return s.observe(g)
}

func (s *Server) opRevoke(ctx context.Context, c admin.Call) (any, error) {
	id, err := remit.ParseGrantID(c.Path("id"))
	if err != nil {
		return nil, err
	}
	why, err := reasonOf(c)
	if err != nil {
		return nil, err
	}
	if err := s.broker.Revoke(ctx, id, why, c.Who.String()); err != nil {
		return nil, err
	}
	g, _ := s.store.Grant(id)
	return g.Shown(), nil
}

// opVerify tries the limits of a live grant with a twin of it. That a limit does not hold is an answer, not an error.
func (s *Server) opVerify(ctx context.Context, c admin.Call) (any, error) {
	id, err := remit.ParseGrantID(c.Path("id"))
	if err != nil {
		return nil, err
	}
	v, err := s.broker.Verify(ctx, id, c.Who.String())
	if err != nil {
		return nil, err
	}
	g, _ := s.store.Grant(id)
	return v.Shown(&g), nil
}

// reasonOf reads the reason that ending authority needs: it stands in the ledger.
func reasonOf(c admin.Call) (string, error) {
	var r api.Reasoned
	if err := c.Decode(&r); err != nil {
		return "", err
	}
	r.Reason = strings.TrimSpace(r.Reason)
	if r.Reason == "" || len(r.Reason) > 500 {
		return "", &remit.Error{Code: remit.CodeInvalid, Msg: "a reason of 1 to 500 characters is needed", Hint: "add --reason TEXT"}
	}
	return r.Reason, nil
}
