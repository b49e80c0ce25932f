// SPDX-License-Identifier: Apache-2.0

// Package authorizer is the straight line: one request goes through who, posture, run, permission, evidence and judgement to
// a decision that is durable before it is answered, and, for a grant, on to a credential whose lease was on record before
// anything was minted. It calls the rest of Remit through the small interfaces below and starts no goroutine. What waits for people is
// in the store (hold.go); beside the line it remembers only which denials were just recorded (fold.go).
package authorizer

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"remit"
)

// Config are the parts on the line. All but Fold and Pace are required; all are safe for concurrent use.
type Config struct {
	Policy   func() Policy // the active revision; one call a request, so that one revision judges all of it
	State    State
	Evidence Evidence
	Record   Record
	Broker   Broker
	Acts     Acts
	Fold     *Fold // repeated denials; nil folds none
	Pace     Pace  // of throttled agents; nil gives them nothing
}

// Policy is one immutable revision of workflows and organisation rules.
type Policy interface {
	// Match finds the permission under which the run may do what is asked, and what evidence that needs.
	Match(req *remit.Request, run *remit.Run) remit.Match
	// Judge weighs the evidence found and lets the organisation's rules narrow the answer. Any fault inside is a Deny.
	Judge(ctx context.Context, req *remit.Request, run *remit.Run, m *remit.Match, found []remit.Found) remit.Judgement
	// Sensitive names arguments and parameters whose values are never recorded in clear (S33).
	Sensitive() map[string]bool
}

// State answers from memory.
type State interface {
	// Posture is an agent's, and that of remit.Installation.
	Posture(agent remit.Name) remit.Posture
	Run(id remit.RunID) (remit.Run, bool)
	Launch(id remit.LaunchID) (remit.LaunchRecord, bool)
	Epoch(key remit.EpochKey) uint64
	// HeldAs returns the newest row about a request that was held, by the request's digest, with its epoch.
	HeldAs(asked remit.Digest) (h remit.Held, epoch uint64, ok bool)
	// HeldOf counts the held requests of a run.
	HeldOf(run remit.RunID) int
}

// Pace says whether a throttled agent may be given one more thing now, and counts it.
type Pace func(agent remit.Name, at time.Time) bool

// Evidence finds the verified facts for all needs, in their order, within the context's deadline.
type Evidence interface {
	Collect(ctx context.Context, needs []remit.Need, req *remit.Request) []remit.Found
	// Fresh asks again, where it is time to, about facts that were found. What does not hold any more has a reason in now, and
	// ok is false. It does not change found.
	Fresh(ctx context.Context, found []remit.Found) (now []remit.Found, ok bool)
}

// Record makes changes durable, or returns an error of remit.CodeConflict when a precondition no longer holds. The receipt
// is of the change's first event.
type Record interface {
	Commit(ctx context.Context, c remit.Change) (remit.Receipt, error)
}

// Broker turns an allowed decision into a live credential in two steps around the first commit.
type Broker interface {
	// Prepare plans grant and lease without touching the target; an error is a denial for the reason it carries.
	Prepare(ctx context.Context, d *remit.Decision, req *remit.Request, run *remit.Run) (remit.Grant, remit.Lease, error)
	// Mint calls the target for a lease that is on record as pending, and commits it active under require. When anything
	// fails it returns an error and sees to it that nothing stays usable.
	Mint(ctx context.Context, g remit.Grant, l remit.Lease, require []remit.Precondition) (remit.Grant, remit.Credential, error)
	// Abandon ends a grant that is on record as pending and will not be minted.
	Abandon(ctx context.Context, g remit.Grant, l remit.Lease, why string)
}

// Authorizer is the line. It is safe for concurrent use.
type Authorizer struct {
	cfg Config
}

// New checks that every part is there.
func New(cfg Config) (*Authorizer, error) {
	if cfg.Policy == nil || cfg.State == nil || cfg.Evidence == nil || cfg.Record == nil || cfg.Broker == nil || cfg.Acts == nil {
		return nil, errors.New("authorizer: a part of the line is missing")
	}
	return &Authorizer{cfg: cfg}, nil
}

// Decide answers req. A denial is an answer; the error means that the answer could not be recorded and so there is none.
func (a *Authorizer) Decide(ctx context.Context, req *remit.Request) (remit.Decision, error) {
	w := a.weigh(ctx, req)
	a.watch(ctx, req, &w)
	a.hold(req, &w)
	return a.answer(ctx, req, &w)
}

// Grant answers req and, when the answer is Allow, returns a live credential for exactly what was decided.
func (a *Authorizer) Grant(ctx context.Context, req *remit.Request) (remit.Decision, remit.Grant, remit.Credential, error) {
	none := func(d remit.Decision, err error) (remit.Decision, remit.Grant, remit.Credential, error) {
		return d, remit.Grant{}, remit.Credential{}, err
	}
	w := a.weigh(ctx, req)
	a.watch(ctx, req, &w)
	a.hold(req, &w)
	if w.decision.Effect != remit.Allow {
		return none(a.answer(ctx, req, &w))
	}
	grant, lease, err := a.cfg.Broker.Prepare(ctx, &w.decision, req, &w.run)
	if err != nil {
		w.deny(remit.Reason{Code: remit.ReasonTarget, Of: "target " + req.Target, Got: err.Error()})
		return none(a.answer(ctx, req, &w))
	}
	seal := w.seal()
	grant.Sensitive = len(seal.Texts) > 0
	lease.Sensitive = grant.Sensitive
	change := remit.Change{Rows: []remit.Row{grant, lease}, Events: []remit.Event{grantEvent(&w.decision, &grant, &lease, seal)}}
	if err := a.record(ctx, req, &w, change); err != nil || w.decision.Effect != remit.Allow {
		return none(w.decision, err)
	}
	w.used()
	fresh := a.fresh(ctx, req, &w)
	//remit:guard S15 TestTicketClosedBeforeMint internal/server
	if !fresh {
		a.cfg.Broker.Abandon(ctx, grant, lease, "its evidence did not hold any more: "+string(w.decision.ID))
		return none(w.decision, a.record(ctx, req, &w, remit.Change{}))
	}
	grant, cred, err := a.cfg.Broker.Mint(ctx, grant, lease, w.seen)
	if err != nil && !a.stands(req, &w) { // nothing stays usable: that is the broker's
		err = a.record(ctx, req, &w, remit.Change{})
		return none(w.decision, err)
	}
	if err != nil {
		return none(w.decision, fmt.Errorf("mint under grant %s: %w", grant.ID, err))
	}
	return w.decision, grant, cred, nil
}

// Again answers req as Decide would, and records nothing: what live grants are held to (S12).
func (a *Authorizer) Again(ctx context.Context, req *remit.Request) remit.Decision {
	w := a.weigh(ctx, req)
	return w.decision
}

// Stands says why req, whatever it asks, is denied before any permission is looked at; none: it is not. It returns the run as it
// is, and records nothing: what an agent may see of its stage.
func (a *Authorizer) Stands(req *remit.Request) (remit.Run, []remit.Reason) {
	w := weighed{decision: newDecision(req), policy: a.cfg.Policy()}
	if !a.enter(req, &w) {
		return remit.Run{}, w.decision.Reasons
	}
	return w.run, nil
}

// weigh is the line up to the decision. It reads only memory, and evidence within the context's deadline.
func (a *Authorizer) weigh(ctx context.Context, req *remit.Request) weighed {
	w := weighed{decision: newDecision(req), policy: a.cfg.Policy()}
	w.sensitive = w.policy.Sensitive()
	if !a.enter(req, &w) {
		return w
	}
	w.match = w.policy.Match(req, &w.run)
	m := &w.match
	w.decision.Policy, w.decision.Permission, w.decision.Args, w.decision.From = m.Policy, m.Ref, m.Args, m.From
	w.rests(remit.PolicyKey, m.Epoch)
	if m.Permission == nil {
		return w.deny(m.Reasons...)
	}
	for _, n := range m.Needs { // read before collecting: what arrives in between must move the commit
		key := remit.EvidenceKey(n.Source)
		w.rests(key, a.cfg.State.Epoch(key))
	}
	filled := *req // sources compare their fact with the arguments that are decided on
	filled.Args = m.Args
	found := a.cfg.Evidence.Collect(ctx, m.Needs, &filled)
	a.approvals(req, &w, found)
	w.judge(ctx, req, found)
	if w.decision.Effect == remit.Hold && len(w.asks) > 0 {
		a.askMore(ctx, req, &w)
	}
	keep(req, &w)
	return w
}

// enter is the line up to the permission: who asks, whether he stands, and in which run. false: w is the denial.
func (a *Authorizer) enter(req *remit.Request, w *weighed) bool {
	//remit:guard S6 TestDefaultDeny
	if len(req.Refused) > 0 {
		w.deny(req.Refused...)
		return false
	}
	//remit:guard S6 TestDefaultDeny
	if req.Agent == "" || req.Caller.IsZero() {
		w.deny(remit.Reason{Code: remit.ReasonUnknownAgent})
		return false
	}
	if !a.standing(req, w) {
		return false
	}
	if req.Run == "" {
		w.deny(remit.Reason{Code: remit.ReasonNoRun})
		return false
	}
	run, ok := a.cfg.State.Run(req.Run)
	//remit:guard S10 TestDefaultDeny
	if !ok {
		w.deny(remit.Reason{Code: remit.ReasonNoRun})
		return false
	}
	if len(run.Sensitive) > 0 { // for good, whatever the present revision says
		w.sensitive = maps.Clone(w.sensitive)
		if w.sensitive == nil {
			w.sensitive = map[string]bool{}
		}
		for _, name := range run.Sensitive {
			w.sensitive[name] = true
		}
	}
	w.run, w.decision.Params, w.decision.WorkflowDigest = run, run.Params, run.Digest
	w.rests(remit.RunKey(run.ID), run.Epoch)
	//remit:guard S12 TestDefaultDeny
	if !run.Live(req.At) {
		w.deny(remit.Reason{Code: remit.ReasonRunEnded, Got: string(run.State)})
		return false
	}
	//remit:guard S10 TestDefaultDeny
	if req.Stage != "" && req.Stage != run.Stage {
		w.deny(remit.Reason{Code: remit.ReasonRunMismatch, Of: "stage", Want: run.Stage, Got: req.Stage})
		return false
	}
	return true
}

// standing checks who asks, whatever for: nobody is given anything while the installation is halted (S13), a suspended agent
// nothing, and a launched process only while its launch lasts.
func (a *Authorizer) standing(req *remit.Request, w *weighed) bool {
	for _, who := range [...]remit.Name{remit.Installation, req.Agent} {
		posture := a.cfg.State.Posture(who)
		w.stepUp, w.throttled = posture.StepUp, posture.Throttled
		w.rests(remit.AgentKey(who), posture.Epoch)
		//remit:guard S20 TestDefaultDeny
		if posture.Suspended {
			code := remit.ReasonSuspended
			if who == remit.Installation {
				code = remit.ReasonHalted
			}
			w.deny(remit.Reason{Code: code, Got: posture.Reason})
			return false
		}
	}
	if id := req.Caller.Launch; id != "" {
		w.rests(remit.LaunchKey(id), a.cfg.State.Epoch(remit.LaunchKey(id)))
		l, ok := a.cfg.State.Launch(id)
		//remit:guard S4 TestDefaultDeny
		if !ok || !l.Ended.IsZero() {
			w.deny(remit.Reason{Code: remit.ReasonRunToken, Of: "launch", Got: "ended"})
			return false
		}
	}
	return true
}

// fresh asks about the facts once more, after the decision is on record and right before the mint (S15). If one does not hold
// any more, w becomes a decision of its own, the denial for that reason.
func (a *Authorizer) fresh(ctx context.Context, req *remit.Request, w *weighed) bool {
	now, ok := a.cfg.Evidence.Fresh(ctx, w.found)
	if ok {
		return true
	}
	w.decision.ID = remit.NewDecisionID()
	w.judge(ctx, req, now)
	if w.decision.Effect == remit.Allow {
		w.deny(remit.Reason{Code: remit.ReasonFault, Of: "evidence"})
	}
	return false
}

// stands looks once more at who asks and in which run, after a mint failed. When the agent was suspended meanwhile, or the run ended,
// then that is why: w becomes a decision of its own, the denial for that reason.
func (a *Authorizer) stands(req *remit.Request, w *weighed) bool {
	again := weighed{decision: newDecision(req), policy: a.cfg.Policy()}
	again.sensitive = again.policy.Sensitive()
	if a.enter(req, &again) {
		return true
	}
	*w = again
	return false
}

// answer makes the decision durable before it is returned: by recording it, or, for a denial that was recorded a moment ago, by
// being that one.
func (a *Authorizer) answer(ctx context.Context, req *remit.Request, w *weighed) (remit.Decision, error) {
	c, own := a.cfg.Fold.enter(&w.decision)
	if own {
		err := a.record(ctx, req, w, remit.Change{})
		a.cfg.Fold.settle(c, &w.decision, err)
		return w.decision, err
	}
	if c != nil {
		d, err := c.answer(ctx)
		if err == nil {
			return d, nil
		}
		if !errors.Is(err, errUnrecorded) {
			w.deny(remit.Reason{Code: remit.ReasonFault})
			return w.decision, err
		}
	}
	return w.decision, a.record(ctx, req, w, remit.Change{})
}

// record commits the decision with what belongs to it. State that moved since it was read turns an Allow into a recorded
// denial; then nothing of more is written.
func (a *Authorizer) record(ctx context.Context, req *remit.Request, w *weighed, more remit.Change) error {
	change := remit.Change{Rows: append(w.rows(), more.Rows...), Events: append([]remit.Event{decisionEvent(&w.decision, w.seal())}, more.Events...)}
	effect := w.decision.Effect
	//remit:guard S11 TestNothingBetweenCheckAndUse
	if effect == remit.Allow {
		change.Require = w.seen
	}
	if effect == remit.Hold && w.opens != nil {
		change.Require = []remit.Precondition{w.held}
	}
	receipt, err := a.cfg.Record.Commit(ctx, change)
	//remit:guard S11 TestNothingBetweenCheckAndUse
	if remit.CodeOf(err) == remit.CodeConflict && effect != remit.Deny {
		a.moved(req, w, err)
		return a.record(ctx, req, w, remit.Change{})
	}
	if remit.CodeOf(err) == remit.CodeExhausted && !w.cut {
		w.shorten()
		return a.record(ctx, req, w, remit.Change{})
	}
	if err != nil {
		//remit:guard S11 TestNoAnswerWithoutRecord
		w.deny(remit.Reason{Code: remit.ReasonFault})
		return fmt.Errorf("record decision %s: %w", w.decision.ID, err)
	}
	w.decision.Receipt = &receipt
	return nil
}

// moved makes a decision whose state moved a denial; but a request that somebody else opened meanwhile is held as theirs.
func (a *Authorizer) moved(req *remit.Request, w *weighed, err error) {
	if w.decision.Effect == remit.Hold && !w.late {
		w.late = true
		a.hold(req, w)
		return
	}
	w.deny(remit.Reason{Code: remit.ReasonConflict, Got: err.Error()})
}
