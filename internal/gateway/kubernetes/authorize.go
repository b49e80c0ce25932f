// SPDX-License-Identifier: Apache-2.0

package kubernetes

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"

	authorizationv1 "k8s.io/api/authorization/v1"

	"remit"
)

const maxReview = 256 << 10

// authorize answers a SubjectAccessReview (authorization.k8s.io/v1). It is never cached by the API server, so a revoked lease
// is refused at the next request.
func (g *Gateway) authorize(w http.ResponseWriter, r *http.Request) {
	var review authorizationv1.SubjectAccessReview
	if !read(w, r, maxReview, &review) {
		return
	}
	//remit:guard S19 TestBadBodies
	if review.Kind != "SubjectAccessReview" || review.APIVersion != "authorization.k8s.io/v1" {
		http.Error(w, "send a SubjectAccessReview of authorization.k8s.io/v1", http.StatusBadRequest)
		return
	}
	answer := authorizationv1.SubjectAccessReview{TypeMeta: review.TypeMeta, Status: g.review(&review.Spec)}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(answer) // the API server takes a broken answer as a denial
}

func deny(why string) authorizationv1.SubjectAccessReviewStatus {
	return authorizationv1.SubjectAccessReviewStatus{Denied: true, Reason: "remit: " + why}
}

// review judges one request. Neither allowed nor denied means that the next authorizer, RBAC, decides.
func (g *Gateway) review(s *authorizationv1.SubjectAccessReviewSpec) authorizationv1.SubjectAccessReviewStatus {
	account, isAccount := strings.CutPrefix(s.User, accountPrefix)
	isAgent := slices.Contains(s.Groups, groupAgents)
	if !isAccount && !isAgent {
		return authorizationv1.SubjectAccessReviewStatus{Reason: "remit: not a holder of a lease"}
	}
	//remit:guard S19 TestAuthorize
	if isAccount && !strings.HasPrefix(account, "remit-"+g.cfg.Installation+"-") && strings.HasPrefix(account, "remit-") {
		return authorizationv1.SubjectAccessReviewStatus{Reason: "remit: a lease of another installation"}
	}
	if answer, ok := g.probes.answer(s); ok {
		return answer
	}
	l, why := g.holder(s, account, isAccount)
	if why != "" {
		return deny(why)
	}
	switch {
	//remit:guard S20 TestAuthorize
	case l.State != remit.GrantActive:
		return deny("the lease is " + string(l.State))
	//remit:guard S12 TestAuthorize
	case !g.cfg.Now().Before(l.Expires):
		return deny("the lease has expired")
	case isAccount || !g.cfg.Decides:
		return authorizationv1.SubjectAccessReviewStatus{Reason: "remit: live lease " + string(l.ID)}
	case g.covers(l, s):
		return authorizationv1.SubjectAccessReviewStatus{Allowed: true, Reason: "remit: lease " + string(l.ID)}
	}
	return deny("not in the grant of lease " + string(l.ID))
}

// holder finds the lease by the credential that the API server verified, and checks that both speak of the same holder.
func (g *Gateway) holder(s *authorizationv1.SubjectAccessReviewSpec, account string, isAccount bool) (remit.Lease, string) {
	ids := s.Extra[credentialKey]
	//remit:guard S36 TestAuthorize
	if len(ids) != 1 {
		return remit.Lease{}, "the credential has no id"
	}
	l, ok := g.cfg.Leases.ByCredential(ids[0])
	//remit:guard S19 TestAuthorize
	if !ok || l.Target != g.cfg.Target {
		return remit.Lease{}, "no lease for this credential"
	}
	//remit:guard S19 TestAuthorize
	if id, ok := g.byAccount(account); isAccount && (!ok || id != l.ID) || !isAccount && s.User != l.AgentID {
		return remit.Lease{}, "the credential is another holder's"
	}
	return l, ""
}

// covers adds to the lease's scope what every client needs: discovery, and questions about oneself.
func (g *Gateway) covers(l remit.Lease, s *authorizationv1.SubjectAccessReviewSpec) bool {
	if n := s.NonResourceAttributes; n != nil {
		return n.Verb == "get" && discovery(n.Path)
	}
	a := s.ResourceAttributes
	if a == nil {
		return false
	}
	self := a.Group == "authorization.k8s.io" && (a.Resource == "selfsubjectaccessreviews" || a.Resource == "selfsubjectrulesreviews") ||
		a.Group == "authentication.k8s.io" && a.Resource == "selfsubjectreviews"
	return self && a.Verb == "create" && a.Subresource == "" ||
		g.cfg.Allowed(l, a.Verb, a.Group, a.Resource, a.Subresource, a.Namespace, a.Name)
}

func discovery(path string) bool {
	for _, p := range []string{"/api", "/apis", "/openapi"} {
		if path == p || strings.HasPrefix(path, p+"/") {
			return true
		}
	}
	return path == "/version"
}
