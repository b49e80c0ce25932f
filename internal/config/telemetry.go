// SPDX-License-Identifier: Apache-2.0

package config

// Telemetry is the OpenTelemetry collector that is sent traces and metrics.
type Telemetry struct {
	URL   string
	Token SecretRef // a bearer token that it asks for; zero: none
	CA    string    // a PEM file; empty: the system's roots
	OneIn int       // one request in so many is traced
}

type telemetryFile struct {
	URL   word      `yaml:"url" need:"yes" is:"collector" doc:"The collector, by OTLP over HTTP: /v1/traces and /v1/metrics are appended. https, or http to this host; redirects are not followed."`
	Token SecretRef `yaml:"token" doc:"The bearer token that it asks for. Left out: none is sent."`
	CA    word      `yaml:"ca" is:"text" doc:"A PEM file with the roots that its certificate is verified with. Left out: the system's."`
	OneIn *int32    `yaml:"one_in" doc:"One request in so many is traced, chosen here, whatever the caller's traceparent says. Left out: 1, every request."`
}

func (f *serverFile) telemetry(s *ServerConfig, name, dir string, out *problems) {
	if f.Telemetry == nil {
		return
	}
	t := &Telemetry{URL: f.Telemetry.URL.s, Token: f.Telemetry.Token, OneIn: 1}
	if t.Token.File != "" {
		t.Token.File = under(dir, t.Token.File)
	}
	if f.Telemetry.CA.s != "" {
		t.CA = under(dir, f.Telemetry.CA.s)
	}
	if n := f.Telemetry.OneIn; n != nil {
		if t.OneIn = int(*n); *n < 1 {
			out.add(name, f.Telemetry.URL.line, "telemetry: one_in: %d: write 1 or more", *n)
		}
	}
	s.Telemetry = t
}
