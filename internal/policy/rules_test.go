// SPDX-License-Identifier: Apache-2.0

package policy_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"remit"
	"remit/internal/policy"
)

const header = "package remit.rules\n"

// judgeWith judges the good deploy request under one organisation rule.
func judgeWith(t testing.TB, rule string) remit.Judgement {
	t.Helper()
	p := compile(t, policy.Config{Workflows: []remit.Workflow{deploy()}, Rules: []policy.Rule{{Name: "org.rego", Module: header + rule}}})
	req, run := request()
	m := p.Match(req, run)
	return p.Judge(context.Background(), req, run, &m, facts(&m))
}

func TestRulesNarrow(t *testing.T) {
	for _, tc := range []struct{ rule, want string }{
		{`deny contains "x" if input.args.namespace == "staging"`, "allow 5m0s "},
		{`deny contains "freeze" if input.args.namespace == "production"`, "deny 0s organisation_rule rule.org.rego"},
		{`hold contains "look" if input.permission == "apply"`, "deny 0s organisation_rule rule.org.rego"}, // nobody could answer
		{"hold contains \"look\" if input.permission == \"apply\"\napprovers contains \"finance\"", "hold 0s organisation_rule rule.org.rego"},
		{`approvers contains "finance"`, "allow 5m0s "},
		{`approvers contains sprintf("group-%d", [i]) if some i in numbers.range(0, 8)`, "deny 0s organisation_rule rules.fault"},
		{`approvers contains 7`, "deny 0s organisation_rule rules.fault"},
		{`ttl := 60`, "allow 1m0s "}, {`ttl := "1m30s"`, "allow 1m30s "}, {`ttl := 6000`, "allow 5m0s "},
		{`ttl := 0`, "deny 0s organisation_rule rules.fault"}, {`ttl := "soon"`, "deny 0s organisation_rule rules.fault"},
		{`ttl := true`, "deny 0s organisation_rule rules.fault"}, {`rows := -1`, "deny 0s organisation_rule rules.fault"},
		{`rows := 5`, "allow 5m0s "}, {`tier := "vm"`, "deny 0s organisation_rule rule.org.rego"},
		{`tier := "tent"`, "deny 0s organisation_rule rules.fault"}, {`deny contains 7`, "deny 0s organisation_rule rules.fault"},
		{`columns contains "id"`, "deny 0s organisation_rule rule.org.rego"}, {`columns contains "id" if false`, "allow 5m0s "},
		{`ttl := 60 / input.args.zero`, "allow 5m0s "}, // undefined, like everything in Rego
		{`ttl := 60 / 0`, "deny 0s organisation_rule rules.fault"},
		{"ttl := 1 if input.agent\nttl := 2 if input.agent", "deny 0s organisation_rule rules.fault"},
		{`deny contains "old" if { some e in input.evidence; e.kind == "scan"; time.parse_rfc3339_ns(input.at) - time.parse_rfc3339_ns(e.made) > 1 }`,
			"deny 0s organisation_rule rule.org.rego"},
	} {
		j := judgeWith(t, tc.rule)
		if got := j.Effect.String() + " " + j.TTL.String() + " " + reasons(j.Reasons); got != tc.want {
			t.Errorf("%s: %s", tc.rule, got)
		}
	}
	if j := judgeWith(t, "rows := 5\nobligations contains \"mask\""); j.Limits["rows"] != 5 || len(j.Obligations) != 1 {
		t.Errorf("%+v", j)
	}
}

// TestHoldOfARule: what a rule holds waits for a person of each group that the rules name, and for nobody else; a fact of another
// group, an old one, or one that the permission itself asked for does not serve.
func TestHoldOfARule(t *testing.T) {
	p := compile(t, policy.Config{Workflows: []remit.Workflow{deploy()}, Rules: []policy.Rule{{Name: "org.rego", Module: header +
		"hold contains \"look\"\napprovers contains g if some g in [\"finance\", \"security\"]"}}})
	req, run := request()
	m := p.Match(req, run)
	found := facts(&m)
	j := p.Judge(context.Background(), req, run, &m, found)
	if j.Effect != remit.Hold || len(j.Asks) != 2 || j.Asks[0].Match["group"] != "finance" || j.Asks[1].Match["group"] != "security" {
		t.Fatalf("%+v", j)
	}
	m.Needs = append(m.Needs, j.Asks...)
	for _, n := range j.Asks {
		found = append(found, remit.Found{Need: n, Evidence: &remit.Evidence{Kind: n.Kind, Source: n.Source, Made: req.At, Fields: map[string]string{"group": n.Match["group"], "people": "1"}}})
	}
	judge := func() remit.Judgement { return p.Judge(context.Background(), req, run, &m, found) }
	if j := judge(); j.Effect != remit.Allow || !j.Until.Equal(req.At.Add(15*time.Minute)) {
		t.Errorf("both approved: %+v", j)
	}
	last := found[len(found)-1].Evidence
	for name, change := range map[string]func(e *remit.Evidence){
		"another group": func(e *remit.Evidence) { e.Fields = map[string]string{"group": "sales", "people": "1"} },
		"old":           func(e *remit.Evidence) { e.Made = req.At.Add(-16 * time.Minute) },
	} {
		other := *last
		change(&other)
		found[len(found)-1].Evidence = &other
		if j := judge(); j.Effect != remit.Hold || len(j.Asks) != 0 {
			t.Errorf("%s: %+v", name, j)
		}
	}
	found[len(found)-1] = remit.Found{Need: found[len(found)-1].Need, Reason: &remit.Reason{Code: remit.ReasonApproval, Of: "rules.approvers"}}
	if j := judge(); j.Effect != remit.Hold || len(j.Asks) != 0 {
		t.Errorf("one is missing: %+v", j)
	}
}

func TestRulesThatAreNoRules(t *testing.T) {
	for name, module := range map[string]string{
		"syntax":          header + "deny contains",
		"package":         "package remit\ndecision := 1",
		"allow":           header + "allow := true",
		"misspelt":        header + `denny contains "x"`,
		"boolean deny":    header + `deny if input.agent == "x"`,
		"set ttl":         header + `ttl contains 5`,
		"function":        header + `deny(x) := x`,
		"http":            header + `deny contains "x" if http.send({"method": "get", "url": "http://x"}).status_code == 200`,
		"runtime":         header + `deny contains "x" if opa.runtime().env.X`,
		"network":         header + `deny contains "x" if net.lookup_ip_addr("x")`,
		"chance":          header + `deny contains "x" if rand.intn("x", 2) == 1`,
		"jwt clock":       header + `deny contains "x" if io.jwt.decode_verify("x", {})`,
		"clock":           header + `deny contains "x" if time.now_ns() > 1`,
		"misspelt input":  header + `deny contains "x" if input.agnet == "x"`,
		"other data":      header + `deny contains "x" if data.secrets.x`,
		"workflows":       header + `deny contains "x" if data.remit.decision`,
		"unused variable": header + `deny contains "x" if { y := 1 }`,
	} {
		_, err := policy.Compile(policy.Config{Digest: digest, Rules: []policy.Rule{{Name: "org.rego", Module: module}}})
		if remit.CodeOf(err) != remit.CodeInvalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := policy.Compile(policy.Config{Digest: digest, Rules: []policy.Rule{{Name: "../x", Module: header}}}); err == nil {
		t.Error("a rule's name left the folder")
	}
}

// TestLibraryHasOneModule: a module that nobody pinned adds nothing to what a pinned rule uses.
func TestLibraryHasOneModule(t *testing.T) {
	lib := func(name string) string { return "package remit.lib" + name + "\nfrozen(x) if x == 1\n" }
	for _, tc := range []struct {
		a, b string
		want remit.Code
	}{
		{".names", ".names", remit.CodeInvalid}, {"", ".names", remit.CodeInvalid}, {".names", "", remit.CodeInvalid},
		{".names.bad", ".names", remit.CodeInvalid}, {"", "", remit.CodeInvalid}, {".names", ".name", ""}, {".a", ".b", ""},
	} {
		_, err := policy.Compile(policy.Config{Digest: digest, Rules: []policy.Rule{{Name: "a.rego", Module: lib(tc.a)}, {Name: "b.rego", Module: lib(tc.b)}}})
		if remit.CodeOf(err) != tc.want && !(err == nil && tc.want == "") {
			t.Errorf("remit.lib%s and remit.lib%s: %v", tc.a, tc.b, err)
		}
	}
}

func TestSlowRuleDenies(t *testing.T) {
	start := time.Now()
	j := judgeWith(t, `deny contains "x" if { some i in numbers.range(1, 100000000); i < 0 }`)
	if j.Effect != remit.Deny || reasons(j.Reasons) != "organisation_rule rules.fault" || !strings.Contains(j.Reasons[0].Got, "cancel") {
		t.Errorf("%+v", j)
	}
	if d := time.Since(start); d > 5*time.Second {
		t.Errorf("took %s", d)
	}
}

func TestEndedContextDenies(t *testing.T) {
	p := compile(t, policy.Config{Workflows: []remit.Workflow{deploy()}, Rules: []policy.Rule{{Name: "org.rego", Module: header + "ttl := 60"}}})
	req, run := request()
	m := p.Match(req, run)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if j := p.Judge(ctx, req, run, &m, facts(&m)); j.Effect != remit.Deny {
		t.Errorf("%+v", j)
	}
}

const caseFile = `
cases:
- name: good
  run: {workflow: deploy, stage: deploy, params: {app: foo, image: IMAGE, scan: scan-789}}
  request: {agent: agent/deploy, action: kubernetes.apply, target: production-cluster, at: 2026-03-04T12:00:00Z,
            args: {namespace: production, kind: Deployment, name: foo, image: IMAGE}}
  evidence:
  - {kind: scan, source: trivy-ci, id: scan-789, subjects: [DIGEST], worst: low, age: 1h}
  - {kind: provenance, source: github-builds, subjects: [DIGEST], fields: {repository: company/foo}}
  expect: {effect: allow, permission: apply, ttl: 5m}
- name: no scan
  run: {workflow: deploy, stage: deploy, params: {app: foo, image: IMAGE, scan: scan-789}}
  request: {agent: agent/deploy, action: kubernetes.apply, target: production-cluster, at: 2026-03-04T12:00:00Z, permission: apply, fill: true}
  evidence: [{kind: provenance, source: github-builds, subjects: [DIGEST], fields: {repository: company/foo}}]
  expect: {effect: deny, permission: apply, reasons: [evidence_missing]}
`

func TestCases(t *testing.T) {
	text := strings.NewReplacer("IMAGE", image, "DIGEST", string(digest)).Replace(caseFile)
	cases, err := policy.ParseCases("cases.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	p := compile(t, policy.Config{Workflows: []remit.Workflow{deploy()}})
	for _, o := range p.Test(context.Background(), cases) {
		if !o.Pass {
			t.Errorf("%s: %s", o.Name, o.Why)
		}
	}
	cases[0].Expect.Effect, cases[1].Expect.Reasons = "deny", []string{"outside_hours"}
	for _, o := range p.Test(context.Background(), cases) {
		if o.Pass {
			t.Errorf("%s passed with a wrong expectation", o.Name)
		}
	}
	for _, bad := range []string{"cases: [{nmae: x}]", "cases: [{name: x}]", text + "---\ncases: []", strings.ReplaceAll(text, "effect: allow", "effect: alow"),
		strings.ReplaceAll(text, "effect: allow", "effect: allow, reason: [x]"),
		strings.ReplaceAll(text, "no scan", "good"), strings.ReplaceAll(text, "worst: low", "worst: mild"),
		strings.ReplaceAll(text, "kind: provenance", "kind: provenance, reason: evidence_mising")} {
		if _, err := policy.ParseCases("cases.yaml", []byte(bad)); remit.CodeOf(err) != remit.CodeInvalid {
			t.Errorf("taken: %.60s", bad)
		}
	}
}

func TestRegoTests(t *testing.T) {
	rules := []policy.Rule{{Name: "org.rego", Module: header + `deny contains "x" if input.agent == "agent/bad"`}}
	tests := []policy.Rule{{Name: "org_test.rego", Module: `package remit.rules_test

import data.remit.rules

test_bad if "x" in rules.deny with input as {"agent": "agent/bad"}

test_wrong if "x" in rules.deny with input as {"agent": "agent/good"}
`}}
	out, err := policy.TestRules(context.Background(), rules, tests)
	if err != nil || len(out) != 2 || !out[0].Pass || out[1].Pass {
		t.Errorf("%+v %v", out, err)
	}
}

func FuzzParseCases(f *testing.F) {
	f.Add([]byte(caseFile))
	f.Add([]byte("cases: [{name: x, request: {args: {a: &a [*a]}}}]"))
	p := compile(f, policy.Config{Workflows: []remit.Workflow{deploy()}})
	f.Fuzz(func(t *testing.T, b []byte) {
		cases, err := policy.ParseCases("fuzz.yaml", b)
		if err != nil && remit.CodeOf(err) != remit.CodeInvalid {
			t.Fatalf("an error without its code: %v", err)
		}
		p.Test(context.Background(), cases)
	})
}
