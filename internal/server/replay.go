// SPDX-License-Identifier: Apache-2.0

package server

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"remit"
	"remit/internal/api"
	"remit/internal/config"
	"remit/internal/gateway/admin"
	"remit/internal/policy"
)

// opRevision returns the files of a revision that decided, by path: what judging its decisions again needs.
func (s *Server) opRevision(_ context.Context, c admin.Call) (any, error) {
	stored, ok := s.store.Revision(remit.Digest(c.Path("digest")))
	if !ok {
		return nil, &remit.Error{Code: remit.CodeNotFound, Msg: fmt.Sprintf("there is no revision %.80q", c.Path("digest"))}
	}
	return stored.Files, nil
}

// Replay judges recorded decisions by another configuration. It is for one goroutine; its memory does not grow with the history.
type Replay struct {
	set     *config.Set
	plan    *policy.Plan
	history history
	judges  map[remit.Digest]*oldJudge
	calls   calls
	groups  map[string]*ReplayGroup
	unknown map[string]*ReplayUnknown
	used    map[remit.PermissionRef]bool
	report  ReplayReport
}

// oldJudge is the plan of a revision that decided; nil where there is none any more.
type oldJudge struct {
	plan  *policy.Plan
	moved map[string]bool // sources that are configured otherwise in the new revision
}

// Bounds of a Replay.
const (
	maxOldJudges     = 8
	maxReplayGroups  = 1000
	maxReplayUnknown = 200
	maxReplayIDs     = 3
)

// ReplayReport is what a Replay found.
type ReplayReport struct {
	Revision  remit.Digest    `json:"revision"` // of the new configuration
	Decisions int             `json:"decisions"`
	Same      int             `json:"same"`
	Different int             `json:"different"`
	Grants    int             `json:"different_grants"` // of the different ones, those by which a grant was asked for
	NotJudged int             `json:"not_judged"`
	Folded    uint64          `json:"folded"` // denials that are only counted on record, and so not judged
	Groups    []ReplayGroup   `json:"groups"`
	Ungrouped int             `json:"ungrouped,omitempty"` // different ones beyond the groups that are kept
	Unknown   []ReplayUnknown `json:"unknown"`
	// Unused are permissions of the new configuration by which no decision was, or may have been, allowed or held.
	Unused []remit.PermissionRef `json:"unused"`
}

// ReplayGroup are decisions that differ alike. Was and Now are of the first one.
type ReplayGroup struct {
	Agent     remit.Name         `json:"agent"`
	Action    string             `json:"action"`
	Target    string             `json:"target"`
	Differs   []string           `json:"differs"`
	Was       ReplayAnswer       `json:"was"`
	Now       ReplayAnswer       `json:"now"`
	Count     int                `json:"count"`
	Decisions []remit.DecisionID `json:"decisions"` // the first few
}

// ReplayAnswer is an answer without the values of its request.
type ReplayAnswer struct {
	Effect      remit.Effect        `json:"effect"`
	Permission  remit.PermissionRef `json:"permission"`
	Reasons     []string            `json:"reasons,omitempty"`
	TTL         string              `json:"ttl,omitempty"`
	Until       time.Time           `json:"until,omitzero"`
	Limits      map[string]int64    `json:"limits,omitempty"`
	Obligations []string            `json:"obligations,omitempty"`
}

// ReplayUnknown are decisions that cannot be judged again for one reason.
type ReplayUnknown struct {
	Why       string             `json:"why"`
	Count     int                `json:"count"`
	Decisions []remit.DecisionID `json:"decisions"` // the first few
}

// NewReplay reads and compiles the configuration in dir. c is where the history is.
func NewReplay(dir string, c *api.Client) (*Replay, error) {
	files, err := config.Read(dir)
	if err != nil {
		return nil, err
	}
	return newReplay(files, c)
}

func newReplay(files map[string][]byte, c *api.Client) (*Replay, error) {
	set, err := config.Parse(files, offlineDomain())
	if err != nil {
		return nil, err
	}
	plan, err := compile(set, 0, nil, nil)
	if err != nil {
		return nil, err
	}
	return &Replay{set: set, plan: plan, history: history{c}, judges: map[remit.Digest]*oldJudge{},
		groups: map[string]*ReplayGroup{}, unknown: map[string]*ReplayUnknown{}, used: map[remit.PermissionRef]bool{}}, nil
}

// question is a recorded decision with all that judging it again needs, and then what came of it.
type question struct {
	seq      uint64
	d        *remit.Decision
	why      policy.Unknown // what of it is not there to be judged
	old      *oldJudge
	parent   *remit.Decision
	was, now policy.Answer
	err      error
}

// judge answers by the Replay's plan. It may be called by several goroutines.
func (r *Replay) judge(ctx context.Context, q *question) {
	if q.err != nil {
		return
	}
	if q.why != "" {
		q.err = q.why
		return
	}
	q.was, q.now, q.err = r.plan.Replay(ctx, q.d, q.parent, q.old.plan, q.old.moved)
}

// ask prepares and judges one decision.
func (r *Replay) ask(ctx context.Context, e *api.Entry, d *remit.Decision) (now policy.Answer, err error) {
	q := question{seq: e.Seq, d: d, why: unseen(e)}
	r.prepare(ctx, &q)
	r.judge(ctx, &q)
	return q.now, q.err
}

// prepare finds the revision that decided and the call around. The question's error is an Unknown, or that the history could not be read.
func (r *Replay) prepare(ctx context.Context, q *question) {
	if q.err != nil || q.why != "" {
		return
	}
	if q.old, q.err = r.oldJudge(ctx, q.d.Policy); q.err != nil {
		return
	}
	if q.d.Policy != "" && q.old.plan == nil {
		q.why = "the revision that decided cannot be read any more"
		return
	}
	q.parent, q.err = r.parent(ctx, q.d)
}

// count adds what came of a question to the report. The error means that the history could not be read.
func (r *Replay) count(q *question) error {
	if q.d == nil {
		return q.err
	}
	r.report.Decisions++
	if why, ok := errors.AsType[policy.Unknown](q.err); ok {
		r.notJudged(q.d, string(why))
		return nil
	}
	if q.err != nil {
		return q.err
	}
	if q.now.Effect != remit.Deny {
		r.used[q.now.Permission] = true
	}
	differs := q.was.Differs(&q.now)
	if len(differs) == 0 {
		r.report.Same++
		return nil
	}
	r.report.Different++
	if q.d.Via == "token" {
		r.report.Grants++
	}
	r.group(q.d, differs, shownAnswer(&q.was), shownAnswer(&q.now))
	return nil
}

// unseen says what of an entry is not there to be judged.
func unseen(e *api.Entry) policy.Unknown {
	switch {
	case len(e.Erased) > 0:
		return "erased values"
	case len(e.Sensitive) > 0:
		return "sensitive values"
	}
	return ""
}

func (r *Replay) oldJudge(ctx context.Context, digest remit.Digest) (*oldJudge, error) {
	if j, ok := r.judges[digest]; ok || digest == "" {
		return cmp.Or(j, &oldJudge{}), nil
	}
	if len(r.judges) >= maxOldJudges {
		clear(r.judges)
	}
	j := &oldJudge{moved: map[string]bool{}}
	files, err := r.history.revision(ctx, digest)
	if err != nil && remit.CodeOf(err) != remit.CodeNotFound {
		return nil, err
	}
	if err == nil {
		j.read(files, r.set)
	}
	r.judges[digest] = j
	return j, nil
}

// read leaves no plan where this program does not read the files any more.
func (j *oldJudge) read(files map[string][]byte, next *config.Set) {
	set, err := config.Parse(files, offlineDomain())
	if err != nil {
		return
	}
	for _, c := range next.Diff(set) {
		if name, ok := strings.CutPrefix(c.Of, "EvidenceSource "); ok {
			j.moved[name] = true
		}
	}
	if j.plan, err = compile(set, 0, nil, nil); err != nil {
		j.plan = nil
	}
}

// parent returns the call that d was asked inside of, if it was open then.
func (r *Replay) parent(ctx context.Context, d *remit.Decision) (*remit.Decision, error) {
	if d.Under == "" {
		return nil, nil
	}
	c, ok := r.calls.get(d.Under)
	if !ok {
		e, err := r.history.decision(ctx, d.Under)
		if err != nil && remit.CodeOf(err) != remit.CodeNotFound {
			return nil, err
		}
		if err == nil {
			if c.d, err = entryDecision(&e); err != nil {
				return nil, err
			}
			c.why = unseen(&e)
		}
		r.calls.put(d.Under, c, len(e.Event))
	}
	if c.d == nil {
		return nil, nil
	}
	if c.why != "" {
		return nil, "the call around it has " + c.why
	}
	if ends := c.d.At.Add(c.d.TTL); c.d.Effect == remit.Allow && d.At.Sub(ends).Abs() < 5*time.Second {
		return nil, policy.Unknown("whether the call around it was open is not known to the second")
	}
	if !carries(c.d, d.At) {
		return nil, nil
	}
	return c.d, nil
}

// call is a decision that others may be inside of; without a decision none that is on record.
type call struct {
	d   *remit.Decision
	why policy.Unknown
}

// calls keeps those of the last maxCalls bytes of entries at least, and of twice as many at most: most of those that are asked for came a
// moment before. The zero value is empty.
type calls struct {
	young, old map[remit.DecisionID]call
	size       int // of the young ones
}

const maxCalls = 8 << 20

func (c *calls) get(id remit.DecisionID) (call, bool) {
	if found, ok := c.young[id]; ok {
		return found, true
	}
	found, ok := c.old[id]
	return found, ok
}

func (c *calls) put(id remit.DecisionID, made call, size int) {
	if c.size += size + 100; c.young == nil || c.size > maxCalls {
		c.old, c.young, c.size = c.young, map[remit.DecisionID]call{}, size
	}
	c.young[id] = made
}

func (r *Replay) notJudged(d *remit.Decision, why string) {
	r.report.NotJudged++
	if d.Effect != remit.Deny {
		r.used[d.Permission] = true
	}
	u := r.unknown[why]
	if u == nil {
		if len(r.unknown) >= maxReplayUnknown {
			why = "other reasons"
			u = r.unknown[why]
		}
		if u == nil {
			u = &ReplayUnknown{Why: why}
			r.unknown[why] = u
		}
	}
	u.Count++
	if len(u.Decisions) < maxReplayIDs {
		u.Decisions = append(u.Decisions, d.ID)
	}
}

func (r *Replay) group(d *remit.Decision, differs []string, was, now ReplayAnswer) {
	key := fmt.Sprintf("%q", []any{d.Agent, d.Action, d.Target, differs, was.Effect, was.Permission, was.Reasons, now.Effect, now.Permission, now.Reasons})
	g := r.groups[key]
	if g == nil {
		if len(r.groups) >= maxReplayGroups {
			r.report.Ungrouped++
			return
		}
		g = &ReplayGroup{Agent: d.Agent, Action: d.Action, Target: d.Target, Differs: differs, Was: was, Now: now}
		r.groups[key] = g
	}
	g.Count++
	if len(g.Decisions) < maxReplayIDs {
		g.Decisions = append(g.Decisions, d.ID)
	}
}

func shownAnswer(a *policy.Answer) ReplayAnswer {
	out := ReplayAnswer{Effect: a.Effect, Permission: a.Permission, Reasons: a.Reasons, Until: a.Until, Limits: a.Limits, Obligations: a.Obligations}
	if a.TTL > 0 {
		out.TTL = a.TTL.String()
	}
	return out
}

// Report returns what was found so far, the most frequent first.
func (r *Replay) Report() ReplayReport {
	out := r.report
	out.Revision = r.plan.Digest()
	out.Groups, out.Unknown, out.Unused = []ReplayGroup{}, []ReplayUnknown{}, []remit.PermissionRef{}
	for _, g := range r.groups {
		out.Groups = append(out.Groups, *g)
	}
	slices.SortFunc(out.Groups, func(a, b ReplayGroup) int {
		return cmp.Or(b.Count-a.Count, cmp.Compare(a.Decisions[0], b.Decisions[0]))
	})
	for _, u := range r.unknown {
		out.Unknown = append(out.Unknown, *u)
	}
	slices.SortFunc(out.Unknown, func(a, b ReplayUnknown) int { return cmp.Or(b.Count-a.Count, cmp.Compare(a.Why, b.Why)) })
	for _, ref := range r.plan.Permissions() {
		if !r.used[ref] {
			out.Unused = append(out.Unused, ref)
		}
	}
	return out
}
