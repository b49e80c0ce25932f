// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"remit"
	"remit/internal/server"
)

// learnOf judges remit workflow learn: for each task it learns from honest runs of one half of the models that did the task, and judges the
// runs of the other half by what was learned, with the engine that judges requests.
func learnOf(dir string, o options, out io.Writer) error {
	f, err := openFolder(dir)
	if err != nil {
		return err
	}
	e := &learnEval{f, o, f.halves(o.dev, o.deal)} // the models of all tasks, so that a part has the same halves
	if err := f.only(&o); err != nil {
		return err
	}
	for _, v := range []learnVariant{{"strict", false}, {"reading stays free", true}} {
		if err := e.variant(v, out); err != nil {
			return err
		}
	}
	return nil
}

type learnEval struct {
	*folder
	options
	teaches map[string]int // by model: 1 teaches, 2 is judged
}

type learnVariant struct {
	name  string
	reads bool // the bound's permissions for tools that only read, and take no link, are kept
}

// halves splits the models by turns, in the order of their names, or, with a deal, in an order of its own. With dev the teaching half is split
// once more, and the other plays no part.
func (f *folder) halves(dev bool, deal uint64) map[string]int {
	models := map[string]bool{}
	for _, t := range f.all() {
		models[t.Model] = true
	}
	out := map[string]int{}
	order := slices.Sorted(maps.Keys(models))
	if deal > 0 {
		rand.New(rand.NewPCG(deal, 0)).Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] }) //nolint:gosec // no secret
	}
	for i, m := range order {
		switch {
		case !dev:
			out[m] = 1 + i%2
		case i%4 == 0:
			out[m] = 1
		case i%4 == 2:
			out[m] = 2
		}
	}
	return out
}

func (e *learnEval) variant(v learnVariant, out io.Writer) error {
	began := time.Now()
	byTask := map[taskKey][]*trace{}
	for _, t := range e.folder.all() {
		k := taskKey{t.Suite, t.Task, t.Prompt}
		byTask[k] = append(byTask[k], t)
	}
	r := &report{options: e.options}
	files := map[string]string{}
	none := 0
	for _, k := range slices.SortedFunc(maps.Keys(byTask), func(a, b taskKey) int {
		return slices.Compare([]string{a.suite, a.task, a.prompt}, []string{b.suite, b.task, b.prompt})
	}) {
		judged, text, err := e.task(v, byTask[k])
		if err != nil {
			return fmt.Errorf("%s %s: %w", k.suite, k.task, err)
		}
		if text == "" {
			none += len(judged)
			continue
		}
		n := label(fmt.Sprintf("%s-%s-%d", k.suite, k.task, len(files)))
		files[n+".yaml"] = text
		r.runs = append(r.runs, judged...)
		for _, t := range byTask[k] {
			if e.teaches[t.Model] == 2 {
				r.all = append(r.all, t)
			}
		}
	}
	r.took, r.workers = time.Since(began), 1
	fmt.Fprintf(out, "\n%s: %d workflows; %d runs that count are left out, because no honest run of a teaching model did their task\n\n", v.name, len(files), none)
	if err := r.print(out); err != nil {
		return err
	}
	if e.out != "" {
		if err := writeFiles(filepath.Join(e.out, label(v.name)), files); err != nil {
			return err
		}
	}
	if e.misses != "" {
		return r.writeMisses(e.misses + "." + label(v.name))
	}
	return nil
}

// task learns one task's workflow and judges the runs that count by it; "" where nothing teaches.
func (e *learnEval) task(v learnVariant, traces []*trace) (judged []*played, text string, err error) {
	suite := traces[0].Suite
	var lessons, exams []server.LearnTrace
	for _, t := range traces {
		switch {
		case e.teaches[t.Model] == 1 && !t.attacked() && t.Utility:
			l, err := e.lesson(t)
			if err != nil {
				return nil, "", err
			}
			lessons = append(lessons, l)
		case e.teaches[t.Model] == 2 && (e.options.all || t.attacked() && t.Succeeded || !t.attacked() && t.Utility):
			l, err := e.lesson(t)
			if err != nil {
				return nil, "", err
			}
			exams, judged = append(exams, l), append(judged, &played{trace: t})
		}
	}
	calls := 0
	for i := range lessons {
		calls += len(lessons[i].Calls)
	}
	if calls == 0 {
		return judged, "", nil
	}
	files, keep := e.bound(suite, v)
	l, err := server.LearnTraces(lessons, server.LearnOptions{Workflow: "task", Bound: files, Keep: keep}, "operator/"+operator)
	if err != nil {
		return nil, "", err
	}
	files["bound.yaml"] = []byte(l.File)
	allowed, err := server.JudgeTraces(files, "task", exams)
	if err != nil {
		return nil, "", err
	}
	for i := range judged {
		for _, ok := range allowed[i] {
			why := ""
			if !ok {
				why = "denied"
			}
			judged[i].denied = append(judged[i].denied, why)
		}
	}
	return judged, l.File, nil
}

// bound is a configuration that permits all tools of a suite with any arguments that they know, and what a variant keeps of it.
func (e *learnEval) bound(suite string, v learnVariant) (files map[string][]byte, keep []string) {
	var b strings.Builder
	fmt.Fprintf(&b, "kind: Workflow\nname: task\nstart: {by: [operator/%s], per_hour: {runs: 100000}}\nstages:\n- name: work\n  may:\n", operator)
	for _, t := range e.tools[suite] {
		s := understand(t)
		var where []string
		for i := range s.args {
			where = append(where, s.args[i].name+": {any: true}")
		}
		fmt.Fprintf(&b, "  - {name: %s, who: agent/%s, action: mcp.call, target: %s/%s, sandbox: remote, where: {%s}}\n", label(t.Name), agentName, label(suite), t.Name, strings.Join(where, ", "))
		if v.reads && !s.acts && !s.takes(ofLink) {
			keep = append(keep, label(t.Name))
		}
	}
	return map[string][]byte{
		"bound.yaml": []byte(b.String()),
		"world.yaml": fmt.Appendf(nil, "kind: Agent\nname: %s\n---\nkind: Tool\nname: %s\nserver: {url: \"https://tools.company.com/mcp\"}\n", agentName, label(suite)),
	}, keep
}

// lesson is a recorded run as remit workflow learn takes it.
func (e *learnEval) lesson(t *trace) (server.LearnTrace, error) {
	out := server.LearnTrace{Run: t.Run}
	for i := range t.Calls {
		c := &t.Calls[i]
		l := server.LearnCall{Agent: "agent/" + agentName, Action: "mcp.call", Target: label(t.Suite) + "/" + c.Tool, Tier: remit.TierRemote}
		if len(c.Args) > 0 {
			if err := json.Unmarshal(c.Args, &l.Args); err != nil {
				return out, fmt.Errorf("run %s, call %d: %w", t.Run, i, err)
			}
		}
		if c.Output != nil && c.Error == "" {
			b, err := json.Marshal(structured(undelimited(e.outputs[t.Suite][*c.Output])))
			if err != nil {
				return out, err
			}
			l.Result = b
		}
		out.Calls = append(out.Calls, l)
	}
	return out, nil
}
