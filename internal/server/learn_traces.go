// SPDX-License-Identifier: Apache-2.0

package server

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"remit"
	"remit/internal/config"
	"remit/internal/learn"
	"remit/internal/policy"
	"remit/internal/run"
)

// Bounds of imported traces.
const (
	maxTraceLine  = 16 << 20
	maxTraceBytes = 512 << 20
	maxReturned   = 10_000 // values of the results of one run
)

// LearnTrace is one run of an agent as something else recorded it.
type LearnTrace struct {
	Run    string                 `json:"run"`
	Params map[string]remit.Value `json:"params"`
	Odd    bool                   `json:"odd"` // somebody found something wrong with it: it does not teach
	Calls  []LearnCall            `json:"calls"`
}

// LearnCall is one act of it, in order.
type LearnCall struct {
	At     time.Time       `json:"at"`
	Stage  string          `json:"stage"` // empty: the workflow's first
	Agent  remit.Name      `json:"agent"`
	Action string          `json:"action"`
	Target string          `json:"target"`
	Args   remit.Args      `json:"args"`
	Result json.RawMessage `json:"result"` // what it returned, for values that later calls take from it
	Tier   remit.Tier      `json:"tier"`   // in what it ran
	Denied bool            `json:"denied"` // it does not teach
}

// ReadTraces reads a line of JSON for each run.
func ReadTraces(r io.Reader) (out []LearnTrace, err error) {
	all := &io.LimitedReader{R: r, N: maxTraceBytes + 1}
	scan := bufio.NewScanner(all)
	scan.Buffer(nil, maxTraceLine)
	for n := 1; scan.Scan(); n++ {
		if all.N <= 0 {
			break
		}
		if len(bytes.TrimSpace(scan.Bytes())) == 0 {
			continue
		}
		dec := json.NewDecoder(bytes.NewReader(scan.Bytes()))
		dec.DisallowUnknownFields()
		var t LearnTrace
		if err := dec.Decode(&t); err != nil {
			return nil, &remit.Error{Code: remit.CodeInvalid, Msg: fmt.Sprintf("line %d: %v", n, err), Hint: "a line is a run: {\"run\": …, \"calls\": [{\"agent\": …, \"action\": …, \"target\": …, \"args\": …}]}"}
		}
		if t.Run == "" {
			return nil, &remit.Error{Code: remit.CodeInvalid, Msg: fmt.Sprintf("line %d: the run has no name", n)}
		}
		out = append(out, t)
	}
	if all.N <= 0 {
		return nil, &remit.Error{Code: remit.CodeInvalid, Msg: "the traces have more than 512 MiB", Hint: "learn from fewer runs"}
	}
	return out, scan.Err()
}

// LearnTraces learns from traces. The bound is o.Bound's workflow of that name; where it has none, what was done is the bound, and starter
// may start the runs.
func LearnTraces(traces []LearnTrace, o LearnOptions, starter remit.Name) (*Learned, error) {
	set, err := config.Parse(o.Bound, offlineDomain())
	if err != nil {
		return nil, err
	}
	l := &lesson{LearnOptions: o, skipped: map[string]*LearnSkipped{}}
	switch {
	case workflowOf(set, o.Workflow) != nil:
		err = l.open(set)
	case starter == "":
		return nil, &remit.Error{Code: remit.CodeInvalid, Msg: fmt.Sprintf("the bound has no workflow %.80q, so nothing says who may start its runs", o.Workflow),
			Hint: "add --start-by operator/NAME, or name a workflow of the bound"}
	default:
		l.bound = done(traces, o.Workflow, starter)
		l.learner = learn.New(*l.bound, learn.Options{Hours: o.Hours, Keep: o.Keep})
	}
	if err != nil {
		return nil, err
	}
	bound, err := l.compileBound(set)
	if err != nil {
		return nil, err
	}
	if err := bound.each(l, traces, func(a *learn.Act, _ string) error { return l.learner.Add(a) }, l.skip); err != nil {
		return nil, err
	}
	out, got, err := l.finish(set)
	if err != nil {
		return nil, err
	}
	learned, err := newTraceJudge(got, l.Workflow)
	if err != nil {
		return nil, err
	}
	return out, l.checkTraces(bound, learned, traces)
}

// compileBound is the bound ready to judge by; the set may not have it.
func (l *lesson) compileBound(set *config.Set) (*traceJudge, error) {
	with := *set
	if workflowOf(set, l.Workflow) == nil {
		with.Workflows = append(slices.Clone(set.Workflows), *l.bound)
	}
	return newTraceJudge(&with, l.Workflow)
}

// checkTraces judges all that was learned from by the learned workflow.
func (l *lesson) checkTraces(bound, learned *traceJudge, traces []LearnTrace) error {
	accepted := map[string]string{}
	err := learned.each(l, traces, func(a *learn.Act, at string) error { accepted[at] = a.Permission; return nil }, func(string, string) {})
	if err != nil {
		return err
	}
	return bound.each(l, traces, func(a *learn.Act, at string) error {
		if accepted[at] != a.Permission {
			return fmt.Errorf("the learned workflow would deny %s", at)
		}
		return nil
	}, func(string, string) {})
}

// done is a workflow of one stage that permits every act of the traces with any arguments.
func done(traces []LearnTrace, name string, starter remit.Name) *remit.Workflow {
	w := &remit.Workflow{Name: name, Digest: "learned", Start: remit.Start{By: []remit.Name{starter}, Expires: time.Hour, Runs: 100_000, Values: 100}}
	params := map[string]remit.Parameter{}
	perms := map[[3]string]map[string]remit.Predicate{}
	least := map[[3]string]remit.Tier{}
	for i := range traces {
		for p, v := range traces[i].Params {
			params[p] = joined(params[p], p, v)
		}
		for j := range traces[i].Calls {
			c := &traces[i].Calls[j]
			k := [3]string{string(c.Agent), c.Action, c.Target}
			if perms[k] == nil {
				perms[k], least[k] = map[string]remit.Predicate{}, c.Tier
			}
			if !c.Tier.AtLeast(least[k]) {
				least[k] = c.Tier
			}
			for arg, v := range c.Args {
				if !v.IsNull() {
					perms[k][arg] = remit.Predicate{Kind: remit.PredicateAny}
				}
			}
		}
	}
	for _, p := range slices.Sorted(maps.Keys(params)) {
		w.Parameters = append(w.Parameters, params[p])
	}
	s := remit.Stage{Name: "work"}
	taken := map[string]bool{}
	for _, k := range slices.SortedFunc(maps.Keys(perms), func(a, b [3]string) int { return slices.Compare(a[:], b[:]) }) {
		if least[k] == "" && strings.HasPrefix(k[1], "mcp.") {
			least[k] = remit.TierKernel // as a file that says nothing
		}
		s.May = append(s.May, remit.Permission{Name: permissionName(k, taken), Sandbox: string(least[k]), Who: remit.Name(k[0]), Action: k[1], Target: k[2], Where: perms[k], TTL: 5 * time.Minute})
	}
	w.Stages = []remit.Stage{s}
	return w
}

// joined is a parameter that may have one more value.
func joined(p remit.Parameter, name string, v remit.Value) remit.Parameter {
	typ := "string"
	switch {
	case v.Kind() == remit.Bool:
		typ = "boolean"
	case v.Kind() == remit.Number && strings.Contains(v.Text(), "."), v.Kind() == remit.Number && p.Type == "number":
		typ = "number"
	case v.Kind() == remit.Number:
		typ = "integer"
	}
	if p.Type == "integer" && typ == "number" {
		p.Type = typ
	}
	return remit.Parameter{Name: name, Type: cmp.Or(p.Type, typ)}
}

func permissionName(k [3]string, taken map[string]bool) string {
	words := strings.FieldsFunc(strings.ToLower(k[2]), func(r rune) bool { return (r < 'a' || r > 'z') && (r < '0' || r > '9') })
	base := remit.Clip(strings.Join(words, "-"), 48)
	base = strings.Trim(strings.ReplaceAll(base, "…", ""), "-")
	if base == "" {
		base = "act"
	}
	name := base
	for n := 2; taken[name]; n++ {
		name = fmt.Sprintf("%s-%d", base, n)
	}
	taken[name] = true
	return name
}

// traceJudge judges traces by one workflow. It is for one goroutine.
type traceJudge struct {
	plan     *policy.Plan
	workflow *remit.Workflow
	returned map[returnedValue]bool
	places   map[string][]remit.Source // by value: what could be bound to
}

type returnedValue struct{ permission, path, value string }

func newTraceJudge(set *config.Set, workflow string) (*traceJudge, error) {
	j := &traceJudge{workflow: workflowOf(set, workflow)}
	var err error
	j.plan, err = compile(set, 0, nil, func(_ remit.RunID, permission, path string, v remit.Value) bool {
		return j.returned[returnedValue{permission, path, v.String()}]
	})
	return j, err
}

// each calls f for every call of the history that the workflow allows, with a name for it, and skip for the others.
func (j *traceJudge) each(l *lesson, traces []LearnTrace, f func(a *learn.Act, at string) error, skip func(why, of string)) error {
	for i := range traces {
		t := &traces[i]
		j.forget()
		for n := range t.Calls {
			c := &t.Calls[n]
			at := fmt.Sprintf("run %.80s, call %d", t.Run, n+1)
			why := l.chosenCall(t, c)
			if why == "" {
				a := j.act(t, c)
				if a == nil {
					skip("the bound would not allow it", at)
					continue
				}
				if err := f(a, at); err != nil {
					return err
				}
				j.keep(a.Permission, c)
			} else if why != notChosen {
				skip(why, at)
			}
		}
	}
	return nil
}

// forget begins another run.
func (j *traceJudge) forget() {
	j.returned, j.places = map[returnedValue]bool{}, map[string][]remit.Source{}
}

const notChosen = "not chosen"

func (l *lesson) chosenCall(t *LearnTrace, c *LearnCall) string {
	switch {
	case l.Agent != "" && string(c.Agent) != l.Agent, l.LearnOptions.Run != "" && t.Run != l.LearnOptions.Run, c.At.Before(l.Since), !l.Until.IsZero() && !c.At.Before(l.Until):
		return notChosen
	//remit:guard S31 TestLearnTraces
	case c.Denied:
		return "was not allowed"
	//remit:guard S31 TestLearnTraces
	case t.Odd:
		return "its run is marked as odd"
	}
	return ""
}

// act is the call as the workflow allows it; nil where it does not.
func (j *traceJudge) act(t *LearnTrace, c *LearnCall) *learn.Act {
	r := remit.Run{ID: remit.RunID(t.Run), Workflow: j.workflow.Name, Digest: j.workflow.Digest, Params: t.Params, Stage: cmp.Or(c.Stage, j.workflow.Stages[0].Name)}
	req := remit.Request{At: c.At, Agent: c.Agent, Run: r.ID, Action: c.Action, Target: c.Target, Args: c.Args, Sandbox: c.Tier, Via: "traces"}
	m := j.plan.Match(&req, &r)
	if m.Permission == nil {
		return nil
	}
	a := &learn.Act{Run: t.Run, At: c.At, Permission: m.Ref.Name, Args: m.Args, Params: t.Params, From: m.From, Tier: c.Tier}
	for _, name := range slices.Sorted(maps.Keys(c.Args)) {
		a.From = j.foundIn(a.Permission, c.Args[name], "/"+pointerStep(name), a.From)
	}
	return a
}

// foundIn adds where the run's earlier calls under other permissions returned the value, or elements of it.
func (j *traceJudge) foundIn(but string, v remit.Value, at string, out []remit.FromFact) []remit.FromFact {
	switch v.Kind() {
	case remit.Null:
	case remit.List:
		for i, e := range v.Elements() {
			out = j.foundIn(but, e, fmt.Sprintf("%s/%d", at, i), out)
		}
	case remit.Object:
		for _, name := range slices.Sorted(maps.Keys(v.Fields())) {
			out = j.foundIn(but, v.Field(name), at+"/"+pointerStep(name), out)
		}
	default:
		for _, by := range j.places[v.String()] {
			if by.From != but {
				out = append(out, remit.FromFact{Permission: by.From, Path: by.Path, Arg: at})
			}
		}
	}
	return out
}

// keep notes what an allowed call returned.
func (j *traceJudge) keep(permission string, c *LearnCall) {
	if len(c.Result) == 0 {
		return
	}
	var v remit.Value
	if json.Unmarshal(c.Result, &v) == nil {
		j.note(permission, v, "")
	}
	for i := range j.workflow.Stages {
		for _, path := range j.plan.Sources(remit.PermissionRef{Workflow: j.workflow.Name, Stage: j.workflow.Stages[i].Name, Name: permission}) {
			values, err := run.Select(c.Result, path)
			if err != nil {
				continue
			}
			for _, v := range values {
				if len(j.returned) < maxReturned {
					j.returned[returnedValue{permission, path, v.String()}] = true
				}
			}
		}
	}
}

// note keeps every single value of a result with the path at which any such result has it. Free text is no source (S25).
func (j *traceJudge) note(permission string, v remit.Value, path string) {
	switch v.Kind() {
	case remit.Null:
	case remit.List:
		for _, e := range v.Elements() {
			j.note(permission, e, path+"/*")
		}
	case remit.Object:
		for _, name := range slices.Sorted(maps.Keys(v.Fields())) {
			j.note(permission, v.Field(name), path+"/"+pointerStep(name))
		}
	default:
		by := remit.Source{From: permission, Path: path}
		k := returnedValue{permission, path, v.String()}
		if path != "" && !j.returned[k] && len(j.returned) < maxReturned {
			j.returned[k] = true
			j.places[v.String()] = append(j.places[v.String()], by)
		}
	}
}

func pointerStep(name string) string {
	return strings.ReplaceAll(strings.ReplaceAll(name, "~", "~0"), "/", "~1")
}

// JudgeTraces says, for each call of each trace, whether a workflow of the configuration would have allowed it by its conditions, after what
// it would have denied before never happened. Evidence is not asked for.
func JudgeTraces(files map[string][]byte, workflow string, traces []LearnTrace) ([][]bool, error) {
	set, err := config.Parse(files, offlineDomain())
	if err != nil {
		return nil, err
	}
	if workflowOf(set, workflow) == nil {
		return nil, &remit.Error{Code: remit.CodeNotFound, Msg: fmt.Sprintf("there is no workflow %.80q", workflow)}
	}
	j, err := newTraceJudge(set, workflow)
	if err != nil {
		return nil, err
	}
	out := make([][]bool, len(traces))
	for i := range traces {
		t := &traces[i]
		j.forget()
		for n := range t.Calls {
			a := j.act(t, &t.Calls[n])
			if out[i] = append(out[i], a != nil); a != nil {
				j.keep(a.Permission, &t.Calls[n])
			}
		}
	}
	return out, nil
}
