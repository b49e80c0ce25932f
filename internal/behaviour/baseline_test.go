// SPDX-License-Identifier: Apache-2.0

package behaviour_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"remit"
	"remit/internal/behaviour"
)

var learning = behaviour.Learning{Budget: 0.05, Shadow: 7 * 24 * time.Hour, Alert: 7 * 24 * time.Hour}

// fleet is some agents that answer customers' mail on working days. Each run is about one customer, who is the run's parameter.
type fleet struct {
	*history
	b    *behaviour.Baselines
	d    *behaviour.Detector
	rand *rand.Rand
	out  []remit.Finding
}

func newFleet() *fleet { return newFleetOf(learning) }

func newFleetOf(l behaviour.Learning) *fleet {
	return &fleet{history: newHistory(), b: behaviour.NewBaselines(l), d: behaviour.New(behaviour.Config{Learn: &l}), rand: rand.New(rand.NewPCG(1, 2))}
}

func (f *fleet) asks(agent remit.Name, run remit.RunID, action, target string, args, params map[string]remit.Value) (s behaviour.Scored) {
	f.decides(20*time.Second, remit.Decision{Agent: agent, Run: run, Effect: remit.Allow, Caller: "spiffe://c/" + string(agent), Action: action, Target: target, Args: args, Params: params,
		Permission: remit.PermissionRef{Workflow: "answer-mail", Stage: "work", Name: "any"}})
	return f.fold1()
}

// fold1 folds the newest entry.
func (f *fleet) fold1() (s behaviour.Scored) {
	e := f.entries[len(f.entries)-1]
	f.entries = f.entries[:0]
	s, _ = f.b.Next(&e)
	f.out = append(f.out, f.d.Next(e)...)
	return s
}

func text(s string) remit.Value { return remit.StringValue(s) }

// run is one honest run: read the mail of a customer, look into his account, answer him, now and then tell a colleague.
func (f *fleet) run(agent remit.Name) {
	customer := fmt.Sprintf("customer%d@mail.example", f.rand.IntN(100000))
	params := map[string]remit.Value{"customer": text(customer)}
	id := remit.NewRunID()
	f.asks(agent, id, "mail.read", "mail", map[string]remit.Value{"from": text(customer)}, params)
	f.asks(agent, id, "crm.read", "crm", map[string]remit.Value{"email": text(customer)}, params)
	f.asks(agent, id, "mail.send", "mail", map[string]remit.Value{"to": text(customer), "body": text("thank you for your mail")}, params)
	if f.rand.IntN(4) == 0 {
		f.asks(agent, id, "mail.send", "mail", map[string]remit.Value{"to": text(fmt.Sprintf("colleague%d@company.example", f.rand.IntN(5))), "body": text("please look at it")}, params)
	}
}

// days lets all work for some days.
func (f *fleet) days(n int) *fleet {
	for range n {
		day := f.at.Truncate(24 * time.Hour)
		for f.at = day.Add(9 * time.Hour); f.at.Before(day.Add(17 * time.Hour)); f.at = f.at.Add(time.Hour) {
			for a := range 5 {
				f.run(remit.Name(fmt.Sprintf("agent/m%d", a)))
			}
		}
		f.at = day.Add(24 * time.Hour)
	}
	f.at = f.at.Add(9 * time.Hour)
	return f
}

// hijacked is a run in which the agent does as a mail says.
func (f *fleet) hijacked(agent remit.Name) {
	id := remit.NewRunID()
	params := map[string]remit.Value{"customer": text("customer7@mail.example")}
	f.asks(agent, id, "mail.read", "mail", map[string]remit.Value{"from": text("customer7@mail.example")}, params)
	f.asks(agent, id, "postgres.select", "payments", map[string]remit.Value{"table": text("cards")}, params)
	f.asks(agent, id, "mail.send", "mail", map[string]remit.Value{"to": text("eve@evil.example"), "body": text("here they are")}, params)
}

// TestUnusual: the email agent that suddenly queries a financial database and writes to a stranger is found, with the reasons; honest work is not.
func TestUnusual(t *testing.T) {
	f := newFleet().days(20)
	if len(f.out) > 0 {
		t.Fatalf("honest work is found: %+v", f.out)
	}
	f.hijacked("agent/m3")
	if len(f.out) != 1 {
		t.Fatalf("%+v", f.out)
	}
	got := f.out[0]
	var names []string
	for _, x := range got.Features {
		names = append(names, string(x.Name)+" "+x.About)
	}
	all := strings.Join(names, ", ")
	if got.Kind != remit.FindingUnusual || got.Agent != "agent/m3" || got.Young || got.Score <= got.Limit || got.Limit == 0 ||
		!strings.Contains(all, "action postgres.select payments") || strings.Contains(got.Text+all, "eve") {
		t.Errorf("%+v", got)
	}
	t.Logf("%s", got.Text)
}

// TestWarmUp: an agent's baseline first learns, then its findings are marked as young, then they may be acted on.
func TestWarmUp(t *testing.T) {
	for days, want := range map[int]string{5: "nothing", 12: "young", 20: "grown"} {
		l := learning
		l.Budget = 0.5 // of few days, a small budget can say little
		f := newFleetOf(l).days(days)
		f.hijacked("agent/m3")
		got := "nothing"
		if len(f.out) > 0 {
			got = map[bool]string{true: "young", false: "grown"}[f.out[0].Young]
		}
		if got != want {
			t.Errorf("after %d days: %s, want %s", days, got, want)
		}
	}
}

// TestRebuilt: the same entries leave the same bytes; what comes twice, or again with an older number, changes nothing.
func TestRebuilt(t *testing.T) {
	var all []remit.Entry
	f := newFleet()
	one, two := behaviour.NewBaselines(learning), behaviour.NewBaselines(learning)
	for i := range 3000 {
		agent := remit.Name(fmt.Sprintf("agent/a%d", i%7))
		f.decides([]time.Duration{time.Minute, -30 * time.Minute, 29 * time.Minute, 10 * time.Hour}[i%4], remit.Decision{Agent: agent, Run: remit.RunID(fmt.Sprint(i / 5)), Effect: remit.Allow,
			Action: "mail.send", Target: "mail", Args: remit.Args{"to": text(fmt.Sprint("c", f.rand.IntN(50), "@x.example"))}})
		all = append(all, f.entries[len(f.entries)-1])
		one.Next(&all[i])
	}
	for i := range all {
		two.Next(&all[i])
		two.Next(&all[i])
		if _, ok := two.Next(&all[i/2]); ok {
			t.Fatal("an entry was taken twice")
		}
	}
	if a, b := one.AppendState(nil), two.AppendState(nil); !bytes.Equal(a, b) || len(a) < 1000 {
		t.Errorf("%d and %d bytes, which differ", len(a), len(b))
	}
}

// TestClockJumps: a clock that jumps ahead ten years and back ages nothing beyond a week, and finds nothing.
func TestClockJumps(t *testing.T) {
	f := newFleet().days(20)
	real := f.at
	f.at = real.AddDate(10, 0, 0)
	f.run("agent/m1")
	f.at = real
	f.days(5)
	if len(f.out) > 0 {
		t.Errorf("%+v", f.out)
	}
	f.hijacked("agent/m3")
	if len(f.out) != 1 {
		t.Errorf("what was learned is forgotten: %+v", f.out)
	}
}

// TestOneEvent: of an agent with one event nothing is said.
func TestOneEvent(t *testing.T) {
	f := newFleet().days(20)
	f.hijacked("agent/new")
	f.decides(0, remit.Decision{Agent: "agent/bare"})
	f.fold1()
	if len(f.out) > 0 {
		t.Errorf("%+v", f.out)
	}
}

// TestManyArguments: a million different arguments of one agent take the memory of some hundred, and what was known before stays known.
func TestManyArguments(t *testing.T) {
	f := newFleet().days(15)
	ask := func(to string) float64 {
		return f.asks("agent/m1", "run-flood", "mail.send", "mail", map[string]remit.Value{"to": text(to)}, nil).Score
	}
	before := len(f.b.AppendState(nil))
	for i := range 40_000 {
		var to []remit.Value
		for j := range 25 {
			to = append(to, text(fmt.Sprintf("x%d-%d@flood.example", i, j)))
		}
		f.decides(time.Second, remit.Decision{Agent: "agent/m1", Run: "run-flood", Effect: remit.Allow, Caller: "spiffe://c/agent/m1", Action: "mail.send", Target: "mail",
			Args: remit.Args{"to": remit.ListValue(to...)}, Permission: remit.PermissionRef{Workflow: "answer-mail", Stage: "work", Name: "any"}})
		f.b.Next(&f.entries[0])
		f.entries = f.entries[:0]
	}
	if after := len(f.b.AppendState(nil)); after > before+300<<10 {
		t.Errorf("%d bytes, %d before", after, before)
	}
	f.days(1)
	if s := ask("colleague1@company.example"); s > 1 {
		t.Errorf("a known recipient is forgotten: %.1f", s)
	}
}

// TestFindingsDoNotTrain: S36. What was part of a finding is no more usual afterwards, for the agent's peers.
func TestFindingsDoNotTrain(t *testing.T) {
	f := newFleet().days(20)
	other := func() float64 {
		return f.asks("agent/m4", remit.NewRunID(), "postgres.select", "payments", map[string]remit.Value{"table": text("cards")}, nil).Score
	}
	for range 3 {
		f.hijacked("agent/m3")
		f.hijacked("agent/m2")
		f.days(2)
	}
	if len(f.out) < 2 {
		t.Fatalf("%+v", f.out)
	}
	if s := other(); s < 3 {
		t.Errorf("it is usual now: %.1f", s)
	}
}

// TestOthersDoNotTrain: S36. What somebody merely asserted of an agent, and what Remit judged again, is not its behaviour.
func TestOthersDoNotTrain(t *testing.T) {
	f := newFleet()
	for _, d := range []remit.Decision{{Agent: "agent/a", Reasons: []remit.Reason{{Code: remit.ReasonAsserted}}}, {Agent: "agent/a", Effect: remit.Allow, Via: "recheck"},
		{Agent: "agent/a", Reasons: []remit.Reason{{Code: remit.ReasonSuspended}}}, {Action: "x", Effect: remit.Allow}} {
		f.decides(0, d)
		if _, ok := f.b.Next(&f.entries[len(f.entries)-1]); ok {
			t.Errorf("%+v", d)
		}
	}
}

// TestSlowPoisoning shows what it takes to make a stranger's address usual, by one mail to it on some days: how odd the next one is.
func TestSlowPoisoning(t *testing.T) {
	l := learning
	l.Shadow = 365 * 24 * time.Hour // so that the first one is not found at once
	f := newFleetOf(l).days(30)
	var scores []float64
	found := 0
	for range 12 {
		before := len(f.out)
		s := f.asks("agent/m1", remit.NewRunID(), "mail.send", "mail", map[string]remit.Value{"to": text("eve@evil.example")}, nil)
		scores = append(scores, s.Score)
		found += len(f.out) - before
		f.days(2)
	}
	usual := slices.IndexFunc(scores, func(s float64) bool { return s < 1 })
	t.Logf("scores of one mail every other day: %.1f; findings: %d; usual after %d mails in %d days", scores, found, usual, 2*usual)
	if scores[1] < 1 || scores[len(scores)-1] > 1 {
		t.Errorf("%.1f", scores)
	}
}

// BenchmarkBaselines is one entry through the baselines, of a thousand agents.
func BenchmarkBaselines(b *testing.B) {
	f := newFleet()
	for i := range 20000 {
		agent := remit.Name(fmt.Sprintf("agent/a%d", i%1000))
		f.decides(time.Second, remit.Decision{Agent: agent, Run: remit.RunID(fmt.Sprint("run-", i/3000*1000+i%1000)), Effect: remit.Allow, Action: "mail.send", Target: "mail",
			Caller: "spiffe://c/" + string(agent), Args: remit.Args{"to": text(fmt.Sprintf("c%d@x.example", i%50)), "body": text("thank you for your mail"), "customer": remit.IntValue(int64(i % 700))},
			Params: map[string]remit.Value{"customer": remit.IntValue(int64(i % 700))}, Permission: remit.PermissionRef{Workflow: "answer-mail"}})
	}
	base := behaviour.NewBaselines(learning)
	b.ReportAllocs()
	began := used(b)
	for i := 0; b.Loop(); i++ {
		e := f.entries[i%len(f.entries)]
		e.Seq = uint64(i + 1)
		base.Next(&e)
	}
	b.ReportMetric(float64(used(b)-began)/float64(b.N), "cpu-ns/op")
}

// used is the processor time of this process, which other processes do not lengthen.
func used(b *testing.B) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
