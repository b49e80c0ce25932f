// SPDX-License-Identifier: Apache-2.0

package kubernetes

import (
	"sync"
	"time"

	authorizationv1 "k8s.io/api/authorization/v1"
)

// Asked is how often the API server asked about a probe's two paths.
type Asked struct {
	Allowed, Denied int
}

// probes are the credentials that remit doctor shows the API server: of no lease, known for the length of one check.
type probes struct {
	mu   sync.Mutex // guards live
	live map[string]*probe
}

type probe struct {
	allowed string
	asked   Asked
}

// Probe counts the questions about the credential with that id ("JTI=…") until stop is called. Of allowed, a path that every
// authenticated user may read anyway, the answer is yes, so that remembered permissions show, too; of the rest it is no.
func (g *Gateway) Probe(credential, allowed string) (stop func() Asked) {
	p := &probe{allowed: allowed}
	g.probes.mu.Lock()
	defer g.probes.mu.Unlock()
	if g.probes.live == nil {
		g.probes.live = map[string]*probe{}
	}
	g.probes.live[credential] = p
	return func() Asked {
		g.probes.mu.Lock()
		defer g.probes.mu.Unlock()
		delete(g.probes.live, credential)
		return p.asked
	}
}

func (ps *probes) answer(s *authorizationv1.SubjectAccessReviewSpec) (answer authorizationv1.SubjectAccessReviewStatus, ok bool) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	ids := s.Extra[credentialKey]
	if len(ps.live) == 0 || len(ids) != 1 || ps.live[ids[0]] == nil {
		return answer, false
	}
	p := ps.live[ids[0]]
	if n := s.NonResourceAttributes; n != nil && n.Verb == "get" && n.Path == p.allowed {
		p.asked.Allowed++
		return authorizationv1.SubjectAccessReviewStatus{Allowed: true, Reason: "remit: doctor's probe"}, true
	}
	p.asked.Denied++
	return deny("doctor's probe"), true
}

// Heard returns when audit events last came; the zero time if never since the gateway was made.
func (g *Gateway) Heard() time.Time {
	if ns := g.heard.Load(); ns != 0 {
		return time.Unix(0, ns)
	}
	return time.Time{}
}
