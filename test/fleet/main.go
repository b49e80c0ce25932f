// SPDX-License-Identifier: Apache-2.0

// Command fleet plays some weeks of a made-up fleet of agents through the baselines, with attacks and with a change of all work in the
// middle, and prints how many findings honest agents cost beside the budget that was set, and which attacks were found. It judges
// plumbing and the control of false alarms, never how well real attacks are detected. See docs/evaluation.md.
package main

import (
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"time"

	"remit"
	"remit/internal/behaviour"
)

type options struct {
	seeds, first, agents int
	budget               float64
}

// Days of a simulation.
const (
	warm   = 28 // nothing is judged
	before = 28 // until the drift
	after  = 28
)

func main() {
	var o options
	flag.IntVar(&o.seeds, "seeds", 10, "how many worlds")
	flag.IntVar(&o.first, "first", 100, "seed of the first one; 1 to 99 were used while the detector was made")
	flag.IntVar(&o.agents, "agents", 60, "agents in each")
	flag.Float64Var(&o.budget, "budget", 0.05, "findings that an agent may cost in a week")
	flag.Parse()
	began := time.Now()
	var all result
	for i := range o.seeds {
		all.add(simulate(uint64(o.first+i), o)) //nolint:gosec // small
	}
	all.print(os.Stdout, o)
	fmt.Printf("\n%d entries in %s\n", all.entries, time.Since(began).Round(time.Second))
}

// detectors are what is compared: the first is what Remit ships; the others have a limit that was frozen at the end of the warm-up.
var detectors = []string{"baselines, the shipped limit", "baselines, frozen limit", "new arguments alone, frozen", "requests a day alone, frozen"}

// result is what came of some worlds.
type result struct {
	entries       int
	agentWeeks    [2]float64 // before and after the drift
	alarms        [4][2]int  // of honest agents, by detector
	tried, caught map[string][2]int
	actions       map[string][]int
}

// sim is one world on its way through the detectors.
type sim struct {
	result
	options
	w       *world
	base    *behaviour.Baselines
	seq     uint64
	days    [3]map[remit.Name]float64 // today's scores of the frozen detectors
	history [3][]float64              // of the warm-up
	limits  [3]float64
	attacks []*attack
	hit     map[remit.Name]int // until which day an agent's findings are an attack's
}

func simulate(seed uint64, o options) *result {
	l := behaviour.Learning{Budget: o.budget, Shadow: 7 * 24 * time.Hour, Alert: 14 * 24 * time.Hour}
	s := &sim{options: o, w: newWorld(seed, o.agents), base: behaviour.NewBaselines(l), hit: map[remit.Name]int{}}
	s.tried, s.caught, s.actions = map[string][2]int{}, map[string][2]int{}, map[string][]int{}
	start := time.Date(2026, 3, 2, 0, 0, 0, 0, time.UTC)
	for day := range warm + before + after {
		if day == warm+before {
			s.w.drift()
		}
		s.day(day, start.AddDate(0, 0, day))
	}
	for _, k := range s.attacks {
		p := s.period(k.first)
		n, c := s.tried[k.family], s.caught[k.family]
		n[p]++
		if k.alarm > 0 {
			c[p]++
			s.actions[k.family] = append(s.actions[k.family], k.alarm)
		}
		s.tried[k.family], s.caught[k.family] = n, c
	}
	return &s.result
}

func (s *sim) period(day int) int {
	if day >= warm+before {
		return 1
	}
	return 0
}

// day plays one day of all.
func (s *sim) day(day int, at time.Time) {
	for i := range s.days {
		s.days[i] = map[remit.Name]float64{}
	}
	var acts []act
	for _, a := range s.w.workers {
		acts = append(acts, s.w.day(a, at)...)
	}
	s.begin(day)
	for _, k := range s.attacks {
		if day < k.first || day >= k.first+k.days {
			continue
		}
		for _, f := range families {
			if f.name == k.family {
				more := f.do(s.w, k, at)
				for i := range more {
					more[i].attack = k
				}
				acts = append(acts, more...)
			}
		}
	}
	for _, a := range sorted(acts) {
		s.fold(&a, day)
	}
	s.close(day)
}

// begin starts a campaign every other day, against an agent that nobody attacks or did within two weeks.
func (s *sim) begin(day int) {
	if day < warm || day%2 == 1 || day%28 > 16 {
		return
	}
	f := families[len(s.attacks)%len(families)]
	for range 100 {
		a := s.w.workers[s.w.rand.IntN(len(s.w.workers))]
		if s.hit[a.name] == 0 {
			s.hit[a.name] = day + f.days + 14
			s.attacks = append(s.attacks, &attack{family: f.name, victim: a, first: day, days: f.days})
			return
		}
	}
}

// fold puts one act into the ledger.
func (s *sim) fold(a *act, day int) {
	s.seq++
	s.entries++
	e := entryOf(a, s.seq)
	if a.attack != nil {
		a.attack.acts++
	}
	scored, _ := s.base.Next(&e)
	s.days[0][a.agent.name] += scored.Score
	for _, f := range scored.Of {
		if f.Name == remit.FeatureValue {
			s.days[1][a.agent.name] += f.Score
		}
	}
	s.days[2][a.agent.name]++
	if scored.Found() {
		s.found(a.agent, day)
	}
}

func (s *sim) found(a *worker, day int) {
	for _, k := range s.attacks {
		if k.victim == a && day >= k.first && day <= k.first+k.days && k.alarm == 0 && k.acts > 0 {
			k.alarm = k.acts
			return
		}
	}
	if day >= warm && s.honest(a.name, day) {
		s.alarms[0][s.period(day)]++
	}
}

func (s *sim) honest(n remit.Name, day int) bool { return s.hit[n] == 0 || day > s.hit[n] }

// close counts the day for the frozen detectors.
func (s *sim) close(day int) {
	for i, days := range s.days {
		for _, a := range s.w.workers {
			n, worked := days[a.name]
			switch {
			case day < warm/2:
			case day < warm:
				if worked {
					s.history[i] = append(s.history[i], n)
				}
			case s.honest(a.name, day) && n > s.limits[i]:
				s.alarms[i+1][s.period(day)]++
			}
		}
		if day == warm-1 {
			h := s.history[i]
			slices.Sort(h)
			most := s.budget * float64(s.agents) * warm / 2 / 7
			s.limits[i] = h[max(0, len(h)-1-int(most))]
		}
	}
	if day >= warm {
		for _, a := range s.w.workers {
			if s.honest(a.name, day) {
				s.agentWeeks[s.period(day)] += 1.0 / 7
			}
		}
	}
}

// entryOf writes the entry as the line does.
func entryOf(a *act, seq uint64) remit.Entry {
	seal := &remit.Seal{}
	e := remit.Event{At: a.at, Kind: remit.EventDecision, Agent: a.agent.name, Run: remit.RunID(a.run)}
	if a.rows > 0 {
		e.Kind = remit.EventAction
		e.Data = []byte(`{"target":"` + a.target + `","verb":"` + a.action + `","allowed":true,"effective":true,"detail":` +
			string(seal.Value("detail", map[string]string{"rows": strconv.Itoa(a.rows)})) + `}`)
	} else {
		d := remit.Decision{ID: remit.DecisionID("dec-" + strconv.FormatUint(seq, 10)), At: a.at, Effect: remit.Allow, Caller: a.source, Agent: a.agent.name, Action: a.action, Target: a.target,
			Args: a.args, Run: e.Run, Permission: remit.PermissionRef{Workflow: a.agent.team.name, Stage: "work", Name: "any"},
			Params: map[string]remit.Value{"customer": remit.StringValue(a.customer)}}
		if a.args["to"].Text() == a.customer+"@mail.example" { // the address comes from the customer's record
			d.From = []remit.FromFact{{Permission: "record", Path: "email", Arg: "/to"}}
		}
		e.Decision, e.Data = d.ID, d.AppendSealed(nil, seal)
	}
	e.Payload = seal.Payload
	return remit.Entry{Seq: seq, Body: e.AppendJSON(nil, seq), Payload: e.Payload}
}

func (r *result) add(o *result) {
	if r.tried == nil {
		r.tried, r.caught, r.actions = map[string][2]int{}, map[string][2]int{}, map[string][]int{}
	}
	r.entries += o.entries
	for p := range 2 {
		r.agentWeeks[p] += o.agentWeeks[p]
		for d := range detectors {
			r.alarms[d][p] += o.alarms[d][p]
		}
	}
	for f, n := range o.tried {
		m, c := r.tried[f], r.caught[f]
		for p := range 2 {
			m[p] += n[p]
			c[p] += o.caught[f][p]
		}
		r.tried[f], r.caught[f] = m, c
		r.actions[f] = append(r.actions[f], o.actions[f]...)
	}
}

// rate is findings an agent-week of honest agents.
func (r *result) rate(detector, period int) float64 {
	return float64(r.alarms[detector][period]) / r.agentWeeks[period]
}

func (r *result) print(w io.Writer, o options) {
	fmt.Fprintf(w, "%d worlds of %d agents; budget %.3f findings an agent-week; %.0f and %.0f honest agent-weeks before and after the drift\n\n", o.seeds, o.agents, o.budget,
		r.agentWeeks[0], r.agentWeeks[1])
	fmt.Fprintf(w, "| findings of honest agents | before, an agent-week | times the budget | after | times |\n|---|---|---|---|---|\n")
	for d, name := range detectors {
		fmt.Fprintf(w, "| %s | %.3f | %.1f | %.3f | %.1f |\n", name, r.rate(d, 0), r.rate(d, 0)/o.budget, r.rate(d, 1), r.rate(d, 1)/o.budget)
	}
	fmt.Fprintf(w, "\n| attack | found before | after | acts until then, median |\n|---|---|---|---|\n")
	for _, f := range families {
		acts := slices.Sorted(slices.Values(r.actions[f.name]))
		median := "-"
		if len(acts) > 0 {
			median = strconv.Itoa(acts[len(acts)/2])
		}
		fmt.Fprintf(w, "| %s | %d of %d | %d of %d | %s |\n", f.name, r.caught[f.name][0], r.tried[f.name][0], r.caught[f.name][1], r.tried[f.name][1], median)
	}
}
