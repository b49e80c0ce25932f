// SPDX-License-Identifier: Apache-2.0

package config_test

import (
	"strings"
	"testing"

	"remit/internal/config"
)

// TestDiff: one change each of the deploy example, and what it is called.
func TestDiff(t *testing.T) {
	before := parse(t, "deploy")
	for name, e := range map[string]struct{ old, new, what, text string }{
		"nothing":          {"# a tag is resolved", "# a remark", "", ""},
		"ttl more":         {"    ttl: 5m", "    ttl: 6m", config.Widened, "ttl: 6m0s, was 5m0s"},
		"ttl less":         {"    ttl: 5m", "    ttl: 4m", config.Narrowed, "ttl"},
		"namespace more":   {"namespace: production", "namespace: [production, staging]", config.Widened, "where: namespace: [production, staging], was production"},
		"namespace other":  {"namespace: production", "namespace: staging", config.Changed, "namespace"},
		"argument more":    {"name: $app", "name: $app, replicas: 3", config.Changed, "replicas: 3, was absent"},
		"argument free":    {"name: $app", "name: $app, replicas: {any: true}", config.Widened, "replicas: anything, was absent"},
		"argument gone":    {"kind: Deployment, ", "", config.Changed, "kind: absent"},
		"evidence less":    {"    - ticket: {id: $ticket, source: change-desk, state: approved}\n", "", config.Widened, "evidence"},
		"evidence more":    {"    ttl: 5m", "    - scan: {of: $image, source: trivy-ci, worst: low}\n    ttl: 5m", config.Narrowed, "evidence"},
		"evidence laxer":   {"worst: medium", "worst: high", config.Widened, "worst high"},
		"evidence tighter": {"within: 24h", "within: 1h", config.Narrowed, "within 1h0m0s"},
		"hours gone":       {"    hours: {days: mon-fri, from: \"08:00\", to: \"18:00\", zone: Europe/Berlin}\n", "", config.Widened, "hours"},
		"sandbox":          {"    ttl: 5m", "    ttl: 5m\n    sandbox: kernel", config.Narrowed, "sandbox: kernel, was none"},
		"limits":           {"    ttl: 5m", "    ttl: 5m\n    limits: {rows: 5}", config.Narrowed, "limits: rows 5, was 0"},
		"action":           {"action: kubernetes.apply", "action: kubernetes.patch", config.Changed, "kubernetes.patch"},
		"both":             {"    ttl: 5m", "    ttl: 9m\n    sandbox: kernel", config.Changed, "ttl"},
		"starter":          {"by: [operator/ci]", "by: [operator/ci, operator/me]", config.Widened, "start: by"},
		"run":              {"expires: 2h", "expires: 1h", config.Narrowed, "start: expires 1h0m0s"},
		"parameter":        {`pattern: "CHG-[0-9]+"`, `pattern: ".*"`, config.Changed, "parameter ticket"},
		"parameter free":   {`, pattern: "CHG-[0-9]+"`, ``, config.Widened, "parameter ticket"},
		"one of":           {"app:    {type: name}", "app:    {type: name, one_of: [foo]}", config.Narrowed, "where: name"},
		"stage longer":     {"  expires: 30m", "  expires: 40m", config.Widened, "stage deploy: expires"},
	} {
		t.Run(name, func(t *testing.T) {
			all := edited(t, "deploy", "workflow.yaml", e.old, e.new).Diff(before)
			if e.what == "" {
				if len(all) > 0 {
					t.Errorf("%+v", all)
				}
				return
			}
			if len(all) == 0 || all[0].What != e.what || !strings.Contains(all[0].Text, e.text) {
				t.Errorf("%+v; want %s with %q", all, e.what, e.text)
			}
		})
	}
	more := edited(t, "deploy", "workflow.yaml", "  may:\n", "  may:\n  - {name: look, who: agent/deploy, action: kubernetes.get, target: production-cluster}\n")
	if all := more.Diff(before); len(all) != 1 || all[0].What != config.Added || all[0].Of != "permission deploy/deploy/look" || all[0].Line != "workflow.yaml:15" {
		t.Errorf("added: %+v", all)
	}
	if all := before.Diff(more); len(all) != 1 || all[0].What != config.Removed {
		t.Errorf("removed: %+v", all)
	}
	if all := edited(t, "deploy", "target.yaml", "production: true\n", "").Diff(before); len(all) != 1 || all[0].What != config.Changed ||
		all[0].Of != "Target production-cluster" || all[0].Text != "production" {
		t.Errorf("target: %+v", all)
	}
	if all := before.Diff(nil); len(all) != 7 || all[0].What != config.Added {
		t.Errorf("the first: %+v", all)
	}
}
