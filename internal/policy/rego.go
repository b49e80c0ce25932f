// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"cmp"
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/rego"
	"github.com/open-policy-agent/opa/v1/topdown"
)

// Rule is one module of the organisation's rules, in Rego v1. Its package is remit.rules, where it may define only
//
//	deny contains "why"         a set of strings: each denies
//	hold contains "why"         a set of strings: each holds, unless something denies
//	approvers contains "group"  a person of each group has to approve what is held; no group: what is held is denied
//	ttl := 60                   seconds, or "90s", "5m": the answer lasts no longer
//	rows := 100                 limits.rows is at most this
//	columns contains "id"       the argument columns must name nothing else
//	tier := "vm"                the least sandbox: process, kernel or vm
//	obligations contains "…"    what the enforcement point must see to
//
// or remit.lib and below, for functions and values that the rules share. Everything can only narrow. The input is
// described at document; there is no clock, no network, no randomness. A rule that does not compile is an error at load; one
// that fails, returns a wrong type or takes too long denies.
type Rule struct {
	Name   string // a file name: [a-z0-9][a-z0-9._-]*
	Module string
}

// ruleTime bounds one evaluation of all rules.
const ruleTime = 100 * time.Millisecond

// rules are the compiled modules. It is immutable and safe for concurrent use.
type rules struct {
	query   rego.PreparedEvalQuery
	fields  []string            // members of input that some rule refers to
	defined map[string][]string // output to the names of the modules that define it
	modules []Rule
	within  time.Duration // for one evaluation; 0: ruleTime
}

// of names the rule behind an output, when there is only one.
func (r *rules) of(output string) string {
	if r != nil && len(r.defined[output]) == 1 {
		return "rule." + r.defined[output][0]
	}
	return "rules." + output
}

// capabilities are OPA's without what reads a clock, the network, the process or chance: a rule's result follows from its
// input alone, so that any decision can be judged again.
func capabilities() *ast.Capabilities {
	c := ast.CapabilitiesForThisVersion(ast.CapabilitiesRegoVersion(ast.RegoV1))
	c.AllowNet = []string{}
	c.Builtins = slices.DeleteFunc(slices.Clone(c.Builtins), func(b *ast.Builtin) bool {
		switch b.Name {
		case "http.send", "opa.runtime", "time.now_ns", "trace", "io.jwt.decode_verify", "crypto.x509.parse_and_verify_certificates",
			"crypto.x509.parse_and_verify_certificates_with_options", "providers.aws.sign_req":
			return true
		}
		return b.Nondeterministic || strings.HasPrefix(b.Name, "net.") || strings.HasPrefix(b.Name, "rand.")
	})
	return c
}

func compileRules(modules []Rule) (*rules, error) {
	if len(modules) == 0 {
		return nil, nil
	}
	r := &rules{defined: map[string][]string{}, modules: modules}
	parsed, err := parseRules(modules)
	if err != nil {
		return nil, err
	}
	for name, m := range parsed {
		if err := r.checkOutputs(name, m); err != nil {
			return nil, err
		}
	}
	compiler := ast.NewCompiler().WithCapabilities(capabilities()).WithStrict(true)
	if compiler.Compile(parsed); compiler.Failed() {
		return nil, invalid("", "organisation rule: %v", compiler.Errors)
	}
	if err := r.checkRefs(compiler); err != nil {
		return nil, err
	}
	r.query, err = rego.New(rego.Query("data.remit.rules"), rego.Compiler(compiler), rego.StrictBuiltinErrors(true)).
		PrepareForEval(context.Background())
	if err != nil {
		return nil, invalid("", "organisation rules: %v", err)
	}
	return r, nil
}

func parseRules(modules []Rule) (map[string]*ast.Module, error) {
	parsed := make(map[string]*ast.Module, len(modules))
	for _, m := range modules {
		if !regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,62}$`).MatchString(m.Name) || parsed[m.Name] != nil {
			return nil, invalid("", "organisation rule %.80q: the name must be a file name of its own", m.Name)
		}
		module, err := ast.ParseModuleWithOpts(m.Name, m.Module, ast.ParserOptions{RegoVersion: ast.RegoV1, Capabilities: capabilities()})
		if err != nil {
			return nil, invalid("", "organisation rule %s: %v", m.Name, err)
		}
		for _, other := range parsed {
			//remit:guard S31 TestLibraryHasOneModule
			if sharesLibrary(module, other) {
				return nil, invalid("", "organisation rule %s: package %s is defined, or enclosed, by another module; each package below remit.lib is one module's", m.Name, module.Package.Path)
			}
		}
		parsed[m.Name] = module
	}
	return parsed, nil
}

// sharesLibrary reports whether one module could add definitions to the other's part of remit.lib, which a pinned rule may use.
func sharesLibrary(a, b *ast.Module) bool {
	lib := ast.MustParseRef("data.remit.lib")
	x, y := a.Package.Path, b.Package.Path
	return x.HasPrefix(lib) && y.HasPrefix(lib) && (x.HasPrefix(y) || y.HasPrefix(x))
}

// checkOutputs refuses what a module of remit.rules may not define, among it the boolean `deny if`, which would never deny.
func (r *rules) checkOutputs(name string, m *ast.Module) error {
	lib := ast.MustParseRef("data.remit.lib")
	if m.Package.Path.HasPrefix(lib) {
		return nil
	}
	if !m.Package.Path.Equal(ast.MustParseRef("data.remit.rules")) {
		return invalid("", "organisation rule %s: the package is remit.rules or remit.lib, not %s", name, m.Package.Path)
	}
	for _, rule := range m.Rules {
		output := rule.Head.Ref().String()
		var set bool
		switch output {
		case "deny", "hold", "columns", "obligations", "approvers":
			set = true
		case "ttl", "rows", "tier":
		default:
			return invalid(rule.Loc().String(), "a rule may not define %q; shared functions and values belong in package remit.lib", output)
		}
		if isSet := rule.Head.RuleKind() == ast.MultiValue; isSet != set || len(rule.Head.Args) > 0 {
			want := "a value: " + output + " := …"
			if set {
				want = "a set: " + output + ` contains "…" if …`
			}
			return invalid(rule.Loc().String(), "%s must be %s", output, want)
		}
		if !slices.Contains(r.defined[output], name) {
			r.defined[output] = append(r.defined[output], name)
			slices.Sort(r.defined[output])
		}
	}
	return nil
}

// checkRefs collects the members of input that the rules refer to, and refuses references to what does not exist.
func (r *rules) checkRefs(compiler *ast.Compiler) error {
	used := map[string]bool{}
	var wrong error
	for _, m := range compiler.Modules {
		ast.WalkTerms(m, func(t *ast.Term) bool {
			ref, ok := t.Value.(ast.Ref)
			if !ok {
				return false
			}
			switch {
			case ref.HasPrefix(ast.InputRootRef):
				wrong = cmpError(wrong, useInput(ref, used))
			case ref.HasPrefix(ast.DefaultRootRef):
				wrong = cmpError(wrong, checkData(ref))
			}
			return false
		})
	}
	for _, f := range ruleFields() {
		if used[f] || used["*"] {
			r.fields = append(r.fields, f)
		}
	}
	return wrong
}

func cmpError(first, second error) error {
	if first != nil {
		return first
	}
	return second
}

// useInput marks the member that ref looks at; "*" stands for all.
func useInput(ref ast.Ref, used map[string]bool) error {
	if len(ref) == 1 {
		used["*"] = true
		return nil
	}
	member, ok := ref[1].Value.(ast.String)
	if !ok {
		used["*"] = true
		return nil
	}
	if !slices.Contains(ruleFields(), string(member)) {
		return invalid(ref[0].Loc().String(), "input has no member %q, only %s", string(member), strings.Join(ruleFields(), ", "))
	}
	used[string(member)] = true
	return nil
}

func checkData(ref ast.Ref) error {
	if ref.HasPrefix(ast.MustParseRef("data.remit.rules")) || ref.HasPrefix(ast.MustParseRef("data.remit.lib")) {
		return nil
	}
	return invalid(ref[0].Loc().String(), "%s: rules see input, data.remit.rules and data.remit.lib only", ref)
}

// eval runs the rules on d. Whatever goes wrong is a denial.
func (r *rules) eval(ctx context.Context, d *document) ruling {
	if err := ctx.Err(); err != nil {
		return fault(err)
	}
	cancel := topdown.NewCancel()
	timer := time.AfterFunc(cmp.Or(r.within, ruleTime), cancel.Cancel)
	defer timer.Stop()
	defer context.AfterFunc(ctx, cancel.Cancel)()
	results, err := r.query.Eval(ctx, rego.EvalParsedInput(d.object(r.fields)), rego.EvalTime(d.at), rego.EvalExternalCancel(cancel))
	if err != nil {
		return fault(err)
	}
	if len(results) != 1 || len(results[0].Expressions) != 1 {
		return fault(fmt.Errorf("the rules have no value"))
	}
	values, ok := results[0].Expressions[0].Value.(map[string]any)
	if !ok {
		return fault(fmt.Errorf("the rules are a %T", results[0].Expressions[0].Value))
	}
	given, err := convert(r, values)
	if err != nil {
		return fault(err)
	}
	return given
}
