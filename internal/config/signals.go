// SPDX-License-Identifier: Apache-2.0

package config

import "slices"

// Signal is a receiver that is told of findings and suspensions, or of more.
type Signal struct {
	Name     string
	URL      string
	Form     string    // webhook, set, poll or ocsf
	Events   []string  // topics: findings, decisions, credentials
	Secret   SecretRef // webhook and ocsf: signs
	Key      SecretRef // set and poll: signs
	Token    SecretRef // set and ocsf: a bearer token that the receiver asks for; zero: none. set and poll: the receiver shows it
	Audience string    // set and poll: aud
	CA       string    // a PEM file; empty: the system's roots
}

type signalFile struct {
	Name     word      `yaml:"name" need:"yes" is:"label" doc:"The receiver. Its position in the ledger is kept under this name: another name starts anew, with what comes next."`
	URL      word      `yaml:"url" is:"url" doc:"All but poll: where it is posted to: https, to exactly this host and port; redirects are not followed."`
	Form     word      `yaml:"form" is:"signalform" doc:"webhook, a signed JSON event (Standard Webhooks); set, a signed security event token (CAEP, pushed by RFC 8935); poll, the same, which the receiver fetches at /ssf/poll/NAME (RFC 8936); or ocsf, JSON arrays of events of OCSF 1.9. Left out: webhook."`
	Events   []word    `yaml:"events" is:"signaltopic" doc:"What it is told of: findings (and suspensions), decisions, credentials (grants, and how their credentials come and go). Left out: findings."`
	Secret   SecretRef `yaml:"secret" doc:"With webhook or ocsf: what signs each delivery (HMAC-SHA256), at least 24 characters."`
	Key      SecretRef `yaml:"key" doc:"With set or poll: the private key that signs, as PEM (PKCS #8): RSA of at least 2048 bits, or ECDSA P-256. Its public half stands at /ssf/jwks.json."`
	Token    SecretRef `yaml:"token" doc:"With set or ocsf: the bearer token that the receiver asks for; left out: none is sent. With set or poll: what the receiver shows at /ssf, at least 24 characters."`
	Audience word      `yaml:"audience" is:"text" doc:"With set or poll: who the tokens are for."`
	CA       word      `yaml:"ca" is:"text" doc:"A PEM file with the roots that its certificate is verified with. Left out: the system's."`
}

func (f *serverFile) signals(s *ServerConfig, name, dir string, out *problems) {
	seen := map[string]bool{}
	for _, g := range f.Signals {
		one := Signal{Name: g.Name.s, URL: g.URL.s, Form: or(g.Form.s, "webhook"), Secret: g.Secret, Key: g.Key, Token: g.Token, Audience: g.Audience.s}
		if seen[one.Name] {
			out.add(name, g.Name.line, "signals: %s stands twice", one.Name)
		}
		seen[one.Name] = true
		for _, e := range g.Events {
			one.Events = append(one.Events, e.s)
		}
		if len(one.Events) == 0 {
			one.Events = []string{"findings"}
		}
		if g.CA.s != "" {
			one.CA = under(dir, g.CA.s)
		}
		one.check(name, &g, out)
		for _, ref := range []*SecretRef{&one.Secret, &one.Key, &one.Token} {
			if ref.File != "" {
				ref.File = under(dir, ref.File)
			}
		}
		s.Signals = append(s.Signals, one)
	}
}

// check says what a receiver lacks, and what it has that its form has no use for.
func (s *Signal) check(name string, g *signalFile, out *problems) {
	token := s.Form == "set" || s.Form == "poll" // a security event token
	if polls := s.Form == "poll"; polls != (s.URL == "") {
		out.add(name, g.Name.line, "signals: %s: url: poll has none, as the receiver comes to fetch; the others need one", s.Name)
	}
	//remit:guard S36 TestSignalsFile
	if s.Form == "webhook" && s.Secret.IsZero() || token && (s.Key.IsZero() || s.Audience == "") {
		out.add(name, g.Name.line, "signals: %s: a webhook needs secret; a set or poll needs key and audience: without a signature anybody could signal", s.Name)
	}
	//remit:guard S36 TestSignalsFile
	if s.Form == "ocsf" && s.Secret.IsZero() && s.Token.IsZero() {
		out.add(name, g.Name.line, "signals: %s: ocsf needs token or secret: without one anybody could tell the receiver events", s.Name)
	}
	//remit:guard S30 TestSignalsFile
	if s.Form == "poll" && s.Token.IsZero() {
		out.add(name, g.Name.line, "signals: %s: poll needs token: without one anybody could fetch what is the receiver's", s.Name)
	}
	if token && !s.Secret.IsZero() || !token && (!s.Key.IsZero() || s.Audience != "") || s.Form == "webhook" && !s.Token.IsZero() || s.Form == "poll" && s.CA != "" {
		out.add(name, g.Name.line, "signals: %s: secret is for a webhook or ocsf; key and audience are for a set or poll; token is for a set, poll or ocsf; ca for who is posted to", s.Name)
	}
	if token && slices.Contains(s.Events, "decisions") {
		out.add(name, g.Events[0].line, "signals: %s: events: decisions: CAEP has no event for a decision; take form ocsf or webhook", s.Name)
	}
}
