// SPDX-License-Identifier: Apache-2.0

package workloadapi

import (
	"context"
	"crypto"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
)

// FetchX509Bundles implements the Workload API: the roots of each trust domain under the domain's own ID, never merged.
func (s *service) FetchX509Bundles(_ *workload.X509BundlesRequest, stream grpc.ServerStreamingServer[workload.X509BundlesResponse]) error {
	return push(s.Server, stream, func(ctx context.Context) (*workload.X509BundlesResponse, time.Time, error) {
		if _, err := s.entitled(ctx); err != nil {
			return nil, time.Time{}, err
		}
		b := s.cfg.Authority.Bundle()
		return &workload.X509BundlesResponse{Bundles: map[string][]byte{b.TrustDomain().IDString(): joinDER(b.X509Authorities())}}, time.Time{}, nil
	})
}

// FetchJWTBundles implements the Workload API: JWT keys alone, as a JSON Web Key Set per trust domain.
func (s *service) FetchJWTBundles(_ *workload.JWTBundlesRequest, stream grpc.ServerStreamingServer[workload.JWTBundlesResponse]) error {
	return push(s.Server, stream, func(ctx context.Context) (*workload.JWTBundlesResponse, time.Time, error) {
		if _, err := s.entitled(ctx); err != nil {
			return nil, time.Time{}, err
		}
		b := s.cfg.Authority.Bundle()
		set, err := keySet(b.JWTAuthorities())
		if err != nil {
			return nil, time.Time{}, s.asStatus(err)
		}
		return &workload.JWTBundlesResponse{Bundles: map[string][]byte{b.TrustDomain().IDString(): set}}, time.Time{}, nil
	})
}

// keySet writes keys in one order, so that the same set is the same message.
func keySet(keys map[string]crypto.PublicKey) ([]byte, error) {
	set := jose.JSONWebKeySet{Keys: []jose.JSONWebKey{}}
	for _, id := range slices.Sorted(maps.Keys(keys)) {
		set.Keys = append(set.Keys, jose.JSONWebKey{Key: keys[id], KeyID: id, Use: "jwt-svid"})
	}
	b, err := json.Marshal(set)
	if err != nil {
		return nil, fmt.Errorf("encode JWT bundle: %w", err)
	}
	return b, nil
}
