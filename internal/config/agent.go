// SPDX-License-Identifier: Apache-2.0

package config

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.yaml.in/yaml/v3"

	"remit"
)

// Limits of identities. Issued SVIDs live until they expire, so an hour is the most.
const (
	defaultSVIDTTL = 10 * time.Minute
	maxSVIDTTL     = time.Hour
)

// principalRef is a use of a principal's name.
type principalRef struct {
	file, key string
	name      word
}

func (b *builder) agent(file string, f *agentFile) {
	folder := strings.ToLower(f.Kind)
	a := remit.Agent{Name: remit.Name(folder + "/" + f.Name.s), Owner: f.Owner.s,
		TTL: f.TTL.or(defaultSVIDTTL, maxSVIDTTL, file, "ttl", b.out)}
	a.ID = b.identity(file, f.Name, f.ID, folder)
	for i := range f.Attest {
		a.Attest = append(a.Attest, b.attestation(file, f.Name.line, &f.Attest[i].Unix))
	}
	b.vouch(file, f, &a)
	for _, w := range f.Audiences {
		a.Audiences = append(a.Audiences, w.s)
	}
	if l := f.Launch; l != nil {
		a.Launch = &remit.Launch{Inherit: l.Inherit}
		if l.Command.s != "" {
			l.Commands = []word{l.Command}
		}
		if len(l.Commands) == 0 {
			b.out.add(file, f.Name.line, "launch: commands is empty: list the digests of the executables that may be launched")
		}
		for _, c := range l.Commands {
			a.Launch.Commands = append(a.Launch.Commands, remit.Digest(c.s))
		}
		if l.UID != nil {
			a.Launch.UID, a.Launch.OwnUID = *l.UID, true
		}
		if len(l.By) == 0 {
			b.out.add(file, f.Name.line, "launch: by lists nobody: name who may, or leave launch out")
		}
		if l.Sandbox != nil {
			if l.UID != nil || l.Inherit {
				b.out.add(file, f.Name.line, "launch: uid and inherit are for processes outside a sandbox, in which all are one user and have its identity: remove them")
			}
			a.Launch.Sandbox = &remit.Tool{Line: fmt.Sprintf("%s:%d", file, f.Name.line)}
			b.sandboxOf(file, f.Name.line, l.Sandbox, a.Launch.Sandbox)
		}
		for _, w := range l.By {
			a.Launch.By = append(a.Launch.By, remit.Name(w.s))
		}
	}
	b.set.Agents[a.Name] = a
}

// attestation writes selectors in SPIRE's vocabulary.
func (b *builder) attestation(file string, line int, u *unixFile) remit.Attestation {
	var s []string
	if u.UID != nil {
		s = append(s, fmt.Sprintf("unix:uid:%d", *u.UID))
	}
	if u.GID != nil {
		s = append(s, fmt.Sprintf("unix:gid:%d", *u.GID))
	}
	if len(s) == 0 {
		b.out.add(file, line, "attest: unix has neither uid nor gid: every user of the host could be the agent; add one")
	}
	if u.Path.s != "" {
		s = append(s, "unix:path:"+u.Path.s)
	}
	if u.SHA256.s != "" {
		s = append(s, "unix:sha256:"+u.SHA256.s)
	}
	return remit.Attestation{Selectors: s}
}

// identity returns the stated SPIFFE ID, or the one that follows from kind and name. Each belongs to one document.
func (b *builder) identity(file string, name, stated word, folder string) spiffeid.ID {
	own, err := spiffeid.FromSegments(b.td, folder, name.s)
	if err != nil {
		b.out.add(file, name.line, "%v: choose another name", err)
		return own
	}
	id, line := own, name.line
	if stated.s != "" {
		line = stated.line
		if id, err = spiffeid.FromString(stated.s); err != nil {
			b.out.add(file, line, "id: %v: write spiffe://TRUST-DOMAIN/PATH", err)
			return own
		}
	}
	if id != own && id.MemberOf(b.td) && reserved(id.Path()) {
		b.out.add(file, line, "id: %s could be the identity of another name: leave id out, or choose another path", id)
	}
	if before, twice := b.ids[id]; twice {
		b.out.add(file, line, "%s is also the identity of %s: each needs its own", id, before)
	}
	b.ids[id] = folder + "/" + name.s
	return id
}

// reserved are the paths that follow from names, and those of Remit itself.
func reserved(path string) bool {
	for _, p := range []string{"/agent/", "/tool/", "/pep/", "/operator/", "/remit/"} {
		if strings.HasPrefix(path+"/", p) {
			return true
		}
	}
	return false
}

func (b *builder) enforcementPoint(file string, f *pepFile) {
	e := remit.EnforcementPoint{Name: remit.Name("pep/" + f.Name.s), Assert: f.Assert}
	e.ID = b.identity(file, f.Name, f.ID, "pep")
	for i := range f.Attest {
		e.Attest = append(e.Attest, b.attestation(file, f.Name.line, &f.Attest[i].Unix))
	}
	if len(f.Actions) == 0 {
		b.out.add(file, f.Name.line, "actions is empty: list the actions for which it may ask")
	}
	for _, w := range f.Actions {
		e.Actions = append(e.Actions, w.s)
	}
	for _, w := range f.TrustDomains {
		td, err := spiffeid.TrustDomainFromString(w.s)
		if err != nil {
			b.out.add(file, w.line, "trust_domains: %v: write company.com", err)
			continue
		}
		e.TrustDomains = append(e.TrustDomains, td)
	}
	if f.TrustDomains == nil {
		e.TrustDomains = []spiffeid.TrustDomain{b.td}
	}
	b.set.EnforcementPoints[e.Name] = e
}

// principal checks that a name is somebody. Operators stand in remit.yaml, not here.
func (b *builder) principal(p principalRef) {
	if p.name.s == "" || strings.HasPrefix(p.name.s, "operator/") {
		return
	}
	if _, ok := b.set.Agents[remit.Name(p.name.s)]; !ok && !b.broken[upper(p.name.s)] {
		kind, _, _ := strings.Cut(upper(p.name.s), "/")
		b.out.add(p.file, p.name.line, "%s: there is no %s: declare a document of kind %s with that name", p.key, p.name.s, kind)
	}
}

// checkAudiences refuses JWT-SVIDs for a target (S1): with one an agent would walk past the decision.
func (b *builder) checkAudiences() {
	targets := map[string]string{}
	for name, o := range b.set.Targets {
		for i := 0; i+1 < len(o.Spec.Content); i += 2 {
			if v := o.Spec.Content[i+1]; o.Spec.Content[i].Value == "audience" && v.Kind == yaml.ScalarNode {
				targets[v.Value] = name
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(b.set.Agents)) {
		for _, aud := range b.set.Agents[name].Audiences {
			//remit:guard S1 TestTargetAudience
			if target, ok := targets[aud]; ok {
				at := b.seen[upper(string(name))]
				b.out.add(at.file, at.line, "%s: audience %q is that of target %s, which must trust grants only: remove it", name, clip(aud), target)
			}
		}
	}
}

// upper turns agent/NAME into Agent/NAME.
func upper(s string) string { return strings.ToUpper(s[:1]) + s[1:] }
