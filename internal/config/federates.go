// SPDX-License-Identifier: Apache-2.0

package config

import (
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"remit"
)

// Federated is another trust domain whose X.509-SVIDs count here.
type Federated struct {
	TrustDomain spiffeid.TrustDomain
	URL         string
	EndpointID  spiffeid.ID // zero: https_web
	Bundle, CA  string      // files; empty: none
}

type partnerFile struct {
	TrustDomain word `yaml:"trust_domain" need:"yes" is:"domain" doc:"The other trust domain."`
	URL         word `yaml:"url" need:"yes" is:"url" doc:"Its bundle endpoint."`
	EndpointID  word `yaml:"endpoint_id" is:"spiffe" doc:"The SPIFFE ID of the endpoint (https_spiffe). Left out: the web's roots vouch for it (https_web)."`
	Bundle      word `yaml:"bundle" is:"text" doc:"A file with the other domain's bundle as it is now (SPIFFE JSON), which verifies the endpoint the first time. Needed with endpoint_id."`
	CA          word `yaml:"ca" is:"text" doc:"A PEM file with the roots of an https_web endpoint. Left out: the system's."`
}

func (f *serverFile) federates(s *ServerConfig, name, dir string, out *problems) {
	seen := map[spiffeid.TrustDomain]bool{s.TrustDomain: true}
	for _, d := range f.Federates {
		td, err := spiffeid.TrustDomainFromString(d.TrustDomain.s)
		if err != nil {
			out.add(name, d.TrustDomain.line, "federates: %v: write partner.org", err)
			continue
		}
		if seen[td] {
			out.add(name, d.TrustDomain.line, "federates: %s stands twice, or is our own", td.Name())
		}
		seen[td] = true
		o := Federated{TrustDomain: td, URL: d.URL.s}
		if d.EndpointID.s != "" {
			if o.EndpointID, err = spiffeid.FromString(d.EndpointID.s); err != nil {
				out.add(name, d.EndpointID.line, "federates: endpoint_id: %v", err)
			}
			if d.Bundle.s == "" || d.CA.s != "" {
				out.add(name, d.EndpointID.line, "federates: with endpoint_id a bundle must stand, and no ca: who else vouches for the endpoint?")
			}
		}
		if d.Bundle.s != "" {
			o.Bundle = under(dir, d.Bundle.s)
		}
		if d.CA.s != "" {
			o.CA = under(dir, d.CA.s)
		}
		s.Federates = append(s.Federates, o)
	}
}

var vouched = map[string]remit.Level{"user": remit.LevelUser, "launched": remit.LevelLaunched, "sandbox": remit.LevelSandbox, "node": remit.LevelNode}

// vouch reads what an agent's file says that its federation vouches for; our own SVIDs have records instead.
func (b *builder) vouch(file string, f *agentFile, a *remit.Agent) {
	if f.Vouched.s == "" {
		return
	}
	if a.ID.MemberOf(b.td) {
		b.out.add(file, f.Vouched.line, "vouched: %s is of our own trust domain, whose processes are attested here: remove it", a.ID)
	}
	a.Vouched = vouched[f.Vouched.s]
}
