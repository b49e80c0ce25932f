// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/rego"
	"github.com/open-policy-agent/opa/v1/topdown"

	"remit"
)

// printedTime bounds one judgement by the printed policy; it is not on the path of any answer.
const printedTime = 5 * time.Second

// Printed is one stage of a revision as OPA reads the text that Export prints: a second judge, which shares nothing with Match and
// Judge but that text. It is immutable and safe for concurrent use.
type Printed struct{ query rego.PreparedEvalQuery }

// Printed compiles what Export prints but for other stages and workflows, to which no decision of this stage looks. Where there is no
// such stage or workflow, it says so of a run as the whole text does.
func (p *Plan) Printed(ctx context.Context, workflow, stage string) (*Printed, error) {
	return compilePrinted(ctx, p.print(func(w, s string) bool { return w == workflow && (s == stage || s == "") }))
}

func compilePrinted(ctx context.Context, files map[string][]byte) (*Printed, error) {
	options := []func(*rego.Rego){rego.Query("data.remit.decision"), rego.StrictBuiltinErrors(true), rego.Capabilities(capabilities())}
	for name, text := range files {
		options = append(options, rego.Module(name, string(text)))
	}
	query, err := rego.New(options...).PrepareForEval(ctx)
	if err != nil {
		return nil, fmt.Errorf("compile the printed policy: %w", err)
	}
	return &Printed{query}, nil
}

// answer is what both judges must agree on.
type answer struct {
	Effect     string         `json:"effect"`
	Permission string         `json:"permission"`
	Reasons    []remit.Reason `json:"reasons"`
	TTL        int64          `json:"ttl_ns"`
}

func (a answer) String() string {
	reasons := make([]string, len(a.Reasons))
	for i, r := range a.Reasons {
		reasons[i] = string(r.Code) + ":" + r.Of
	}
	slices.Sort(reasons)
	return fmt.Sprint(a.Effect, " ", a.Permission, " ", slices.Compact(reasons), " ", a.TTL)
}

// Opinion is what both judges say, in short.
type Opinion struct {
	Plan string `json:"plan"`
	Rego string `json:"rego"`
}

// Agree reports whether the two said the same.
func (o Opinion) Agree() bool { return o.Plan == o.Rego }

// Opinion judges a decision of the plan again (S32); parent is as for Input. What did not come from policy agrees with itself. The
// error means that OPA gave no answer.
func (p *Printed) Opinion(ctx context.Context, d *remit.Decision, parent *remit.Decision) (Opinion, error) {
	said := Opinion{Plan: answer{d.Effect.String(), d.Permission.Name, d.Reasons, int64(d.TTL)}.String()}
	if len(outside(d)) > 0 || d.Policy == "" {
		said.Rego = said.Plan
		return said, nil
	}
	input, err := Input(d, parent)
	if err != nil {
		return said, err
	}
	value, err := ast.ValueFromReader(bytes.NewReader(input))
	if err != nil {
		return said, fmt.Errorf("input of decision %s: %w", d.ID, err)
	}
	cancel := topdown.NewCancel()
	timer := time.AfterFunc(printedTime, cancel.Cancel)
	defer timer.Stop()
	defer context.AfterFunc(ctx, cancel.Cancel)()
	results, err := p.query.Eval(ctx, rego.EvalParsedInput(value), rego.EvalTime(d.At), rego.EvalExternalCancel(cancel))
	if err != nil {
		return said, fmt.Errorf("judge decision %s by the printed policy: %w", d.ID, err)
	}
	if len(results) != 1 || len(results[0].Expressions) != 1 {
		return said, fmt.Errorf("judge decision %s by the printed policy: no answer", d.ID)
	}
	b, err := json.Marshal(results[0].Expressions[0].Value)
	if err != nil {
		return said, err
	}
	var a answer
	if err := json.Unmarshal(b, &a); err != nil {
		return said, fmt.Errorf("read the printed policy's answer: %w", err)
	}
	said.Rego = a.String()
	return said, nil
}
