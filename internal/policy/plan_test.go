// SPDX-License-Identifier: Apache-2.0

package policy_test

import (
	"context"
	"fmt"
	"math/big"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"remit"
	"remit/internal/authorizer"
	"remit/internal/policy"
)

var _ authorizer.Policy = (*policy.Plan)(nil)

var (
	noon   = time.Date(2026, 3, 4, 12, 0, 0, 0, time.UTC) // a Wednesday
	digest = remit.DigestOf([]byte("foo"))
	image  = "registry.example/team/foo@" + string(digest)
)

func text(s string) remit.Value { return remit.StringValue(s) }

func number(s string) remit.Value {
	v, err := remit.NumberValue(s)
	if err != nil {
		panic(err)
	}
	return v
}

func equal(v remit.Value) remit.Predicate {
	return remit.Predicate{Kind: remit.PredicateEqual, Terms: []remit.Term{{Value: v}}}
}

func param(name string) remit.Predicate {
	return remit.Predicate{Kind: remit.PredicateEqual, Terms: []remit.Term{{Param: name}}}
}

func subset(values ...remit.Value) remit.Predicate {
	p := remit.Predicate{Kind: remit.PredicateSubset}
	for _, v := range values {
		p.Terms = append(p.Terms, remit.Term{Value: v})
	}
	return p
}

// deploy is the workflow of the guide.
func deploy() remit.Workflow {
	berlin, _ := time.LoadLocation("Europe/Berlin")
	return remit.Workflow{Name: "deploy", Digest: remit.DigestOf([]byte("deploy")),
		Parameters: []remit.Parameter{{Name: "app", Type: "name"}, {Name: "image", Type: "image"}, {Name: "scan", Type: "string"}},
		Stages: []remit.Stage{{Name: "deploy", May: []remit.Permission{{
			Name: "apply", Who: "agent/deploy", Action: "kubernetes.apply", Target: "production-cluster", Line: "deploy.yaml:12", TTL: 5 * time.Minute,
			Where: map[string]remit.Predicate{"namespace": equal(text("production")), "kind": equal(text("Deployment")), "name": param("app"), "image": param("image")},
			Hours: &remit.Hours{Days: [7]bool{false, true, true, true, true, true}, From: 480, To: 1080, Zone: berlin},
			Evidence: []remit.Requirement{
				{Kind: remit.EvidenceScan, Source: "trivy-ci", ID: &remit.Term{Param: "scan"}, Of: &remit.Term{Param: "image"}, Worst: remit.SeverityMedium, Within: 24 * time.Hour},
				{Kind: remit.EvidenceProvenance, Source: "github-builds", Of: &remit.Term{Param: "image"}, Match: map[string]remit.Term{"repository": {Value: text("company/foo")}}},
			}}}}, {Name: "after"}}}
}

func compile(t testing.TB, cfg policy.Config) *policy.Plan {
	t.Helper()
	cfg.Digest = remit.DigestOf([]byte("revision"))
	p, err := policy.Compile(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func request() (*remit.Request, *remit.Run) {
	return &remit.Request{At: noon, Agent: "agent/deploy", Action: "kubernetes.apply", Target: "production-cluster", Run: "run-1",
			Caller: remit.Principal{ID: spiffeid.RequireFromString("spiffe://company.com/agent/deploy"), Level: remit.LevelLaunched},
			Args:   remit.Args{"namespace": text("production"), "kind": text("Deployment"), "name": text("foo"), "image": text(image)}},
		&remit.Run{ID: "run-1", Workflow: "deploy", Digest: remit.DigestOf([]byte("deploy")), Stage: "deploy", State: remit.RunActive,
			Params: map[string]remit.Value{"app": text("foo"), "image": text(image), "scan": text("scan-789")}}
}

// facts are good evidence for the needs of deploy.
func facts(m *remit.Match) []remit.Found {
	found := make([]remit.Found, len(m.Needs))
	for i, n := range m.Needs {
		found[i] = remit.Found{Need: n, Evidence: &remit.Evidence{Kind: n.Kind, Source: n.Source, Name: n.ID, Subjects: []remit.Digest{digest},
			Worst: remit.SeverityLow, Made: noon.Add(-time.Hour), Fields: map[string]string{"repository": "company/foo"}}}
	}
	return found
}

func reasons(list []remit.Reason) string {
	var out []string
	for _, r := range list {
		out = append(out, string(r.Code)+" "+r.Of)
	}
	return strings.Join(out, ", ")
}

func TestMatch(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(*remit.Request, *remit.Run)
		want   string
	}{
		{"as told", func(*remit.Request, *remit.Run) {}, ""},
		{"other image", func(q *remit.Request, _ *remit.Run) { q.Args["image"] = text("evil@" + string(digest)) }, "argument_mismatch where.image"},
		{"absent argument", func(q *remit.Request, _ *remit.Run) { delete(q.Args, "kind") }, "argument_mismatch where.kind"},
		{"unnamed argument", func(q *remit.Request, _ *remit.Run) { q.Args["replicas"] = number("3") }, "argument_mismatch where.replicas"},
		{"null is absent", func(q *remit.Request, _ *remit.Run) { q.Args["replicas"] = remit.Value{} }, ""},
		{"other agent", func(q *remit.Request, _ *remit.Run) { q.Agent = "agent/other" }, "not_permitted "},
		{"other name asked", func(q *remit.Request, _ *remit.Run) { q.Permission = "delete" }, "not_permitted "},
		{"too late", func(q *remit.Request, _ *remit.Run) { q.At = noon.Add(5 * time.Hour) }, "outside_hours hours"},
		{"Saturday", func(q *remit.Request, _ *remit.Run) { q.At = noon.AddDate(0, 0, 3) }, "outside_hours hours"},
		{"changed workflow", func(_ *remit.Request, r *remit.Run) { r.Digest = digest }, "workflow_changed workflow"},
		{"removed workflow", func(_ *remit.Request, r *remit.Run) { r.Workflow = "gone" }, "workflow_changed workflow"},
		{"removed stage", func(_ *remit.Request, r *remit.Run) { r.Stage = "gone" }, "workflow_changed stage"},
		{"other stage", func(_ *remit.Request, r *remit.Run) { r.Stage = "after" }, "not_permitted "},
		{"image without digest", func(q *remit.Request, r *remit.Run) {
			q.Args["image"], r.Params["image"] = text("foo:v1.2"), text("foo:v1.2")
		}, "argument_mismatch evidence.scan.of, argument_mismatch evidence.provenance.of"},
		{"missing parameter equals no absent argument", func(q *remit.Request, r *remit.Run) { delete(q.Args, "name"); delete(r.Params, "app") }, "argument_mismatch where.name"},
		{"empty id asks for no id", func(_ *remit.Request, r *remit.Run) { r.Params["scan"] = text("") }, "argument_mismatch evidence.scan.id"},
		{"filled", func(q *remit.Request, _ *remit.Run) { q.Permission, q.Fill, q.Args = "apply", true, nil }, ""},
		{"not filled without a name", func(q *remit.Request, _ *remit.Run) { q.Fill, q.Args = true, nil },
			"argument_mismatch where.image, argument_mismatch where.kind, argument_mismatch where.name, argument_mismatch where.namespace"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			req, run := request()
			tc.change(req, run)
			m := compile(t, policy.Config{Workflows: []remit.Workflow{deploy()}}).Match(req, run)
			if got := reasons(m.Reasons); got != tc.want || (m.Permission == nil) != (tc.want != "") {
				t.Fatalf("got %q, want %q", got, tc.want)
			}
			if tc.want == "" && (len(m.Needs) != 2 || m.Needs[0].ID != "scan-789" || m.Needs[0].Of.Digest != digest || m.Args["image"].Text() != image) {
				t.Errorf("match %+v", m)
			}
		})
	}
}

func TestFirstInFileOrderWins(t *testing.T) {
	w := deploy()
	second := w.Stages[0].May[0]
	second.Name, second.Evidence = "loose", nil
	w.Stages[0].May = append(w.Stages[0].May, second)
	p := compile(t, policy.Config{Workflows: []remit.Workflow{w}})
	req, run := request()
	if m := p.Match(req, run); m.Ref.Name != "apply" {
		t.Errorf("matched %s", m.Ref.Name)
	}
	run.Params["scan"] = text("") // the first matches, and cannot resolve what it needs: the second must not take over
	if m := p.Match(req, run); m.Permission != nil {
		t.Errorf("matched %s", m.Ref.Name)
	}
	req.Permission = "loose"
	if m := p.Match(req, run); m.Ref.Name != "loose" || m.Permission == nil {
		t.Errorf("matched %q", m.Ref.Name)
	}
}

func TestUnder(t *testing.T) {
	w := deploy()
	inner := remit.Permission{Name: "inner", Who: "tool/x", Under: "apply", Action: "http.post", Target: "api",
		Where: map[string]remit.Predicate{"n": {Kind: remit.PredicateEqual, Terms: []remit.Term{{Call: "name"}}}}}
	w.Stages[0].May = append(w.Stages[0].May, inner)
	parent := remit.Decision{ID: "dec-1", Effect: remit.Allow, Run: "run-1", Args: remit.Args{"name": text("foo")},
		Permission: remit.PermissionRef{Workflow: "deploy", Stage: "deploy", Name: "apply"}}
	for name, tc := range map[string]struct {
		change func(*remit.Decision, *remit.Request)
		want   string
	}{
		"inside":           {func(*remit.Decision, *remit.Request) {}, ""},
		"no parent":        {func(_ *remit.Decision, q *remit.Request) { q.Under = "" }, "not_inside_call under"},
		"held parent":      {func(d *remit.Decision, _ *remit.Request) { d.Effect = remit.Hold }, "not_inside_call under"},
		"other run":        {func(d *remit.Decision, _ *remit.Request) { d.Run = "run-2" }, "not_inside_call under"},
		"other permission": {func(d *remit.Decision, _ *remit.Request) { d.Permission.Name = "inner" }, "not_inside_call under"},
		"other stage":      {func(d *remit.Decision, _ *remit.Request) { d.Permission.Stage = "after" }, "not_inside_call under"},
		"other decision":   {func(d *remit.Decision, _ *remit.Request) { d.ID = "dec-2" }, "not_inside_call under"},
		"other argument":   {func(_ *remit.Decision, q *remit.Request) { q.Args["n"] = text("bar") }, "argument_mismatch where.n"},
	} {
		d := parent
		req, run := request()
		req.Agent, req.Action, req.Target, req.Args, req.Under = "tool/x", "http.post", "api", remit.Args{"n": text("foo")}, "dec-1"
		tc.change(&d, req)
		p := compile(t, policy.Config{Workflows: []remit.Workflow{w}, Parent: func(remit.DecisionID) (remit.Decision, bool) { return d, true }})
		if m := p.Match(req, run); !strings.Contains(reasons(m.Reasons), tc.want) || (m.Permission == nil) != (tc.want != "") {
			t.Errorf("%s: got %q, want %q", name, reasons(m.Reasons), tc.want)
		}
	}
	req, run := request()
	req.Agent, req.Action, req.Target, req.Args, req.Under = "tool/x", "http.post", "api", remit.Args{"n": text("foo")}, "dec-1"
	if m := compile(t, policy.Config{Workflows: []remit.Workflow{w}}).Match(req, run); m.Permission != nil {
		t.Error("without a resolver, a request was taken as inside a call")
	}
}

func TestFill(t *testing.T) {
	w := deploy()
	w.Stages[0].May = []remit.Permission{{Name: "m", Who: "agent/deploy", Action: "kubernetes.apply", Target: "production-cluster",
		Where: map[string]remit.Predicate{"one": subset(text("only")), "app": param("app"), "free": {Kind: remit.PredicateAny},
			"body": {Kind: remit.PredicateObject, Fields: map[string]remit.Predicate{"a": param("app"), "any": {Kind: remit.PredicateAny}}}}}}
	req, run := request()
	req.Permission, req.Fill, req.Args = "m", true, remit.Args{"app": text("foo")}
	m := compile(t, policy.Config{Workflows: []remit.Workflow{w}}).Match(req, run)
	if got := string(m.Args.AppendJSON(nil)); m.Permission == nil || got != `{"app":"foo","body":{"a":"foo"},"one":"only"}` {
		t.Errorf("filled %s, %v", got, m.Reasons)
	}
	if len(req.Args) != 1 {
		t.Error("the request's own arguments were changed")
	}
}

// TestPredicates holds one argument against one predicate.
func TestPredicates(t *testing.T) {
	low, high := number("0.01"), number("1000")
	between := remit.Predicate{Kind: remit.PredicateRange, Min: &low, Max: &high}
	pattern := remit.Predicate{Kind: remit.PredicatePattern, Pattern: regexp.MustCompile("^(?:CHG-[0-9]+)$")}
	cols := subset(text("id"), text("amount"))
	list := func(v ...remit.Value) remit.Value { return remit.ListValue(v...) }
	for i, tc := range []struct {
		is   remit.Predicate
		v    remit.Value
		want bool
	}{
		{equal(number("7")), number("7.0"), true}, {equal(number("7")), text("7"), false}, {equal(text("x")), remit.Value{}, false},
		{cols, text("id"), true}, {cols, list(text("id"), text("amount"), text("id")), true}, {cols, list(text("id"), text("ssn")), false},
		{cols, list(), false}, {cols, remit.Value{}, false}, {cols, list(remit.Value{}), false}, {cols, list(list(text("id"))), false},
		{between, number("0.01"), true}, {between, number("1000.0"), true}, {between, number("1000.01"), false}, {between, number("0.009"), false},
		{between, text("5"), false}, {between, remit.Value{}, false}, {between, number("999.99999999999999"), false}, {between, number("-5"), false},
		{pattern, text("CHG-1"), true}, {pattern, text("xCHG-1"), false}, {pattern, text("CHG-1\n"), false}, {pattern, number("1"), false},
		{remit.Predicate{Kind: remit.PredicateAny}, remit.Value{}, true},
		{remit.Predicate{Kind: remit.PredicateFrom, Source: remit.Source{From: "other", Path: "/id"}}, text("x"), false},
	} {
		w := deploy()
		w.Stages[0].May = []remit.Permission{{Name: "m", Who: "agent/deploy", Action: "kubernetes.apply", Target: "production-cluster",
			Where: map[string]remit.Predicate{"x": tc.is}}, {Name: "other", Who: "agent/deploy", Action: "a", Target: "t"}}
		req, run := request()
		req.Args = remit.Args{"x": tc.v}
		if m := compile(t, policy.Config{Workflows: []remit.Workflow{w}}).Match(req, run); (m.Permission != nil) != tc.want {
			t.Errorf("%d: %s on %s: %v", i, tc.is.Kind, tc.v, m.Permission != nil)
		}
	}
}

func TestJudge(t *testing.T) {
	p := compile(t, policy.Config{Workflows: []remit.Workflow{deploy()}})
	for _, tc := range []struct {
		name   string
		change func(*remit.Evidence)
		want   string
	}{
		{"good", func(*remit.Evidence) {}, ""},
		{"other scan", func(e *remit.Evidence) { e.Name = "scan-1" }, "evidence_field evidence.scan"},
		{"other image", func(e *remit.Evidence) { e.Subjects = []remit.Digest{remit.DigestOf(nil)} }, "evidence_subject evidence.scan"},
		{"no subject", func(e *remit.Evidence) { e.Subjects = nil }, "evidence_subject evidence.scan"},
		{"old", func(e *remit.Evidence) { e.Made = noon.Add(-24*time.Hour - 1) }, "evidence_stale evidence.scan"},
		{"just young enough", func(e *remit.Evidence) { e.Made = noon.Add(-24 * time.Hour) }, ""},
		{"from the future", func(e *remit.Evidence) { e.Made = noon.Add(time.Minute + 1) }, "evidence_stale evidence.scan"},
		{"within the leeway", func(e *remit.Evidence) { e.Made = noon.Add(time.Minute) }, ""},
		{"no time", func(e *remit.Evidence) { e.Made = time.Time{} }, "evidence_stale evidence.scan"},
		{"ended", func(e *remit.Evidence) { e.Until = noon }, "evidence_stale evidence.scan"},
		{"high", func(e *remit.Evidence) { e.Worst = remit.SeverityHigh }, "evidence_severity evidence.scan"},
		{"no severity", func(e *remit.Evidence) { e.Worst = remit.SeverityUnset }, "evidence_severity evidence.scan"},
		{"superseded", func(e *remit.Evidence) { e.Superseded = "evid-2" }, "evidence_superseded evidence.scan"},
		{"other source", func(e *remit.Evidence) { e.Source = "other" }, "fault evidence.scan"},
	} {
		req, run := request()
		m := p.Match(req, run)
		found := facts(&m)
		tc.change(found[0].Evidence)
		j := p.Judge(context.Background(), req, run, &m, found)
		if got := reasons(j.Reasons); got != tc.want || (j.Effect == remit.Allow) != (tc.want == "") || j.Effect == remit.Hold {
			t.Errorf("%s: %s, %q", tc.name, j.Effect, got)
		}
	}
}

func TestJudgeFields(t *testing.T) {
	p := compile(t, policy.Config{Workflows: []remit.Workflow{deploy()}})
	req, run := request()
	m := p.Match(req, run)
	judge := func(found []remit.Found) string {
		j := p.Judge(context.Background(), req, run, &m, found)
		return j.Effect.String() + " " + reasons(j.Reasons)
	}
	found := facts(&m)
	found[1].Evidence.Fields = nil
	if got := judge(found); got != "deny evidence_field evidence.provenance" {
		t.Error(got)
	}
	for _, code := range []remit.ReasonCode{remit.ReasonEvidenceMissing, remit.ReasonEvidenceInvalid, remit.ReasonEvidenceSigner, remit.ReasonEvidenceSource} {
		found = facts(&m)
		found[1] = remit.Found{Need: m.Needs[1], Reason: &remit.Reason{Code: code}}
		if got := judge(found); got != "deny "+string(code)+" evidence.provenance" {
			t.Error(got)
		}
	}
	found = facts(&m)
	found[1].Evidence.Made = time.Time{}
	if got := judge(found); got != "deny evidence_stale evidence.provenance" {
		t.Errorf("a fact without its time, of which no age is asked: %s", got)
	}
	if got := judge(facts(&m)[:1]); got != "deny fault policy" {
		t.Errorf("evidence left out: %s", got)
	}
	m.Policy = "sha256:other"
	if got := judge(facts(&m)); got != "deny fault policy" {
		t.Errorf("match of another revision: %s", got)
	}
}

func TestTTL(t *testing.T) {
	p := compile(t, policy.Config{Workflows: []remit.Workflow{deploy()}})
	for _, tc := range []struct{ asked, lasts, want time.Duration }{
		{0, 0, 5 * time.Minute}, {time.Minute, 0, time.Minute}, {time.Hour, 0, 5 * time.Minute}, {0, 90 * time.Second, 90 * time.Second}, {-1, 0, 0},
	} {
		req, run := request()
		req.TTL = tc.asked
		m := p.Match(req, run)
		found := facts(&m)
		if tc.lasts > 0 {
			found[0].Evidence.Until = noon.Add(tc.lasts)
		}
		if j := p.Judge(context.Background(), req, run, &m, found); j.TTL != tc.want || (tc.want == 0) != (j.Effect == remit.Deny) {
			t.Errorf("asked %s, lasts %s: %s %s", tc.asked, tc.lasts, j.Effect, j.TTL)
		}
	}
}

func TestApproval(t *testing.T) {
	limit := number("100")
	w := deploy()
	m0 := &w.Stages[0].May[0]
	m0.Where = map[string]remit.Predicate{"amount": {Kind: remit.PredicateAny}}
	m0.Evidence = []remit.Requirement{m0.Evidence[0], {Kind: remit.EvidenceApproval, Approval: &remit.ApprovalRequirement{
		When: map[string]remit.Predicate{"amount": {Kind: remit.PredicateRange, Min: &limit}}, Group: "finance", People: 1}}}
	p := compile(t, policy.Config{Workflows: []remit.Workflow{w}})
	for _, tc := range []struct {
		amount remit.Value
		scan   bool
		want   string
	}{
		{number("99.99"), true, "allow "}, {number("100"), true, "hold approval_needed evidence.approval"},
		{number("100"), false, "deny evidence_missing evidence.scan, approval_needed evidence.approval"},
		{text("200"), true, "hold approval_needed evidence.approval"}, // what is no number is not "below 100"
		{remit.Value{}, true, "hold approval_needed evidence.approval"},
		{number("1.00000000000000000001"), true, "hold approval_needed evidence.approval"},
	} {
		req, run := request()
		req.Args = remit.Args{"amount": tc.amount}
		m := p.Match(req, run)
		found := facts(&m)
		if !tc.scan {
			found[0].Evidence = nil
		}
		if len(found) == 2 {
			found[1] = remit.Found{Need: m.Needs[1], Reason: &remit.Reason{Code: remit.ReasonApproval}}
		}
		j := p.Judge(context.Background(), req, run, &m, found)
		if got := j.Effect.String() + " " + reasons(j.Reasons); got != tc.want {
			t.Errorf("amount %s: %s", tc.amount, got)
		}
	}
}

// S27: a permission's least tier is held against what the act really runs in, and so is a rule's; no level stands for a tier.
func TestTier(t *testing.T) {
	tiers := append([]remit.Tier{"", "docker"}, remit.Tiers()...)
	for want, from := range map[string]int{"": 0, "remote": 0, "process": 3, "kernel": 4, "vm": 5} {
		for _, rule := range []bool{false, true} {
			w, cfg := deploy(), policy.Config{}
			w.Stages[0].May[0].Evidence = nil
			if rule {
				if want == "" || want == "remote" {
					continue
				}
				cfg.Rules = []policy.Rule{{Name: "t.rego", Module: "package remit.rules\n\ntier := \"" + want + "\"\n"}}
			} else {
				w.Stages[0].May[0].Sandbox = want
			}
			cfg.Workflows = []remit.Workflow{w}
			p := compile(t, cfg)
			for i, tier := range tiers {
				req, run := request()
				req.Caller.Level, req.Sandbox = remit.LevelNode, tier
				m := p.Match(req, run)
				j := p.Judge(context.Background(), req, run, &m, nil)
				if allowed := j.Effect == remit.Allow; allowed != (i >= from) || allowed && from > 0 && !slices.Equal(j.Obligations, []string{"sandbox=" + want}) {
					t.Errorf("%q (rule %t) in %q: %+v", want, rule, tier, j)
				}
			}
		}
	}
}

// S3: a target marked production takes nothing of a workload that Remit did not launch.
func TestProductionTakesLaunched(t *testing.T) {
	w := deploy()
	w.Stages[0].May[0].Evidence = nil
	p := compile(t, policy.Config{Workflows: []remit.Workflow{w}, Production: []string{w.Stages[0].May[0].Target}})
	req, run := request()
	m := p.Match(req, run)
	if j := p.Judge(context.Background(), req, run, &m, nil); j.Effect != remit.Allow {
		t.Errorf("launched: %+v", j)
	}
	req.Caller.Level = remit.LevelUser
	if j := p.Judge(context.Background(), req, run, &m, nil); reasons(j.Reasons) != "attestation_level caller" || j.Effect != remit.Deny {
		t.Errorf("attested by its user: %+v", j)
	}
}

func TestCompileRefuses(t *testing.T) {
	for name, change := range map[string]func(*remit.Workflow, *remit.Permission){
		"digest":       func(w *remit.Workflow, _ *remit.Permission) { w.Digest = "" },
		"twice":        func(w *remit.Workflow, m *remit.Permission) { w.Stages[0].May = append(w.Stages[0].May, *m) },
		"who":          func(_ *remit.Workflow, m *remit.Permission) { m.Who = "deploy" },
		"no parameter": func(_ *remit.Workflow, m *remit.Permission) { m.Where["x"] = param("nope") },
		"null":         func(_ *remit.Workflow, m *remit.Permission) { m.Where["x"] = equal(remit.Value{}) },
		"long number":  func(_ *remit.Workflow, m *remit.Permission) { m.Where["x"] = equal(number("0.1234567890123456")) },
		"no kind":      func(_ *remit.Workflow, m *remit.Permission) { m.Where["x"] = remit.Predicate{} },
		"no bound": func(_ *remit.Workflow, m *remit.Permission) {
			m.Where["x"] = remit.Predicate{Kind: remit.PredicateRange}
		},
		"loose pattern": func(_ *remit.Workflow, m *remit.Permission) {
			m.Where["x"] = remit.Predicate{Kind: remit.PredicatePattern, Pattern: regexp.MustCompile("a")}
		},
		"escaped anchor": func(_ *remit.Workflow, m *remit.Permission) {
			m.Where["x"] = remit.Predicate{Kind: remit.PredicatePattern, Pattern: regexp.MustCompile("^(?:a)|(?:b)$")}
		},
		"call": func(_ *remit.Workflow, m *remit.Permission) {
			m.Where["x"] = remit.Predicate{Kind: remit.PredicateEqual, Terms: []remit.Term{{Call: "y"}}}
		},
		"under":       func(_ *remit.Workflow, m *remit.Permission) { m.Under = "nobody" },
		"sandbox":     func(_ *remit.Workflow, m *remit.Permission) { m.Sandbox = "box" },
		"hours":       func(_ *remit.Workflow, m *remit.Permission) { m.Hours = &remit.Hours{Zone: time.UTC, From: 60, To: 60} },
		"local zone":  func(_ *remit.Workflow, m *remit.Permission) { m.Hours.Zone = time.Local },
		"source":      func(_ *remit.Workflow, m *remit.Permission) { m.Evidence[0].Source = "" },
		"evidence":    func(_ *remit.Workflow, m *remit.Permission) { m.Evidence[0].Kind = "horoscope" },
		"of no image": func(_ *remit.Workflow, m *remit.Permission) { m.Evidence[0].Of = &remit.Term{Param: "app"} },
		"approval": func(_ *remit.Workflow, m *remit.Permission) {
			m.Evidence[0] = remit.Requirement{Kind: "approval", Approval: &remit.ApprovalRequirement{}}
		},
		"ttl":    func(_ *remit.Workflow, m *remit.Permission) { m.TTL = -1 },
		"target": func(_ *remit.Workflow, m *remit.Permission) { m.Target = "other" },
		"agent":  func(_ *remit.Workflow, m *remit.Permission) { m.Who = "agent/other" },
	} {
		w := deploy()
		change(&w, &w.Stages[0].May[0])
		_, err := policy.Compile(policy.Config{Workflows: []remit.Workflow{w}, Digest: digest, Agents: []remit.Name{"agent/deploy"}, Targets: []string{"production-cluster"}})
		if remit.CodeOf(err) != remit.CodeInvalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := policy.Compile(policy.Config{Workflows: []remit.Workflow{deploy()}, Digest: digest, Agents: []remit.Name{"agent/deploy"}, Targets: []string{"production-cluster"}}); err != nil {
		t.Error(err)
	}
}

func TestExplain(t *testing.T) {
	p := compile(t, policy.Config{Workflows: []remit.Workflow{deploy()}})
	req, run := request()
	d := remit.Decision{ID: "dec-1", At: noon, Agent: req.Agent, Action: req.Action, Target: "test-cluster", Args: req.Args, Params: run.Params,
		Permission: remit.PermissionRef{Workflow: "deploy", Stage: "deploy"}, WorkflowDigest: run.Digest, Policy: p.Digest(),
		Reasons: []remit.Reason{{Code: remit.ReasonNoPermission}}}
	e := policy.Explain(&d, p)
	if e.Nearest == nil || e.Nearest.Name != "apply" || e.Line != "deploy.yaml:12" || e.Changed ||
		!strings.Contains(e.Text, "target would have to be") && !strings.Contains(e.Text, "permission of the stage") {
		t.Errorf("%+v", e)
	}
	d.Target, d.Permission.Name = req.Target, "apply"
	d.Reasons = []remit.Reason{{Code: remit.ReasonEvidenceSeverity, Of: "evidence.scan", Want: "at worst medium", Got: "worst high"}}
	e = policy.Explain(&d, p)
	want := []string{"evidence.scan"}
	if !cmp.Equal(e.Missing, want) || e.Permission == nil || !strings.Contains(e.Text, "evidence.scan would have to be: at worst medium") {
		t.Errorf("%+v\n%s", e, e.Text)
	}
}

// TestNumbersCompareAsDecimals holds ranges against math/big over random decimals.
func TestNumbersCompareAsDecimals(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	random := func() remit.Value {
		return number(fmt.Sprintf("%s%d.%0*d", []string{"", "-"}[r.IntN(2)], r.IntN(1200), 1+r.IntN(6), r.IntN(10)))
	}
	for range 3000 {
		bound, v := random(), random()
		w := deploy()
		w.Stages[0].May = []remit.Permission{{Name: "m", Who: "agent/deploy", Action: "kubernetes.apply", Target: "production-cluster",
			Where: map[string]remit.Predicate{"x": {Kind: remit.PredicateRange, Min: &bound}}}}
		req, run := request()
		req.Args = remit.Args{"x": v}
		a, _ := new(big.Rat).SetString(v.Text())
		b, _ := new(big.Rat).SetString(bound.Text())
		if m := compile(t, policy.Config{Workflows: []remit.Workflow{w}}).Match(req, run); (m.Permission != nil) != (a.Cmp(b) >= 0) {
			t.Fatalf("%s >= %s: %v", v, bound, m.Permission != nil)
		}
	}
}
