// SPDX-License-Identifier: Apache-2.0

// Package behaviour folds the ledger into findings: hard rules about what entries say of an agent, and baselines of what agents do. It is pure: entries in, findings
// out. It reads no clock, keeps no state but its own, which is bounded, and starts no goroutine; who feeds it the same entries gets
// the same findings. What is done about a finding is the server's.
//
// A finding is held against an agent only for what a verified caller did itself, or for what a target let through (S36): a rejected
// credential, and a subject that somebody else merely named, are no evidence.
package behaviour

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"remit"
)

// Config are the rules' settings. The zero value of each part switches that rule off.
type Config struct {
	Denials  int           // so many denials of one agent …
	Within   time.Duration // … in such a time are a burst
	Canaries []Canary
	// Outside reports whether a target is declared and no stage of the workflow has it, by the revision of that digest.
	Outside func(workflow, revision remit.Digest, target string) bool
	// Entry returns an entry with its payload: canary values are sealed in the ledger. Needed for canaries with a value.
	Entry func(seq uint64) (remit.Entry, bool)
	// Learn is how baselines are kept: by a Detector that holds no other rule, because reading for them takes long. Nil: none are.
	Learn *Learning
}

// Canary is what no honest work touches. All that is set must match.
type Canary struct {
	Name   string
	Agent  remit.Name // acts under credentials of this identity, which nobody has for work
	Target string
	Value  string // a text or number that an argument or act holds as a whole word; needs Target
}

// Bounds of the memory. What is beyond is forgotten, oldest first.
const (
	maxEnded  = 100_000 // leases that ended
	maxRaised = 10_000
	maxAgents = 100_000
	maxEvents = 20
)

// skew is how far a target's clock may be off before an act seems to come after its lease's end; quiet is how long what was raised
// is not raised again, unless somebody closed it or gave the agent its powers back.
const (
	skew  = time.Minute
	quiet = time.Hour
)

// Detector is the fold. It is not safe for concurrent use.
type Detector struct {
	cfg    Config
	bursts recent[remit.Name, *burst]
	ended  recent[remit.LeaseID, end]
	raised recent[subject, time.Time]
	base   *Baselines
	last   uint64 // number of the last entry
}

// subject is what one finding stands for until it is quiet no more.
type subject struct {
	kind   remit.FindingKind
	agent  remit.Name
	target string
}

type end struct {
	at  time.Time
	seq uint64
}

// New returns a Detector that has seen nothing.
func New(cfg Config) *Detector {
	d := &Detector{cfg: cfg, bursts: recent[remit.Name, *burst]{most: maxAgents}, ended: recent[remit.LeaseID, end]{most: maxEnded},
		raised: recent[subject, time.Time]{most: maxRaised}}
	if cfg.Learn != nil {
		d.base = NewBaselines(*cfg.Learn)
	}
	return d
}

// event is what the rules read of an entry.
type event struct {
	seq   uint64
	At    time.Time       `json:"at"`
	Kind  remit.EventKind `json:"kind"`
	Agent remit.Name      `json:"agent"`
	Run   remit.RunID     `json:"run"`
	Lease remit.LeaseID   `json:"lease"`
	Data  json.RawMessage `json:"data"`
}

// rules are the kinds of entries that matter, and what reads them.
var rules = map[remit.EventKind]func(*Detector, *event) []remit.Finding{
	remit.EventDecision:   (*Detector).decision,
	remit.EventFolded:     (*Detector).folded,
	remit.EventAction:     (*Detector).action,
	remit.EventFinding:    (*Detector).seen,
	remit.EventLeaseEnded: (*Detector).leaseEnded,
	remit.EventReinstated: (*Detector).reinstated,
	remit.EventClosed:     (*Detector).closed,
}

// answers are the kinds of entries by which people let what was raised be raised again.
var answers = map[remit.EventKind]func(*Detector, *event) []remit.Finding{
	remit.EventReinstated: (*Detector).reinstated,
	remit.EventClosed:     (*Detector).closed,
}

// Next takes the following entry of the ledger and returns what it completes. One that comes again, or late, is passed over.
func (d *Detector) Next(e remit.Entry) []remit.Finding {
	if e.Seq <= d.last {
		return nil
	}
	d.last = e.Seq
	if d.base == nil {
		return d.by(rules, e)
	}
	d.by(answers, e)
	return d.unusual(&e)
}

func (d *Detector) by(rules map[remit.EventKind]func(*Detector, *event) []remit.Finding, e remit.Entry) []remit.Finding {
	kind := KindOf(e.Body)
	rule := rules[kind]
	if rule == nil || kind == remit.EventDecision && len(d.cfg.Canaries) == 0 && allowed(e.Body) {
		return nil
	}
	v := event{seq: e.Seq}
	if json.Unmarshal(e.Body, &v) != nil { // the store wrote it: not here to judge
		return nil
	}
	return rule(d, &v)
}

// KindOf reads the kind without decoding: it stands third in every entry, and nothing before it holds a quote of somebody else's.
func KindOf(body []byte) remit.EventKind {
	const mark = `,"kind":"`
	i := bytes.Index(body, []byte(mark))
	if i < 0 {
		return ""
	}
	rest := body[i+len(mark):]
	return remit.EventKind(rest[:max(0, bytes.IndexByte(rest, '"'))])
}

// allowed reports whether a decision is an allow: its effect stands before all that a caller wrote.
func allowed(body []byte) bool {
	_, rest, _ := bytes.Cut(body, []byte(`,"effect":"`))
	return bytes.HasPrefix(rest, []byte(`allow"`))
}

// raise makes a finding of the events, unless it stands raised already.
func (d *Detector) raise(v *event, kind remit.FindingKind, severity remit.Severity, target, text string, earlier ...uint64) []remit.Finding {
	target = remit.Clip(target, 200)
	about := subject{kind, v.Agent, target}
	//remit:guard S36 TestOneFindingForAll
	if last, ok := d.raised.get(about); ok && v.At.Sub(last) < quiet && last.Sub(v.At) < quiet {
		return nil
	}
	d.raised.put(about, v.At)
	return []remit.Finding{{ID: remit.NewFindingID(kind, v.Agent, target, v.seq), Kind: kind, Severity: severity, Agent: v.Agent, Run: v.Run,
		Target: target, At: v.At, Events: append(earlier, v.seq), Text: text, State: remit.FindingOpen}}
}

// unproven are reasons of denials that say nothing about the agent that they name (S36).
var unproven = []remit.ReasonCode{remit.ReasonAsserted, remit.ReasonNotEnrolled, remit.ReasonUnknownAgent}

// decided is what the rules read of a decision: what stands in clear.
type decided struct {
	Effect  remit.Effect `json:"effect"`
	Reasons []struct {
		Code remit.ReasonCode `json:"code"`
		Of   string           `json:"of"`
	} `json:"reasons"`
	Via            string       `json:"via"`
	Action         string       `json:"action"`
	Target         string       `json:"target"`
	Policy         remit.Digest `json:"policy"`
	WorkflowDigest remit.Digest `json:"workflow_digest"`
}

func (d *Detector) decision(v *event) []remit.Finding {
	var dec decided
	if json.Unmarshal(v.Data, &dec) != nil {
		return nil
	}
	codes := dec.codes()
	//remit:guard S36 TestNamedByAnotherIsNoEvidence
	if v.Agent == "" || anyOf(codes, unproven) {
		return nil
	}
	//remit:guard S36 TestJudgingAgainIsNoEvidence
	if dec.Via == "recheck" { // Remit asked, not the agent: a policy or a ticket changed
		return nil
	}
	out := d.canary(v, dec.Target)
	if dec.Effect != remit.Deny {
		return out
	}
	for _, r := range dec.Reasons {
		if r.Code == remit.ReasonRunToken && r.Of == remit.OfAgent {
			out = append(out, d.raise(v, remit.FindingStolenToken, remit.SeverityCritical, "", fmt.Sprintf("%s showed a run token that was given to another agent", v.Agent))...)
		}
		if r.Code == remit.ReasonRunToken && r.Of == remit.OfHolder {
			out = append(out, d.raise(v, remit.FindingOtherHolder, remit.SeverityMedium, "", fmt.Sprintf("a run token of %s came from another workload than the one it is bound to", v.Agent))...)
		}
	}
	if slices.Contains(codes, remit.ReasonNoPermission) && d.cfg.Outside != nil && d.cfg.Outside(dec.WorkflowDigest, dec.Policy, dec.Target) {
		out = append(out, d.raise(v, remit.FindingOutsideWorkflow, remit.SeverityHigh, dec.Target,
			fmt.Sprintf("%s asked for %s at %s, which no stage of its run's workflow has", v.Agent, remit.Clip(dec.Action, 100), remit.Clip(dec.Target, 100)))...)
	}
	return append(out, d.denied(v, codes, 1)...)
}

func (dec *decided) codes() []remit.ReasonCode {
	var out []remit.ReasonCode
	for _, r := range dec.Reasons {
		out = append(out, r.Code)
	}
	return out
}

func anyOf(codes, of []remit.ReasonCode) bool {
	return slices.ContainsFunc(codes, func(c remit.ReasonCode) bool { return slices.Contains(of, c) })
}

// action looks for acts after their lease's end, and for canaries.
func (d *Detector) action(v *event) []remit.Finding {
	var act struct {
		Target    string `json:"target"`
		Allowed   bool   `json:"allowed"`
		Effective bool   `json:"effective"`
	}
	if json.Unmarshal(v.Data, &act) != nil {
		return nil
	}
	out := d.canary(v, act.Target)
	e, ok := d.ended.get(v.Lease)
	//remit:guard S36 TestRejectedActIsNoEvidence
	if !act.Allowed || !act.Effective {
		return out
	}
	if ok && v.At.Sub(e.at) > skew {
		out = append(out, d.raise(v, remit.FindingActWithoutGrant, remit.SeverityCritical, act.Target,
			fmt.Sprintf("%s let an act of %s through %s after its lease had ended", act.Target, v.Agent, v.At.Sub(e.at).Round(time.Second)), e.seq)...)
	}
	return out
}

// canary compares a decision or an act with every canary.
func (d *Detector) canary(v *event, target string) (out []remit.Finding) {
	for i := range d.cfg.Canaries {
		c := &d.cfg.Canaries[i]
		if c.Agent != "" && (c.Agent != v.Agent || v.Kind != remit.EventAction) || c.Target != "" && c.Target != target {
			continue
		}
		if c.Value != "" {
			if e, ok := d.cfg.Entry(v.seq); !ok || !e.Mentions(c.Value) {
				continue
			}
		}
		out = append(out, d.raise(v, remit.FindingCanary, remit.SeverityCritical, "canary "+c.Name, fmt.Sprintf("%s touched the canary %s", v.Agent, c.Name))...)
	}
	return out
}

// seen takes up what a part of the line saw itself.
func (d *Detector) seen(v *event) []remit.Finding {
	var f struct {
		Finding remit.FindingKind `json:"finding"`
		Why     string            `json:"why"`
		Act     struct {
			Target  string `json:"target"`
			Verb    string `json:"verb"`
			Allowed bool   `json:"allowed"`
			Source  string `json:"source"`
		} `json:"act"`
	}
	if json.Unmarshal(v.Data, &f) != nil {
		return nil
	}
	switch f.Finding {
	case remit.FindingActWithoutGrant:
		severity, how := remit.SeverityCritical, "let it through"
		if !f.Act.Allowed {
			severity, how = remit.SeverityMedium, "refused it"
		}
		return d.raise(v, f.Finding, severity, f.Act.Target, fmt.Sprintf("an identity that looks like one of Remit's did %s at %s, which %s; no lease is known for it (%s)",
			remit.Clip(f.Act.Verb, 100), f.Act.Target, how, f.Act.Source))
	case remit.FindingSecondOpinion:
		return d.raise(v, f.Finding, remit.SeverityHigh, "", "the plan and the printed policy judge a decision differently; its grant was ended")
	case remit.FindingNoOpinion:
		return d.raise(v, f.Finding, remit.SeverityLow, "", "the printed policy gave no second opinion on a decision")
	case remit.FindingConfiguration:
		return d.raise(v, f.Finding, remit.SeverityMedium, "", "a configuration was refused: "+remit.Clip(f.Why, 100))
	}
	return nil
}

func (d *Detector) leaseEnded(v *event) []remit.Finding {
	d.ended.put(v.Lease, end{v.At, v.seq})
	return nil
}

// reinstated and closed let what was raised be raised again.
func (d *Detector) reinstated(v *event) []remit.Finding {
	d.raised.drop(func(s subject) bool { return s.agent == v.Agent })
	d.bursts.drop(func(n remit.Name) bool { return n == v.Agent })
	return nil
}

func (d *Detector) closed(v *event) []remit.Finding {
	var f struct {
		Kind   remit.FindingKind `json:"kind"`
		Target string            `json:"target"`
	}
	if json.Unmarshal(v.Data, &f) == nil {
		d.raised.drop(func(s subject) bool { return s == subject{f.Kind, v.Agent, f.Target} })
	}
	return nil
}
