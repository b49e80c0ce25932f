// SPDX-License-Identifier: Apache-2.0

package kubernetes_test

import (
	"fmt"
	"strings"
	"testing"

	"remit"
	gateway "remit/internal/gateway/kubernetes"
)

// A probe's credential may read one path while the probe lasts, nothing else and nothing afterwards.
func TestProbe(t *testing.T) {
	g := newGateway(t, &leases{}, &acts{}, func(c *gateway.Config) {
		c.Decides, c.Allowed = true, func(remit.Lease, string, string, string, string, string, string) bool { return true }
	})
	ask := func(id, attributes string) string {
		return post(g.Handler(), "/authorize", fmt.Sprintf(`{"kind":"SubjectAccessReview","apiVersion":"authorization.k8s.io/v1","spec":{
			"user":"spiffe://example.org/remit/doctor","groups":["remit:agents"],"extra":{"authentication.kubernetes.io/credential-id":[%q]},%s}}`, id, attributes)).Body.String()
	}
	version := `"nonResourceAttributes":{"verb":"get","path":"/version"}`
	allowed := func(answer string) bool { return strings.Contains(answer, `"allowed":true`) }
	if allowed(ask("JTI=probe-1", version)) {
		t.Error("allowed before the probe")
	}
	stop := g.Probe("JTI=probe-1", "/version")
	if !allowed(ask("JTI=probe-1", version)) || allowed(ask("JTI=probe-2", version)) {
		t.Error("the probe's path is for the probe alone")
	}
	for _, a := range []string{`"nonResourceAttributes":{"verb":"get","path":"/apis/x"}`, `"nonResourceAttributes":{"verb":"post","path":"/version"}`,
		`"resourceAttributes":{"verb":"get","resource":"pods","namespace":"default"}`} {
		if answer := ask("JTI=probe-1", a); !strings.Contains(answer, `"denied":true`) {
			t.Errorf("%s: %s", a, answer)
		}
	}
	if got := stop(); got != (gateway.Asked{Allowed: 1, Denied: 3}) {
		t.Errorf("counted %+v", got)
	}
	if allowed(ask("JTI=probe-1", version)) {
		t.Error("allowed after the probe")
	}
}
