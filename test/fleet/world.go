// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
	"time"

	"remit"
)

// act is one request of an agent, as it will stand in the ledger.
type act struct {
	at       time.Time
	agent    *worker
	run      string
	action   string
	target   string
	args     map[string]remit.Value
	customer string // the run's parameter
	source   string
	attack   *attack
	rows     int // more than 0: an executed act
}

// team is a workflow with the agents that do it. Its chain says what follows what.
type team struct {
	name       string
	tools      [][2]string // action and target
	chain      [][]float64
	colleagues []string
}

// worker is one agent. All that makes it different from the others is drawn once, and some of it drifts.
type worker struct {
	name      remit.Name
	team      *team
	starts    float64 // hour of the day
	hours     float64
	runs      float64 // a working day
	weekends  float64 // how probably it works on one
	second    float64 // how probably a run is about one more customer
	stranger  float64 // how probably a run writes to somebody new, honestly
	odd       float64 // how probably a run has a step that its kind has not
	host      int
	customers int // how many it knows
}

// world is the fleet; everything in it follows from the seed.
type world struct {
	rand    *rand.Rand
	teams   []*team
	workers []*worker
	runs    int
}

func newWorld(seed uint64, agents int) *world {
	w := &world{rand: rand.New(rand.NewPCG(seed, 20260301))} //nolint:gosec // a simulation
	for t := range max(2, agents/10) {
		w.teams = append(w.teams, w.newTeam(t))
	}
	for i := range agents {
		w.workers = append(w.workers, &worker{name: remit.Name(fmt.Sprintf("agent/w%03d", i)), team: w.teams[i%len(w.teams)], starts: 7 + 3*w.rand.Float64(),
			hours: 6 + 4*w.rand.Float64(), runs: 3 + 9*w.rand.Float64(), weekends: []float64{0, 0, 0.1, 0.9}[w.rand.IntN(4)], second: 0.02 + 0.4*w.rand.Float64()*w.rand.Float64(),
			stranger: 0.05 * w.rand.Float64() * w.rand.Float64(), odd: 0.02 * w.rand.Float64(), host: w.rand.IntN(4), customers: 50 + w.rand.IntN(2000)})
	}
	return w
}

func (w *world) newTeam(n int) *team {
	t := &team{name: fmt.Sprintf("work-%d", n)}
	for i := range 4 + w.rand.IntN(5) {
		t.tools = append(t.tools, [2]string{[]string{"postgres.select", "mcp.call", "http.get", "http.post"}[i%4], fmt.Sprintf("system-%d", w.rand.IntN(12))})
	}
	for range t.tools {
		t.chain = append(t.chain, w.row(len(t.tools)))
	}
	for i := range 5 + w.rand.IntN(20) {
		t.colleagues = append(t.colleagues, fmt.Sprintf("colleague%d.%d@company.example", n, i))
	}
	return t
}

// row is a random distribution, in which little is common.
func (w *world) row(n int) []float64 {
	out, sum := make([]float64, n), 0.0
	for i := range out {
		out[i] = math.Pow(w.rand.Float64(), 4)
		sum += out[i]
	}
	for i := range out {
		out[i] /= sum
	}
	return out
}

func (w *world) pick(row []float64) int {
	x := w.rand.Float64()
	for i, p := range row {
		if x -= p; x < 0 {
			return i
		}
	}
	return len(row) - 1
}

// day is an agent's honest day.
func (w *world) day(a *worker, day time.Time) (out []act) {
	if d := day.Weekday(); (d == time.Saturday || d == time.Sunday) && w.rand.Float64() > a.weekends {
		return nil
	}
	n := a.runs
	if w.rand.IntN(25) == 0 { // a busy day
		n *= 2.5
	}
	for range poisson(w.rand, n) {
		at := day.Add(time.Duration((a.starts + a.hours*w.rand.Float64()) * float64(time.Hour)))
		if w.rand.IntN(400) == 0 { // on call
			at = day.Add(time.Duration(24 * w.rand.Float64() * float64(time.Hour)))
		}
		out = append(out, w.run(a, at)...)
	}
	return out
}

func poisson(r *rand.Rand, mean float64) int {
	n := 0
	for x := r.ExpFloat64(); x < mean; x += r.ExpFloat64() {
		n++
	}
	return n
}

// run is one honest run: some steps along the team's chain, about one customer or more, and a message.
func (w *world) run(a *worker, at time.Time) (out []act) {
	w.runs++
	run, customer := "run-"+strconv.Itoa(w.runs), w.customer(a)
	add := func(tool [2]string, args map[string]remit.Value) {
		at = at.Add(time.Duration(5+w.rand.IntN(60)) * time.Second)
		out = append(out, act{at: at, agent: a, run: run, action: tool[0], target: tool[1], args: args, customer: customer, source: a.source()})
		if tool[0] == "postgres.select" {
			out = append(out, act{at: at.Add(time.Second), agent: a, run: run, action: tool[0], target: tool[1], rows: 1 + int(math.Exp(2+w.rand.NormFloat64()))})
		}
	}
	about := []string{customer}
	for w.rand.Float64() < a.second && len(about) < 8 {
		about = append(about, w.customer(a))
	}
	for _, c := range about {
		step := 0
		for range 2 + w.rand.IntN(4) {
			add(a.team.tools[step], map[string]remit.Value{"customer": remit.StringValue(c), "view": remit.StringValue([]string{"short", "full", "history"}[w.rand.IntN(3)])})
			step = w.pick(a.team.chain[step])
		}
	}
	if w.rand.Float64() < a.odd {
		add(a.team.tools[w.rand.IntN(len(a.team.tools))], map[string]remit.Value{"query": remit.StringValue(fmt.Sprint("report ", w.rand.IntN(100)))})
	}
	to := customer + "@mail.example"
	switch {
	case w.rand.Float64() < a.stranger:
		to = fmt.Sprintf("person%d@partner%d.example", w.rand.IntN(1e6), w.rand.IntN(50))
	case w.rand.IntN(3) == 0:
		to = a.team.colleagues[w.rand.IntN(len(a.team.colleagues))]
	}
	add([2]string{"mcp.call", "mail"}, map[string]remit.Value{"to": remit.StringValue(to), "body": remit.StringValue("about your request, number " + strconv.Itoa(w.rand.IntN(1e6)))})
	return out
}

func (w *world) customer(a *worker) string { return fmt.Sprintf("c%d", w.rand.IntN(a.customers)) }

func (a *worker) source() string {
	return fmt.Sprintf("spiffe://fleet.example/%s@host-%d", a.name, a.host)
}

// drift changes the work of all: another system takes over a step, colleagues come and go, more to do, summer time, other hosts.
func (w *world) drift() {
	for i, t := range w.teams {
		if i%2 == 0 {
			t.tools[w.rand.IntN(len(t.tools))] = [2]string{"mcp.call", fmt.Sprintf("new-system-%d", i)}
		}
		for range max(1, len(t.colleagues)/3) {
			t.colleagues[w.rand.IntN(len(t.colleagues))] = fmt.Sprintf("colleague%d.%d@company.example", i, 1000+w.rand.IntN(1000))
		}
		t.chain[w.rand.IntN(len(t.chain))] = w.row(len(t.tools))
	}
	for _, a := range w.workers {
		a.runs *= 1 + 0.4*w.rand.Float64()
		a.starts--
		a.second *= 1.3
		if w.rand.IntN(2) == 0 {
			a.host += 10
		}
	}
}

// sorted puts the acts of a day in order.
func sorted(acts []act) []act {
	slices.SortStableFunc(acts, func(a, b act) int { return a.at.Compare(b.at) })
	return acts
}
