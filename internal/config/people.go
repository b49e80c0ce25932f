// SPDX-License-Identifier: Apache-2.0

package config

import (
	"path/filepath"
	"time"

	"remit"
)

// People says how persons log in from elsewhere (S2).
type People struct {
	Issuer   string
	ClientID string
	Secret   SecretRef
	CA       string // a PEM file; empty: the system's
	Scopes   []string
	Name     string // the claim that is the name
	Groups   string // the claim that holds the groups
	Roles    []ClaimRole
	Session  time.Duration
}

// ClaimRole gives roles to whoever has the value in the claim.
type ClaimRole struct {
	Claim, Has string
	Roles      []string
}

type peopleFile struct {
	Issuer   word            `yaml:"issuer" need:"yes" is:"url" doc:"The OpenID provider, as its discovery document names it."`
	ClientID word            `yaml:"client_id" need:"yes" is:"text" doc:"The client that is registered there for Remit: a native one, with loopback redirects."`
	Secret   SecretRef       `yaml:"client_secret" doc:"The client's secret, if it has one."`
	CA       word            `yaml:"ca" is:"text" doc:"A PEM file with the roots that the provider's certificate is verified with. Left out: the system's."`
	Scopes   []word          `yaml:"scopes" is:"text" doc:"What is asked for beside openid, so that the claims below come. Left out: profile."`
	Name     word            `yaml:"name" is:"text" doc:"The claim that is the person's name, operator/NAME. Who logged in with a name first keeps it. Left out: sub."`
	Groups   word            `yaml:"groups" is:"text" doc:"The claim that holds the person's groups, which approvals name: a text, or a list of texts. Left out: groups."`
	Roles    []claimRoleFile `yaml:"roles" need:"yes" doc:"Which claims give which roles. Who has none cannot log in."`
	Session  span            `yaml:"session" doc:"How long a login lasts, at most 12h. Left out: 1h."`
}

type claimRoleFile struct {
	Claim word   `yaml:"claim" need:"yes" is:"text" doc:"The claim: a text, or a list of texts."`
	Has   word   `yaml:"has" need:"yes" is:"text" doc:"The value that it must be or hold."`
	Roles []word `yaml:"roles" need:"yes" is:"role" doc:"The roles; admin includes all."`
}

func (f *peopleFile) config(name, dir string, out *problems) *People {
	p := &People{Issuer: f.Issuer.s, ClientID: f.ClientID.s, Secret: f.Secret, Name: or(f.Name.s, "sub"), Groups: or(f.Groups.s, "groups"),
		Session: f.Session.or(time.Hour, 12*time.Hour, name, "people: session", out)}
	if f.CA.s != "" {
		p.CA = under(dir, f.CA.s)
	}
	if f.Secret.File != "" && !filepath.IsAbs(f.Secret.File) {
		p.Secret.File = under(dir, f.Secret.File)
	}
	if f.Scopes == nil {
		p.Scopes = []string{"profile"}
	}
	for _, w := range f.Scopes {
		p.Scopes = append(p.Scopes, w.s)
	}
	if len(f.Roles) == 0 {
		out.add(name, f.Issuer.line, "people: roles is empty: nobody could log in")
	}
	for _, r := range f.Roles {
		c := ClaimRole{Claim: r.Claim.s, Has: r.Has.s}
		if len(r.Roles) == 0 {
			out.add(name, r.Claim.line, "people: %s: roles is empty: the claim would give nothing", r.Claim.s)
		}
		for _, w := range r.Roles {
			c.Roles = append(c.Roles, w.s)
		}
		p.Roles = append(p.Roles, c)
	}
	return p
}

// Local returns the operator of that name.
func (s *ServerConfig) Local(n remit.Name) (Operator, bool) {
	for _, o := range s.Operators {
		if o.Name == n {
			return o, true
		}
	}
	return Operator{}, false
}
