// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"remit"
	"remit/internal/policy"
)

// The size of the policy, and how many agents share it. Quotas stand as they are shipped, which is why there are many agents.
const (
	workflows, stages, permissions = 200, 5, 10
	agents                         = 64
)

const (
	evaluation = "/access/v1/evaluation"
	orgRule    = "kind: Rule\nname: freeze\nrego: |\n  package remit.rules\n\n  deny contains \"nothing is deployed into kube-system\" if {\n" +
		"    input.args.kind == \"Deployment\"\n    input.args.namespace == \"kube-system\"\n  }\n"
)

func agentName(i int) string    { return fmt.Sprintf("agent/worker-%02d", i%agents) }
func workflowName(w int) string { return fmt.Sprintf("deploy-%03d", w) }
func namespace(w, p int) string { return fmt.Sprintf("team-%03d-%d", w, p) }
func appName(w int) string      { return fmt.Sprintf("app-%03d", w) }
func imageOf(w int) string {
	return "registry.company.com/" + appName(w) + "@" + string(remit.DigestOf([]byte(appName(w))))
}

// policyFiles are the declarations: 200 workflows of 5 stages of 10 permissions, each with four predicates.
func policyFiles(rule bool) map[string]string {
	files := map[string]string{}
	var a strings.Builder
	for i := range agents {
		name := strings.TrimPrefix(agentName(i), "agent/")
		fmt.Fprintf(&a, "---\nkind: Agent\nname: %s\nowner: bench\nttl: 1h\nattest: [{unix: {uid: %d}}]\n", name, os.Getuid())
	}
	for p := range permissions {
		fmt.Fprintf(&a, "---\nkind: Target\nname: cluster-%d\ntype: external\n", p)
	}
	if rule {
		a.WriteString("---\n" + orgRule)
	}
	files["base.yaml"] = strings.TrimPrefix(a.String(), "---\n")
	for w := range workflows {
		files[workflowName(w)+".yaml"] = workflowFile(w)
	}
	return files
}

func workflowFile(w int) string {
	var f strings.Builder
	fmt.Fprintf(&f, "kind: Workflow\nname: %s\nparameters:\n  app: {type: name}\n  image: {type: image}\n", workflowName(w))
	f.WriteString("start: {by: [operator/bench], expires: 2h}\nstages:\n")
	for s := range stages {
		fmt.Fprintf(&f, "- name: stage-%d\n  expires: 1h\n  end: {by: [%s]}\n  may:\n", s, agentName(w))
		for p := range permissions {
			fmt.Fprintf(&f, "  - {name: apply-%d-%d, who: %s, action: kubernetes.apply, target: cluster-%d, ttl: 5m,\n"+
				"     where: {namespace: %s, kind: Deployment, name: $app, image: $image}}\n", s, p, agentName(w), p, namespace(w, p))
		}
	}
	return f.String()
}

// opaData is the same for OPA, keyed by everything that a request names.
func opaData(runs []remit.Run) object {
	flows, live := object{}, object{}
	for w := range workflows {
		byStage := object{}
		for s := range stages {
			targets := object{}
			for p := range permissions {
				targets[fmt.Sprintf("cluster-%d", p)] = object{"name": fmt.Sprintf("apply-%d-%d", s, p), "ttl": 300,
					"equal": object{"namespace": namespace(w, p), "kind": "Deployment"}, "from": object{"name": "app", "image": "image"}}
			}
			byStage[fmt.Sprintf("stage-%d", s)] = object{agentName(w): object{"kubernetes.apply": targets}}
		}
		flows[workflowName(w)] = object{"stages": byStage}
		live[string(runs[w].ID)] = object{"workflow": workflowName(w), "stage": runs[w].Stage, "expires": runs[w].Expires.UnixNano(),
			"params": object{"app": appName(w), "image": imageOf(w)}}
	}
	return object{"workflows": flows, "runs": live, "suspended": object{}}
}

// asked is one question in the words of all: AuthZEN for Remit, the keyed input for OPA, and the input that Remit's printed
// policy takes.
type asked struct{ ours, keyed, printed []byte }

// questions are what the agent asks, one for each of its runs and permissions.
func questions(agent int, runs []remit.Run, tokens []string) (all []asked, err error) {
	for w := agent % agents; w < workflows; w += agents {
		for p := range permissions {
			target := fmt.Sprintf("cluster-%d", p)
			args := object{"namespace": namespace(w, p), "kind": "Deployment", "name": appName(w), "image": imageOf(w)}
			var q asked
			var err1, err2, err3 error
			q.ours, err1 = json.Marshal(object{"subject": object{"type": "agent", "id": agentID(agentName(agent))},
				"action": object{"name": "kubernetes.apply"}, "resource": object{"type": "kubernetes", "id": target, "properties": args},
				"context": object{"run_token": tokens[w]}})
			q.keyed, err2 = json.Marshal(object{"input": object{"agent": agentName(agent), "action": "kubernetes.apply", "target": target,
				"run": runs[w].ID, "args": args}})
			q.printed, err3 = printedInput(w, p, &runs[w])
			if err := errors.Join(err1, err2, err3); err != nil {
				return nil, err
			}
			all = append(all, q)
		}
	}
	return all, nil
}

// printedInput is the input document of the decision, as it would be written from its record.
func printedInput(w, p int, run *remit.Run) ([]byte, error) {
	d := remit.Decision{ID: remit.NewDecisionID(), At: time.Now(), Caller: agentID(agentName(w)), Level: "user", Agent: remit.Name(agentName(w)),
		Action: "kubernetes.apply", Target: fmt.Sprintf("cluster-%d", p), Run: run.ID, Via: "authzen", Params: run.Params, WorkflowDigest: run.Digest,
		Permission: remit.PermissionRef{Workflow: run.Workflow, Stage: run.Stage}, Policy: "any",
		Args: remit.Args{"namespace": remit.StringValue(namespace(w, p)), "kind": remit.StringValue("Deployment"),
			"name": remit.StringValue(appName(w)), "image": remit.StringValue(imageOf(w))}}
	input, err := policy.Input(&d, nil)
	return append(append([]byte(`{"input":`), input...), '}'), err
}

// contest is Remit and its peers under the same load.
type contest struct {
	rule  bool
	in    *installation
	sides []*side // the first is Remit
}

// newContest starts everything: Remit of that name without or with the organisation's rule, and OPA twice.
func (b *bench) newContest(ctx context.Context, name string, rule bool) (*contest, error) {
	in, err := b.install(ctx, name, policyFiles(rule))
	if err != nil {
		return nil, err
	}
	if err := in.become(ctx); err != nil {
		return nil, err
	}
	runs, tokens := make([]remit.Run, workflows), make([]string, workflows)
	for w := range workflows {
		runs[w], tokens[w], err = in.run(ctx, workflowName(w), agentName(w), map[string]string{"app": appName(w), "image": imageOf(w)})
		if err != nil {
			return nil, err
		}
	}
	configs, ours := make([]*tls.Config, agents), make([][][]byte, agents)
	keyed, printed := make([][][]byte, agents), make([][][]byte, agents)
	document := "/v1/data/remit/decision"
	if rule {
		document = "/v1/data/remit/ruled"
	}
	for i := range agents {
		if configs[i], err = in.tls(agentName(i)); err != nil {
			return nil, err
		}
		all, err := questions(i, runs, tokens)
		if err != nil {
			return nil, err
		}
		for _, q := range all {
			ours[i] = append(ours[i], post(in.address, evaluation, q.ours))
			keyed[i] = append(keyed[i], post(in.address, document, q.keyed))
			printed[i] = append(printed[i], post(in.address, "/v1/data/remit/decision", q.printed))
		}
	}
	c := &contest{rule: rule, in: in}
	c.sides = append(c.sides, &side{name: "Remit", pid: in.pid, address: in.address, want: []byte(`"decision":true`), settle: func() error { return in.settle(ctx) },
		tls: func(i int) *tls.Config { return configs[i%agents] }, requests: func(i int) [][]byte { return ours[i%agents] }})
	if b.opa == "" {
		return c, nil
	}
	return c, b.addPeers(ctx, c, opaData(runs), keyed, printed)
}

// addPeers starts OPA with the policy that Remit prints, which is the same question from the same data with the same answer, and OPA
// with the least that could be asked, written for its strength: a bound.
func (b *bench) addPeers(ctx context.Context, c *contest, data object, keyed, printed [][][]byte) error {
	text, err := json.Marshal(data)
	if err != nil {
		return err
	}
	client, err := b.certificates()
	if err != nil {
		return err
	}
	o, err := b.startOPA("opa-keyed", client, map[string][]byte{"policy.rego": []byte(opaPolicy), "data.json": text})
	if err != nil {
		return err
	}
	bound := o.side("OPA, keyed lookup", keyed, `"allow":true`)
	bound.bound = true
	c.sides = append(c.sides, bound)
	var files map[string][]byte
	if err := c.in.admin.Get(ctx, "/v1/policy/export", nil, &files); err != nil {
		return err
	}
	if o, err = b.startOPA("opa-printed", client, files); err != nil {
		return err
	}
	c.sides = append(c.sides, o.side("OPA, Remit's policy as printed", printed, `"effect":"allow"`))
	return nil
}

// decisions compares recorded decisions with OPA's server, which records nothing.
func (b *bench) decisions(ctx context.Context) error {
	for _, rule := range []bool{false, true} {
		c, err := b.newContest(ctx, map[bool]string{false: "decisions", true: "ruled"}[rule], rule)
		if err != nil {
			return err
		}
		if b.profile != "" {
			if err := b.profiled(c.sides[0], rule); err != nil {
				return err
			}
			continue
		}
		if err := b.compare(ctx, c); err != nil {
			return err
		}
		began := time.Now()
		n, size, err := c.in.decisionsOnRecord(ctx)
		if err != nil {
			return err
		}
		if n != c.sides[0].answers {
			return fmt.Errorf("%d answers, %d decisions in the ledger", c.sides[0].answers, n)
		}
		b.table.add(row{what: decisionTitle(rule) + ", on record", ours: fmt.Sprintf("%d answers = %d decisions in the ledger", n, n),
			theirs: fmt.Sprintf("%d entries verified in %s", size, time.Since(began).Round(time.Millisecond))})
		b.stopAll()
	}
	return nil
}

func decisionTitle(rule bool) string {
	if rule {
		return "recorded decision + Rego rule"
	}
	return "recorded decision"
}

// results are the samples of one side at one number of connections.
type results struct{ rate, p50, p99, cpu []float64 }

func (r *results) add(s sample) {
	r.rate, r.p50, r.p99, r.cpu = append(r.rate, s.rate), append(r.p50, ms(s.p50)), append(r.p99, ms(s.p99)), append(r.cpu, s.cpu)
}

func (r *results) String() string {
	return fmt.Sprintf("%s/s, p50 %.2f ms, p99 %.1f ms, CPU %.0f µs", figure(median(r.rate)), median(r.p50), median(r.p99), median(r.cpu))
}

func (b *bench) compare(ctx context.Context, c *contest) error {
	levels := []int{1, 16, 64}
	got := map[int][]results{}
	for _, n := range levels {
		got[n] = make([]results, len(c.sides))
	}
	for range b.rounds {
		for _, n := range levels {
			for i, s := range c.sides {
				sample, err := s.measure(n, b.round)
				if err = errors.Join(err, ctx.Err()); err != nil {
					return err
				}
				got[n][i].add(sample)
			}
		}
	}
	want := map[int]float64{16: 1.7, 64: 2.5}
	if c.rule {
		want = map[int]float64{16: 1.3, 64: 1.8}
	}
	for _, n := range levels {
		what := fmt.Sprintf("%s, %d connections", decisionTitle(c.rule), n)
		m := &got[n][0]
		if len(c.sides) == 1 {
			b.table.add(row{what: what, ours: m.String()})
		}
		for i, s := range c.sides[1:] {
			o := &got[n][i+1]
			least, most := want[n], 0.5
			if s.bound {
				least, most = 0, 0 // printed, without a target: it is another question
			}
			b.table.add(row{what: what, ours: m.String(), theirs: s.name + ": " + o.String(), got: median(m.rate) / median(o.rate), want: least, least: true, unit: "× rate"})
			if n != 64 {
				continue
			}
			b.table.add(row{what: what + ", p99", ours: figure(median(m.p99)) + " ms", theirs: s.name + ": " + figure(median(o.p99)) + " ms",
				got: median(m.p99) / median(o.p99), want: most, unit: "× p99"})
			b.table.add(row{what: what + ", processor time", ours: figure(median(m.cpu)) + " µs", theirs: s.name + ": " + figure(median(o.cpu)) + " µs",
				got: median(o.cpu) / median(m.cpu), unit: "× less"})
		}
	}
	return nil
}
