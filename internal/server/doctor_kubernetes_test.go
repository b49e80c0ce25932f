// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"

	"remit"
	"remit/internal/credential/kubernetes"
	kubegateway "remit/internal/gateway/kubernetes"
)

// What doctor makes of each way in which an API server can be configured.
func TestJudgeProbe(t *testing.T) {
	p := func(allowed, denied int) kubernetes.Probed {
		return kubernetes.Probed{Allowed: [2]int{allowed, allowed}, Denied: [2]int{denied, denied}}
	}
	asked := func(allowed, denied int) kubegateway.Asked {
		return kubegateway.Asked{Allowed: allowed, Denied: denied}
	}
	for what, c := range map[string]struct {
		mode  kubernetes.Mode
		p     kubernetes.Probed
		asked kubegateway.Asked
		want  string // of the text, or of the error after a "!"
	}{
		"jwt, RBAC alone":             {kubernetes.ModeJWT, p(200, 404), asked(0, 0), "RBAC decides alone"},
		"jwt under the webhook":       {kubernetes.ModeJWT, p(200, 403), asked(2, 2), "not remembered"},
		"webhook":                     {kubernetes.ModeWebhook, p(200, 403), asked(2, 2), "not remembered"},
		"webhook, asked again":        {kubernetes.ModeWebhook, p(200, 403), asked(3, 2), "not remembered"},
		"not trusted":                 {kubernetes.ModeWebhook, p(401, 401), asked(0, 0), "!does not accept grant tokens"},
		"not asked":                   {kubernetes.ModeWebhook, p(200, 404), asked(0, 0), "!does not ask Remit"},
		"somebody else is asked":      {kubernetes.ModeWebhook, p(403, 403), asked(0, 0), "!answers 403"},
		"jwt, somebody else is asked": {kubernetes.ModeJWT, p(403, 403), asked(0, 0), "!answers 403"},
		"allowed is remembered":       {kubernetes.ModeWebhook, p(200, 403), asked(1, 2), "!remembers"},
		"denied is remembered":        {kubernetes.ModeWebhook, p(200, 403), asked(2, 1), "!remembers"},
		"RBAC goes first":             {kubernetes.ModeWebhook, p(200, 404), asked(2, 2), "!allows what Remit denies"},
		"caches on, in mode jwt, too": {kubernetes.ModeJWT, p(200, 403), asked(1, 1), "!remembers"},
	} {
		text, err := judgeProbe(c.mode, c.p, c.asked)
		want, refused := strings.CutPrefix(c.want, "!")
		if err != nil {
			text = err.Error()
		}
		if (err != nil) != refused || !strings.Contains(text, want) {
			t.Errorf("%s: %q, %v", what, text, err)
		}
	}
}

// S1: a target that takes SVIDs is found, before anything else is tried.
func TestDoctorFindsTrustInSVIDs(t *testing.T) {
	f := setUp(t)
	for _, taken := range []bool{false, true} {
		probed := false
		accepts := func(_ context.Context, token remit.Secret) (bool, error) {
			svid, err := jwtsvid.ParseInsecure(token.Reveal(), []string{"cluster-a"})
			if err != nil || svid.Claims["iss"] != f.srv.cfg.Issuer {
				t.Errorf("it shows %+v, %v", svid, err)
			}
			return taken, nil
		}
		_, err := f.srv.distrusting(&kubernetes.Config{Audience: "cluster-a"}, accepts, func(context.Context) (string, error) {
			probed = true
			return "", nil
		})(t.Context())
		if (err != nil) != taken || probed == taken {
			t.Errorf("taken %v: %v, probed %v", taken, err, probed)
		}
	}
}
