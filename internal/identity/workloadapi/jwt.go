// SPDX-License-Identifier: Apache-2.0

package workloadapi

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"

	"remit/internal/identity"
)

// Bounds on what a caller may ask.
const (
	maxAudiences = 8
	maxAudience  = 512 // bytes
)

// jwtEntry is a JWT-SVID that may be shown again.
type jwtEntry struct {
	token string
	keys  <-chan struct{} // the generation of the authority's keys that it was made under
}

// FetchJWTSVID implements the Workload API. Each agent gets tokens only for audiences that its file lists (S1), and for Remit's
// own. The latter are fresh each time: Remit takes each once (S5). Others are shared until half of their life is over.
func (s *service) FetchJWTSVID(ctx context.Context, req *workload.JWTSVIDRequest) (*workload.JWTSVIDResponse, error) {
	audience, err := audienceOf(req)
	if err != nil {
		return nil, err
	}
	var only spiffeid.ID
	if req.GetSpiffeId() != "" {
		if only, err = spiffeid.FromString(req.GetSpiffeId()); err != nil {
			return nil, status.Errorf(codes.InvalidArgument, "spiffe_id: %v", err)
		}
	}
	ids, err := s.entitled(ctx)
	if err != nil {
		return nil, err
	}
	out := &workload.JWTSVIDResponse{}
	for _, e := range ids {
		if (!only.IsZero() && e.agent.ID != only) || !s.mayAddress(&e, audience) {
			continue
		}
		token, err := s.jwtSVID(ctx, &e, audience)
		if err != nil {
			return nil, s.asStatus(err)
		}
		out.Svids = append(out.Svids, &workload.JWTSVID{SpiffeId: e.agent.ID.String(), Svid: token, Hint: string(e.agent.Name)})
	}
	if len(out.Svids) == 0 {
		return nil, status.Errorf(codes.PermissionDenied, "no identity of this process may have a JWT-SVID for %.200q", audience)
	}
	return out, nil
}

// audienceOf returns the audiences in one order, each once, so that the same set is the same token.
func audienceOf(req *workload.JWTSVIDRequest) ([]string, error) {
	a := slices.Clone(req.GetAudience())
	slices.Sort(a)
	a = slices.Compact(a)
	//remit:guard S35 TestCodes
	if len(a) == 0 || len(a) > maxAudiences {
		return nil, status.Errorf(codes.InvalidArgument, "1 to %d audiences are required", maxAudiences)
	}
	for _, s := range a {
		if s == "" || len(s) > maxAudience {
			return nil, status.Errorf(codes.InvalidArgument, "an audience has 1 to %d bytes", maxAudience)
		}
	}
	return a, nil
}

func (s *Server) mayAddress(e *entitled, audience []string) bool {
	for _, a := range audience {
		//remit:guard S1 TestCodes
		if a != s.cfg.OwnAudience && !slices.Contains(e.agent.Audiences, a) {
			return false
		}
	}
	return true
}

func (s *Server) jwtSVID(ctx context.Context, e *entitled, audience []string) (string, error) {
	keys := s.cfg.Authority.Changed()
	mint := func() (*jwtEntry, time.Time, error) {
		token, j, err := s.cfg.Authority.JWTSVID(e.agent.ID, audience, s.cfg.JWTTTL)
		if err != nil {
			return nil, time.Time{}, err
		}
		//remit:guard S8 TestNothingUnrecorded
		if err := s.record(ctx, e, j.JTI, j.Expires); err != nil {
			return nil, time.Time{}, err
		}
		return &jwtEntry{token, keys}, j.Issued.Add(j.Expires.Sub(j.Issued) / 2), nil
	}
	//remit:guard S5 TestJWTCache
	if slices.Contains(audience, s.cfg.OwnAudience) {
		entry, _, err := mint()
		if err != nil {
			return "", err
		}
		return entry.token, nil
	}
	good := func(e *jwtEntry) bool { return e.keys == keys } // a key may have been dropped
	entry, err := s.jwt.get(e.key(audience...), s.cfg.Now(), good, mint)
	if err != nil {
		return "", err
	}
	return entry.token, nil
}

// ValidateJWTSVID implements the Workload API. It uses nothing up and is open to every process that can be attested: whoever has
// the bundle can do the same. Any failure is InvalidArgument.
func (s *service) ValidateJWTSVID(ctx context.Context, req *workload.ValidateJWTSVIDRequest) (*workload.ValidateJWTSVIDResponse, error) {
	c, err := callerOf(ctx)
	if err != nil {
		return nil, err
	}
	if err := c.peer.Alive(); err != nil {
		return nil, s.unattested(c, err)
	}
	if req.GetAudience() == "" || req.GetSvid() == "" {
		return nil, status.Error(codes.InvalidArgument, "audience and svid are required")
	}
	j, err := identity.VerifyJWT(req.GetSvid(), s.cfg.Authority, s.cfg.Now())
	if err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "not a valid JWT-SVID: %v", err)
	}
	if !slices.Contains(j.Audience, req.GetAudience()) {
		return nil, status.Errorf(codes.InvalidArgument, "the JWT-SVID is for another audience than %.200q", req.GetAudience())
	}
	claims, err := claimsOf(&j)
	if err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "claims: %v", err)
	}
	return &workload.ValidateJWTSVIDResponse{SpiffeId: j.ID.String(), Claims: claims}, nil
}

// claimsOf returns the claims as clients expect them: aud is always a list.
func claimsOf(j *identity.JWT) (*structpb.Struct, error) {
	all := map[string]any{}
	for k, v := range j.Claims {
		all[k] = v
	}
	aud := make([]any, 0, len(j.Audience))
	for _, a := range j.Audience {
		aud = append(aud, a)
	}
	all["aud"] = aud
	out, err := structpb.NewStruct(all)
	if err != nil {
		return nil, fmt.Errorf("encode: %w", err)
	}
	return out, nil
}
