// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"context"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"remit"
)

// Answer is what a plan says to a recorded request. Reasons are codes with what they are about, in order and each once.
type Answer struct {
	Effect      remit.Effect
	Permission  remit.PermissionRef
	Reasons     []string
	TTL         time.Duration
	Until       time.Time
	Limits      map[string]int64
	Obligations []string
	Scope       remit.Args
}

// Unknown says why a decision cannot be judged again. It is never to be read as "the same".
type Unknown string

func (u Unknown) Error() string { return string(u) }

// The kinds of Unknown that do not name a part of the request.
const (
	UnknownRecord     Unknown = "the recorded answer is not policy's alone"
	UnknownReproduced Unknown = "its own revision does not give the recorded answer again"
	UnknownFilled     Unknown = "which arguments the permission filled in is not on record"
	UnknownReturned   Unknown = "whether an earlier call returned a value is not on record"
	UnknownKeeps      Unknown = "whether the enforcement point carries out an obligation is not on record"
)

// Replay says what p would have answered to the request of a recorded decision, had it been in force since the run's start, and what
// was answered. old is the plan of the decision's revision: what the record does not hold, such as which fact was looked for, is taken
// from it, and only if it gives the recorded answer again. parent is the call that the request was inside of, if that was open then;
// moved names sources that are configured otherwise in p's revision. The error is an Unknown, or a fault.
func (p *Plan) Replay(ctx context.Context, d, parent *remit.Decision, old *Plan, moved map[string]bool) (was, now Answer, err error) {
	was = answered(d)
	if why := unjudged(d); why != "" {
		return was, now, why
	}
	found, err := foundOf(d)
	if err != nil {
		return was, now, err
	}
	r := replay{d: d, parent: parent, found: found, moved: moved}
	again, err := r.ask(ctx, old, d.Args, d.WorkflowDigest, r.known, r.asFound)
	if err != nil {
		return was, now, err
	}
	if len(again.Differs(&was)) > 0 {
		return was, now, UnknownReproduced
	}
	var digest remit.Digest
	if w := p.workflows[d.Permission.Workflow]; w != nil {
		digest = w.digest
	}
	if now, err = r.ask(ctx, p, d.Args, digest, r.knownSince, r.refound); err != nil {
		return was, now, err
	}
	if r.filled != nil { // what the old permission filled in, the new one may fill otherwise
		other, err := r.ask(ctx, p, r.filled, digest, r.knownSince, r.refound)
		if err != nil {
			return was, now, err
		}
		if len(other.Differs(&now)) > 0 {
			return was, now, UnknownFilled
		}
	}
	if now.Effect == remit.Allow && d.Effect != remit.Allow && len(now.Obligations) > 0 && !onlySandbox(now.Obligations) {
		return was, now, UnknownKeeps
	}
	return was, now, nil
}

// Differs lists in what two answers are not the same; of what would be granted each argument, as scope.NAME.
func (a *Answer) Differs(b *Answer) (out []string) {
	differs := func(what string, is bool) {
		if is {
			out = append(out, what)
		}
	}
	differs("effect", a.Effect != b.Effect)
	differs("permission", a.Permission != b.Permission)
	differs("reasons", !slices.Equal(a.Reasons, b.Reasons))
	differs("ttl", a.TTL != b.TTL)
	differs("until", !a.Until.Equal(b.Until))
	differs("limits", !maps.Equal(a.Limits, b.Limits))
	differs("obligations", !slices.Equal(a.Obligations, b.Obligations))
	if a.Effect == remit.Allow && b.Effect == remit.Allow {
		both := remit.Args{}
		maps.Copy(both, a.Scope)
		maps.Copy(both, b.Scope)
		for _, name := range slices.Sorted(maps.Keys(both)) {
			differs("scope."+name, !a.Scope[name].Equal(b.Scope[name]))
		}
	}
	return out
}

func answered(d *remit.Decision) Answer {
	out := Answer{Effect: d.Effect, Permission: d.Permission, Reasons: reasonNames(d.Reasons), TTL: d.TTL, Until: d.Until, Limits: d.Limits,
		Obligations: d.Obligations, Scope: d.Args}
	if d.Effect == remit.Hold { // it is how long people may take, which is not policy's
		out.Until = time.Time{}
	}
	return out
}

func reasonNames(reasons []remit.Reason) []string {
	var out []string
	for _, r := range reasons {
		name := string(r.Code)
		if r.Of != "" {
			name += " of " + r.Of
		}
		out = append(out, name)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// unjudged names what stands in the answer without policy having said it.
func unjudged(d *remit.Decision) Unknown {
	for _, r := range d.Reasons {
		if d.Policy == "" || isOutside(r) || r.Of == remit.OfStepUp || r.Code == remit.ReasonWorkflowChanged {
			return UnknownRecord + Unknown(": "+string(r.Code))
		}
	}
	if d.Policy == "" {
		return UnknownRecord
	}
	return ""
}

// replay is one recorded decision that plans are asked about.
type replay struct {
	d, parent *remit.Decision
	found     []remit.Found // as recorded; after asFound with their needs
	moved     map[string]bool
	asked     []fact     // what the old plan wanted to know of earlier results
	filled    remit.Args // without what the old permission may have filled in; nil: it can have filled in nothing
	missing   bool       // see knownSince
}

type facts func(m *remit.Match, needs []remit.Need, more bool) ([]remit.Found, error)

// ask judges the request by a plan as the line does.
func (r *replay) ask(ctx context.Context, p *Plan, args remit.Args, digest remit.Digest, from func(remit.RunID, string, string, remit.Value) bool, find facts) (Answer, error) {
	q := *p
	if p.rules != nil { // nobody waits for the answer, and a busy processor is no reason to leave it open
		patient := *p.rules
		patient.within = 50 * ruleTime
		q.rules = &patient
	}
	q.cfg.From = from
	q.cfg.Parent = func(id remit.DecisionID) (remit.Decision, bool) {
		if r.parent == nil || r.parent.ID != id {
			return remit.Decision{}, false
		}
		return *r.parent, true
	}
	req, run, err := r.request(args, digest)
	if err != nil {
		return Answer{}, err
	}
	r.missing = false
	m := q.Match(&req, &run)
	if r.missing {
		return Answer{}, UnknownReturned
	}
	out := Answer{Permission: m.Ref, Scope: m.Args, Reasons: reasonNames(m.Reasons)}
	if m.Permission == nil {
		return out, nil
	}
	found, err := find(&m, m.Needs, false)
	if err != nil {
		return out, err
	}
	j := q.Judge(ctx, &req, &run, &m, found)
	if j.Effect == remit.Hold && len(j.Asks) > 0 {
		m.Needs = slices.Concat(m.Needs, j.Asks)
		if found, err = find(&m, m.Needs, true); err != nil {
			return out, err
		}
		j = q.Judge(ctx, &req, &run, &m, found)
	}
	out.Effect, out.Reasons, out.TTL, out.Until, out.Limits, out.Obligations = j.Effect, reasonNames(j.Reasons), j.TTL, j.Until, j.Limits, j.Obligations
	if slices.ContainsFunc(j.Reasons, func(f remit.Reason) bool { return f.Of == "rules.fault" }) {
		return out, Unknown("an organisation's rule failed")
	}
	for _, name := range slices.Sorted(maps.Keys(j.Limits)) {
		_, held := r.d.Limits[name] // whoever was to carry out the act held it to this limit, since it was allowed
		if held = held && r.d.Effect == remit.Allow && j.Limits[name] > 0; !held && req.Via != "authzen" && out.Effect == remit.Allow {
			out.Effect, out.TTL, out.Until, out.Reasons = remit.Deny, 0, time.Time{}, []string{string(remit.ReasonObligation) + " of limits." + name}
		}
	}
	return out, nil
}

// request restores what was asked.
func (r *replay) request(args remit.Args, digest remit.Digest) (remit.Request, remit.Run, error) {
	d := r.d
	req, run := asked(d)
	req.Args, req.Via, req.Fill = args, d.Via, d.Via == "token" && d.Asked != ""
	run.Digest = digest
	for level := remit.LevelNone; level <= remit.LevelNode; level++ {
		if level.String() == d.Level {
			req.Caller.Level = level
		}
	}
	var err error
	if name, bad := remit.ParseName(d.Caller); bad == nil {
		req.Caller.Person = name
	} else {
		req.Caller.ID, err = spiffeid.FromString(d.Caller)
	}
	if err != nil {
		return req, run, fmt.Errorf("decision %s: its caller: %w", d.ID, err)
	}
	return req, run, nil
}

// known answers the old plan from the record, and remembers what it asked.
func (r *replay) known(_ remit.RunID, permission, path string, v remit.Value) bool {
	r.asked = append(r.asked, fact{remit.FromFact{Permission: permission, Path: path}, v})
	return r.returned(permission, path, v)
}

func (r *replay) returned(permission, path string, v remit.Value) bool {
	return slices.ContainsFunc(factsOf(r.d), func(f fact) bool { return f.Permission == permission && f.Path == path && f.value.Equal(v) })
}

// knownSince answers the new plan: what the old one did not ask is not known.
func (r *replay) knownSince(_ remit.RunID, permission, path string, v remit.Value) bool {
	if r.returned(permission, path, v) {
		return true
	}
	if !slices.ContainsFunc(r.asked, func(f fact) bool { return f.Permission == permission && f.Path == path && f.value.Equal(v) }) {
		r.missing = true
	}
	return false
}

// asFound gives the recorded facts their needs, which are the old plan's.
func (r *replay) asFound(m *remit.Match, needs []remit.Need, more bool) ([]remit.Found, error) {
	if len(r.found) < len(needs) {
		return nil, UnknownReproduced
	}
	for i := range needs {
		r.found[i].Need = needs[i]
	}
	if more {
		return r.found, nil
	}
	r.filled = r.unfilled(m)
	return slices.Clone(r.found[:len(needs)]), nil
}

// unfilled are the arguments without those that have the only value that the permission admits. The caller may have left them out.
func (r *replay) unfilled(m *remit.Match) remit.Args {
	if r.d.Via != "token" || r.d.Asked == "" {
		return nil
	}
	s := scope{params: r.d.Params, from: factsOf(r.d)}
	if r.parent != nil {
		s.inside, s.call = true, r.parent.Args
	}
	var out remit.Args
	for name := range m.Permission.Where {
		is := m.Permission.Where[name]
		if v, ok := s.only(&is); ok && v.Equal(r.d.Args[name]) {
			if out == nil {
				out = maps.Clone(r.d.Args)
			}
			delete(out, name)
		}
	}
	return out
}

// refound answers the new plan's needs with the facts of the record. Nobody was asked for an approval that was not needed then, so it
// is missing; a fact that nobody looked for is unknown.
func (r *replay) refound(m *remit.Match, needs []remit.Need, _ bool) ([]remit.Found, error) {
	out := make([]remit.Found, len(needs))
	for i := range needs {
		n := &needs[i]
		out[i].Need = *n
		old := r.like(n)
		samePermission := m.Ref == r.d.Permission
		switch {
		case n.Kind == remit.EvidenceApproval && (old == nil || !samePermission):
			out[i].Reason = missingApproval(n)
		case n.Kind == remit.EvidenceApproval:
			out[i].Evidence, out[i].Reason = old.Evidence, old.Reason
		case old == nil || r.moved[n.Source]:
			return nil, Unknown("evidence that nobody looked for, or of a source that changed: " + string(n.Kind) + " by " + n.Source)
		default:
			out[i].Evidence, out[i].Reason = old.Evidence, old.Reason
		}
	}
	return out, nil
}

func missingApproval(n *remit.Need) *remit.Reason {
	if n.Source == remit.SourceRule {
		return &remit.Reason{Code: remit.ReasonApproval, Of: askedByRule}
	}
	return nil
}

// like finds what was found for the same need, or a fact that serves this one as well. A fact about the same thing that is judged more
// or less strictly is that fact still.
func (r *replay) like(n *remit.Need) *remit.Found {
	for i := range r.found {
		f := &r.found[i]
		if reflect.DeepEqual(f.Need, *n) {
			return f
		}
	}
	for i := range r.found {
		f := &r.found[i]
		if f.Evidence == nil || f.Need.Kind != n.Kind || f.Need.Source != n.Source {
			continue
		}
		same := f.Need
		same.Worst, same.Within = n.Worst, n.Within
		strict := n.Kind != remit.EvidenceApproval && reflect.DeepEqual(same, *n)
		if strict || len(lacks(n, &remit.Found{Need: *n, Evidence: f.Evidence}, r.d.At)) == 0 {
			return f
		}
	}
	return nil
}

func onlySandbox(obligations []string) bool {
	return !slices.ContainsFunc(obligations, func(o string) bool { return !strings.HasPrefix(o, "sandbox=") })
}

// Permissions lists the plan's, in the order of workflows and files.
func (p *Plan) Permissions() (out []remit.PermissionRef) {
	for i := range p.cfg.Workflows {
		for _, c := range p.inOrder(p.cfg.Workflows[i].Name) {
			out = append(out, c.ref)
		}
	}
	return out
}
