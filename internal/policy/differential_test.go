// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/rego"

	"remit"
)

// opaPolicy is the printed text, compiled by OPA exactly as printed.
func opaPolicy(t testing.TB, p *Plan) rego.PreparedEvalQuery {
	t.Helper()
	printed, err := compilePrinted(context.Background(), p.Export())
	if err != nil {
		t.Fatalf("OPA refuses the printed policy: %v\n%s", err, p.Export()["policy.rego"])
	}
	return printed.query
}

func recorded(d *remit.Decision) answer {
	return answer{d.Effect.String(), d.Permission.Name, d.Reasons, int64(d.TTL)}
}

// inputOf is the decision's input without the reasons from outside policy, so that OPA has to find everything itself.
func inputOf(t testing.TB, d *remit.Decision, parents map[remit.DecisionID]remit.Decision) []byte {
	var parent *remit.Decision
	if p, ok := parents[d.Under]; ok {
		parent = &p
	}
	b, err := Input(d, parent)
	if err != nil {
		t.Fatal(err)
	}
	return regexp.MustCompile(`"outside":\[[^\]]*\]`).ReplaceAll(b, []byte(`"outside":[]`))
}

func ask1(t testing.TB, query rego.PreparedEvalQuery, input []byte) answer {
	value, err := ast.ValueFromReader(bytes.NewReader(input))
	if err != nil {
		t.Fatal(err)
	}
	results, err := query.Eval(context.Background(), rego.EvalParsedInput(value))
	if err != nil {
		if strings.Contains(err.Error(), "eval_conflict_error") { // two rules disagree: an error of opa eval is a denial
			return answer{Effect: "deny", Reasons: []remit.Reason{{Code: remit.ReasonRule, Of: "rules.fault"}}}
		}
		t.Fatalf("%v\n%s", err, input)
	}
	b, _ := json.Marshal(results[0].Expressions[0].Value)
	var a answer
	if err := json.Unmarshal(b, &a); err != nil {
		t.Fatal(err)
	}
	return a
}

// tally counts what was generated.
type tally struct{ all, allowed, near, held, different int }

// compare judges n requests of a world by plan and by the printed Rego of the world's own plan. plan is that plan, or a
// broken one.
func compare(t testing.TB, w *world, plan *Plan, query rego.PreparedEvalQuery, n int, stop bool) (c tally, first string) {
	for range n {
		a := w.ask()
		d := a.decide(t, plan)
		for tries := 0; tries < 10 && len(d.Reasons) > 0 && strings.Contains(d.Reasons[len(d.Reasons)-1].Got, "eval_cancel_error"); tries++ {
			d = a.decide(t, plan) // the rules had no processor for 100 ms: a denial, but not what is compared here
		}
		if w.one(8) { // as it comes back from the ledger
			d = roundTrip(t, &d)
		}
		c.all++
		switch {
		case d.Effect == remit.Allow:
			c.allowed++
		case d.Effect == remit.Hold:
			c.held++
		case len(d.Reasons) == 1 && d.Reasons[0].Code != remit.ReasonNoPermission && d.Reasons[0].Code != remit.ReasonWorkflowChanged:
			c.near++
		}
		input := inputOf(t, &d, w.parents)
		got, want := ask1(t, query, input), recorded(&d)
		if alone := ask1(t, stageAlone(t, w, &d), input); alone.String() != got.String() {
			t.Fatalf("the stage alone: %s\nall stages: %s\ninput: %s", alone, got, input)
		}
		if len(got.Reasons) == 1 && got.Reasons[0].Of == "rules.fault" {
			got.Permission = want.Permission
		}
		if got.String() != want.String() {
			c.different++
			if first == "" {
				first = fmt.Sprintf("plan: %s\n rego: %s\ninput: %s", want, got, input)
			}
			if stop {
				return c, first
			}
		}
	}
	return c, first
}

// stageAlone is the printed Rego of the decision's stage, from the world's own plan.
func stageAlone(t testing.TB, w *world, d *remit.Decision) rego.PreparedEvalQuery {
	if w.own == nil {
		w.own, w.stages = mustCompile(t, w.cfg), map[remit.PermissionRef]*Printed{}
	}
	of := remit.PermissionRef{Workflow: d.Permission.Workflow, Stage: d.Permission.Stage}
	if w.stages[of] == nil {
		printed, err := w.own.Printed(context.Background(), of.Workflow, of.Stage)
		if err != nil {
			t.Fatal(err)
		}
		w.stages[of] = printed
	}
	return w.stages[of].query
}

func roundTrip(t testing.TB, d *remit.Decision) remit.Decision {
	b, err := json.Marshal(d)
	if err != nil {
		t.Fatal(err)
	}
	var back remit.Decision
	if err := json.Unmarshal(b, &back); err != nil {
		t.Fatal(err)
	}
	return back
}

// TestPlanEqualsRego compares 100,000 generated requests (5,000 with -short or SHORT, 20,000 under the race detector, beside which make
// test runs it once without) over generated revisions. At least 30 %
// must be allows or one predicate away from one, or the generator has lost its aim.
func TestPlanEqualsRego(t *testing.T) {
	worlds, each := 100, 1000
	if testing.Short() || os.Getenv("SHORT") != "" {
		worlds, each = 20, 250
	} else if raced {
		each = 200
	}
	var mu sync.Mutex
	var total tally
	t.Run("worlds", func(t *testing.T) {
		for seed := range uint64(worlds) {
			t.Run(fmt.Sprint(seed), func(t *testing.T) {
				t.Parallel()
				w := newWorld(seed, seed%2 == 0)
				plan := mustCompile(t, w.cfg)
				c, first := compare(t, w, plan, opaPolicy(t, plan), each, false)
				mu.Lock()
				defer mu.Unlock()
				total.all, total.allowed, total.near, total.held = total.all+c.all, total.allowed+c.allowed, total.near+c.near, total.held+c.held
				if c.different > 0 {
					t.Errorf("%d of %d differ\n%s", c.different, c.all, first)
				}
			})
		}
	})
	t.Logf("%d requests: %d allowed, %d one predicate away, %d held", total.all, total.allowed, total.near, total.held)
	if total.all != worlds*each || 10*(total.allowed+total.near) < 3*total.all || 20*total.allowed < total.all {
		t.Errorf("the generator makes too few requests near an allow: %+v", total)
	}
}

func mustCompile(t testing.TB, cfg Config) *Plan {
	t.Helper()
	p, err := Compile(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// breaks damage a compiled plan in one kind of condition each; the printed Rego keeps the right meaning.
func breaks() map[string]func(*permission) {
	loosen := func(kind remit.PredicateKind, to remit.Predicate) func(*permission) {
		return func(c *permission) {
			for i := range c.where {
				if c.where[i].is.Kind == kind {
					is := to
					c.where[i].is = &is
				}
			}
		}
	}
	need := func(change func(*remit.Requirement)) func(*permission) {
		return func(c *permission) {
			own := *c.Permission
			own.Evidence = slices.Clone(own.Evidence)
			for i := range own.Evidence {
				change(&own.Evidence[i])
			}
			c.Permission = &own
			c.facts, c.approvals = compileRequirements(own.Evidence)
		}
	}
	other := func(change func(*remit.Permission)) func(*permission) {
		return func(c *permission) {
			own := *c.Permission
			change(&own)
			c.Permission = &own
		}
	}
	anything := remit.Predicate{Kind: remit.PredicateAny}
	return map[string]func(*permission){
		"equal": loosen(remit.PredicateEqual, anything), "subset": loosen(remit.PredicateSubset, anything),
		"range":   loosen(remit.PredicateRange, remit.Predicate{Kind: remit.PredicateRange}),
		"pattern": loosen(remit.PredicatePattern, remit.Predicate{Kind: remit.PredicatePattern, Pattern: regexp.MustCompile("")}),
		"object":  loosen(remit.PredicateObject, anything), "from": loosen(remit.PredicateFrom, anything),
		"choice":  loosen(remit.PredicateChoice, anything),
		"any":     loosen(remit.PredicateAny, remit.Predicate{Kind: remit.PredicatePattern, Pattern: regexp.MustCompile("")}),
		"unnamed": other(func(p *remit.Permission) { p.Where = maps.Clone(p.Where); p.Where["zz"] = anything }),
		"hours":   other(func(p *remit.Permission) { p.Hours = nil }), "under": other(func(p *remit.Permission) { p.Under = "" }),
		"ttl": other(func(p *remit.Permission) { p.TTL += 7 }), "sandbox": other(func(p *remit.Permission) { p.Sandbox = "" }),
		"evidence.id": need(func(r *remit.Requirement) { r.ID = nil }), "evidence.of": need(func(r *remit.Requirement) { r.Of = nil }),
		"evidence.worst":  need(func(r *remit.Requirement) { r.Worst = remit.SeverityUnset }),
		"evidence.within": need(func(r *remit.Requirement) { r.Within = 0 }), "evidence.match": need(func(r *remit.Requirement) { r.Match = nil }),
		"approval.when": need(func(r *remit.Requirement) {
			if r.Approval != nil {
				own := *r.Approval
				own.When = map[string]remit.Predicate{"a": {Kind: remit.PredicateRange, Min: new(num("99")), Max: new(num("98"))}}
				r.Approval = &own
			}
		}),
	}
}

// TestBrokenPlanIsCaught breaks each kind of condition in the plan alone and demands that the comparison sees it.
func TestBrokenPlanIsCaught(t *testing.T) {
	for name, damage := range breaks() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for seed := range uint64(60) {
				w := newWorld(seed, false)
				query := opaPolicy(t, mustCompile(t, w.cfg))
				broken := mustCompile(t, w.cfg)
				for _, flow := range broken.workflows {
					for _, s := range flow.stages {
						for _, c := range s.all {
							damage(c)
						}
					}
				}
				if c, _ := compare(t, w, broken, query, 300, true); c.different > 0 {
					return
				}
			}
			t.Errorf("nobody noticed that %s is broken", name)
		})
	}
}

// TestBrokenProductionIsCaught does the same for which targets are marked production.
func TestBrokenProductionIsCaught(t *testing.T) {
	for seed := range uint64(60) {
		w := newWorld(seed, false)
		query := opaPolicy(t, mustCompile(t, w.cfg))
		broken := mustCompile(t, w.cfg)
		clear(broken.production)
		if c, _ := compare(t, w, broken, query, 300, true); c.different > 0 {
			return
		}
	}
	t.Error("nobody noticed that production is not looked at")
}

// TestBrokenFactIsCaught does the same for what a fact must not be: superseded, made later, ended, of another source.
func TestBrokenFactIsCaught(t *testing.T) {
	for name, hide := range map[string]func(*remit.Evidence, *ask){
		"superseded": func(e *remit.Evidence, _ *ask) { e.Superseded = "" },
		"future":     func(e *remit.Evidence, a *ask) { e.Made = a.req.At },
		"ended":      func(e *remit.Evidence, a *ask) { e.Until = a.req.At.Add(1000 * 60 * 1e9) },
		"source":     func(e *remit.Evidence, _ *ask) { e.Source = "one" },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			caught := false
			for seed := range uint64(30) {
				w := newWorld(seed, false)
				plan := mustCompile(t, w.cfg)
				query := opaPolicy(t, plan)
				for range 200 {
					a := w.ask()
					true1 := a.decide(t, plan)
					mutate := a.mutate
					a.mutate = func(i int, f *remit.Found) {
						if mutate(i, f); f.Evidence != nil {
							hide(f.Evidence, a)
						}
					}
					blind := a.decide(t, plan)
					caught = caught || ask1(t, query, inputOf(t, &true1, w.parents)).String() != recorded(&blind).String()
				}
			}
			if !caught {
				t.Errorf("nobody noticed that %s is not looked at", name)
			}
		})
	}
}
