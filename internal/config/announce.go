// SPDX-License-Identifier: Apache-2.0

package config

import "path/filepath"

// Announce is a webhook that is told of what waits for people.
type Announce struct {
	Name   string
	URL    string
	Path   SecretRef // zero: URL is all of it
	Form   string    // generic or slack
	Secret SecretRef // signs; zero with slack
	CA     string    // a PEM file; empty: the system's roots
}

type announceFile struct {
	Name   word      `yaml:"name" need:"yes" is:"label" doc:"How the ledger names it, when somebody denies by its link."`
	URL    word      `yaml:"url" need:"yes" is:"url" doc:"Where it is posted to: https, to exactly this host and port; redirects are not followed."`
	Path   SecretRef `yaml:"path" doc:"The rest of the URL, where that is a secret, as Slack's is. Left out: there is none."`
	Form   word      `yaml:"form" is:"announceform" doc:"generic, a JSON event, or slack, a message with two links. Left out: generic."`
	Secret SecretRef `yaml:"secret" doc:"What signs each delivery (Standard Webhooks, HMAC-SHA256), at least 24 characters. Needed for generic."`
	CA     word      `yaml:"ca" is:"text" doc:"A PEM file with the roots that its certificate is verified with. Left out: the system's."`
}

func (f *serverFile) announce(s *ServerConfig, name, dir string, out *problems) {
	seen := map[string]bool{}
	for _, a := range f.Announce {
		one := Announce{Name: a.Name.s, URL: a.URL.s, Path: a.Path, Form: or(a.Form.s, "generic"), Secret: a.Secret}
		//remit:guard S39 TestAnnounceFile
		if one.Form == "generic" && a.Secret.IsZero() {
			out.add(name, a.URL.line, "announce: %s: secret is missing: without a signature anybody could announce", one.Name)
		}
		if seen[one.Name] {
			out.add(name, a.Name.line, "announce: %s stands twice", one.Name)
		}
		seen[one.Name] = true
		for _, ref := range []*SecretRef{&one.Path, &one.Secret} {
			if ref.File != "" && !filepath.IsAbs(ref.File) {
				ref.File = under(dir, ref.File)
			}
		}
		if a.CA.s != "" {
			one.CA = under(dir, a.CA.s)
		}
		s.Announce = append(s.Announce, one)
	}
}
