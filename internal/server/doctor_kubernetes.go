// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"remit"
	"remit/internal/credential/kubernetes"
	kubegateway "remit/internal/gateway/kubernetes"
)

// kubernetesProbe tries what the guard objects of a cluster do not show: whether its API server trusts grant tokens, asks
// Remit, and forgets the answers. gw is nil where the target takes no webhooks.
func kubernetesProbe(mode kubernetes.Mode, driver *kubernetes.Driver, gw *kubegateway.Gateway, subject string, now func() time.Time) func(context.Context) (string, error) {
	return func(ctx context.Context) (string, error) {
		heard := "audit events are not taken: the target's file has no webhook"
		if gw != nil {
			heard = "no audit events came since this configuration is active"
			if at := gw.Heard(); !at.IsZero() {
				heard = fmt.Sprintf("audit events last came %s ago", now().Sub(at).Round(time.Second))
			}
		}
		if mode == kubernetes.ModeServiceAccount {
			return "whether its API server asks Remit about requests cannot be seen in mode serviceaccount; " + heard, nil
		}
		id := "probe-" + string(remit.NewLeaseID())
		stop := func() kubegateway.Asked { return kubegateway.Asked{} }
		if gw != nil {
			stop = gw.Probe("JTI="+id, kubernetes.ProbeAllowed)
		}
		p, err := driver.Probe(ctx, subject, id)
		asked := stop()
		if err != nil {
			return "", err
		}
		text, err := judgeProbe(mode, p, asked)
		return text + "; " + heard, err
	}
}

// distrusting is S1: beside what probe tries, it shows the API server a JWT-SVID of Remit's own for every audience that a cluster
// commonly has, and fails if that is taken. A target trusts the grant issuer, whose tokens follow a decision, and never SVIDs.
func (s *Server) distrusting(cfg *kubernetes.Config, accepts func(context.Context, remit.Secret) (bool, error),
	probe func(context.Context) (string, error)) func(context.Context) (string, error) {
	return func(ctx context.Context) (string, error) {
		audiences := []string{"https://kubernetes.default.svc"}
		for _, more := range []string{cfg.Audience, cfg.Server} {
			if more != "" {
				audiences = append(audiences, more)
			}
		}
		id, err := spiffeid.FromSegments(s.td, "operator", "doctor") // which no agent can have
		if err != nil {
			return "", err
		}
		token, _, err := s.ids.authority.JWTSVID(id, audiences, 10*time.Second)
		if err != nil {
			return "", err
		}
		taken, err := accepts(ctx, remit.NewSecret(token))
		if err != nil {
			return "", err
		}
		//remit:guard S1 TestDoctorFindsTrustInSVIDs
		if taken {
			return "", &remit.Error{Code: remit.CodeUnavailable, Msg: "its API server trusts the issuer of SVIDs: an agent could walk past every decision",
				Hint: "take " + s.cfg.Issuer + " out of --authentication-config; only the grant issuer, " + s.cfg.GrantIssuer + ", belongs there"}
		}
		return probe(ctx)
	}
}

func judgeProbe(mode kubernetes.Mode, p kubernetes.Probed, asked kubegateway.Asked) (string, error) {
	refuse := func(msg, hint string) (string, error) {
		return "", &remit.Error{Code: remit.CodeUnavailable, Msg: msg, Hint: hint}
	}
	never := asked.Allowed == 0 && asked.Denied == 0
	switch {
	case p.Allowed[0] == http.StatusUnauthorized || p.Allowed[1] == http.StatusUnauthorized:
		return refuse("its API server does not accept grant tokens",
			"it looks for the issuer's keys every ten seconds; then check --authentication-config: the issuer's url, audiences, and bundle.pem as certificateAuthority")
	case p.Allowed != [2]int{http.StatusOK, http.StatusOK}:
		return refuse(fmt.Sprintf("its API server answers %d to a holder of a grant token", p.Allowed[0]),
			"does the kubeconfig of --authorization-config name /kubernetes/TARGET/authorize of this Remit, with the token of webhook?")
	case never && mode == kubernetes.ModeWebhook:
		return refuse("its API server does not ask Remit about holders of leases", "mode webhook needs --authorization-config")
	case never:
		return "grant tokens are accepted, RBAC decides alone", nil
	case asked.Allowed < 2 || asked.Denied < 2:
		return refuse("its API server remembers Remit's answers, so that a revoked lease would live on",
			"set cacheAuthorizedRequests and cacheUnauthorizedRequests to false, as deploy/kubernetes/authorization.yaml has it")
	case p.Denied != [2]int{http.StatusForbidden, http.StatusForbidden}:
		return refuse("its API server allows what Remit denies", "the webhook of Remit must stand before all other authorizers")
	}
	return "grant tokens are accepted, Remit is asked about every request, answers are not remembered", nil
}
