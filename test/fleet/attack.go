// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"time"

	"remit"
)

// attack is one campaign against one agent.
type attack struct {
	family string
	victim *worker
	first  int // day
	days   int
	acts   int // until now
	alarm  int // acts until the first finding; 0: none
}

// families are what attackers do, weak and strong.
var families = []struct {
	name string
	days int
	do   func(*world, *attack, time.Time) []act
}{
	{"stolen credential, from elsewhere", 1, func(w *world, k *attack, day time.Time) []act {
		out := w.stolen(k, day)
		for i := range out {
			out[i].source = "spiffe://fleet.example/" + string(k.victim.name) + "@elsewhere"
		}
		return out
	}},
	{"stolen credential, from the same host", 1, (*world).stolen},
	{"hijack, to a stranger", 1, func(w *world, k *attack, day time.Time) []act {
		return w.hijacked(k, day, "eve@evil.example")
	}},
	{"hijack, to the same customer", 1, func(w *world, k *attack, day time.Time) []act { return w.hijacked(k, day, "") }},
	{"off-hours", 1, func(w *world, k *attack, day time.Time) (out []act) {
		for i := range 3 {
			out = append(out, w.run(k.victim, day.Add(time.Duration(2*60+20*i)*time.Minute))...)
		}
		return out
	}},
	{"pivot to another team's system", 1, func(w *world, k *attack, day time.Time) []act {
		out := w.run(k.victim, w.noon(k, day))
		out[len(out)-2].action, out[len(out)-2].target, out[len(out)-2].rows = "postgres.select", "vault-of-others", 0
		out[len(out)-2].args = map[string]remit.Value{"table": remit.StringValue("cards")}
		out[len(out)-2].source = k.victim.source()
		return out
	}},
	{"slow exfiltration, +0.1 customers a run", 10, slow(0.1)},
	{"slow exfiltration, +0.5 customers a run", 10, slow(0.5)},
	{"slow exfiltration, +2 customers a run", 10, slow(2)},
}

func (w *world) noon(k *attack, day time.Time) time.Time {
	return day.Add(time.Duration((k.victim.starts + k.victim.hours*w.rand.Float64()) * float64(time.Hour)))
}

// stolen uses the agent's powers for what they are, fast, for other customers.
func (w *world) stolen(k *attack, day time.Time) (out []act) {
	at := w.noon(k, day)
	for i := range 20 {
		tool := k.victim.team.tools[i%len(k.victim.team.tools)]
		at = at.Add(10 * time.Second)
		out = append(out, act{at: at, agent: k.victim, run: "run-stolen-" + string(k.victim.name), action: tool[0], target: tool[1], source: k.victim.source(), customer: "c1",
			args: map[string]remit.Value{"customer": remit.StringValue(fmt.Sprintf("c%d", w.rand.IntN(100000))), "view": remit.StringValue("full")}})
	}
	return out
}

// hijacked is a run that sends what it read to somebody; to "" it only sends one more message to its own customer.
func (w *world) hijacked(k *attack, day time.Time, to string) []act {
	out := w.run(k.victim, w.noon(k, day))
	last := out[len(out)-1]
	if to == "" {
		to = last.customer + "@mail.example"
	}
	last.at = last.at.Add(20 * time.Second)
	last.args = map[string]remit.Value{"to": remit.StringValue(to), "body": remit.StringValue("the whole file is attached")}
	return append(out, last)
}

// slow has each run of a day be about more customers.
func slow(more float64) func(*world, *attack, time.Time) []act {
	return func(w *world, k *attack, day time.Time) (out []act) {
		for range poisson(w.rand, more*k.victim.runs) {
			w.runs++
			at := w.noon(k, day)
			run := fmt.Sprint("run-", w.runs)
			for i := range 2 + w.rand.IntN(3) {
				out = append(out, act{at: at.Add(time.Duration(i) * 20 * time.Second), agent: k.victim, run: run, action: k.victim.team.tools[0][0], target: k.victim.team.tools[0][1],
					customer: "c1", source: k.victim.source(), args: map[string]remit.Value{"customer": remit.StringValue(w.customer(k.victim)), "view": remit.StringValue("full")}})
			}
		}
		return out
	}
}
