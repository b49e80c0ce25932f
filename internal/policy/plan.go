// SPDX-License-Identifier: Apache-2.0

// Package policy decides: Compile turns one configuration revision (workflows and the organisation's rules) into an immutable
// Plan, which finds the permission for a request (Match), weighs verified evidence and lets the rules narrow the answer
// (Judge), explains a recorded decision (Explain), tests itself (Test) and prints itself as Rego (Export), so that stock
// OPA can judge any recorded decision again.
//
// It never verifies a fact, never reads a clock, a file or the network, and never widens: whatever goes wrong inside is a
// denial. It owns no goroutine; a rule that runs too long is cancelled by a timer that ends with the evaluation.
package policy

import (
	"fmt"
	"maps"
	"slices"

	"remit"
)

// Config is one revision. Names and digests come from the configuration that was checked before.
type Config struct {
	Workflows []remit.Workflow
	Rules     []Rule
	Digest    remit.Digest // of the revision; stands in every decision
	Epoch     uint64       // of the revision; a commit's precondition
	Agents    []remit.Name // who may stand in a permission; nil: not checked here
	Targets   []string     // what may stand in a permission; nil: not checked here
	// Production are the targets that take requests only of a launched workload or better (S3). They belong to the revision, so
	// that a target which becomes one between check and commit moves the epoch.
	Production []string
	// Parent returns the recorded decision of a call that is still open. Whether the decision fits is checked here. nil: no
	// request is ever inside a call, and what asks for that is denied.
	Parent func(remit.DecisionID) (remit.Decision, bool)
	// From reports whether a call of the run under the permission returned the value at the path (S25). nil: nothing is known, and
	// what asks for that is denied.
	From func(run remit.RunID, permission, path string, v remit.Value) bool
}

// Plan is one compiled revision. It is immutable and safe for concurrent use; the Config's slices must not change after.
type Plan struct {
	cfg       Config
	workflows map[string]*workflow
	rules     *rules // nil: the organisation has none
	sensitive map[string]bool
	// production are the targets that ask for LevelLaunched.
	production map[string]bool
}

type workflow struct {
	digest  remit.Digest
	stages  map[string]*stage
	sources map[string][]string // see Sources
}

type stage struct {
	all   []*permission
	index map[key][]*permission // in file order
}

type key struct {
	who            remit.Name
	action, target string
}

// permission is a remit.Permission with its arguments in a fixed order, so that reasons come in one order too.
type permission struct {
	*remit.Permission
	ref   remit.PermissionRef
	id    string // names its rules in the printed Rego
	where []argument
	// facts and approvals are the permission's evidence.
	facts, approvals []requirement
}

type argument struct {
	name string
	is   *remit.Predicate
}

// Compile checks everything and builds the plan. An error is of CodeInvalid and names file and line where they are known.
func Compile(cfg Config) (*Plan, error) {
	p := &Plan{cfg: cfg, workflows: make(map[string]*workflow, len(cfg.Workflows))}
	if cfg.Digest == "" {
		return nil, invalid("", "a policy revision needs a digest")
	}
	p.production = make(map[string]bool, len(cfg.Production))
	for _, target := range cfg.Production {
		p.production[target] = true
	}
	next := 0
	for i := range cfg.Workflows {
		w := &cfg.Workflows[i]
		if p.workflows[w.Name] != nil {
			return nil, invalid("", "workflow %q stands twice", w.Name)
		}
		if err := checkWorkflow(w, &cfg); err != nil {
			return nil, err
		}
		p.workflows[w.Name] = compileWorkflow(w, &next)
		p.hide(w)
	}
	var err error
	if p.rules, err = compileRules(cfg.Rules); err != nil {
		return nil, err
	}
	return p, nil
}

func compileWorkflow(w *remit.Workflow, next *int) *workflow {
	out := &workflow{digest: w.Digest, stages: make(map[string]*stage, len(w.Stages)), sources: sourcesOf(w)}
	for i := range w.Stages {
		s := &stage{index: map[key][]*permission{}}
		for j := range w.Stages[i].May {
			may := &w.Stages[i].May[j]
			c := &permission{Permission: may, id: fmt.Sprintf("p%d", *next),
				ref: remit.PermissionRef{Workflow: w.Name, Stage: w.Stages[i].Name, Name: may.Name}}
			*next++
			c.facts, c.approvals = compileRequirements(may.Evidence)
			for _, name := range slices.Sorted(maps.Keys(may.Where)) {
				is := may.Where[name]
				c.where = append(c.where, argument{name, &is})
			}
			k := key{may.Who, may.Action, may.Target}
			s.index[k] = append(s.index[k], c)
			s.all = append(s.all, c)
		}
		out.stages[w.Stages[i].Name] = s
	}
	return out
}

// hide notes which names of w are sensitive.
func (p *Plan) hide(w *remit.Workflow) {
	if p.sensitive == nil {
		p.sensitive = map[string]bool{}
	}
	params := map[string]bool{}
	for i := range w.Parameters {
		if w.Parameters[i].Sensitive {
			params[w.Parameters[i].Name], p.sensitive[w.Parameters[i].Name] = true, true
		}
	}
	for i := range w.Stages {
		for j := range w.Stages[i].May {
			may := &w.Stages[i].May[j]
			for _, name := range may.Sensitive {
				p.sensitive[name] = true
			}
			for name, is := range may.Where {
				if bound(&is, params) {
					p.sensitive[name] = true
				}
			}
		}
	}
}

// bound reports whether a condition compares with one of the parameters.
func bound(is *remit.Predicate, params map[string]bool) bool {
	for _, t := range is.Terms {
		if params[t.Param] {
			return true
		}
	}
	for _, f := range is.Fields {
		if bound(&f, params) {
			return true
		}
	}
	return false
}

// Sensitive returns the names of parameters and arguments that any workflow marks sensitive, for all requests alike: also one
// that fits no workflow must not carry such a value into the record. It is not to be changed.
func (p *Plan) Sensitive() map[string]bool { return p.sensitive }

// Digest returns the revision's digest.
func (p *Plan) Digest() remit.Digest { return p.cfg.Digest }

// Match finds the first permission, in file order, whose conditions hold, and resolves what evidence it needs. When none
// holds, the reasons are those of the permission that came nearest. m.Args are the arguments that were judged, also in a
// denial. A fault is a denial.
func (p *Plan) Match(req *remit.Request, run *remit.Run) (m remit.Match) {
	m = remit.Match{Ref: remit.PermissionRef{Workflow: run.Workflow, Stage: run.Stage}, Args: req.Args,
		Policy: p.cfg.Digest, Epoch: p.cfg.Epoch}
	defer func() {
		if r := recover(); r != nil {
			m.Permission, m.Needs = nil, nil
			m.Reasons = []remit.Reason{{Code: remit.ReasonFault, Of: "policy", Got: fmt.Sprint(r)}}
		}
	}()
	at, reason := p.stage(run)
	if reason != nil {
		m.Reasons = []remit.Reason{*reason}
		return m
	}
	candidates := at.index[key{req.Agent, req.Action, req.Target}]
	from := p.facts(candidates, req, run)
	m.From = fromFacts(from)
	for _, c := range candidates {
		//remit:guard S9 TestFirstInFileOrderWins
		if req.Permission != "" && req.Permission != c.Name {
			continue
		}
		s := p.scope(c, req, run, from)
		args := req.Args
		if req.Fill && req.Permission != "" {
			args = c.fill(args, &s)
			m.Args = args
		}
		if c.holds(req, args, &s) {
			c.take(&m, args, &s)
			return m
		}
	}
	m.Reasons = p.refuse(candidates, req, run, m.Args, from)
	return m
}

// take makes c the answer. A need that cannot be resolved denies: a later permission must not serve a request that this
// one was written for.
func (c *permission) take(m *remit.Match, args remit.Args, s *scope) {
	m.Ref.Name = c.Name
	needs, reasons := c.needs(args, s)
	if len(reasons) > 0 {
		m.Reasons = reasons
		return
	}
	m.Permission, m.Needs = c.Permission, needs
}

// stage finds where the run stands, if the workflow is still the one that the run started with.
func (p *Plan) stage(run *remit.Run) (*stage, *remit.Reason) {
	changed := func(of, want, got string) *remit.Reason {
		return &remit.Reason{Code: remit.ReasonWorkflowChanged, Of: of, Want: want, Got: clip(got)}
	}
	w := p.workflows[run.Workflow]
	if w == nil {
		return nil, changed("workflow", "a workflow of the active configuration", run.Workflow)
	}
	//remit:guard S12 TestMatch
	if w.digest != run.Digest {
		return nil, changed("workflow", string(w.digest), string(run.Digest))
	}
	s := w.stages[run.Stage]
	if s == nil {
		return nil, changed("stage", "a stage of workflow "+run.Workflow, run.Stage)
	}
	return s, nil
}

// scope is what references in c may resolve to. The parent decision is looked up only where c asks for one.
func (p *Plan) scope(c *permission, req *remit.Request, run *remit.Run, from []fact) scope {
	s := scope{params: run.Params, from: from}
	if c.Under == "" || req.Under == "" || p.cfg.Parent == nil {
		return s
	}
	parent, ok := p.cfg.Parent(req.Under)
	if ok && encloses(&parent, c, req.Under, run.ID) {
		s.inside, s.call = true, parent.Args
	}
	return s
}

// encloses reports whether a decision is an Allow of the permission that c must be under, in this run and stage.
func encloses(d *remit.Decision, c *permission, id remit.DecisionID, run remit.RunID) bool {
	want := remit.PermissionRef{Workflow: c.ref.Workflow, Stage: c.ref.Stage, Name: c.Under}
	return d.ID == id && d.Effect == remit.Allow && d.Run == run && run != "" && d.Permission == want
}

func (c *permission) holds(req *remit.Request, args remit.Args, s *scope) bool {
	//remit:guard S17 TestMatch
	if c.Under != "" && !s.inside || c.Hours != nil && !open(c.Hours, req.At) {
		return false
	}
	present := 0
	for i := range c.where {
		v, ok := args[c.where[i].name]
		if ok {
			present++
		}
		//remit:guard S17 TestMatch
		if !s.holds(c.where[i].is, v) {
			return false
		}
	}
	return present == len(args) || len(c.extra(args)) == 0
}

// extra lists the arguments that the permission does not name.
func (c *permission) extra(args remit.Args) []string {
	var names []string
	for name, v := range args {
		if _, named := c.Where[name]; !named && !v.IsNull() {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// refuse says what kept the nearest candidate, the one with the fewest reasons, from matching.
func (p *Plan) refuse(candidates []*permission, req *remit.Request, run *remit.Run, args remit.Args, from []fact) []remit.Reason {
	var best []remit.Reason
	for _, c := range candidates {
		if req.Permission != "" && req.Permission != c.Name {
			continue
		}
		s := p.scope(c, req, run, from)
		if r := c.differences(req, args, &s); best == nil || len(r) < len(best) {
			best = r
		}
	}
	if best == nil {
		return []remit.Reason{{Code: remit.ReasonNoPermission, Got: clip(string(req.Agent) + " " + req.Action + " " + req.Target)}}
	}
	return best
}

// differences lists every condition of c that does not hold.
func (c *permission) differences(req *remit.Request, args remit.Args, s *scope) []remit.Reason {
	var out []remit.Reason
	for i := range c.where {
		a := &c.where[i]
		if v := args[a.name]; !s.holds(a.is, v) {
			out = append(out, remit.Reason{Code: remit.ReasonArgument, Of: "where." + a.name, Want: s.describe(a.is), Got: clip(v.String())})
		}
	}
	for _, name := range c.extra(args) {
		out = append(out, remit.Reason{Code: remit.ReasonArgument, Of: "where." + name, Want: "absent", Got: clip(args[name].String())})
	}
	if c.Hours != nil && !open(c.Hours, req.At) {
		out = append(out, remit.Reason{Code: remit.ReasonHours, Of: "hours", Want: describeHours(c.Hours),
			Got: req.At.In(c.Hours.Zone).Format("Mon 15:04")})
	}
	if c.Under != "" && !s.inside {
		out = append(out, remit.Reason{Code: remit.ReasonUnder, Of: "under", Want: "an open call allowed by " + c.Under, Got: clip(string(req.Under))})
	}
	return out
}
