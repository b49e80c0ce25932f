// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"remit"
	"remit/internal/config"
	"remit/internal/policy"
)

const rules = `package remit.rules

deny contains "nothing is deployed into kube-system" if {
	input.args.kind == "Deployment"
	input.args.namespace == "kube-system"
}
`

// policy measures the plan in this process: Match and Judge, as the line calls them, without transport and record.
func (b *bench) policy(ctx context.Context) error {
	first, err := parsedWorkflow()
	if err != nil {
		return err
	}
	sizes := []int{10, 100, 10_000}
	var plain, ruled []float64
	for _, n := range sizes {
		for _, rule := range []bool{false, true} {
			cfg := policy.Config{Digest: remit.DigestOf([]byte("bench")), Epoch: 1}
			for i := range n {
				w := first
				if i != n/2 {
					w.Name = fmt.Sprintf("other-%d", i)
				}
				cfg.Workflows = append(cfg.Workflows, w)
			}
			if rule {
				cfg.Rules = []policy.Rule{{Name: "freeze.rego", Module: rules}}
			}
			ns, err := b.decide(ctx, cfg, &first)
			if err != nil {
				return err
			}
			what := fmt.Sprintf("decision in process, %d workflows", n)
			if rule {
				ruled = append(ruled, ns/1e3)
				b.table.add(row{what: what + ", with a Rego rule", ours: figure(ns/1e3) + " µs", got: ns / 1e3, want: 30, unit: "µs"})
				continue
			}
			plain = append(plain, ns/1e3)
			b.table.add(row{what: what, ours: figure(ns/1e3) + " µs", got: ns / 1e3, want: 1, unit: "µs"})
		}
	}
	last := len(sizes) - 1
	b.table.add(row{what: "the same, 10,000 workflows to 10", ours: figure(plain[last]) + " µs", theirs: figure(plain[0]) + " µs", got: plain[last] / plain[0], want: 2, unit: "×"})
	b.table.add(row{what: "the same with a Rego rule", ours: figure(ruled[last]) + " µs", theirs: figure(ruled[0]) + " µs", got: ruled[last] / ruled[0], want: 2, unit: "×"})
	return nil
}

func parsedWorkflow() (remit.Workflow, error) {
	td, err := spiffeid.TrustDomainFromString(trustDomain)
	if err != nil {
		return remit.Workflow{}, err
	}
	all := policyFiles(false)
	set, err := config.Parse(map[string][]byte{"base.yaml": []byte(all["base.yaml"]), "w.yaml": []byte(all[workflowName(0)+".yaml"])}, td)
	if err != nil {
		return remit.Workflow{}, err
	}
	return set.Workflows[0], nil
}

// decide returns the median of some rounds, in nanoseconds a decision.
func (b *bench) decide(ctx context.Context, cfg policy.Config, w *remit.Workflow) (float64, error) {
	plan, err := policy.Compile(cfg)
	if err != nil {
		return 0, err
	}
	now := time.Now()
	params := map[string]remit.Value{"app": remit.StringValue(appName(0)), "image": remit.StringValue(imageOf(0))}
	run := &remit.Run{ID: remit.NewRunID(), Workflow: w.Name, Digest: w.Digest, Stage: "stage-2", Params: params}
	req := &remit.Request{At: now, Agent: remit.Name(agentName(0)), Run: run.ID, Action: "kubernetes.apply", Target: "cluster-7", Via: "authzen",
		Args: remit.Args{"namespace": remit.StringValue(namespace(0, 7)), "kind": remit.StringValue("Deployment"),
			"name": params["app"], "image": params["image"]}}
	ask := func() bool {
		m := plan.Match(req, run)
		return plan.Judge(ctx, req, run, &m, nil).Effect == remit.Allow
	}
	var rounds []float64
	for range max(3, b.rounds) {
		n, began := 0, time.Now()
		for time.Since(began) < b.round/5 {
			for range 100 {
				if !ask() {
					return 0, errors.New("the plan did not allow")
				}
			}
			n += 100
		}
		rounds = append(rounds, float64(time.Since(began).Nanoseconds())/float64(n))
	}
	return median(rounds), nil
}
