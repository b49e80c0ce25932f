// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"remit"
)

// leeway is how far a source's clock may run ahead of ours.
const leeway = time.Minute

// Judge weighs what was found for m.Needs, then lets the organisation's rules narrow the answer. Everything that is not as
// it must be denies; the answer is Hold only when nothing but people's approval is missing. Any fault denies.
func (p *Plan) Judge(ctx context.Context, req *remit.Request, run *remit.Run, m *remit.Match, found []remit.Found) (j remit.Judgement) {
	defer func() {
		if r := recover(); r != nil {
			j = deny(remit.Reason{Code: remit.ReasonFault, Of: "policy", Got: fmt.Sprint(r)})
		}
	}()
	if m.Permission == nil {
		return deny(append(slices.Clone(m.Reasons), remit.Reason{Code: remit.ReasonNoPermission})...)
	}
	//remit:guard S32 TestJudgeFields
	if m.Policy != p.cfg.Digest || len(found) != len(m.Needs) || req.TTL < 0 {
		return deny(remit.Reason{Code: remit.ReasonFault, Of: "policy", Got: "the match, its evidence or the asked ttl does not belong here"})
	}
	reasons := p.weigh(req, m, found)
	//remit:guard S14 TestJudge
	if slices.ContainsFunc(reasons, func(r remit.Reason) bool { return r.Code != remit.ReasonApproval }) {
		return deny(reasons...)
	}
	var given ruling
	if p.rules != nil {
		given = p.rules.eval(ctx, p.ruleInput(req, run, m, own(found)))
		given.narrow(p.rules, req, m)
		given.askPeople(found, req.At)
		if len(given.denied) > 0 {
			return deny(append(reasons, given.denied...)...)
		}
	}
	if reasons = append(reasons, given.held...); len(reasons) > 0 {
		return remit.Judgement{Effect: remit.Hold, Reasons: reasons, Asks: given.asks}
	}
	return remit.Judgement{Effect: remit.Allow, TTL: ttl(req, m, found, &given), Until: until(req, m, found), Limits: limits(m, &given), Obligations: obligations(m, &given)}
}

func deny(reasons ...remit.Reason) remit.Judgement { return remit.Judgement{Reasons: reasons} }

// weigh lists what the evidence, the sandbox and the caller's attestation lack.
func (p *Plan) weigh(req *remit.Request, m *remit.Match, found []remit.Found) []remit.Reason {
	var reasons []remit.Reason
	for i := range own(found) {
		reasons = append(reasons, lacks(&m.Needs[i], &found[i], req.At)...)
	}
	//remit:guard S27 TestTier
	if least := remit.Tier(m.Permission.Sandbox); !req.Sandbox.AtLeast(least) {
		reasons = append(reasons, remit.Reason{Code: remit.ReasonLevel, Of: "sandbox", Want: string(least), Got: cmp.Or(string(req.Sandbox), "none that Remit knows")})
	}
	//remit:guard S3 TestProductionTakesLaunched
	if p.production[m.Permission.Target] && req.Caller.Level < remit.LevelLaunched {
		reasons = append(reasons, remit.Reason{Code: remit.ReasonLevel, Of: "caller", Want: remit.LevelLaunched.String(), Got: req.Caller.Level.String()})
	}
	return reasons
}

// lackReason is why there is no fact, or nil when there is one. Only a missing approval may be called approval_needed.
func lackReason(need *remit.Need, f *remit.Found) *remit.Reason {
	if f.Evidence != nil {
		return nil
	}
	of := "evidence." + string(need.Kind)
	switch {
	case f.Reason == nil && need.Kind == remit.EvidenceApproval:
		return &remit.Reason{Code: remit.ReasonApproval, Of: of}
	case f.Reason == nil:
		return &remit.Reason{Code: remit.ReasonEvidenceMissing, Of: of, Want: describeNeed(need)}
	case f.Reason.Code == remit.ReasonApproval && need.Kind != remit.EvidenceApproval:
		return &remit.Reason{Code: remit.ReasonFault, Of: of, Got: "a source asked for an approval"}
	}
	r := *f.Reason
	if r.Want == "" {
		r.Want = describeNeed(need)
	}
	if r.Of == "" {
		r.Of = of
	}
	return &r
}

// lacks holds a fact against what is needed. A source's answer is not trusted to be the one that was asked for.
func lacks(need *remit.Need, f *remit.Found, at time.Time) []remit.Reason {
	if r := lackReason(need, f); r != nil {
		return []remit.Reason{*r}
	}
	e := f.Evidence
	var out []remit.Reason
	lack := func(code remit.ReasonCode, want, got string) {
		out = append(out, remit.Reason{Code: code, Of: "evidence." + string(need.Kind), Want: clip(want), Got: clip(got)})
	}
	//remit:guard S14 TestJudge
	if e.Kind != need.Kind || need.Kind != remit.EvidenceApproval && e.Source != need.Source {
		lack(remit.ReasonFault, string(need.Kind)+" of "+need.Source, string(e.Kind)+" of "+e.Source)
	}
	//remit:guard S14 TestJudge
	if e.Superseded != "" {
		lack(remit.ReasonSuperseded, "the newest statement", "superseded by "+string(e.Superseded))
	}
	//remit:guard S14 TestJudge
	if need.ID != "" && e.Name != need.ID {
		lack(remit.ReasonEvidenceField, "id = "+need.ID, "id = "+e.Name)
	}
	//remit:guard S14 TestJudge
	if d := need.Of.Digest; d != "" && !e.About(d) {
		lack(remit.ReasonEvidenceSubject, string(d), fmt.Sprint(e.Subjects))
	}
	//remit:guard S14 TestJudge
	if want, got := stale(need, e, at); want != "" {
		lack(remit.ReasonEvidenceStale, want, got)
	}
	//remit:guard S14 TestJudge
	if need.Worst != remit.SeverityUnset && (e.Worst == remit.SeverityUnset || e.Worst > need.Worst) {
		lack(remit.ReasonEvidenceSeverity, "at worst "+need.Worst.String(), "worst "+e.Worst.String())
	}
	for name, want := range need.Match {
		//remit:guard S14 TestJudgeFields
		if got, ok := e.Fields[name]; !ok || got != want {
			lack(remit.ReasonEvidenceField, name+" = "+want, name+" = "+got)
		}
	}
	if len(out) > 1 { // one order for the same reasons
		slices.SortStableFunc(out, func(a, b remit.Reason) int { return cmp.Or(cmp.Compare(a.Code, b.Code), cmp.Compare(a.Want, b.Want)) })
	}
	return out
}

// stale says what is wrong with the fact's times, or nothing. A fact that does not say when it was made is stale.
func stale(need *remit.Need, e *remit.Evidence, at time.Time) (want, got string) {
	switch {
	//remit:guard S14 TestJudgeFields
	case e.Made.IsZero():
		return "a fact with its time", "no time"
	//remit:guard S14 TestJudge
	case e.Made.After(at.Add(leeway)):
		return "made by " + stamp(at), "made " + stamp(e.Made)
	//remit:guard S12 TestJudge
	case need.Within > 0 && at.Sub(e.Made) > need.Within:
		return "at most " + need.Within.String() + " old", "made " + stamp(e.Made)
	//remit:guard S12 TestJudge
	case !e.Until.IsZero() && !at.Before(e.Until):
		return "valid at " + stamp(at), "ended " + stamp(e.Until)
	}
	return "", ""
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// ttl is the least of what was asked, what the permission and the rules give, and how long each fact lasts. It is above
// zero: weigh denied facts that have ended.
func ttl(req *remit.Request, m *remit.Match, found []remit.Found, given *ruling) time.Duration {
	least := m.Permission.TTL
	if least == 0 {
		least = DefaultTTL
	}
	for _, d := range []time.Duration{req.TTL, given.ttl} {
		if d > 0 {
			least = min(least, d)
		}
	}
	for i := range found {
		//remit:guard S12 TestTTL
		if e := found[i].Evidence; e != nil && !e.Until.IsZero() {
			least = min(least, e.Until.Sub(req.At))
		}
	}
	return least
}

// until is when the answer stops being true by itself, beside what ttl says: when the window closes, and when the first fact or
// approval is older than it may be (S12). Zero: never.
func until(req *remit.Request, m *remit.Match, found []remit.Found) (end time.Time) {
	//remit:guard S12 TestUntil
	if h := m.Permission.Hours; h != nil {
		end = closes(h, req.At)
	}
	for i := range found {
		//remit:guard S12 TestUntil
		if within := m.Needs[i].Within; within > 0 && found[i].Evidence != nil {
			if old := found[i].Evidence.Made.Add(within); end.IsZero() || old.Before(end) {
				end = old
			}
		}
	}
	return end
}

// closes is the end of the window that is open at the time given.
func closes(h *remit.Hours, at time.Time) time.Time {
	local := at.In(h.Zone)
	year, month, day := local.Date()
	if h.From > h.To && local.Hour()*60+local.Minute() >= h.From { // over midnight, and it is still the first day
		day++
	}
	return time.Date(year, month, day, 0, h.To, 0, 0, h.Zone)
}

func limits(m *remit.Match, given *ruling) map[string]int64 {
	if given.rows == nil {
		return m.Permission.Limits
	}
	out := map[string]int64{"rows": *given.rows}
	for name, n := range m.Permission.Limits {
		if name == "rows" {
			n = min(n, *given.rows)
		}
		out[name] = n
	}
	return out
}

// obligations are what the enforcement point must see to: the sandbox tier, and what rules added.
func obligations(m *remit.Match, given *ruling) []string {
	out := slices.Clone(given.obligations)
	tier := max(slices.Index(tiers(), m.Permission.Sandbox), slices.Index(tiers(), given.tier))
	if tier > 0 { // remote asks for nothing
		out = append(out, "sandbox="+tiers()[tier])
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// own are the facts that the permission needs, without those that a rule asked for: a rule sees the same whoever approved.
func own(found []remit.Found) []remit.Found {
	for i := range found {
		if ofRule(&found[i]) {
			return found[:i]
		}
	}
	return found
}

// askPeople finds the approvals that a hold of rules waits for. One that names nobody who could approve is a denial; with all of them
// there it holds nothing any more.
func (g *ruling) askPeople(found []remit.Found, at time.Time) {
	if len(g.held) == 0 {
		return
	}
	//remit:guard S39 TestRulesNarrow
	if len(g.approvers) == 0 {
		g.denied, g.held = append(g.denied, g.held...), nil
		return
	}
	missing := false
	for _, group := range g.approvers {
		n := ruleNeed(group)
		i := slices.IndexFunc(found, func(f remit.Found) bool { return ofRule(&f) && f.Need.Match["group"] == group })
		if i < 0 {
			g.asks = append(g.asks, n)
		}
		missing = missing || i < 0 || len(lacks(&n, &found[i], at)) > 0
	}
	//remit:guard S39 TestHoldOfARule
	if !missing {
		g.held = nil
	}
}

// narrow turns what rules say about columns and sandbox into denials of requests that do not keep to it.
func (g *ruling) narrow(r *rules, req *remit.Request, m *remit.Match) {
	if g.columns != nil && !within(m.Args["columns"], g.columns) {
		g.deny(r, "columns", "of ["+strings.Join(g.columns, ", ")+"]", m.Args["columns"].String())
	}
	//remit:guard S27 TestTier
	if !req.Sandbox.AtLeast(remit.Tier(g.tier)) {
		g.deny(r, "tier", g.tier, cmp.Or(string(req.Sandbox), "none that Remit knows"))
	}
}

// within reports whether v is one of names, or a list that is not empty of nothing else.
func within(v remit.Value, names []string) bool {
	of := func(e remit.Value) bool { return e.Kind() == remit.String && slices.Contains(names, e.Text()) }
	if v.Kind() != remit.List {
		return of(v)
	}
	return len(v.Elements()) > 0 && !slices.ContainsFunc(v.Elements(), func(e remit.Value) bool { return !of(e) })
}

// describeNeed says what was looked for.
func describeNeed(n *remit.Need) string {
	text := string(n.Kind)
	if n.ID != "" {
		text += " " + n.ID
	}
	if n.Of.Digest != "" {
		text += " of " + n.Of.String()
	}
	return clip(text + " by " + n.Source)
}
