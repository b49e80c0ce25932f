// SPDX-License-Identifier: Apache-2.0

package config_test

import (
	"strings"
	"testing"

	"remit/internal/config"
)

// bounded is a ceiling that the deploy example is just within.
const bounded = `kind: Ceiling
name: production
start: [operator/ci]
run: 2h
may:
- actions: [kubernetes.*]
  targets: [production-cluster]
  who: [agent/deploy]
  where: {namespace: [production, staging], kind: Deployment}
  evidence:
  - scan: {source: trivy-ci, of: image, worst: medium, within: 24h}
  - provenance: {source: github-builds, of: image, repository: company/foo}
  - ticket: {source: change-desk, state: approved}
  ttl: 5m
pins:
- {kind: Target, name: production-cluster, with: {type: kubernetes, production: true, namespaces: [production]}, free: [kubeconfig]}
- {kind: EvidenceSource, name: trivy-ci, with: {type: scan, signers: [{name: trivy, key: {file: trivy.pub}}]}}
`

func ceiling(t testing.TB, text string) *config.Ceiling {
	t.Helper()
	c, err := config.ParseCeiling(map[string][]byte{"ceiling.yaml": []byte(text)})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// edited is an example with one place changed.
func edited(t testing.TB, folder, file, old, new string) *config.Set {
	t.Helper()
	files := read(t, folder)
	body := string(files[file])
	if !strings.Contains(body, old) {
		t.Fatalf("%s has no %q", file, old)
	}
	files[file] = []byte(strings.Replace(body, old, new, 1))
	set, err := config.Parse(files, company)
	if err != nil {
		t.Fatal(err)
	}
	return set
}

// TestCeiling: each edit of the deploy example exceeds the ceiling in one way, and is refused where it stands.
func TestCeiling(t *testing.T) {
	c := ceiling(t, bounded)
	if err := c.Within(parse(t, "deploy")); err != nil {
		t.Fatal(err)
	}
	const wf = "workflow.yaml"
	for name, e := range map[string]struct{ old, new, want string }{
		"ttl":                   {"    ttl: 5m", "    ttl: 6m", "workflow.yaml:15: permission apply exceeds ceiling production: ttl 6m0s"},
		"namespace":             {"namespace: production", "namespace: kube-system", "where: namespace"},
		"one namespace of two":  {"namespace: production", "namespace: [production, kube-system]", "where: namespace"},
		"any namespace":         {"namespace: production", "namespace: {any: true}", "where: namespace"},
		"namespace by pattern":  {"namespace: production", `namespace: {pattern: "prod.*"}`, "where: namespace"},
		"namespace by who runs": {"namespace: production", "namespace: $app", "where: namespace"},
		"no namespace":          {"namespace: production, ", "", "where: namespace"},
		"kind":                  {"kind: Deployment", "kind: [Deployment, Secret]", "where: kind"},
		"scan of no source":     {"    - scan: {id: $scan, of: $image, source: trivy-ci, worst: medium, within: 24h}\n", "", "evidence: scan of trivy-ci"},
		"scan worse":            {"worst: medium", "worst: high", "evidence: scan"},
		"scan of any severity":  {"worst: medium, ", "", "evidence: scan"},
		"scan older":            {"within: 24h", "within: 25h", "evidence: scan"},
		"scan of any age":       {", within: 24h", "", "evidence: scan"},
		"scan of another image": {"of: $image, source: trivy-ci", "of: foo@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef, source: trivy-ci", "about the image in image"},
		"provenance":            {"repository: company/foo", "repository: company/bar", "evidence: provenance"},
		"repository by run":     {"repository: company/foo", "repository: $app", "evidence: provenance"},
		"ticket":                {"state: approved", "state: open", "evidence: ticket"},
		"action":                {"action: kubernetes.apply", "action: postgres.select", "no entry permits agent/deploy to postgres.select"},
		"run":                   {"expires: 2h", "expires: 3h", "workflow.yaml:2: workflow deploy exceeds ceiling production: a run"},
		"starter":               {"by: [operator/ci]", "by: [operator/ci, operator/me]", "operator/me is not among those"},
	} {
		t.Run(name, func(t *testing.T) {
			err := c.Within(edited(t, "deploy", wf, e.old, e.new))
			if err == nil || !strings.Contains(err.Error(), e.want) {
				t.Errorf("%v; want %s", err, e.want)
			}
		})
	}
	for name, e := range map[string][2]string{
		"shorter":            {"    ttl: 5m", "    ttl: 4m"},
		"other namespace":    {"namespace: production", "namespace: staging"},
		"subset":             {"namespace: production", "namespace: [staging, production]"},
		"better scan":        {"worst: medium, within: 24h", "worst: low, within: 1h"},
		"an argument more":   {"name: $app", "name: $app, replicas: 3"},
		"evidence more":      {"    ttl: 5m", "    - scan: {of: $image, source: trivy-ci}\n    ttl: 5m"},
		"one of a parameter": {"app:    {type: name}", "app:    {type: name, one_of: [production, staging]}"},
	} {
		t.Run("within: "+name, func(t *testing.T) {
			if err := c.Within(edited(t, "deploy", wf, e[0], e[1])); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestCeilingBounds: conditions, limits, sandbox and approvals of the refund example.
func TestCeilingBounds(t *testing.T) {
	set := parse(t, "refund")
	for name, c := range map[string]struct{ may, want string }{
		"all":             {"[{actions: [mcp.*, postgres.*, http.*]}]", ""},
		"range":           {"[{actions: [mcp.*], targets: [search-kb, read-transactions]}, {actions: [mcp.*], targets: [issue-refund], where: {amount: {max: 1000}}}, {actions: [postgres.*, http.*]}]", ""},
		"range exceeded":  {"[{actions: [mcp.*], targets: [search-kb, read-transactions]}, {actions: [mcp.*], targets: [issue-refund], where: {amount: {max: 999}}}, {actions: [postgres.*, http.*]}]", "amount cannot be shown to stay within to 999"},
		"range of a call": {"[{actions: [mcp.*, postgres.*]}, {actions: [http.*], where: {body: {amount: {max: 1000}}}}]", "body cannot be shown"},
		"field free":      {"[{actions: [mcp.*, postgres.*]}, {actions: [http.*], where: {path: /v1/refunds, body: {amount: {any: true}}}}]", ""},
		"rows":            {"[{actions: [mcp.*, http.*]}, {actions: [postgres.*], limits: {rows: 500}}]", ""},
		"rows exceeded":   {"[{actions: [mcp.*, http.*]}, {actions: [postgres.*], limits: {rows: 499}}]", "rows must stand and be at most 499"},
		"rows left out":   {"[{actions: [mcp.*, postgres.*]}, {actions: [http.*], limits: {rows: 500}}]", "rows must stand"},
		"columns":         {"[{actions: [mcp.*, http.*]}, {actions: [postgres.*], where: {columns: [id, customer_id, amount]}}]", "columns cannot be shown"},
		"sandbox":         {"[{actions: [mcp.*, postgres.*]}, {actions: [http.*], sandbox: kernel}]", ""},
		"sandbox less":    {"[{actions: [mcp.*, postgres.*]}, {actions: [http.*], sandbox: vm}]", "vm is the least"},
		"approval":        {"[{actions: [mcp.*], targets: [search-kb, read-transactions]}, {actions: [mcp.*], evidence: [{approval: {group: finance}}]}, {actions: [postgres.*, http.*]}]", "without condition"},
		"tool left out":   {"[{actions: [mcp.*]}, {actions: [postgres.*, http.*], who: [tool/read-transactions]}]", "no entry permits tool/issue-refund"},
	} {
		t.Run(name, func(t *testing.T) {
			err := ceiling(t, "{kind: Ceiling, name: x, may: "+c.may+"}").Within(set)
			if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v; want %q", err, c.want)
			}
		})
	}
	two, err := config.ParseCeiling(map[string][]byte{"a.yaml": []byte("{kind: Ceiling, name: a, may: [{actions: [mcp.*, postgres.*, http.*]}]}"),
		"b.yaml": []byte("{kind: Ceiling, name: b, may: [{actions: [mcp.*, postgres.*]}]}")})
	if err != nil {
		t.Fatal(err)
	}
	if err := two.Within(set); err == nil || !strings.Contains(err.Error(), "ceiling b") {
		t.Errorf("the second ceiling does not bound: %v", err)
	}
}

func TestCeilingPins(t *testing.T) {
	c := ceiling(t, bounded)
	for name, e := range map[string]struct{ old, new, want string }{
		"value":       {"production: true\n", "production: false\n", "target.yaml:1: Target production-cluster: production is not as ceiling production pins it"},
		"left out":    {"production: true\n", "", "production is not as"},
		"added":       {"production: true\n", "production: true\nmode: jwt\n", "does not allow the key mode"},
		"signer":      {"{name: trivy, key: {file: trivy.pub}}", "{name: trivy, key: {file: mine.pub}}", "EvidenceSource trivy-ci: signers is not"},
		"signer more": {"{name: trivy, key: {file: trivy.pub}}", "{name: trivy, key: {file: trivy.pub}}\n- {name: me, key: {file: mine.pub}}", "EvidenceSource trivy-ci: signers is not"},
	} {
		t.Run(name, func(t *testing.T) {
			err := c.Within(edited(t, "deploy", "target.yaml", e.old, e.new))
			if err == nil || !strings.Contains(err.Error(), e.want) {
				t.Errorf("%v; want %s", err, e.want)
			}
		})
	}
	if err := c.Within(edited(t, "deploy", "target.yaml", "cluster.kubeconfig", "other.kubeconfig")); err != nil {
		t.Errorf("a free key: %v", err)
	}
	rule := ceiling(t, "{kind: Ceiling, name: x, may: [{actions: [kubernetes.*]}], pins: [{kind: Rule, name: freeze, with: {rego: \"package freeze\\n\"}}]}")
	files := read(t, "deploy")
	for name, r := range map[string]struct {
		doc, module string
		good        bool
	}{
		"inline":  {"{kind: Rule, name: freeze, rego: \"package freeze\\n\"}", "", true},
		"file":    {"{kind: Rule, name: freeze, file: freeze.rego}", "package freeze\n", true},
		"changed": {"{kind: Rule, name: freeze, file: freeze.rego}", "package freeze # open\n", false},
		"removed": {"{kind: Rule, name: other, rego: \"package freeze\\n\"}", "", false},
	} {
		files["rule.yaml"] = []byte(r.doc)
		delete(files, "freeze.rego")
		if r.module != "" {
			files["freeze.rego"] = []byte(r.module)
		}
		set, err := config.Parse(files, company)
		if err != nil {
			t.Fatal(err)
		}
		if err := rule.Within(set); (err == nil) != r.good {
			t.Errorf("rule %s: %v", name, err)
		}
	}
}

func TestCeilingFile(t *testing.T) {
	s := schema(t)
	if err := validate(t, s, []byte(bounded)); err != nil {
		t.Errorf("the schema refuses a ceiling: %v", err)
	}
	for name, e := range map[string][3]string{
		"unknown key":     {"  ttl: 5m", "  tll: 5m", `ceiling.yaml:14: unknown key "tll"`},
		"parameter":       {"kind: Deployment}", "kind: $kind}", "a ceiling knows no parameters"},
		"parameter match": {"state: approved", "state: $state", "a ceiling knows no parameters"},
		"ttl":             {"  ttl: 5m", "  ttl: 2h", "more than the limit"},
		"other kind":      {"kind: Ceiling", "kind: Agent", "here stands only Ceiling"},
		"no actions":      {"[kubernetes.*]", "[]", "actions is empty"},
		"pin of what":     {"kind: Target", "kind: Workflow", "is not right here"},
		"twice":           {"kind: Ceiling\n", "{kind: Ceiling, name: production, may: []}\n---\nkind: Ceiling\n", "declared twice"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := config.ParseCeiling(map[string][]byte{"ceiling.yaml": []byte(strings.Replace(bounded, e[0], e[1], 1))})
			if err == nil || !strings.Contains(err.Error(), e[2]) {
				t.Errorf("%v; want %s", err, e[2])
			}
		})
	}
	for name, files := range map[string]map[string][]byte{"empty": {}, "rego": {"a.rego": []byte("package x")}} {
		if _, err := config.ParseCeiling(files); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
	files := read(t, "deploy")
	files["ceiling.yaml"] = []byte(bounded)
	if _, err := config.Parse(files, company); err == nil || !strings.Contains(err.Error(), "does not stand among what it bounds") {
		t.Errorf("a ceiling among the declarations: %v", err)
	}
}
