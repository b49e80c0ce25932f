// SPDX-License-Identifier: Apache-2.0

package server

import (
	"fmt"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"remit"
	"remit/internal/identity"
	"remit/internal/identity/federation"
)

// federate adds the trust domains that the server's file federates with to our own.
func (s *Server) federate(own identity.Bundles) (*federation.Bundles, error) {
	var domains []federation.Domain
	for _, f := range s.cfg.Federates {
		d := federation.Domain{TrustDomain: f.TrustDomain, URL: f.URL, EndpointID: f.EndpointID}
		var err error
		if f.Bundle != "" {
			if d.Bootstrap, err = spiffebundle.Load(f.TrustDomain, f.Bundle); err != nil {
				return nil, &remit.Error{Code: remit.CodeInvalid, Msg: fmt.Sprintf("federates: %s: bundle", f.TrustDomain.Name()), Cause: err,
					Hint: "it is the SPIFFE JSON that the other side's bundle endpoint serves, got by a way that you trust"}
			}
		}
		if d.Roots, err = rootsOf(f.CA); err != nil {
			return nil, fmt.Errorf("federates: %w", err)
		}
		domains = append(domains, d)
	}
	return federation.New(federation.Config{Own: own, Domains: domains, Dir: s.path(dirFederation), Log: s.log, Now: s.now})
}

// vouched is what the agent's file states for an SVID of another trust domain (S8): none, unless it says so.
func (s *Server) vouched(id spiffeid.ID) remit.Level {
	name, ok := s.registry.Agent(id)
	if !ok {
		return remit.LevelNone
	}
	a, _ := s.registry.Named(name)
	return a.Vouched
}
