// SPDX-License-Identifier: Apache-2.0

package config_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"remit/internal/config"
)

// TestSignalsFile: what is told to others goes by https, and is signed.
func TestSignalsFile(t *testing.T) {
	const base = "trust_domain: company.com\noperators: [{name: a, uid: 1, roles: [admin]}]\nsignals:\n"
	for entry, want := range map[string]string{
		`- {name: siem, url: "https://siem.example/x", secret: {file: s}}`:                                                              "",
		`- {name: idp, url: "https://idp.example/x", form: set, key: {file: k}, token: {file: t}, audience: "https://idp", ca: ca.pem}`: "",
		`- {name: siem, url: "https://siem.example/x"}`:                                                                                 "remit.yaml:4: signals: siem: a webhook needs secret",
		`- {name: idp, url: "https://idp.example/x", form: set, key: {file: k}}`:                                                        "a set or poll needs key and audience",
		`- {name: idp, url: "https://idp.example/x", form: set, audience: x}`:                                                           "a set or poll needs key and audience",
		`- {name: siem, url: "https://siem.example/x", secret: {file: s}, token: {file: t}}`:                                            "token is for a set, poll or ocsf",
		`- {name: siem, url: "http://siem.example/x", secret: {file: s}}`:                                                               "an https URL",
		`- {name: siem, url: "https://siem.example/x", secret: {file: s}, form: syslog}`:                                                "webhook, set, poll or ocsf",
		`- {name: soc, url: "https://soc.example/x", form: ocsf, token: {file: t}, events: [findings, decisions, credentials]}`:         "",
		`- {name: soc, url: "https://soc.example/x", form: ocsf}`:                                                                       "remit.yaml:4: signals: soc: ocsf needs token or secret",
		`- {name: soc, url: "https://soc.example/x", form: ocsf, token: {file: t}, audience: x}`:                                        "audience are for a set or poll",
		`- {name: soc, url: "https://soc.example/x", form: ocsf, token: {file: t}, events: [everything]}`:                               "findings, decisions or credentials",
		`- {name: idp, url: "https://idp.example/x", form: set, key: {file: k}, audience: x, events: [decisions]}`:                      "remit.yaml:4: signals: idp: events: decisions: CAEP has no event",
		`- {name: idp, form: poll, key: {file: k}, token: {file: t}, audience: x, events: [findings, credentials]}`:                     "",
		`- {name: idp, form: poll, key: {file: k}, audience: x}`:                                                                        "remit.yaml:4: signals: idp: poll needs token",
		`- {name: idp, form: poll, url: "https://idp.example/x", key: {file: k}, token: {file: t}, audience: x}`:                        "poll has none",
		`- {name: siem, secret: {file: s}}`:                                                                                             "the others need one",
		"- {name: a, url: \"https://x.example\", secret: {file: s}}\n- {name: a, url: \"https://x.example\", secret: {file: s}}":        "stands twice",
	} {
		path := filepath.Join(t.TempDir(), "remit.yaml")
		if err := os.WriteFile(path, []byte(base+entry+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := config.LoadServer(path)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", entry, err)
		}
		if want == "" && (len(c.Signals) != 1 || !filepath.IsAbs(c.Signals[0].Secret.File+c.Signals[0].Key.File+c.Signals[0].Token.File)) {
			t.Errorf("%s: %+v", entry, c)
		}
	}
}
