// SPDX-License-Identifier: Apache-2.0

package config

import (
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"remit"
)

// Findings say what is odd, and what is done about it.
type Findings struct {
	Respond map[remit.FindingKind]remit.Response // of the kinds that can be responded to, all
	// Denials within Within are a burst.
	Denials int
	Within  time.Duration
	// Suspensions is how many agents may be suspended by Remit itself within an hour; beyond, people have to (S36).
	Suspensions int
	Canaries    []Canary
	Baselines   Baselines
	StepUp      string // the group of whom one approves what an agent is given after a step-up
	Throttle    int    // how much an agent is given an hour after a throttle
}

// Baselines say how unusual behaviour is found; Budget 0: not at all.
type Baselines struct {
	Budget        float64 // findings that an agent may cost in a week of honest work
	Shadow, Alert time.Duration
}

// Canary is something that no honest work touches; all that is set must match.
type Canary struct {
	Name   string
	Agent  remit.Name
	Target string
	Value  string
}

type findingsFile struct {
	Respond     *respondFile   `yaml:"respond" doc:"What is done about a finding by itself: notice (it is listed), step-up (a person approves what the agent is given next), throttle (it is given little an hour), suspend (all powers of the agent end) or kill (and its launched processes)."`
	Denials     *denialsFile   `yaml:"denials" doc:"How many denials of one agent are a burst. Left out: 30 in 1m."`
	Suspensions *int32         `yaml:"suspensions_an_hour" doc:"How many agents Remit may suspend by itself within an hour, in the whole installation; beyond that it only tells. Left out: 3; 0: none."`
	Baselines   *baselinesFile `yaml:"baselines" doc:"How what is unlike before is found."`
	StepUp      word           `yaml:"step_up" is:"text" doc:"The group of people of whom one has to approve, after step-up. Needed where respond says step-up."`
	Throttle    *int32         `yaml:"throttle" doc:"How many requests of an agent are allowed within an hour, after throttle, 1 to 3600; the others are denied. Left out: 60."`
	Canaries    []canaryFile   `yaml:"canaries" doc:"What no honest work touches. Left out: nothing."`
}

type respondFile struct {
	ActWithoutGrant     word `yaml:"act_without_grant" is:"response" doc:"A target's audit log tells of an act that no live grant stands behind. Left out: suspend."`
	CanaryTouched       word `yaml:"canary_touched" is:"response" doc:"Left out: suspend."`
	CredentialOfAnother word `yaml:"credential_of_another" is:"response" doc:"An agent shows a run token that was given to another one. Left out: suspend."`
	CredentialElsewhere word `yaml:"credential_elsewhere" is:"response" doc:"A run token comes from another workload than it is bound to, as a renewed certificate does, too. Left out: notice."`
	ToolOutsideWorkflow word `yaml:"tool_outside_workflow" is:"response" doc:"An agent asks for a target that no stage of its run's workflow has. Left out: notice."`
	DenialBurst         word `yaml:"denial_burst" is:"response" doc:"Left out: notice."`
	UnusualBehaviour    word `yaml:"unusual_behaviour" is:"response" doc:"An agent does what neither it nor others of its workflow did before. Left out: notice."`
}

type baselinesFile struct {
	Budget *number `yaml:"findings_an_agent_week" doc:"The budget of false alarms: how many such findings an agent may cost in a week of honest work, 0.001 to 1; the threshold follows from it. Left out: 0.05; 0: no baselines are kept."`
	Shadow span    `yaml:"shadow" doc:"How long an agent's baseline only learns, 24h to 2160h. Left out: 168h."`
	Alert  span    `yaml:"alert" doc:"How long after that its findings are only told, whatever respond says; at most 2160h. Left out: 336h."`
}

type denialsFile struct {
	Count  *int32 `yaml:"count" need:"yes" doc:"So many, 2 to 1000."`
	Within span   `yaml:"within" need:"yes" doc:"In such a time, at most 1h."`
}

type canaryFile struct {
	Name   word `yaml:"name" need:"yes" is:"label" doc:"How findings name it."`
	Agent  word `yaml:"agent" is:"actor" doc:"An identity whose credentials are planted: any act under one."`
	Target word `yaml:"target" is:"aim" doc:"Any request for it, and any act there."`
	Value  word `yaml:"value" is:"text" doc:"Of those only the ones with this text or number, as a whole word, in an argument or in what was done. Needs target."`
}

// respondTo are the kinds that can be held against an agent, with what is done by default: only hard evidence suspends.
func respondTo(f *respondFile) map[remit.FindingKind]struct {
	w   word
	def remit.Response
} {
	if f == nil {
		f = &respondFile{}
	}
	return map[remit.FindingKind]struct {
		w   word
		def remit.Response
	}{
		remit.FindingActWithoutGrant: {f.ActWithoutGrant, remit.RespondSuspend},
		remit.FindingCanary:          {f.CanaryTouched, remit.RespondSuspend},
		remit.FindingStolenToken:     {f.CredentialOfAnother, remit.RespondSuspend},
		remit.FindingOtherHolder:     {f.CredentialElsewhere, remit.RespondNotice},
		remit.FindingOutsideWorkflow: {f.ToolOutsideWorkflow, remit.RespondNotice},
		remit.FindingDenialBurst:     {f.DenialBurst, remit.RespondNotice},
		remit.FindingUnusual:         {f.UnusualBehaviour, remit.RespondNotice},
	}
}

func (f *serverFile) findings(s *ServerConfig, name string, out *problems) {
	in := f.Findings
	if in == nil {
		in = &findingsFile{}
	}
	s.Findings = Findings{Respond: map[remit.FindingKind]remit.Response{}, Denials: 30, Within: time.Minute, Suspensions: 3}
	kinds := respondTo(in.Respond)
	for _, kind := range slices.Sorted(maps.Keys(kinds)) {
		k := kinds[kind]
		r := k.def
		if k.w.s != "" {
			if err := r.UnmarshalText([]byte(k.w.s)); err != nil {
				out.add(name, k.w.line, "findings: respond: %s: %v", kind, err)
			}
		}
		if r == remit.RespondStepUp && in.StepUp.s == "" {
			out.add(name, k.w.line, "findings: respond: %s: step-up needs a group that approves: write step_up", kind)
		}
		s.Findings.Respond[kind] = r
	}
	if d := in.Denials; d != nil {
		s.Findings.Denials, s.Findings.Within = int(*d.Count), d.Within.or(time.Minute, time.Hour, name, "findings: denials: within", out)
		if *d.Count < 2 || *d.Count > 1000 {
			out.add(name, d.Within.line, "findings: denials: count: %d: write 2 to 1000", *d.Count)
		}
	}
	if n := in.Suspensions; n != nil {
		if s.Findings.Suspensions = int(*n); *n < 0 || *n > 1000 {
			out.add(name, f.TrustDomain.line, "findings: suspensions_an_hour: %d: write 0 to 1000", *n)
		}
	}
	s.Findings.StepUp, s.Findings.Throttle = in.StepUp.s, 60
	if n := in.Throttle; n != nil {
		if s.Findings.Throttle = int(*n); *n < 1 || *n > 3600 {
			out.add(name, f.TrustDomain.line, "findings: throttle: %d: write 1 to 3600", *n)
		}
	}
	s.Findings.Baselines = in.Baselines.baselines(name, out)
	s.Findings.Canaries = canaries(in.Canaries, name, out)
}

func (in *baselinesFile) baselines(name string, out *problems) Baselines {
	const day = 24 * time.Hour
	if in == nil {
		in = &baselinesFile{}
	}
	b := Baselines{Budget: 0.05, Shadow: in.Shadow.or(7*day, 90*day, name, "findings: baselines: shadow", out),
		Alert: in.Alert.or(14*day, 90*day, name, "findings: baselines: alert", out)}
	if b.Shadow < day {
		out.add(name, in.Shadow.line, "findings: baselines: shadow: %s: write 24h or more", b.Shadow)
	}
	if v := in.Budget.value(); v != nil {
		n, err := strconv.ParseFloat(v.Text(), 64)
		if b.Budget = n; err != nil || n != 0 && !(n >= 0.001 && n <= 1) {
			out.add(name, in.Budget.line, "findings: baselines: findings_an_agent_week: %s: write 0, or 0.001 to 1", v.Text())
		}
	}
	return b
}

func canaries(in []canaryFile, name string, out *problems) (list []Canary) {
	seen := map[string]bool{}
	for _, c := range in {
		switch {
		case seen[c.Name.s]:
			out.add(name, c.Name.line, "findings: canaries: %s stands twice", c.Name.s)
		case c.Agent.s == "" && c.Target.s == "":
			out.add(name, c.Name.line, "findings: canaries: %s says neither which agent nor which target: everything would touch it", c.Name.s)
		case c.Value.s != "" && c.Target.s == "":
			out.add(name, c.Name.line, "findings: canaries: %s has a value and no target: write where it is", c.Name.s)
		case strings.TrimSpace(c.Value.s) != c.Value.s:
			out.add(name, c.Name.line, "findings: canaries: %s: the value begins or ends with a space", c.Name.s)
		}
		seen[c.Name.s] = true
		list = append(list, Canary{c.Name.s, remit.Name(c.Agent.s), c.Target.s, c.Value.s})
	}
	if len(in) > 100 {
		out.add(name, in[0].Name.line, "findings: canaries: %d are more than 100: each is compared with every act", len(in))
	}
	return list
}
