// SPDX-License-Identifier: Apache-2.0

package config_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"remit/internal/config"
)

// TestAnnounceFile: what is told to others goes by https to the host that the file names, signed.
func TestAnnounceFile(t *testing.T) {
	const base = "trust_domain: company.com\noperators: [{name: a, uid: 1, roles: [admin]}]\nannounce:\n"
	for entry, want := range map[string]string{
		`- {name: chat, url: "https://chat.example/x", form: slack, path: {file: p}}`:                                            "",
		`- {name: desk, url: "https://desk.example/x", secret: {file: s}, ca: ca.pem}`:                                           "",
		`- {name: desk, url: "https://desk.example/x"}`:                                                                          "secret is missing",
		`- {name: desk, url: "http://desk.example/x", secret: {file: s}}`:                                                        "an https URL",
		`- {name: desk, url: "https://a:b@desk.example/x", secret: {file: s}}`:                                                   "an https URL",
		`- {name: desk, url: "https://desk.example/x", secret: {file: s}, form: teams}`:                                          "generic or slack",
		"- {name: a, url: \"https://x.example\", secret: {file: s}}\n- {name: a, url: \"https://x.example\", secret: {file: s}}": "stands twice",
	} {
		path := filepath.Join(t.TempDir(), "remit.yaml")
		if err := os.WriteFile(path, []byte(base+entry+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := config.LoadServer(path)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", entry, err)
		}
		if want == "" && (len(c.Announce) != 1 || c.Announce[0].Path.File == "p" || c.Announce[0].Secret.File == "s" || c.Announce[0].CA == "ca.pem") {
			t.Errorf("%s: %+v", entry, c)
		}
	}
}
