// SPDX-License-Identifier: Apache-2.0

package policy_test

import (
	"testing"

	"remit"
	"remit/internal/policy"
)

// TestChoice: a value passes that the file lists or that an earlier call of this run returned there, and nothing else; a list when
// each element does.
func TestChoice(t *testing.T) {
	from := remit.Predicate{Kind: remit.PredicateFrom, Source: remit.Source{From: "other", Path: "/rows/*/id"}}
	choice := remit.Predicate{Kind: remit.PredicateChoice, Terms: []remit.Term{{Value: text("own")}}, Sources: []remit.Source{from.Source, {From: "other", Path: "/more"}}}
	maybe := choice
	maybe.Empty = true
	list := func(v ...remit.Value) remit.Value { return remit.ListValue(v...) }
	known := func(run remit.RunID, permission, path string, v remit.Value) bool {
		return run == "run-1" && permission == "other" && path == "/rows/*/id" && v.Equal(number("7"))
	}
	for i, tc := range []struct {
		is   remit.Predicate
		run  remit.RunID
		v    remit.Value
		want bool
	}{
		{from, "run-1", number("7.0"), true}, {from, "run-1", text("7"), false}, {from, "run-2", number("7"), false},
		{from, "run-1", list(number("7"), number("7")), true}, {from, "run-1", list(number("7"), number("8")), false},
		{from, "run-1", list(), false}, {from, "run-1", remit.Value{}, false}, {from, "run-1", list(list(number("7"))), false},
		{choice, "run-1", number("7"), true}, {choice, "run-1", text("own"), true}, {choice, "run-1", text("other"), false},
		{choice, "run-1", list(number("7"), text("own")), true}, {choice, "run-1", list(text("own"), text("other")), false},
		{choice, "run-1", list(), false}, {choice, "run-1", remit.Value{}, false}, {choice, "run-2", number("7"), false},
		{maybe, "run-1", list(), true}, {maybe, "run-1", remit.Value{}, true}, {maybe, "run-1", list(remit.Value{}), false},
		{maybe, "run-1", text("other"), false}, {maybe, "run-1", remit.ObjectValue(map[string]remit.Value{"id": number("7")}), false},
	} {
		w := deploy()
		w.Stages[0].May = []remit.Permission{{Name: "m", Who: "agent/deploy", Action: "kubernetes.apply", Target: "production-cluster",
			Where: map[string]remit.Predicate{"x": tc.is}}, {Name: "other", Who: "agent/deploy", Action: "a", Target: "t"}}
		req, run := request()
		run.ID = tc.run
		req.Run, req.Args = tc.run, remit.Args{"x": tc.v}
		p := compile(t, policy.Config{Workflows: []remit.Workflow{w}, From: known})
		if m := p.Match(req, run); (m.Permission != nil) != tc.want {
			t.Errorf("%d: %s on %s: %v %v", i, tc.is.Kind, tc.v, m.Permission != nil, m.Reasons)
		}
		if p := compile(t, policy.Config{Workflows: []remit.Workflow{w}}); p.Match(req, run).Permission != nil && tc.want && tc.is.Kind == remit.PredicateFrom {
			t.Errorf("%d: holds although nothing is known of any result", i)
		}
	}
}
