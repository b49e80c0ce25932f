// SPDX-License-Identifier: Apache-2.0

package config_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"remit/internal/config"
)

// TestTelemetryFile: what is traced goes by TLS, or nowhere but this host.
func TestTelemetryFile(t *testing.T) {
	const base = "trust_domain: company.com\noperators: [{name: a, uid: 1, roles: [admin]}]\ntelemetry:\n"
	for entry, want := range map[string]string{
		`  {url: "https://otel.example:4318", token: {file: t}, ca: ca.pem, one_in: 10}`: "",
		`  {url: "http://127.0.0.1:4318"}`:                                               "",
		`  {url: "http://localhost:4318/otlp"}`:                                          "",
		`  {url: "http://otel.example:4318"}`:                                            "remit.yaml:4: ",
		`  {url: "http://127.0.0.1.example:4318"}`:                                       "http:// and this host",
		`  {url: "http://127.0.0.1:4318@otel.example"}`:                                  "http:// and this host",
		`  {url: "https://user@otel.example"}`:                                           "an https URL",
		`  {url: "https://otel.example", one_in: 0}`:                                     "remit.yaml:4: telemetry: one_in: 0",
		`  {one_in: 1}`: "url",
	} {
		path := filepath.Join(t.TempDir(), "remit.yaml")
		if err := os.WriteFile(path, []byte(base+entry+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := config.LoadServer(path)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", entry, err)
		}
		if want == "" && (c.Telemetry == nil || c.Telemetry.OneIn < 1 || c.Telemetry.Token.File != "" && !filepath.IsAbs(c.Telemetry.Token.File)) {
			t.Errorf("%s: %+v", entry, c)
		}
	}
}
