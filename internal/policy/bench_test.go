// SPDX-License-Identifier: Apache-2.0

package policy_test

import (
	"context"
	"fmt"
	"testing"

	"remit"
	"remit/internal/policy"
)

// many repeats the deploy workflow under n names, the one that is asked for in the middle.
func many(n int) []remit.Workflow {
	out := make([]remit.Workflow, n)
	for i := range out {
		out[i] = deploy()
		if i != n/2 {
			out[i].Name = fmt.Sprint("deploy-", i)
		}
	}
	return out
}

func BenchmarkMatch(b *testing.B) {
	for _, n := range []int{10, 1000, 10000} {
		p := compile(b, policy.Config{Workflows: many(n)})
		req, run := request()
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if m := p.Match(req, run); m.Permission == nil {
					b.Fatal(m.Reasons)
				}
			}
		})
	}
	w := deploy()
	w.Stages[0].May[0].Evidence, w.Stages[0].May[0].Hours = nil, nil
	p := compile(b, policy.Config{Workflows: []remit.Workflow{w}})
	req, run := request()
	b.Run("bare", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if m := p.Match(req, run); m.Permission == nil {
				b.Fatal(m.Reasons)
			}
		}
	})
}

func BenchmarkDecide(b *testing.B) {
	rule := policy.Rule{Name: "org.rego", Module: header + `deny contains "freeze" if {
	input.args.namespace == "production"
	input.level == "none"
}
`}
	for name, rules := range map[string][]policy.Rule{"plain": nil, "rule": {rule}} {
		p := compile(b, policy.Config{Workflows: []remit.Workflow{deploy()}, Rules: rules})
		req, run := request()
		m := p.Match(req, run)
		found := facts(&m)
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				m := p.Match(req, run)
				if j := p.Judge(context.Background(), req, run, &m, found); j.Effect != remit.Allow {
					b.Fatal(j.Reasons)
				}
			}
		})
	}
}
