// SPDX-License-Identifier: Apache-2.0

package server

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"remit"
	"remit/internal/api"
	"remit/internal/policy"
	"remit/internal/run"
	"remit/internal/store"
)

// sourced is what a start learned from evidence: the parameters with a source, and what must not move before the run is on record.
type sourced struct {
	verified map[string]run.Verified
	seen     []remit.Precondition
}

// fromEvidence takes the parameters with a declared source from verified evidence (S9). The starter names at most which evidence;
// what it must be, the workflow says where it requires evidence of that kind.
func (s *Server) fromEvidence(ctx context.Context, rev *revision, w *remit.Workflow, in *api.StartRun, req *remit.Request) (sourced, error) {
	out := sourced{verified: map[string]run.Verified{}}
	said, err := run.Said(w, in.Params)
	if err != nil {
		return out, err
	}
	req.Args = rev.plan.StartArgs(w.Name, said)
	facts := map[remit.EvidenceKind]*remit.Evidence{}
	for _, p := range w.Parameters {
		if p.Source == "" {
			continue
		}
		kind, field, _ := strings.Cut(p.Source, ".")
		e, ok := facts[remit.EvidenceKind(kind)]
		if !ok {
			need, err := startNeed(rev, w, remit.EvidenceKind(kind), said, in)
			if err != nil {
				return out, err
			}
			key := remit.EvidenceKey(need.Source)
			out.seen = append(out.seen, remit.Precondition{Key: key, Epoch: s.store.Epoch(key)})
			if e, err = findOne(ctx, rev, need, req); err != nil {
				return out, err
			}
			facts[need.Kind] = e
		}
		value, ok := e.Fields[field]
		if !ok {
			return out, denied(p.Source, "evidence "+e.Name+" of "+e.Source+" has no field "+field, "name the field that the source's file lists")
		}
		out.verified[p.Name] = run.Verified{Value: value, Source: p.Source, Evidence: strings.TrimSpace(e.Source + " " + cmp.Or(e.Name, string(e.ID)))}
	}
	return out, nil
}

// startNeed is the evidence that parameters with a source of this kind come from.
func startNeed(rev *revision, w *remit.Workflow, kind remit.EvidenceKind, said map[string]remit.Value, in *api.StartRun) (remit.Need, error) {
	id := in.Evidence[kind]
	need, ok, reasons := rev.plan.StartNeed(w.Name, kind, said)
	switch {
	case len(reasons) > 0:
		return need, denied(string(kind), fmt.Sprintf("its %s cannot be told from what was supplied", reasons[0].Of), "the workflow must take it from parameters without a source")
	case ok && need.ID == "":
		need.ID = id
	case ok && id != "" && id != need.ID:
		return need, denied(string(kind), fmt.Sprintf("the workflow requires %s %s, not %.80q", kind, need.ID, id), "leave --evidence out")
	case !ok:
		var sources []string
		for name, o := range rev.set.Sources {
			if o.Fact() == kind {
				sources = append(sources, name)
			}
		}
		if len(sources) != 1 {
			return need, denied(string(kind), fmt.Sprintf("%d sources vouch for it, and the workflow does not say which", len(sources)), "let a permission of the workflow require it")
		}
		need = remit.Need{Kind: kind, Source: sources[0], ID: id}
	}
	if need.ID == "" && need.Of.Digest == "" {
		return need, denied(string(kind), "which one is not said", "add --evidence "+string(kind)+"=ID")
	}
	return need, nil
}

func findOne(ctx context.Context, rev *revision, need remit.Need, req *remit.Request) (*remit.Evidence, error) {
	found := rev.collector.Collect(ctx, []remit.Need{need}, req)
	reasons := policy.Lacks(&need, &found[0], req.At)
	//remit:guard S9 TestSourcedParameter
	if len(reasons) > 0 {
		r := reasons[0]
		return nil, denied(string(need.Kind), fmt.Sprintf("%s: want %s, got %s", r.Code, r.Want, r.Got), "the run does not start without it")
	}
	return found[0].Evidence, nil
}

func denied(what, why, hint string) error {
	return &remit.Error{Code: remit.CodeDenied, Msg: "evidence " + what + ": " + why, Hint: hint}
}

// starts counts runs by workflow and starter over the last hour (S9). It is safe for concurrent use.
type starts struct {
	mu   sync.Mutex // guards past
	past map[startKey][]past
}

type startKey struct {
	workflow string
	starter  remit.Name
}

type past struct {
	id     remit.RunID
	at     time.Time
	values map[string]string // of parameters with a source
}

const startWindow = time.Hour

// take makes room for a run, or says that there is none. What was taken for a run that did not start is given back by drop.
func (s *starts) take(w *remit.Workflow, r *remit.Run) error {
	next := past{r.ID, r.Started, map[string]string{}}
	for _, p := range w.Parameters {
		if v, ok := r.Params[p.Name]; ok && p.Source != "" {
			next.values[p.Name] = v.Text()
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	key := startKey{r.Workflow, r.Starter}
	kept := slices.DeleteFunc(s.past[key], func(p past) bool { return r.Started.Sub(p.at) >= startWindow })
	//remit:guard S9 TestRunStartFlood
	if len(kept) >= w.Start.Runs {
		return &remit.Error{Code: remit.CodeExhausted, Msg: fmt.Sprintf("%s started %d runs of %s within an hour", r.Starter, len(kept), w.Name),
			Hint: "wait, or raise start: per_hour: runs"}
	}
	for name, value := range next.values {
		distinct := map[string]bool{value: true}
		for _, p := range kept {
			if v, ok := p.values[name]; ok {
				distinct[v] = true
			}
		}
		//remit:guard S9 TestDistinctValuesAreLimited
		if len(distinct) > w.Start.Values {
			return &remit.Error{Code: remit.CodeExhausted, Msg: fmt.Sprintf("%s started runs of %s about %d values of %s within an hour", r.Starter, w.Name, w.Start.Values, name),
				Hint: "wait, or raise start: per_hour: values"}
		}
	}
	if s.past == nil {
		s.past = map[startKey][]past{}
	}
	s.past[key] = append(kept, next)
	return nil
}

func (s *starts) drop(r *remit.Run) {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := startKey{r.Workflow, r.Starter}
	s.past[key] = slices.DeleteFunc(s.past[key], func(p past) bool { return p.id == r.ID })
}

// loadStarts counts what an earlier process started.
func (s *Server) loadStarts() error {
	var after remit.RunID
	for {
		runs, err := s.store.Runs(store.RunFilter{}, 1000, after)
		if err != nil {
			return fmt.Errorf("count the runs of the last hour: %w", err)
		}
		for i := range runs {
			r := &runs[i]
			if s.now().Sub(r.Started) >= startWindow {
				return nil
			}
			values := map[string]string{}
			for name, from := range r.Sources {
				if v, ok := r.Params[name]; ok && from != string(r.Starter) {
					values[name] = v.Text()
				}
			}
			if s.starts.past == nil {
				s.starts.past = map[startKey][]past{}
			}
			key := startKey{r.Workflow, r.Starter}
			s.starts.past[key] = append(s.starts.past[key], past{r.ID, r.Started, values})
		}
		if len(runs) < 1000 {
			return nil
		}
		after = runs[len(runs)-1].ID
	}
}

// factsOf finds in the ledger which of a stage's exit facts have come true in the run.
func (s *Server) factsOf(r *remit.Run, w *remit.Workflow) ([]remit.ExitFact, error) {
	var out []remit.ExitFact
	for _, st := range w.Stages {
		if st.Name != r.Stage {
			continue
		}
		for _, f := range st.When {
			ok, err := s.happened(r, f)
			if err != nil {
				return nil, err
			}
			if ok {
				out = append(out, f)
			}
		}
	}
	return out, nil
}

// factEvents are the events that make each exit fact true.
var factEvents = map[string]remit.EventKind{
	remit.FactAllowed: remit.EventDecision, remit.FactGranted: remit.EventLeaseActive, remit.FactExecuted: remit.EventAction,
}

func (s *Server) happened(r *remit.Run, f remit.ExitFact) (bool, error) {
	for after := uint64(0); ; {
		entries, next, err := s.store.Events(store.EventFilter{Kind: factEvents[f.Fact], Run: r.ID}, after, 1000)
		if err != nil {
			return false, fmt.Errorf("look for %s in the ledger: %w", f, err)
		}
		for _, e := range entries {
			if s.proves(e, r, f) {
				return true, nil
			}
		}
		if next == 0 {
			return false, nil
		}
		after = next
	}
}

// proves reports whether an entry makes the fact true: it is of that permission in the run's present stage, and, as an act, one
// that its permission is for, that the target let through and that did not fail. What a twin did proves nothing.
func (s *Server) proves(e remit.Entry, r *remit.Run, f remit.ExitFact) bool {
	var event struct {
		Grant remit.GrantID `json:"grant"`
		Data  struct {
			Effect     remit.Effect        `json:"effect"`
			Permission remit.PermissionRef `json:"permission"`
			Allowed    bool                `json:"allowed"`
			Status     int                 `json:"status"`
			Effective  bool                `json:"effective"`
		} `json:"data"`
	}
	if err := json.Unmarshal(e.Body, &event); err != nil {
		return false
	}
	d := &event.Data
	if f.Fact != remit.FactAllowed && event.Grant != "" { // an act without a grant states the permission of its decision
		g, _ := s.store.Grant(event.Grant)
		//remit:guard S9 TestTwinProvesNothing
		if g.TwinOf != "" {
			return false // grant verify made it, and tries what is refused
		}
		d.Permission = g.Permission
	}
	//remit:guard S9 TestExitFacts
	if d.Permission != (remit.PermissionRef{Workflow: r.Workflow, Stage: r.Stage, Name: f.Permission}) {
		return false
	}
	switch f.Fact {
	case remit.FactAllowed:
		return d.Effect == remit.Allow
	case remit.FactExecuted:
		//remit:guard S9 TestExitFacts
		if !d.Effective {
			return false
		}
		return d.Allowed && d.Status < 400
	}
	return true
}
