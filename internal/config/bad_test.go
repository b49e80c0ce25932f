// SPDX-License-Identifier: Apache-2.0

package config_test

import (
	"strings"
	"testing"

	"remit"
	"remit/internal/config"
)

// TestRefusals changes the deploy example in one place each and wants the error at that place. seen says that the JSON
// Schema must see it, too; what depends on other documents or on meaning it cannot see.
func TestRefusals(t *testing.T) {
	const wf, ag, tg = "workflow.yaml", "agents.yaml", "target.yaml"
	s := schema(t)
	for _, c := range []struct {
		name, file, old, new, want string
		seen                       bool
	}{
		{"unknown key", wf, "  expires: 30m", "  expire: 30m", `workflow.yaml:12: unknown key "expire"`, true},
		{"unknown key in a condition's neighbour", wf, "    ttl: 5m", "    tll: 5m", `workflow.yaml:25: unknown key "tll"`, true},
		{"key twice", wf, "    ttl: 5m", "    ttl: 5m\n    ttl: 6m", `workflow.yaml:26: key "ttl" stands twice, first on line 25`, true},
		{"wrong type", wf, "expires: 2h}", "expires: 2}", "workflow.yaml:9: expected a duration, found the number 2", true},
		{"negative duration", wf, "expires: 2h}", "expires: -2h}", "is not a duration above zero", true},
		{"unknown kind", wf, "kind: Workflow", "kind: Workflows", `kind is "Workflows"`, true},
		{"missing key", wf, "    action: kubernetes.apply\n", "", "workflow.yaml:15: action is missing", true},
		{"anchor", wf, "name: $app,", "name: &x $app,", "workflow.yaml:19: anchors and aliases", false},
		{"alias", wf, "name: $app,", "name: *x,", "unknown anchor", true},
		{"merge key", wf, "  expires: 30m", "  <<: {expires: 30m}", "merge keys", false},
		{"tag", wf, "name: $app,", "name: !!str $app,", "tags such as", false},
		{"not YAML", wf, "stages:", "stages: [", "workflow.yaml:", true},
		{"two kinds of evidence in one", wf, "    - scan: {id", "    - approval: {group: a, within: 1m}\n      scan: {id", "write exactly one of scan, provenance", true},
		{"unknown evidence", wf, "    - scan: {id", "    - scans: {id", `unknown key "scans"`, true},
		{"unknown provenance field", wf, "repository: company/foo", "repo: company/foo", `unknown key "repo"`, true},
		{"unknown severity", wf, "worst: medium", "worst: middling", "write none, low, medium", true},
		{"unknown parameter type", wf, "{type: name}", "{type: label}", "write name, string", true},
		{"parameter name", wf, "  app:    {", "  App:    {", "is no name for a parameter", true},
		{"null argument", wf, "namespace: production", "namespace: null", "found nothing", true},
		{"no number", wf, "namespace: production", "namespace: 0x10", "found the number 0x10", false},
		{"bare dollar", wf, "namespace: production", "namespace: $", "refers to nothing", true},
		{"empty list", wf, "namespace: production", "namespace: []", "an empty list allows nothing", true},
		{"nested list", wf, "namespace: production", "namespace: [[a]]", "found a list", true},
		{"any false", wf, "namespace: production", "namespace: {any: false}", "any can only be true", true},
		{"above in where", wf, "namespace: production", "namespace: {above: {above: [[]]}}", "found a list", true},
		{"pattern syntax", wf, "namespace: production", `namespace: {pattern: "("}`, "missing closing )", false},
		{"pattern that slips out", wf, "namespace: production", `namespace: {pattern: "a)|(?:.*"}`, "unexpected )", false},
		{"pattern too long", wf, "namespace: production", `namespace: {pattern: "` + strings.Repeat("a", 513) + `"}`, "at most 512", true},
		{"min above max", wf, "namespace: production", "namespace: {min: 2, max: 1}", "min 2 is above max 1", false},
		{"unknown parameter", wf, "image: $image}", "image: $images}", "$images: there is no such parameter", false},
		{"call without under", wf, "image: $image}", "image: $call.image}", "add under: PERMISSION", false},
		{"unknown agent", wf, "who: agent/deploy", "who: agent/deployer", "who: there is no agent/deployer", false},
		{"operator as who", wf, "who: agent/deploy", "who: operator/ci", "write agent/NAME or tool/NAME", true},
		{"pep as starter", wf, "by: [operator/ci]", "by: [pep/gate]", "write agent/NAME, tool/NAME or operator/NAME", true},
		{"nobody starts", wf, "by: [operator/ci]", "by: []", "start: by lists nobody", false},
		{"unknown end", wf, "by: [agent/deploy]", "by: [tool/x]", "end: by: there is no tool/x", false},
		{"starter acts", wf, "by: [operator/ci]", "by: [agent/deploy]", "acts in this workflow, so it cannot start it", false},
		{"self without sources", wf, "by: [operator/ci],", "by: [agent/deploy], self: true,", "its own word binds nothing", false},
		{"unknown target", wf, "target: production-cluster", "target: other", "target: there is no other", false},
		{"unknown source", wf, "source: trivy-ci", "source: trivy", "source: there is no trivy", false},
		{"source of another kind", wf, "source: trivy-ci", "source: github-builds", "vouches for provenance, not for scan", false},
		{"of no image", wf, "of: $image, source: trivy-ci", "of: $scan, source: trivy-ci", "name a parameter of type image", false},
		{"of a tag", wf, "of: $image, source: trivy-ci", "of: foo:v1, source: trivy-ci", "is no image with a digest", false},
		{"id of an image", wf, "id: $ticket", "id: $image", "an id is a string or name", false},
		{"ticket without id", wf, "id: $ticket, ", "", "id is missing", true},
		{"unknown under", wf, "who: agent/deploy", "who: agent/deploy\n    under: ask", "there is no permission ask in this stage", false},
		{"own under", wf, "who: agent/deploy", "who: agent/deploy\n    under: apply", "is of agent/deploy itself", false},
		{"from itself", wf, "namespace: production", "namespace: {from: apply, path: /a}", "no other permission apply", false},
		{"path is no pointer", wf, "namespace: production", "namespace: {from: apply, path: a}", "a JSON pointer", true},
		{"path of no form", wf, "namespace: production", "namespace: {from: apply, path: iban:/a}", "a JSON pointer", true},
		{"choice of itself", wf, "namespace: production", "namespace: [a, {from: apply, path: /a}]", "no other permission apply", false},
		{"choice of an object", wf, "namespace: production", "namespace: [a, {b: c}]", "expected {from: PERMISSION, path: POINTER}", true},
		{"hours of no minute", wf, `to: "18:00"`, `to: "08:00"`, "no minute lies", false},
		{"hours no clock", wf, `to: "18:00"`, `to: "18:60"`, `write "HH:MM"`, true},
		{"hours no zone", wf, "zone: Europe/Berlin", "zone: Europe/Atlantis", "is no time zone", false},
		{"zone of the host", wf, "zone: Europe/Berlin", "zone: Local", "is no time zone", false},
		{"days", wf, "days: mon-fri", "days: weekdays", "write mon-fri", true},
		{"no days", wf, "days: mon-fri", "days: []", "write mon-fri", true},
		{"ttl too long", wf, "    ttl: 5m", "    ttl: 2h", "more than the limit of 1h0m0s", false},
		{"run too long", wf, "expires: 2h}", "expires: 200h}", "more than the limit of 168h0m0s", false},
		{"stage outlives run", wf, "expires: 30m", "expires: 3h", "outlive its run of 2h0m0s", false},
		{"permission twice", wf, "  - name: apply", "  - {name: apply, who: agent/deploy, action: a.b, target: production-cluster}\n  - name: apply", "permission apply stands twice", false},
		{"pattern of an image", wf, "{type: image}", `{type: image, pattern: "x"}`, "a pattern is for string and name", false},
		{"min of a string", wf, "scan:   {type: string}", "scan:   {type: string, min: 1}", "min and max are for integer", false},
		{"one_of of another type", wf, "scan:   {type: string}", "scan:   {type: integer, one_of: [a]}", `"a" in one_of is no integer`, false},
		{"one_of out of bounds", wf, "scan:   {type: string}", "scan:   {type: integer, max: 1, one_of: [2]}", "2 in one_of is no integer", false},
		{"source is no field", wf, "scan:   {type: string}", "scan:   {type: string, source: agent}", "write KIND.FIELD", true},
		{"limit unknown", wf, "    ttl: 5m", "    limits: {bytes: 5}", `unknown key "bytes"`, true},
		{"limit zero", wf, "    ttl: 5m", "    limits: {rows: 0}", "allows nothing", false},
		{"approval of nobody", wf, "    - ticket: {id: $ticket, source: change-desk, state: approved}", "    - approval: {group: a, within: 1m, people: 0}", "write 1 to 20", false},
		{"sandbox", wf, "    ttl: 5m", "    sandbox: none", "write remote, process, kernel or vm", true},
		{"action", wf, "action: kubernetes.apply", "action: apply", "write KIND.VERB", true},
		{"agent twice", ag, "kind: Agent", "{kind: Agent, name: deploy}\n---\nkind: Agent", "Agent deploy is declared twice", false},
		{"identity of another", ag, "owner: platform", "id: spiffe://company.com/tool/x", "could be the identity of another name", false},
		{"identity of Remit", ag, "owner: platform", "id: spiffe://company.com/remit/server", "could be the identity of another name", false},
		{"id without path", ag, "owner: platform", "id: spiffe://company.com", "write spiffe://TRUST-DOMAIN/PATH", true},
		{"id with dots", ag, "owner: platform", "id: spiffe://company.com/a/..", "id: ", false},
		{"SVID too long", ag, "owner: platform", "ttl: 24h", "more than the limit of 1h0m0s", false},
		{"attest by path alone", ag, "uid: 4001, path", "path", "neither uid nor gid", false},
		{"attest by nothing", ag, "uid: 4001, path", "pid: 1, path", `unknown key "pid"`, true},
		{"uid", ag, "unix: {uid: 4001", "unix: {uid: -1", "expected a whole number of 32 bits from 0", true},
		{"launched by nobody", ag, "by: [operator/ci]", "by: []", "by lists nobody", false},
		{"launched by a stranger", ag, "by: [operator/ci]", "by: [agent/x]", "write operator/NAME", true},
		{"launch of anything", ag, `, command: "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"`, "", "write exactly one of command, commands", true},
		{"sandbox of a user", ag, "uid: 4001}", "uid: 4001, sandbox: {tier: kernel}}", "uid and inherit are for processes outside a sandbox", false},
		{"sandbox of no tier", ag, "uid: 4001}", "sandbox: {tier: remote}}", "write process, kernel or vm", true},
		{"launch of nothing", ag, `command: "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"`, "commands: []", "commands is empty", false},
		{"target without type", tg, "type: kubernetes\n", "", "type is missing", true},
		{"target name", tg, "name: production-cluster", "name: Production", "lower-case letters", true},
		{"evidence source type", tg, "type: scan", "type: scanner", "write scan, provenance", true},
		{"not a mapping", tg, "kind: Target", "[x]\n---\nkind: Target", "expected a document with kind and name", true},
		{"too deep", tg, "namespaces: [production]", "namespaces: " + strings.Repeat("[", 40) + strings.Repeat("]", 40), "deeper than 24 levels", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			files := read(t, "deploy")
			body := strings.Replace(string(files[c.file]), c.old, c.new, 1)
			if body == string(files[c.file]) {
				t.Fatal("the case changes nothing")
			}
			files[c.file] = []byte(body)
			set, err := config.Parse(files, company)
			if set != nil || err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			} else if remit.CodeOf(err) != remit.CodeInvalid || !strings.HasPrefix(err.Error(), c.file+":") {
				t.Errorf("code %s, error %v", remit.CodeOf(err), err)
			}
			if seen := validate(t, s, files[c.file]) != nil; seen != c.seen {
				t.Errorf("the schema sees it: %t, want %t", seen, c.seen)
			}
		})
	}
}

// TestAllAtOnce: everything that is wrong in all files is reported, each in its own place.
func TestAllAtOnce(t *testing.T) {
	_, err := config.Parse(map[string][]byte{
		"a.yaml":    []byte("kind: Agent\nname: A\nttl: soon\n"),
		"b.yaml":    []byte("kind: Rule\nname: r\nfile: none.rego\n---\nkind: Nothing\nname: x\n"),
		"c.rego":    []byte("package c\n"),
		"d.txt":     []byte("x"),
		"e/f.yaml":  []byte("kind: Rule\nname: r2\nrego: package x\nfile: c.rego\n"),
		"g.yaml":    []byte("kind: [\n"),
		"huge.yaml": make([]byte, 1<<20+1),
	}, company)
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{"a.yaml:2: ", "a.yaml:3: ", "b.yaml:3: there is no file", "b.yaml:5: kind is", "c.rego: no Rule names this file",
		"d.txt: this is neither", "e/f.yaml:1: write exactly one of rego, file", "g.yaml:1: this is not YAML", "huge.yaml: 1048577 bytes"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in\n%v", want, err)
		}
	}
}

// TestNoEcho: what refers to a document that is not well is not reported beside it.
func TestNoEcho(t *testing.T) {
	for file, change := range map[string][2]string{"agents.yaml": {"owner: platform", "owner: 5"}, "target.yaml": {"type: kubernetes", "type: [x]"}} {
		files := read(t, "deploy")
		files[file] = []byte(strings.Replace(string(files[file]), change[0], change[1], 1))
		if _, err := config.Parse(files, company); err == nil || strings.Count(err.Error(), "\n") != 0 {
			t.Errorf("%s: got %v", file, err)
		}
	}
}

func TestBounds(t *testing.T) {
	many := strings.Repeat("---\n{kind: x}\n", 20_000)
	if _, err := config.Parse(map[string][]byte{"a.yaml": []byte(many)}, company); err == nil || len(err.Error()) > 20_000 {
		t.Errorf("many documents: %d bytes of error", len(err.Error()))
	}
	bomb := "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: [*c,*c,*c,*c,*c,*c,*c]\n"
	if _, err := config.Parse(map[string][]byte{"a.yaml": []byte(bomb)}, company); err == nil || !strings.Contains(err.Error(), "anchors and aliases") {
		t.Errorf("bomb: %v", err)
	}
}

// TestAcross are refusals that need what the deploy example does not have.
func TestAcross(t *testing.T) {
	for _, c := range []struct{ name, file, old, new, want string }{
		{"one identity for two", "agents.yaml", "id: spiffe://company.com/gate", "id: spiffe://company.com/ns/deploy/sa/agent",
			"agents.yaml:18: spiffe://company.com/ns/deploy/sa/agent is also the identity of agent/deploy"},
		{"under a permission of another stage", "workflow.yaml", "who: agent/deploy, action: kubernetes.delete", "who: agent/deploy, under: apply, action: kubernetes.delete",
			"there is no permission apply in this stage"},
		{"from a later stage", "workflow.yaml", "{from: ask, path: /rows", "{from: again, path: /rows", "no other permission again in this stage or an earlier one"},
		{"rule of no file", "rules.yaml", "rules/freeze.rego", "rules/none.rego", "there is no file"},
		{"rule of a file outside", "rules.yaml", "rules/freeze.rego", "../freeze.rego", "there is no file"},
		{"trust domain", "agents.yaml", "partner.example", "Partner", "write a trust domain"},
		{"actions", "agents.yaml", "kubernetes.*", "'*'", "write KIND.VERB or KIND.*"},
	} {
		files := read(t, "every")
		body := strings.Replace(string(files[c.file]), c.old, c.new, 1)
		if body == string(files[c.file]) {
			t.Fatal(c.name, "changes nothing")
		}
		files[c.file] = []byte(body)
		if _, err := config.Parse(files, company); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", c.name, err, c.want)
		}
	}
}

// TestTargetAudience is S1: with a JWT-SVID for a target an agent would walk past the decision.
func TestTargetAudience(t *testing.T) {
	files := read(t, "every")
	files["agents.yaml"] = []byte(strings.Replace(string(files["agents.yaml"]), "[wiki.company.com]", "[cluster.company.com]", 1))
	_, err := config.Parse(files, company)
	if err == nil || !strings.Contains(err.Error(), `agents.yaml:3: agent/deploy: audience "cluster.company.com" is that of target cluster`) {
		t.Errorf("got %v", err)
	}
}
