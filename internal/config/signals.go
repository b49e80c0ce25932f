// SPDX-License-Identifier: Apache-2.0

package config

// Signal is a receiver that is told of findings and suspensions.
type Signal struct {
	Name     string
	URL      string
	Form     string    // webhook or set
	Secret   SecretRef // webhook: signs
	Key      SecretRef // set: signs
	Token    SecretRef // set: a bearer token that the receiver asks for; zero: none
	Audience string    // set: aud
	CA       string    // a PEM file; empty: the system's roots
}

type signalFile struct {
	Name     word      `yaml:"name" need:"yes" is:"label" doc:"The receiver. Its position in the ledger is kept under this name: another name starts anew, with what comes next."`
	URL      word      `yaml:"url" need:"yes" is:"url" doc:"Where it is posted to: https, to exactly this host and port; redirects are not followed."`
	Form     word      `yaml:"form" is:"signalform" doc:"webhook, a signed JSON event (Standard Webhooks), or set, a signed security event token (CAEP, pushed by RFC 8935). Left out: webhook."`
	Secret   SecretRef `yaml:"secret" doc:"With webhook: what signs each delivery (HMAC-SHA256), at least 24 characters."`
	Key      SecretRef `yaml:"key" doc:"With set: the private key that signs, as PEM (PKCS #8): RSA of at least 2048 bits, or ECDSA P-256. Its public half stands at /ssf/jwks.json."`
	Token    SecretRef `yaml:"token" doc:"With set: the bearer token that the receiver asks for. Left out: none is sent."`
	Audience word      `yaml:"audience" is:"text" doc:"With set: who the tokens are for."`
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
		webhook := one.Form == "webhook"
		//remit:guard S36 TestSignalsFile
		if webhook && one.Secret.IsZero() || !webhook && (one.Key.IsZero() || one.Audience == "") {
			out.add(name, g.URL.line, "signals: %s: a webhook needs secret; a set needs key and audience: without a signature anybody could signal", one.Name)
		}
		if webhook && (!one.Key.IsZero() || !one.Token.IsZero() || one.Audience != "") || !webhook && !one.Secret.IsZero() {
			out.add(name, g.URL.line, "signals: %s: secret is for a webhook; key, token and audience are for a set", one.Name)
		}
		for _, ref := range []*SecretRef{&one.Secret, &one.Key, &one.Token} {
			if ref.File != "" {
				ref.File = under(dir, ref.File)
			}
		}
		if g.CA.s != "" {
			one.CA = under(dir, g.CA.s)
		}
		s.Signals = append(s.Signals, one)
	}
}
