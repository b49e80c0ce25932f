// SPDX-License-Identifier: Apache-2.0

// Package learn finds the smallest workflow that would have allowed a chosen history: a Learner takes a bound, which is a workflow that
// allowed each act of it, and the acts; Workflow narrows the bound to what they used, and Text writes it as a file, with the evidence as
// comments.
//
// Each permission keeps its name, agent, action, target, evidence and limits; only conditions on arguments, hours and tier get narrower, and
// what nobody used is left out. A condition is what the acts had in common: a run parameter, constants, values that earlier
// calls returned. Only where at least minRuns runs show that new values keep coming does it become wider than what was seen, and then
// to a range between numbers that were seen, to dates, or to prose; who and where never become more than a list, and what stands in a record
// that an earlier call returned and the act changes.
//
// It is pure: it decides nothing, reads nothing, and the same acts in the same order give the same text. Its memory is bounded. A
// Learner is for one goroutine.
package learn

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"remit"
)

// Bounds of what a Learner keeps.
const (
	maxValues = 1000 // different ones of one argument
	maxBytes  = 4096 // of one value
	maxRuns   = 1_000_000
	maxFields = 200 // of one object
)

// Act is one thing that was asked and allowed.
type Act struct {
	Run        string
	At         time.Time
	Permission string // of the bound, by which it was allowed
	Args       remit.Args
	Params     map[string]remit.Value // of the run
	Call       remit.Args             // of the call that it was inside of
	From       []remit.FromFact       // which of its values earlier calls of the run had returned
	Tier       remit.Tier             // in what it ran; empty: not known
}

// Options say what else is learned.
type Options struct {
	Hours *time.Location // not nil: each permission only in the hours of this zone in which it was used
	Keep  []string       // permissions that stay as the bound has them, used or not
}

// Learner collects acts.
type Learner struct {
	bound   remit.Workflow
	options Options
	perms   map[string]*used
	runs    map[string]int32 // numbers
	began   []time.Time      // the first act of each run
	acts    int
	first   time.Time
	last    time.Time
}

// used is what was seen of one permission.
type used struct {
	*remit.Permission
	acts  int
	runs  map[int32]bool
	args  map[string]*seen
	tier  remit.Tier // the least
	loose bool       // a tier was not known
	days  [7]bool
	from  int // minutes of the day; to is exclusive
	to    int
}

// New returns a Learner of a workflow within bound, which must not change after.
func New(bound remit.Workflow, o Options) *Learner {
	l := &Learner{bound: bound, options: o, perms: map[string]*used{}, runs: map[string]int32{}}
	for i := range bound.Stages {
		for j := range bound.Stages[i].May {
			may := &bound.Stages[i].May[j]
			l.perms[may.Name] = &used{Permission: may, runs: map[int32]bool{}, args: map[string]*seen{}}
		}
	}
	return l
}

// Add takes one act.
func (l *Learner) Add(a *Act) error {
	u := l.perms[a.Permission]
	if u == nil {
		return fmt.Errorf("the bound has no permission %.80q", a.Permission)
	}
	run, known := l.runs[a.Run]
	if !known {
		if len(l.runs) == maxRuns {
			return fmt.Errorf("more than %d runs: choose fewer", maxRuns)
		}
		run = int32(len(l.runs)) //nolint:gosec // bounded right above
		l.runs[a.Run] = run
		l.began = append(l.began, a.At)
	}
	if l.acts == 0 || a.At.Before(l.first) {
		l.first = a.At
	}
	if a.At.After(l.last) {
		l.last = a.At
	}
	l.acts++
	return u.add(a, run, l.options.Hours)
}

func (u *used) add(a *Act, run int32, zone *time.Location) error {
	o := origin{act: a, run: run}
	for _, name := range slices.Sorted(maps.Keys(a.Args)) {
		v := a.Args[name]
		if v.IsNull() {
			continue
		}
		s := u.args[name]
		if s == nil {
			s = newSeen(u.Where[name])
			u.args[name] = s
		}
		if err := s.add(v, o.in(name)); err != nil {
			return fmt.Errorf("permission %s, argument %.80q: %w", u.Name, name, err)
		}
	}
	if a.Tier == "" {
		u.loose = true
	} else if u.tier == "" || tiers[a.Tier] < tiers[u.tier] {
		u.tier = a.Tier
	}
	if zone != nil {
		u.clock(a.At.In(zone))
	}
	u.acts++
	u.runs[run] = true
	return nil
}

// clock widens the window to the hour of at.
func (u *used) clock(at time.Time) {
	from, to := at.Hour()*60, at.Hour()*60+60
	if u.acts == 0 {
		u.from, u.to = from, to
	}
	u.from, u.to = min(u.from, from), max(u.to, to)
	u.days[at.Weekday()] = true
}

var tiers = map[remit.Tier]int{remit.TierRemote: 1, remit.TierProcess: 2, remit.TierKernel: 3, remit.TierVM: 4}

// Acts returns how many acts of how many runs were taken, and the times of the first and the last.
func (l *Learner) Acts() (acts, runs int, first, last time.Time) {
	return l.acts, len(l.runs), l.first, l.last
}

// Uses returns, by permission of the bound, how many acts were allowed by it.
func (l *Learner) Uses() map[string]int {
	out := map[string]int{}
	for name, u := range l.perms {
		out[name] = u.acts
	}
	return out
}

// Workflow returns the bound narrowed to what was used, after the last Add. The error says which argument cannot be bound.
func (l *Learner) Workflow() (remit.Workflow, error) {
	out := l.bound
	out.Stages = nil
	for i := range l.bound.Stages {
		s, err := l.stage(&l.bound.Stages[i])
		if err != nil {
			return out, err
		}
		if len(s.May) > 0 {
			out.Stages = append(out.Stages, s)
		}
	}
	for _, name := range l.options.Keep {
		if l.perms[name] == nil {
			return out, fmt.Errorf("the bound has no permission %.80q to keep", name)
		}
	}
	if l.acts == 0 {
		return out, fmt.Errorf("nothing of the history teaches workflow %s", l.bound.Name)
	}
	out.Start.Runs = max(1, min(l.bound.Start.Runs, l.busiest()))
	return out, l.closed(&out)
}

func (l *Learner) stage(bound *remit.Stage) (remit.Stage, error) {
	out := *bound
	out.May = nil
	for i := range bound.May {
		u := l.perms[bound.May[i].Name]
		if l.keeps(u) {
			out.May = append(out.May, bound.May[i])
			continue
		}
		if u.acts == 0 {
			continue
		}
		for _, s := range u.args {
			s.forget(func(by remit.Source) bool {
				return l.perms[by.From] == nil || l.perms[by.From].acts == 0 && !l.keeps(l.perms[by.From])
			})
		}
		p, err := u.narrowed(l.options.Hours)
		if err != nil {
			return out, fmt.Errorf("permission %s: %w", u.Name, err)
		}
		out.May = append(out.May, p)
	}
	return out, nil
}

func (l *Learner) keeps(u *used) bool { return slices.Contains(l.options.Keep, u.Name) }

// closed checks that what was left out is named nowhere.
func (l *Learner) closed(w *remit.Workflow) error {
	stands := map[string]bool{}
	for i := range w.Stages {
		for j := range w.Stages[i].May {
			stands[w.Stages[i].May[j].Name] = true
		}
	}
	for i := range w.Stages {
		s := &w.Stages[i]
		for _, f := range s.When {
			if !stands[f.Permission] {
				return fmt.Errorf("stage %s is left only when %s, and the chosen history does not show that: choose more of it", s.Name, f)
			}
		}
		for j := range s.May {
			p := &s.May[j]
			if p.Under != "" && !stands[p.Under] {
				return fmt.Errorf("permission %s is inside calls of %s, which the chosen history does not show: choose more of it", p.Name, p.Under)
			}
			for _, name := range slices.Sorted(maps.Keys(p.Where)) {
				is := p.Where[name]
				for _, by := range sourcesOf(&is) {
					if !stands[by.From] {
						return fmt.Errorf("permission %s: %s comes from results of %s, which the chosen history does not show: choose more of it", p.Name, name, by.From)
					}
				}
			}
		}
	}
	return nil
}

func sourcesOf(is *remit.Predicate) (out []remit.Source) {
	if is.Kind == remit.PredicateFrom {
		out = append(out, is.Source)
	}
	out = append(out, is.Sources...)
	for _, f := range is.Fields {
		out = append(out, sourcesOf(&f)...)
	}
	return out
}

// busiest is how many runs began within the hour in which most did.
func (l *Learner) busiest() int {
	began := slices.Clone(l.began)
	slices.SortFunc(began, time.Time.Compare)
	most, i := 0, 0
	for j := range began {
		for began[j].Sub(began[i]) >= time.Hour {
			i++
		}
		most = max(most, j-i+1)
	}
	return most
}

// unchanged lets who changes a record repeat what stands in it: where an argument always was that field of an earlier result, such as id, those
// that may be absent may also be the field of their own name beside it.
func (u *used) unchanged(where map[string]remit.Predicate) {
	for _, id := range slices.Sorted(maps.Keys(u.args)) {
		of := u.args[id]
		for _, c := range slices.SortedFunc(maps.Keys(of.causes), compareCauses) {
			record, field := c.source.Path, ""
			if i := strings.LastIndexByte(record, '/'); i >= 0 {
				record, field = record[:i], record[i+1:]
			}
			if field != id || of.causes[c] != of.total || of.acts != u.acts {
				continue
			}
			for _, name := range slices.Sorted(maps.Keys(u.Where)) {
				is, stands := where[name]
				optional := !stands || is.Kind == remit.PredicateChoice && is.Empty
				now := remit.Source{From: c.source.From, Path: record + "/" + name}
				if u.Where[name].Kind == remit.PredicateAny && optional && name != id && !slices.Contains(is.Sources, now) {
					is.Kind, is.Empty, is.Sources = remit.PredicateChoice, true, append(is.Sources, now)
					where[name] = is
				}
			}
		}
	}
}

func (u *used) narrowed(zone *time.Location) (remit.Permission, error) {
	out := *u.Permission
	out.Where = nil
	for _, name := range slices.Sorted(maps.Keys(u.Where)) {
		is, stands, err := u.args[name].narrowed(u.Where[name], u.acts, len(u.runs))
		if err != nil {
			return out, fmt.Errorf("argument %s: %w", name, err)
		}
		if !stands {
			continue
		}
		if out.Where == nil {
			out.Where = map[string]remit.Predicate{}
		}
		out.Where[name] = is
	}
	u.unchanged(out.Where)
	out.Sensitive = slices.DeleteFunc(slices.Clone(u.Sensitive), func(name string) bool {
		_, stands := out.Where[name]
		return !stands
	})
	if !u.loose && tiers[u.tier] > tiers[remit.Tier(u.Sandbox)] {
		out.Sandbox = string(u.tier)
	}
	if zone != nil && u.Hours == nil && (u.to-u.from < 24*60 || u.days != [7]bool{true, true, true, true, true, true, true}) {
		out.Hours = &remit.Hours{Days: u.days, From: u.from, To: u.to, Zone: zone}
	}
	return out, nil
}
