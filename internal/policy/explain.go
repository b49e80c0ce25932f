// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"cmp"
	"fmt"
	"strings"

	"remit"
)

// Explanation says why a decision was as it was, and what would have to be true for an allow. It repeats Want and Got of
// reasons, so it is for people with a role (S30).
type Explanation struct {
	Decision   remit.DecisionID     `json:"decision"`
	Effect     remit.Effect         `json:"effect"`
	Permission *remit.PermissionRef `json:"permission,omitempty"` // the one that the request matched
	Nearest    *remit.PermissionRef `json:"nearest,omitempty"`    // when none matched: the one that came nearest
	Line       string               `json:"line,omitempty"`       // FILE:LINE of either
	Rules      []string             `json:"rules,omitempty"`      // the organisation's rules that denied, held or failed
	Evidence   []string             `json:"evidence,omitempty"`   // the facts that were found
	Missing    []string             `json:"missing,omitempty"`    // the evidence that is absent or does not serve
	Conditions []Condition          `json:"conditions,omitempty"` // each would have to become true
	// Elsewhere names stages of the workflow that permit this agent, action and target.
	Elsewhere []string `json:"elsewhere,omitempty"`
	Changed   bool     `json:"changed,omitempty"` // the plan is of another revision than the one that decided
	Text      string   `json:"text"`
}

// Condition is one reason and what it asks.
type Condition struct {
	remit.Reason
	Fix string `json:"fix"`
}

// Explain explains a recorded decision by the plan, best the one of the revision that decided.
func Explain(d *remit.Decision, p *Plan) Explanation {
	e := Explanation{Decision: d.ID, Effect: d.Effect, Changed: d.Policy != "" && d.Policy != p.cfg.Digest}
	for i := range d.Evidence {
		e.Evidence = append(e.Evidence, describeFact(&d.Evidence[i]))
	}
	reasons := d.Reasons
	c := p.find(d.Permission)
	switch {
	case c != nil:
		e.Permission, e.Line = &d.Permission, c.Line
	case d.Permission.Name == "":
		var more []remit.Reason
		if c, more = p.nearest(d); c != nil {
			e.Nearest, e.Line = &c.ref, c.Line
			reasons = append(reasons[:len(reasons):len(reasons)], more...)
		}
		e.Elsewhere = p.elsewhere(d)
	}
	for _, r := range reasons {
		e.Conditions = append(e.Conditions, Condition{r, fix(&r)})
		if r.Code == remit.ReasonRule {
			e.Rules = append(e.Rules, r.Of)
		}
		if r.Code != remit.ReasonArgument && strings.HasPrefix(r.Of, "evidence.") {
			e.Missing = append(e.Missing, r.Of)
		}
	}
	e.Text = e.text(d)
	return e
}

func (p *Plan) find(ref remit.PermissionRef) *permission {
	if w := p.workflows[ref.Workflow]; w != nil && w.stages[ref.Stage] != nil {
		for _, c := range w.stages[ref.Stage].all {
			if c.Name == ref.Name {
				return c
			}
		}
	}
	return nil
}

// nearest finds the permission of the run's stage that differs least, and for not_permitted how. The other reasons already
// are the differences of the nearest permission for the same agent, action and target.
func (p *Plan) nearest(d *remit.Decision) (best *permission, how []remit.Reason) {
	w := p.workflows[d.Permission.Workflow]
	if w == nil || w.stages[d.Permission.Stage] == nil {
		return nil, nil
	}
	req, run := asked(d)
	known := len(d.Reasons) != 1 || d.Reasons[0].Code != remit.ReasonNoPermission
	least := 1 << 30
	for _, c := range w.stages[d.Permission.Stage].all {
		other := c.others(d)
		if known && len(other) > 0 {
			continue
		}
		s := p.scope(c, &req, &run, factsOf(d))
		reasons := append(other, c.differences(&req, d.Args, &s)...)
		if distance := 1000*len(other) + len(reasons); distance < least {
			least, best, how = distance, c, reasons
		}
	}
	if known {
		how = nil
	}
	return best, how
}

// others lists in what c is about something else than d.
func (c *permission) others(d *remit.Decision) []remit.Reason {
	var out []remit.Reason
	for _, part := range []struct{ of, want, got string }{
		{"agent", string(c.Who), string(d.Agent)}, {"action", c.Action, d.Action}, {"target", c.Target, d.Target},
		{"permission", c.Name, d.Asked},
	} {
		if part.want != part.got && (part.of != "permission" || d.Asked != "") {
			out = append(out, remit.Reason{Code: remit.ReasonNoPermission, Of: part.of, Want: part.want, Got: clip(part.got)})
		}
	}
	return out
}

func (p *Plan) elsewhere(d *remit.Decision) []string {
	var out []string
	for i := range p.cfg.Workflows {
		w := &p.cfg.Workflows[i]
		for j := range w.Stages {
			s := p.workflows[w.Name].stages[w.Stages[j].Name]
			if w.Name == d.Permission.Workflow && w.Stages[j].Name != d.Permission.Stage && len(s.index[key{d.Agent, d.Action, d.Target}]) > 0 {
				out = append(out, w.Stages[j].Name)
			}
		}
	}
	return out
}

// asked restores what Match looked at from a recorded decision.
func asked(d *remit.Decision) (remit.Request, remit.Run) {
	return remit.Request{At: d.At, Agent: d.Agent, Action: d.Action, Target: d.Target, Args: d.Args, Permission: d.Asked, Under: d.Under, Sandbox: d.Sandbox, Run: d.Run, TTL: d.AskedTTL},
		remit.Run{ID: d.Run, Workflow: d.Permission.Workflow, Stage: d.Permission.Stage, Digest: d.WorkflowDigest, Params: d.Params}
}

func describeFact(e *remit.Evidence) string {
	s := fmt.Sprintf("%s %s by %s, made %s", e.Kind, e.Name, e.Source, stamp(e.Made))
	if e.Worst != remit.SeverityUnset {
		s += ", worst " + e.Worst.String()
	}
	return s
}

// fix says what would have to be true.
func fix(r *remit.Reason) string {
	switch r.Code {
	case remit.ReasonNoPermission:
		return "a permission of the stage would have to name this agent, action and target"
	case remit.ReasonArgument:
		return r.Of + " would have to be " + r.Want
	case remit.ReasonHours:
		return "the request would have to come inside " + r.Want
	case remit.ReasonUnder:
		return "the request would have to be made inside " + r.Want
	case remit.ReasonWorkflowChanged:
		return "a new run would have to be started: this one belongs to another form of the workflow"
	case remit.ReasonApproval:
		return "a person would have to approve"
	case remit.ReasonRule:
		return "the organisation's rule would have to let it pass: " + r.Of
	case remit.ReasonEvidenceMissing:
		return cmp.Or(r.Want, r.Of) + " would have to be there"
	case remit.ReasonEvidenceSource:
		return "the source of " + r.Of + " would have to answer in time"
	}
	if r.Want != "" {
		return r.Of + " would have to be: " + r.Want
	}
	return steps[r.Code]
}

// steps are what would have to be true where the reason itself does not say.
var steps = map[remit.ReasonCode]string{
	remit.ReasonSuspended:        "an operator would have to reinstate the agent: remit agent reinstate",
	remit.ReasonThrottled:        "the agent would have to wait, or an operator to reinstate it: remit agent reinstate",
	remit.ReasonHalted:           "an operator would have to confirm the clock: remit doctor says how",
	remit.ReasonUnknownAgent:     "the caller would have to be an agent that a file declares, known by its SPIFFE ID",
	remit.ReasonNotEnrolled:      "the caller would have to be an enforcement point whose file lists this action and trust domain",
	remit.ReasonAsserted:         "the subject would have to be proven by a token of its own, not named by the caller",
	remit.ReasonNoRun:            "the request would have to carry the token of a run: remit exec, or remit run token",
	remit.ReasonRunToken:         "the run token would have to be a valid one that is bound to this caller: remit run token makes it",
	remit.ReasonRunEnded:         "a run would have to be active: remit run start",
	remit.ReasonRunMismatch:      "the request would have to name the run and stage that its token stands for",
	remit.ReasonConflict:         "nothing may change between the decision and its use: ask again",
	remit.ReasonTarget:           "the target would have to be able to hold this grant: remit doctor TARGET says what is wrong",
	remit.ReasonFault:            "a fault of the server would have to be mended: its log has the cause; ask again",
	remit.ReasonLevel:            "the agent would have to be attested better: launched by remit exec, or in a sandbox",
	remit.ReasonHoldExpired:      "a person would have to answer in time: start a new run and ask again",
	remit.ReasonApprovalDenied:   "a person denied exactly this for as long as the run lives: remit approval show says who",
	remit.ReasonObligation:       "the enforcement point would have to carry out the obligation, or the rule not ask for it there",
	remit.ReasonLimit:            "less would have to be asked for, or later",
	remit.ReasonEvidenceInvalid:  "the statement would have to verify: signature, form and subject; add a good one with remit evidence add",
	remit.ReasonEvidenceSigner:   "a signer that the source lists would have to have signed",
	remit.ReasonEvidenceSubject:  "the evidence would have to be about this image",
	remit.ReasonEvidenceStale:    "newer evidence would have to be there",
	remit.ReasonEvidenceSeverity: "a scan without such findings would have to be there",
	remit.ReasonEvidenceField:    "the evidence would have to say what the permission asks for",
	remit.ReasonSuperseded:       "the newest statement of that signer would have to pass",
}

// oneLine keeps an agent's words on their line: a newline in them would begin one of ours (S39).
func oneLine(s string) string {
	//remit:guard S39 TestExplainedWordsStayOnTheirLine
	s = strings.Map(func(r rune) rune {
		if r < 0x20 || r >= 0x7f && r < 0xa0 || r == 0x2028 || r == 0x2029 {
			return '\uFFFD'
		}
		return r
	}, s)
	return s
}

func (e *Explanation) text(d *remit.Decision) string {
	var b strings.Builder
	word := map[remit.Effect]string{remit.Allow: "allowed", remit.Deny: "denied", remit.Hold: "held"}[e.Effect]
	fmt.Fprintf(&b, "%s %s: %s %s on %s, at %s\n", d.ID, word, d.Agent, oneLine(d.Action), oneLine(d.Target), stamp(d.At))
	name := func(label string, ref *remit.PermissionRef) {
		fmt.Fprintf(&b, "%s: %s of stage %s of workflow %s", label, ref.Name, ref.Stage, ref.Workflow)
		if e.Line != "" {
			fmt.Fprintf(&b, " (%s)", e.Line)
		}
		b.WriteString("\n")
	}
	if e.Permission != nil {
		name("permission", e.Permission)
	}
	if e.Nearest != nil {
		name("no permission holds; nearest", e.Nearest)
	}
	for _, f := range e.Evidence {
		fmt.Fprintf(&b, "found: %s\n", f)
	}
	for _, c := range e.Conditions {
		fmt.Fprintf(&b, "because: %s", c.Code)
		if c.Of != "" {
			fmt.Fprintf(&b, " (%s)", oneLine(c.Of))
		}
		if c.Got != "" {
			fmt.Fprintf(&b, ", got %s", oneLine(c.Got))
		}
		fmt.Fprintf(&b, "\n  %s\n", oneLine(c.Fix))
	}
	if len(e.Elsewhere) > 0 {
		fmt.Fprintf(&b, "permitted in: stage %s\n", strings.Join(e.Elsewhere, ", "))
	}
	if e.Effect == remit.Allow {
		fmt.Fprintf(&b, "for: %s\n", d.TTL)
	}
	if e.Changed {
		b.WriteString("note: the policy has changed since; this explains by the present one\n")
	}
	return b.String()
}
