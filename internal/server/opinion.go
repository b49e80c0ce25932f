// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"time"

	"remit"
	"remit/internal/config"
	"remit/internal/policy"
)

// opinions are decisions that wait for a second opinion: a sampled share is judged again by OPA on the printed Rego (S32). What the
// queue has no room for is not sampled; no answer waits for it.
type opinions struct {
	queue  chan opinion
	judged atomic.Int64
}

type opinion struct {
	decision remit.Decision
	grant    remit.GrantID
	parent   *remit.Decision
}

const (
	opinionQueue = 64              // few, so that what is judged was decided a moment ago
	longestRest  = 5 * time.Second // however slow a judgement was, so that the next comes
)

// sample takes one decision in so many, at random: nobody can tell which.
func (s *Server) sample(d *remit.Decision, grant remit.GrantID) {
	if n := s.cfg.SecondOpinion; n > 1 && rand.N(n) != 0 || d.Policy == "" { // policy had no say in it
		return
	}
	//remit:guard S32 TestSecondOpinionOfRepeatedDenials
	if d.Folded { // it was judged when it was recorded; what it was about is not in it
		return
	}
	if d.Effect == remit.Hold && slices.ContainsFunc(d.Reasons, func(r remit.Reason) bool { return r.Of == remit.OfStepUp }) {
		return // it is held for what the agent did before, of which policy knows nothing
	}
	o := opinion{decision: *d, grant: grant}
	if d.Under != "" {
		if p, ok := s.parentAt(d.Under, d.At); ok {
			if d.At.Add(5 * time.Second).After(p.At.Add(p.TTL)) {
				return // whether the call was open when the plan looked is not known to the nanosecond
			}
			o.parent = &p
		}
	}
	select {
	case s.opinions.queue <- o:
	default:
	}
}

// judgeSampled asks OPA about what was sampled, until ctx ends. It rests after each judgement: one that has a stage compiled keeps a
// processor for tens of milliseconds, and at a twentieth of one every hundredth answer waited for it.
func (s *Server) judgeSampled(ctx context.Context) error {
	j := judges{server: s}
	for {
		var o opinion
		select {
		case <-ctx.Done():
			return nil
		case o = <-s.opinions.queue:
		}
		began := time.Now()
		said := policy.Opinion{}
		by, err := j.of(ctx, &o.decision)
		if err == nil {
			said, err = by.Opinion(ctx, &o.decision, o.parent)
		}
		if ctx.Err() != nil {
			return nil
		}
		s.heed(ctx, &o, said, err)
		s.opinions.judged.Add(1)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(min(99*time.Since(began), longestRest)):
		}
	}
}

// judges are the printed policies of one revision, a stage each. OPA takes seconds, and hundreds of megabytes, to compile what some
// hundred workflows print, of which a decision needs one stage.
type judges struct {
	server   *Server
	revision remit.Digest
	plan     *policy.Plan // of which only the text is used
	byStage  map[stageName]*policy.Printed
}

type stageName struct{ workflow, stage string }

// maxJudges bounds the compiled stages, of about half a megabyte each.
const maxJudges = 64

// of returns the judge of a decision. Its text is printed from the stored files of the revision: nothing of the plan that decided is
// in it.
func (j *judges) of(ctx context.Context, d *remit.Decision) (*policy.Printed, error) {
	if j.revision != d.Policy || j.plan == nil {
		if err := j.read(d.Policy); err != nil {
			return nil, err
		}
	}
	name := stageName{d.Permission.Workflow, d.Permission.Stage}
	if by, ok := j.byStage[name]; ok {
		return by, nil
	}
	by, err := j.plan.Printed(ctx, name.workflow, name.stage)
	if err != nil {
		return nil, err
	}
	for other := range j.byStage {
		if len(j.byStage) < maxJudges {
			break
		}
		delete(j.byStage, other)
	}
	j.byStage[name] = by
	return by, nil
}

func (j *judges) read(revision remit.Digest) error {
	stored, ok := j.server.store.Revision(revision)
	if !ok {
		return fmt.Errorf("revision %s is not in the store", revision)
	}
	set, err := config.Parse(stored.Files, j.server.td)
	if err != nil {
		return fmt.Errorf("read revision %s: %w", revision, err)
	}
	plan, err := compile(set, 0, nil, nil)
	if err != nil {
		return err
	}
	j.revision, j.plan, j.byStage = revision, plan, map[stageName]*policy.Printed{}
	return nil
}

type opinionData struct {
	Finding string `json:"finding"`
	policy.Opinion
	Error string `json:"error,omitempty"`
}

// heed ends the grant of a decision on which the two judges differ, and records the finding. That OPA gave no answer is a finding,
// too, but ends nothing: it would hand the grants to whoever can make it slow.
func (s *Server) heed(ctx context.Context, o *opinion, said policy.Opinion, err error) {
	data := opinionData{Finding: "second_opinion_differs", Opinion: said}
	switch {
	case err != nil:
		data.Finding, data.Error = "second_opinion_missing", err.Error()
	case said.Agree():
		return
	default:
		s.log.Error("the plan and the printed policy differ on a decision; its grant ends", "decision", o.decision.ID, "plan", said.Plan, "rego", said.Rego)
		//remit:guard S32 TestSecondOpinion
		s.endOf(ctx, func(l *remit.Lease) bool { return l.Grant == o.grant && o.grant != "" }, "a second opinion differs on "+string(o.decision.ID), "remit")
	}
	body, _ := json.Marshal(data) // plain structs of ours
	d := &o.decision
	e := remit.Event{At: s.now(), Kind: remit.EventFinding, Agent: d.Agent, Run: d.Run, Decision: d.ID, Grant: o.grant, By: "remit", Data: body}
	rctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	if err := s.record(rctx, e); err != nil {
		s.log.Error("a finding is not on record", "decision", d.ID, "finding", data.Finding, "err", err)
	}
}
