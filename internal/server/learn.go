// SPDX-License-Identifier: Apache-2.0

package server

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"time"

	"remit"
	"remit/internal/api"
	"remit/internal/config"
	"remit/internal/learn"
	"remit/internal/policy"
)

// LearnOptions choose the history of one workflow that teaches, and the bound.
type LearnOptions struct {
	Workflow     string
	Agent, Run   string    // empty: all
	Since, Until time.Time // zero: open; Until is exclusive
	// Bound is the configuration whose workflow of that name the learned one never exceeds, by path; nil: the revision of the newest
	// decision of that workflow.
	Bound   map[string][]byte
	Ceiling map[string][]byte // a directory of ceilings that it must stay within as well; nil: none
	Hours   *time.Location    // not nil: only in the hours of this zone in which it was used
	Keep    []string          // permissions of the bound that stay as they are, used or not
}

// Learned is a workflow that was learned.
type Learned struct {
	Workflow string         `json:"workflow"`
	File     string         `json:"file"`  // the workflow as YAML
	Bound    remit.Digest   `json:"bound"` // the revision that it was held to
	Acts     int            `json:"acts"`
	Runs     int            `json:"runs"`
	First    time.Time      `json:"first,omitzero"`
	Last     time.Time      `json:"last,omitzero"`
	Used     map[string]int `json:"used"`   // acts by permission of the bound
	Unused   []string       `json:"unused"` // permissions of the bound that are left out
	Skipped  []LearnSkipped `json:"skipped"`
}

// LearnSkipped is what did not teach, by reason.
type LearnSkipped struct {
	Why   string `json:"why"`
	Count int    `json:"count"`
	First string `json:"first"` // a decision, or a line
}

// lesson is a history while it is learned from.
type lesson struct {
	LearnOptions
	judge   *Replay // by the bound
	bound   *remit.Workflow
	learner *learn.Learner
	marked  marked
	skipped map[string]*LearnSkipped
	last    uint64 // the last entry that was read: what comes meanwhile is not of the history
}

// marked are what findings are about.
type marked struct {
	entries map[uint64]bool
	runs    map[remit.RunID]bool
}

// Learn reads the ledger three times: for findings and the bound, to learn, and to see that what was learned allows all of it. c is where
// the history is.
func Learn(ctx context.Context, c *api.Client, o LearnOptions) (*Learned, error) {
	l := &lesson{LearnOptions: o, skipped: map[string]*LearnSkipped{}}
	h := history{c}
	var err error
	if l.marked, err = h.marked(ctx); err != nil {
		return nil, err
	}
	if o.Bound == nil {
		if l.Bound, err = h.newest(ctx, &l.LearnOptions); err != nil {
			return nil, err
		}
	}
	if l.judge, err = newReplay(l.Bound, c); err != nil {
		return nil, err
	}
	if err := l.open(l.judge.set); err != nil {
		return nil, err
	}
	if err := h.each(ctx, "", l.query(), func(e *api.Entry) error { return l.take(ctx, e) }); err != nil {
		return nil, err
	}
	out, w, err := l.finish(l.judge.set)
	if err != nil {
		return nil, err
	}
	return out, l.check(ctx, h, w)
}

func (l *lesson) open(set *config.Set) error {
	l.bound = workflowOf(set, l.Workflow)
	if l.bound == nil {
		return &remit.Error{Code: remit.CodeNotFound, Msg: fmt.Sprintf("the bound has no workflow %.80q", l.Workflow), Hint: "remit workflow list"}
	}
	l.learner = learn.New(*l.bound, learn.Options{Hours: l.Hours, Keep: l.Keep})
	return nil
}

func workflowOf(set *config.Set, name string) *remit.Workflow {
	for i := range set.Workflows {
		if set.Workflows[i].Name == name {
			return &set.Workflows[i]
		}
	}
	return nil
}

// marked reads what findings were raised about, closed ones too: that a person closed one does not make its acts good examples.
func (h history) marked(ctx context.Context) (marked, error) {
	m := marked{entries: map[uint64]bool{}, runs: map[remit.RunID]bool{}}
	return m, h.each(ctx, "", withKind(nil, remit.EventRaised), func(e *api.Entry) error {
		var event struct {
			Data remit.Finding `json:"data"`
		}
		if err := json.Unmarshal(e.Event, &event); err != nil {
			return fmt.Errorf("read the finding of entry %d: %w", e.Seq, err)
		}
		for _, seq := range event.Data.Events {
			m.entries[seq] = true
		}
		if event.Data.Run != "" {
			m.runs[event.Data.Run] = true
		}
		return nil
	})
}

// newest are the files of the revision that decided last about the workflow.
func (h history) newest(ctx context.Context, o *LearnOptions) (map[string][]byte, error) {
	var digest remit.Digest
	err := h.each(ctx, "", o.query(), func(e *api.Entry) error {
		d, err := entryDecision(e)
		if err == nil && d.Effect == remit.Allow && d.Permission.Workflow == o.Workflow {
			digest = d.Policy
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	if digest == "" {
		return nil, &remit.Error{Code: remit.CodeNotFound, Msg: fmt.Sprintf("no decision of the chosen history allowed anything in workflow %.80q", o.Workflow),
			Hint: "remit ledger list --kind decision shows what is there"}
	}
	return h.revision(ctx, digest)
}

func (o *LearnOptions) query() url.Values {
	q := withKind(nil, remit.EventDecision)
	for k, v := range map[string]string{"agent": o.Agent, "run": o.Run} {
		if v != "" {
			q.Set(k, v)
		}
	}
	return q
}

func entryDecision(e *api.Entry) (*remit.Decision, error) {
	var event struct {
		Data remit.Decision `json:"data"`
	}
	if err := json.Unmarshal(e.Event, &event); err != nil {
		return nil, fmt.Errorf("read the decision of entry %d: %w", e.Seq, err)
	}
	return &event.Data, nil
}

// chosen reports whether an entry's decision is one that teaches, and why one of the workflow is not.
func (l *lesson) chosen(e *api.Entry, d *remit.Decision) (why string, of bool) {
	switch {
	case d.Permission.Workflow != l.Workflow, d.At.Before(l.Since), !l.Until.IsZero() && !d.At.Before(l.Until):
		return "", false
	//remit:guard S31 TestLearnTakesNothingOddOrRefused
	case d.Effect != remit.Allow:
		return "was not allowed", true
	//remit:guard S31 TestLearnTakesNothingOddOrRefused
	case l.marked.entries[e.Seq] || l.marked.runs[d.Run]:
		return "a finding is about it, or about its run", true
	}
	return string(unseen(e)), true
}

func (l *lesson) take(ctx context.Context, e *api.Entry) error {
	l.last = e.Seq
	d, err := entryDecision(e)
	if err != nil {
		return err
	}
	why, of := l.chosen(e, d)
	if !of {
		return nil
	}
	if why != "" {
		l.skip(why, string(d.ID))
		return nil
	}
	a, why, err := l.act(ctx, e, d)
	if err != nil {
		return err
	}
	if why != "" {
		l.skip(why, string(d.ID))
		return nil
	}
	return l.learner.Add(a)
}

// act is the act that a decision allowed, if the bound allows it, too.
func (l *lesson) act(ctx context.Context, e *api.Entry, d *remit.Decision) (*learn.Act, string, error) {
	now, err := l.judge.ask(ctx, e, d)
	if why, ok := errors.AsType[policy.Unknown](err); ok {
		return nil, "the bound cannot judge it: " + string(why), nil
	}
	if err != nil {
		return nil, "", err
	}
	if now.Effect != remit.Allow || now.Permission.Workflow != l.Workflow {
		return nil, "the bound would not allow it", nil
	}
	a := &learn.Act{Run: string(d.Run), At: d.At, Permission: now.Permission.Name, Args: now.Scope, Params: d.Params, From: d.From, Tier: d.Sandbox}
	parent, err := l.judge.parent(ctx, d)
	if err != nil {
		return nil, "", err
	}
	if parent != nil {
		a.Call = parent.Args
	}
	return a, "", nil
}

func (l *lesson) skip(why, of string) {
	s := l.skipped[why]
	if s == nil {
		s = &LearnSkipped{Why: why, First: of}
		l.skipped[why] = s
	}
	s.Count++
}

// finish makes the workflow, and holds what was written to all that it must be: it loads, it says what was meant, and it exceeds neither bound
// nor ceiling.
func (l *lesson) finish(set *config.Set) (*Learned, *config.Set, error) {
	w, err := l.learner.Workflow()
	if err != nil {
		return nil, nil, &remit.Error{Code: remit.CodeInvalid, Msg: err.Error(), Hint: l.hint()}
	}
	out := l.learned(set.Digest)
	text, err := l.learner.Text(&w, l.about(out))
	if err != nil {
		return nil, nil, err
	}
	out.File = string(text)
	files, err := set.Replace(l.Workflow, text)
	if err != nil {
		return nil, nil, err
	}
	got, err := config.Parse(files, offlineDomain())
	if err != nil {
		return nil, nil, fmt.Errorf("the learned workflow does not load: %w", err)
	}
	read := workflowOf(got, l.Workflow)
	if again, err := l.learner.Text(read, l.about(out)); err != nil || !bytes.Equal(again, text) {
		return nil, nil, errors.Join(err, errors.New("the learned workflow does not read as it was meant"))
	}
	if wider := config.Wider(read, l.trimmed(read)); len(wider) > 0 {
		return nil, nil, fmt.Errorf("the learned workflow cannot be shown to stay within its bound: %s: %s", wider[0].Of, wider[0].Text)
	}
	return out, got, l.withinCeiling(got)
}

func (l *lesson) withinCeiling(got *config.Set) error {
	if l.Ceiling == nil {
		return nil
	}
	ceiling, err := config.ParseCeiling(l.Ceiling)
	if err != nil {
		return err
	}
	//remit:guard S31 TestLearnedNeverExceedsItsBound
	if err := ceiling.Within(got); err != nil {
		return &remit.Error{Code: remit.CodeInvalid, Msg: "the learned workflow exceeds the ceiling: " + err.Error(), Hint: "choose a narrower history, or a narrower bound"}
	}
	return nil
}

// trimmed is the bound with the stages that w has. A stage that nothing was done in may be left out where nothing had to happen in it.
func (l *lesson) trimmed(w *remit.Workflow) *remit.Workflow {
	out := *l.bound
	last := w.Stages[len(w.Stages)-1].Name
	past := false
	out.Stages = slices.DeleteFunc(slices.Clone(out.Stages), func(s remit.Stage) bool {
		stands := slices.ContainsFunc(w.Stages, func(o remit.Stage) bool { return o.Name == s.Name })
		drop := !stands && (past || len(s.When) == 0)
		past = past || s.Name == last
		return drop
	})
	return &out
}

func (l *lesson) hint() string {
	list := l.reasons()
	if len(list) == 0 {
		return "remit ledger list --kind decision shows the history"
	}
	return fmt.Sprintf("%d decisions did not teach: %s", list[0].Count, list[0].Why)
}

func (l *lesson) reasons() []LearnSkipped {
	out := []LearnSkipped{}
	for _, s := range l.skipped {
		out = append(out, *s)
	}
	slices.SortFunc(out, func(a, b LearnSkipped) int { return cmp.Or(b.Count-a.Count, cmp.Compare(a.Why, b.Why)) })
	return out
}

func (l *lesson) learned(bound remit.Digest) *Learned {
	out := &Learned{Workflow: l.Workflow, Bound: bound, Used: l.learner.Uses(), Unused: []string{}, Skipped: l.reasons()}
	out.Acts, out.Runs, out.First, out.Last = l.learner.Acts()
	for _, name := range slices.Sorted(maps.Keys(out.Used)) {
		if out.Used[name] == 0 && !slices.Contains(l.Keep, name) {
			out.Unused = append(out.Unused, name)
		}
	}
	return out
}

// about is what the head of the file says of the choice.
func (l *lesson) about(out *Learned) (lines []string) {
	lines = append(lines, "Never more than the bound: revision "+string(out.Bound)+".")
	for _, s := range out.Skipped {
		lines = append(lines, fmt.Sprintf("Not learned from: %d, %s.", s.Count, s.Why))
	}
	return lines
}

// check judges every act that was learned from by the learned workflow, with the engine that will judge it when it is in force.
func (l *lesson) check(ctx context.Context, h history, learned *config.Set) error {
	r, err := newReplay(learned.Files, h.c)
	if err != nil {
		return err
	}
	return h.each(ctx, "", l.query(), func(e *api.Entry) error {
		d, err := entryDecision(e)
		if err != nil {
			return err
		}
		if why, of := l.chosen(e, d); !of || why != "" || e.Seq > l.last {
			return nil
		}
		if a, why, err := l.act(ctx, e, d); err != nil || why != "" || a == nil {
			return err
		}
		now, err := r.ask(ctx, e, d)
		if unknown, ok := errors.AsType[policy.Unknown](err); ok {
			return fmt.Errorf("whether the learned workflow allows decision %s again cannot be seen: %s", d.ID, unknown)
		}
		if err == nil && now.Effect != remit.Allow {
			err = fmt.Errorf("the learned workflow would deny decision %s: %s", d.ID, strings.Join(now.Reasons, ", "))
		}
		return err
	})
}
