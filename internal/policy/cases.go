// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/rego"
	yaml "go.yaml.in/yaml/v3"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"remit"
)

// maxCaseFile bounds a file of cases.
const maxCaseFile = 1 << 20

// Case is one policy test: a request inside a run, the facts that would be found, and the answer that must come.
type Case struct {
	Name     string     `yaml:"name"`
	Run      CaseRun    `yaml:"run"`
	Request  CaseAsk    `yaml:"request"`
	Evidence []CaseFact `yaml:"evidence"`
	Expect   CaseExpect `yaml:"expect"`
}

// CaseRun is the run; its workflow is taken as unchanged.
type CaseRun struct {
	Workflow string           `yaml:"workflow"`
	Stage    string           `yaml:"stage"`
	Params   map[string]value `yaml:"params"`
}

// CaseAsk is the request. At is RFC 3339; level is the caller's attestation level, none by default.
type CaseAsk struct {
	Agent      string           `yaml:"agent"`
	Caller     string           `yaml:"caller"` // SPIFFE ID
	Level      string           `yaml:"level"`
	Sandbox    string           `yaml:"sandbox"` // the tier that it runs in; none by default
	Action     string           `yaml:"action"`
	Target     string           `yaml:"target"`
	Permission string           `yaml:"permission"`
	Fill       bool             `yaml:"fill"`
	Via        string           `yaml:"via"`
	Args       map[string]value `yaml:"args"`
	TTL        time.Duration    `yaml:"ttl"`
	At         time.Time        `yaml:"at"`
	// Inside names the permission of an open call of this run, with its arguments.
	Inside *CaseCall `yaml:"inside"`
	// From are values that earlier calls of the run returned.
	From []CaseFrom `yaml:"from"`
}

// CaseFrom is what calls under a permission returned at a path.
type CaseFrom struct {
	Permission string  `yaml:"permission"`
	Path       string  `yaml:"path"`
	Values     []value `yaml:"values"`
}

// CaseCall is the parent decision.
type CaseCall struct {
	Permission string           `yaml:"permission"`
	Args       map[string]value `yaml:"args"`
}

// CaseFact is what a source answers; it serves the first need of its kind and source. Age counts back from the request.
type CaseFact struct {
	Kind       string            `yaml:"kind"`
	Source     string            `yaml:"source"`
	Reason     string            `yaml:"reason"` // why there is none: evidence_invalid, evidence_signer …
	Name       string            `yaml:"id"`
	Subjects   []string          `yaml:"subjects"`
	Worst      string            `yaml:"worst"`
	Age        time.Duration     `yaml:"age"`
	Lasts      time.Duration     `yaml:"lasts"` // from the request on; 0: no end
	Fields     map[string]string `yaml:"fields"`
	Superseded bool              `yaml:"superseded"`
}

// CaseExpect is the answer. Reasons are codes, in any order; where none are stated, none are compared.
type CaseExpect struct {
	Effect     string        `yaml:"effect"`
	Permission string        `yaml:"permission"`
	Reasons    []string      `yaml:"reasons"`
	TTL        time.Duration `yaml:"ttl"` // 0: not compared
}

// value reads a YAML scalar, list or map as JSON would mean it.
type value struct{ remit.Value }

// UnmarshalYAML converts by the node's tags, so that 7.0 stays a decimal and "7" a string.
func (v *value) UnmarshalYAML(n *yaml.Node) (err error) {
	v.Value, err = valueOf(n, 0)
	return err
}

func valueOf(n *yaml.Node, depth int) (remit.Value, error) {
	if depth > 8 {
		return remit.Value{}, fmt.Errorf("line %d: deeper than 8 levels", n.Line)
	}
	switch n.Kind {
	case yaml.ScalarNode:
		return scalarOf(n)
	case yaml.SequenceNode:
		out := make([]remit.Value, len(n.Content))
		for i, e := range n.Content {
			v, err := valueOf(e, depth+1)
			if err != nil {
				return v, err
			}
			out[i] = v
		}
		return remit.ListValue(out...), nil
	case yaml.MappingNode:
		out := make(map[string]remit.Value, len(n.Content)/2)
		for i := 0; i+1 < len(n.Content); i += 2 {
			name := n.Content[i].Value
			if _, dup := out[name]; dup || n.Content[i].Kind != yaml.ScalarNode {
				return remit.Value{}, fmt.Errorf("line %d: key %.40q stands twice or is no text", n.Content[i].Line, name)
			}
			v, err := valueOf(n.Content[i+1], depth+1)
			if err != nil {
				return v, err
			}
			out[name] = v
		}
		return remit.ObjectValue(out), nil
	}
	return remit.Value{}, fmt.Errorf("line %d: aliases are not taken", n.Line)
}

func scalarOf(n *yaml.Node) (remit.Value, error) {
	switch n.Tag {
	case "!!null":
		return remit.Value{}, nil
	case "!!bool":
		return remit.BoolValue(strings.EqualFold(n.Value, "true")), nil
	case "!!int", "!!float":
		v, err := remit.NumberValue(n.Value)
		if err != nil {
			return v, fmt.Errorf("line %d: %w", n.Line, err)
		}
		return v, nil
	case "!!str", "!!timestamp":
		return remit.StringValue(n.Value), nil
	}
	return remit.Value{}, fmt.Errorf("line %d: tag %.40q is not taken", n.Line, n.Tag)
}

// ParseCases reads one YAML file of the form {cases: [...]}. Unknown keys, duplicates, a second document and more than 1 MiB
// are errors.
func ParseCases(name string, b []byte) ([]Case, error) {
	if len(b) > maxCaseFile {
		return nil, invalid(name, "a case file has at most %d bytes", maxCaseFile)
	}
	var file struct {
		Cases []Case `yaml:"cases"`
	}
	dec := yaml.NewDecoder(bytes.NewReader(b))
	dec.KnownFields(true)
	if err := dec.Decode(&file); err != nil {
		return nil, invalid(name, "%v", err)
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, invalid(name, "more than one document")
	}
	seen := map[string]bool{}
	for i := range file.Cases {
		c := &file.Cases[i]
		if c.Name == "" || seen[c.Name] {
			return nil, invalid(name, "case %d needs a name of its own, not %.80q", i+1, c.Name)
		}
		seen[c.Name] = true
		if err := c.check(); err != nil {
			return nil, invalid(name, "case %q: %v", c.Name, err)
		}
	}
	return file.Cases, nil
}

// check refuses what could never be as it is written, so that a misspelt case does not pass.
func (c *Case) check() error {
	if _, err := remit.ParseName(c.Request.Agent); err != nil {
		return err
	}
	if !slices.Contains([]string{"deny", "allow", "hold"}, c.Expect.Effect) {
		return fmt.Errorf("expect.effect is allow, deny or hold, not %.40q", c.Expect.Effect)
	}
	if c.Request.At.IsZero() {
		return errors.New("request.at is missing: a test has no clock")
	}
	if _, err := c.Request.caller(); err != nil {
		return err
	}
	for i := range c.Evidence {
		if _, err := c.Evidence[i].found(c.Request.At, &remit.Need{}); err != nil {
			return fmt.Errorf("evidence %d: %w", i+1, err)
		}
	}
	return nil
}

func (a *CaseAsk) returned(_ remit.RunID, permission, path string, v remit.Value) bool {
	return slices.ContainsFunc(a.From, func(f CaseFrom) bool {
		return f.Permission == permission && f.Path == path && slices.ContainsFunc(f.Values, func(o value) bool { return o.Equal(v) })
	})
}

func (a *CaseAsk) caller() (remit.Principal, error) {
	var p remit.Principal
	levels := []string{"none", "user", "launched", "sandbox", "node"}
	if a.Level != "" {
		i := slices.Index(levels, a.Level)
		if i < 0 {
			return p, fmt.Errorf("request.level is one of %v", levels)
		}
		p.Level = remit.Level(i) //nolint:gosec // below 5
	}
	if t := remit.Tier(a.Sandbox); t != "" && !slices.Contains(remit.Tiers(), t) {
		return p, fmt.Errorf("request.sandbox is one of %v", remit.Tiers())
	}
	var err error
	if a.Caller != "" {
		p.ID, err = spiffeid.FromString(a.Caller)
	}
	return p, err
}

func (f *CaseFact) found(at time.Time, need *remit.Need) (remit.Found, error) {
	if f.Reason != "" {
		if !slices.Contains(reasonsOfFacts(), remit.ReasonCode(f.Reason)) {
			return remit.Found{}, fmt.Errorf("reason is one of %v", reasonsOfFacts())
		}
		return remit.Found{Need: *need, Reason: &remit.Reason{Code: remit.ReasonCode(f.Reason), Of: "evidence." + f.Kind}}, nil
	}
	e := &remit.Evidence{Kind: remit.EvidenceKind(f.Kind), Source: f.Source, Name: f.Name, Made: at.Add(-f.Age), Verified: at, Fields: f.Fields}
	for _, s := range f.Subjects {
		d, err := remit.ParseDigest(s)
		if err != nil {
			return remit.Found{}, err
		}
		e.Subjects = append(e.Subjects, d)
	}
	if f.Worst != "" {
		var err error
		if e.Worst, err = remit.ParseSeverity(f.Worst); err != nil {
			return remit.Found{}, err
		}
	}
	if f.Lasts != 0 {
		e.Until = at.Add(f.Lasts)
	}
	if f.Superseded {
		e.Superseded = "newer"
	}
	return remit.Found{Need: *need, Evidence: e}, nil
}

// reasonsOfFacts are those that a source may give for having none.
func reasonsOfFacts() []remit.ReasonCode {
	return []remit.ReasonCode{remit.ReasonEvidenceMissing, remit.ReasonEvidenceInvalid, remit.ReasonEvidenceSigner, remit.ReasonEvidenceSource, remit.ReasonApproval}
}

// Outcome is one test's result; Why is empty when it passed.
type Outcome struct {
	Name string `json:"name"`
	Pass bool   `json:"pass"`
	Why  string `json:"why,omitempty"`
}

// Test judges the cases by p. It changes nothing and needs no other part of Remit.
func (p *Plan) Test(ctx context.Context, cases []Case) []Outcome {
	out := make([]Outcome, len(cases))
	for i := range cases {
		why := p.test(ctx, &cases[i])
		out[i] = Outcome{Name: cases[i].Name, Pass: why == "", Why: why}
	}
	return out
}

func (p *Plan) test(ctx context.Context, c *Case) string {
	run := remit.Run{ID: "run-test", Workflow: c.Run.Workflow, Stage: c.Run.Stage, State: remit.RunActive, Params: plain(c.Run.Params)}
	w := p.workflows[run.Workflow]
	if w == nil {
		return fmt.Sprintf("there is no workflow %q", run.Workflow)
	}
	run.Digest = w.digest
	caller, err := c.Request.caller()
	if err != nil {
		return err.Error()
	}
	req := remit.Request{At: c.Request.At, Caller: caller, Agent: remit.Name(c.Request.Agent), Run: run.ID, Permission: c.Request.Permission, Sandbox: remit.Tier(c.Request.Sandbox),
		Action: c.Request.Action, Target: c.Request.Target, Args: plain(c.Request.Args), TTL: c.Request.TTL, Via: c.Request.Via, Fill: c.Request.Fill}
	plan := *p // the case's parent call instead of the recorded ones
	plan.cfg.Parent, plan.cfg.From = nil, c.Request.returned
	if in := c.Request.Inside; in != nil {
		req.Under = "dec-test"
		plan.cfg.Parent = func(remit.DecisionID) (remit.Decision, bool) {
			return remit.Decision{ID: "dec-test", Effect: remit.Allow, Run: run.ID, Args: plain(in.Args),
				Permission: remit.PermissionRef{Workflow: run.Workflow, Stage: run.Stage, Name: in.Permission}}, true
		}
	}
	m := plan.Match(&req, &run)
	j := remit.Judgement{Reasons: m.Reasons}
	if m.Permission != nil {
		found, err := c.find(&m)
		if err != nil {
			return err.Error()
		}
		j = plan.Judge(ctx, &req, &run, &m, found)
	}
	return c.Expect.compare(&m, &j)
}

func plain(values map[string]value) map[string]remit.Value {
	out := make(map[string]remit.Value, len(values))
	for name, v := range values {
		out[name] = v.Value
	}
	return out
}

// find answers each need by the first fact of its kind and source that is not used yet.
func (c *Case) find(m *remit.Match) ([]remit.Found, error) {
	found := make([]remit.Found, len(m.Needs))
	used := make([]bool, len(c.Evidence))
	for i := range m.Needs {
		need := &m.Needs[i]
		found[i].Need = *need
		for k := range c.Evidence {
			f := &c.Evidence[k]
			if used[k] || f.Kind != string(need.Kind) || f.Source != need.Source {
				continue
			}
			var err error
			if found[i], err = f.found(c.Request.At, need); err != nil {
				return nil, err
			}
			used[k] = true
			break
		}
	}
	return found, nil
}

func (x *CaseExpect) compare(m *remit.Match, j *remit.Judgement) string {
	var got []string
	for _, r := range j.Reasons {
		got = append(got, string(r.Code))
	}
	sort.Strings(got)
	got = slices.Compact(got)
	want := slices.Clone(x.Reasons)
	sort.Strings(want)
	want = slices.Compact(want)
	switch {
	case x.Effect != j.Effect.String():
		return fmt.Sprintf("want %s, got %s %v", x.Effect, j.Effect, j.Reasons)
	case x.Permission != "" && x.Permission != m.Ref.Name:
		return fmt.Sprintf("want permission %s, got %q", x.Permission, m.Ref.Name)
	case len(want) > 0 && !slices.Equal(want, got):
		return fmt.Sprintf("want reasons %v, got %v", want, j.Reasons)
	case x.TTL != 0 && x.TTL != j.TTL:
		return fmt.Sprintf("want ttl %s, got %s", x.TTL, j.TTL)
	}
	return ""
}

// TestRules runs the rules named test_… of Rego test modules against the organisation's rules; each must be true. The error
// is of CodeInvalid when a module does not compile.
func TestRules(ctx context.Context, modules, tests []Rule) ([]Outcome, error) {
	if _, err := compileRules(modules); err != nil {
		return nil, err
	}
	parsed, err := parseRules(slices.Concat(modules, tests))
	if err != nil {
		return nil, err
	}
	compiler := ast.NewCompiler().WithCapabilities(capabilities())
	if compiler.Compile(parsed); compiler.Failed() {
		return nil, invalid("", "policy tests: %v", compiler.Errors)
	}
	var out []Outcome
	for _, t := range tests {
		var done []string
		for _, r := range parsed[t.Name].Rules {
			name := r.Head.Ref().String()
			if !strings.HasPrefix(name, "test_") || slices.Contains(done, name) {
				continue
			}
			done = append(done, name)
			why := runTest(ctx, compiler, parsed[t.Name].Package.Path.String()+"."+name)
			out = append(out, Outcome{Name: t.Name + ": " + name, Pass: why == "", Why: why})
		}
	}
	return out, nil
}

func runTest(ctx context.Context, compiler *ast.Compiler, query string) string {
	ctx, cancel := context.WithTimeout(ctx, 50*ruleTime)
	defer cancel()
	results, err := rego.New(rego.Query(query), rego.Compiler(compiler), rego.StrictBuiltinErrors(true)).Eval(ctx)
	switch {
	case err != nil:
		return err.Error()
	case results.Allowed():
		return ""
	}
	return "is not true"
}
