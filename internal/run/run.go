// SPDX-License-Identifier: Apache-2.0

// Package run is the state machine of runs and the tokens that name them. A transition is a pure function from a run, its
// workflow, who asks and when to the next run and the events that describe it; storing both in one commit, with the old
// epoch as its precondition, is the caller's. The package does no I/O, has no clock, keeps no run and starts no goroutine; Values
// remembers, hashed, what calls of a run returned.
//
//	            Advance                Finish
//	start ──> active ──> active … ──> finished
//	            │
//	     Freeze │                  Expire: active or frozen ──> expired
//	            ▼
//	          frozen
//
// Nothing leads out of finished and expired, a frozen run does not go on, and no stage is entered twice.
package run

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"remit"
)

// Actor is who asks: the verified principal and the name that the directory of the active revision gives it.
type Actor struct {
	Name      remit.Name
	Principal remit.Principal
}

// check refuses an actor that nobody verified, and a person or workload under a name of the other.
func (a Actor) check() error {
	p := a.Principal
	named := p.Person == a.Name
	if p.Person == "" {
		named = strings.HasPrefix(string(a.Name), "agent/") || strings.HasPrefix(string(a.Name), "tool/")
	}
	//remit:guard S2 TestWhoMayStart
	if p.IsZero() || !named {
		return &remit.Error{Code: remit.CodeUnauthenticated, Msg: "who asks is not verified", Hint: "connect with an SVID or over the admin socket"}
	}
	return nil
}

// Active reports whether name may use a token of the run now: it stands in a `may` or `end` of the run's present stage
// (S10). It does not look at the time; Live does.
func Active(r *remit.Run, w *remit.Workflow, name remit.Name) bool {
	//remit:guard S10 TestActive
	if r.State != remit.RunActive || name == "" || w.Name != r.Workflow || w.Digest != r.Digest {
		return false
	}
	i := stageIndex(w, r.Stage)
	if i < 0 {
		return false
	}
	s := &w.Stages[i]
	return slices.Contains(s.End, name) || slices.ContainsFunc(s.May, func(p remit.Permission) bool { return p.Who == name })
}

func stageIndex(w *remit.Workflow, name string) int {
	return slices.IndexFunc(w.Stages, func(s remit.Stage) bool { return s.Name == name })
}

// Start begins a run at the workflow's first stage. Errors: CodeUnauthenticated, CodeForbidden (who asks may not start it),
// CodeInvalid (a parameter).
func Start(w *remit.Workflow, id remit.RunID, by Actor, in Input, at time.Time) (remit.Run, []remit.Event, error) {
	if err := MayStart(w, by); err != nil {
		return remit.Run{}, nil, err
	}
	params, sources, err := parameters(w, by.Name, in)
	if err != nil {
		return remit.Run{}, nil, err
	}
	r := remit.Run{ID: id, Workflow: w.Name, Digest: w.Digest, Params: params, Sources: sources, Starter: by.Name,
		State: remit.RunActive, Started: at, Expires: at.Add(w.Start.Expires)}
	enter(&r, &w.Stages[0], at)
	s := seal(w, &r)
	data := remit.Args{"workflow": text(w.Name), "digest": text(string(w.Digest)), "starter": text(string(by.Name)), "stage": text(r.Stage),
		"params": raw(s.Values("params", params)), "sources": raw(s.Value("sources", sourcesValue(sources))),
		"expires": stamp(r.Expires), "stage_expires": stamp(r.StageExpires)}
	e := event(&r, remit.EventRunStarted, by.Principal.String(), at, data)
	e.Payload, e.Private = s.Payload, s.Private
	return r, []remit.Event{e}, nil
}

// seal notes the sensitive parameters in the run, and returns the seal of its first event.
func seal(w *remit.Workflow, r *remit.Run) *remit.Seal {
	s := &remit.Seal{Sensitive: map[string]bool{}}
	for i := range w.Parameters {
		if p := &w.Parameters[i]; p.Sensitive {
			s.Sensitive[p.Name] = true
			r.Sensitive = append(r.Sensitive, p.Name)
		}
	}
	s.Hide(r.Params)
	return s
}

// raw reads commitments, which are plain objects, as a value.
func raw(b []byte) (v remit.Value) {
	if err := v.UnmarshalJSON(b); err != nil {
		panic("run: " + err.Error())
	}
	return v
}

// MayStart is nil if by may start the workflow, whatever the parameters are. Errors: CodeUnauthenticated, CodeForbidden.
func MayStart(w *remit.Workflow, by Actor) error {
	if err := by.check(); err != nil {
		return err
	}
	return mayStart(w, by.Name)
}

func mayStart(w *remit.Workflow, name remit.Name) error {
	if len(w.Stages) == 0 || w.Start.Expires <= 0 {
		return &remit.Error{Code: remit.CodeInvalid, Msg: fmt.Sprintf("workflow %s has no stage or no time", w.Name)}
	}
	//remit:guard S4 TestWhoMayStart
	if !slices.Contains(w.Start.By, name) {
		return forbidden("%s may not start workflow %s", "start: by lists who may", name, w.Name)
	}
	//remit:guard S9 TestWhoMayStart
	if acts(w, name) && !w.Start.Self {
		return forbidden("%s acts in workflow %s and so may not start it", "let another start it, or write self: true", name, w.Name)
	}
	return nil
}

// acts reports whether name stands in a `may` of any stage.
func acts(w *remit.Workflow, name remit.Name) bool {
	return slices.ContainsFunc(w.Stages, func(s remit.Stage) bool {
		return slices.ContainsFunc(s.May, func(p remit.Permission) bool { return p.Who == name })
	})
}

func enter(r *remit.Run, s *remit.Stage, at time.Time) {
	r.Stage, r.StageStarted, r.StageExpires = s.Name, at, r.Expires
	if end := at.Add(s.Expires); s.Expires > 0 && end.Before(r.Expires) {
		r.StageExpires = end
	}
}

// Advance leaves the present stage for the next one; to, when stated, must name it. It is for whom the stage's `end` names,
// and for the starter where it names nobody. facts are what the caller found in the ledger: all that the stage's `end` asks for
// must be among them. Errors: CodeUnauthenticated, CodeForbidden, CodeConflict (the run is not live,
// there is no next stage, to is another one, the workflow changed).
func Advance(r remit.Run, w *remit.Workflow, by Actor, to string, at time.Time, facts ...remit.ExitFact) (remit.Run, []remit.Event, error) {
	i, err := present(&r, w, by, at)
	if err != nil {
		return r, nil, err
	}
	//remit:guard S9 TestAdvanceRefuses
	if !mayLeave(&r, &w.Stages[i], by.Name) {
		return r, nil, forbidden("%s may not end stage %s", "end: by lists who may", by.Name, r.Stage)
	}
	for _, f := range w.Stages[i].When {
		//remit:guard S9 TestStageIsLeftOnlyWithItsFacts
		if !slices.Contains(facts, f) {
			return r, nil, conflict("stage %s is left when %s, which is not in the ledger", "do that first, or finish the run", r.Stage, f)
		}
	}
	if i+1 == len(w.Stages) {
		return r, nil, conflict("stage %s is the last one", "finish the run", r.Stage)
	}
	next := &w.Stages[i+1]
	//remit:guard S9 TestAdvanceRefuses
	if to != "" && to != next.Name {
		if j := stageIndex(w, to); j >= 0 && j <= i {
			return r, nil, conflict("stage %s lies behind: a run never goes back", "the next stage is "+next.Name, to)
		}
		return r, nil, conflict("stage %s does not follow stage %s", "the next stage is "+next.Name, to, r.Stage)
	}
	from := r.Stage
	r = changed(r)
	enter(&r, next, at)
	data := remit.Args{"from": text(from), "to": text(r.Stage), "stage_expires": stamp(r.StageExpires)}
	if len(w.Stages[i].When) > 0 {
		data["when"] = factsValue(w.Stages[i].When)
	}
	return r, []remit.Event{event(&r, remit.EventRunStage, by.Principal.String(), at, data)}, nil
}

// Finish ends the run. It is for whom the present stage's `end` names, for the starter, and for a person with the role
// responder: ending takes authority and gives none. w is nil when the active revision has no such workflow any more; then only
// the latter two may. Errors as Advance has.
func Finish(r remit.Run, w *remit.Workflow, by Actor, at time.Time) (remit.Run, []remit.Event, error) {
	if err := by.check(); err != nil {
		return r, nil, err
	}
	//remit:guard S9 TestWhoMayFinish
	if r.Over() {
		return r, nil, conflict("run %s is %s", "start another", r.ID, r.State)
	}
	leaves := false
	if w != nil && w.Name == r.Workflow && w.Digest == r.Digest {
		i := stageIndex(w, r.Stage)
		leaves = i >= 0 && mayLeave(&r, &w.Stages[i], by.Name)
	}
	//remit:guard S2 TestWhoMayFinish
	if !leaves && by.Name != r.Starter && !by.Principal.HasRole("responder") {
		return r, nil, forbidden("%s may not finish run %s", "its starter, whom the stage's end names, and a responder may", by.Name, r.ID)
	}
	r = changed(r)
	r.State = remit.RunFinished
	return r, []remit.Event{ended(&r, by.Principal.String(), at, "finished by "+string(by.Name))}, nil
}

// Expire ends a run whose time, or whose stage's time, is over at `at`; due is false, and nothing changes, when it is not.
func Expire(r remit.Run, at time.Time) (next remit.Run, events []remit.Event, due bool) {
	why := "the run's time is over"
	switch {
	case r.Over():
		return r, nil, false
	//remit:guard S12 TestExpire
	case !at.Before(r.Expires):
	//remit:guard S12 TestExpire
	case !at.Before(r.StageExpires):
		why = "the time of stage " + r.Stage + " is over"
	default:
		return r, nil, false
	}
	r = changed(r)
	r.State = remit.RunExpired
	return r, []remit.Event{ended(&r, "remit", at, why)}, true
}

// Freeze stops an active run because an agent of it was suspended (S23); by is who caused it. CodeConflict unless active.
func Freeze(r remit.Run, by, why string, at time.Time) (remit.Run, []remit.Event, error) {
	//remit:guard S20 TestFreeze
	if r.State != remit.RunActive {
		return r, nil, conflict("run %s is %s", "only an active run can be frozen", r.ID, r.State)
	}
	r = changed(r)
	r.State = remit.RunFrozen
	data := remit.Args{"stage": text(r.Stage), "state": text(string(r.State)), "why": text(why)}
	return r, []remit.Event{event(&r, remit.EventRunStage, by, at, data)}, nil
}

// present checks what every step within a run needs, and returns the index of its stage.
func present(r *remit.Run, w *remit.Workflow, by Actor, at time.Time) (int, error) {
	if err := by.check(); err != nil {
		return 0, err
	}
	//remit:guard S12 TestAdvanceRefuses
	if !r.Live(at) {
		state := r.State
		if state == remit.RunActive {
			state = remit.RunExpired // its time is over, though nobody wrote it down yet
		}
		return 0, conflict("run %s is %s", "start another", r.ID, state)
	}
	i := stageIndex(w, r.Stage)
	//remit:guard S12 TestAdvanceRefuses
	if w.Name != r.Workflow || w.Digest != r.Digest || i < 0 {
		return 0, conflict("workflow %s changed since run %s started", "finish the run and start another", r.Workflow, r.ID)
	}
	return i, nil
}

func mayLeave(r *remit.Run, s *remit.Stage, name remit.Name) bool {
	if len(s.End) == 0 {
		return name == r.Starter
	}
	return slices.Contains(s.End, name)
}

// changed copies what a run shares with its predecessor, and moves the epoch.
func changed(r remit.Run) remit.Run {
	r.Params, r.Sources = maps.Clone(r.Params), maps.Clone(r.Sources)
	r.Epoch++
	return r
}

func event(r *remit.Run, kind remit.EventKind, by string, at time.Time, data remit.Args) remit.Event {
	return remit.Event{At: at, Kind: kind, Run: r.ID, By: by, Data: data.AppendJSON(nil)}
}

func ended(r *remit.Run, by string, at time.Time, why string) remit.Event {
	return event(r, remit.EventRunEnded, by, at, remit.Args{"stage": text(r.Stage), "state": text(string(r.State)), "why": text(why)})
}

func text(s string) remit.Value { return remit.StringValue(s) }

func stamp(t time.Time) remit.Value { return text(t.UTC().Format(time.RFC3339Nano)) }

func factsValue(facts []remit.ExitFact) remit.Value {
	out := make([]remit.Value, len(facts))
	for i, f := range facts {
		out[i] = text(f.String())
	}
	return remit.ListValue(out...)
}

func sourcesValue(m map[string]string) remit.Value {
	out := make(map[string]remit.Value, len(m))
	for k, v := range m {
		out[k] = text(v)
	}
	return remit.ObjectValue(out)
}

func forbidden(format, hint string, args ...any) error {
	return &remit.Error{Code: remit.CodeForbidden, Msg: fmt.Sprintf(format, args...), Hint: hint}
}

func conflict(format, hint string, args ...any) error {
	return &remit.Error{Code: remit.CodeConflict, Msg: fmt.Sprintf(format, args...), Hint: hint}
}
