// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"remit"
	"remit/internal/authorizer"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// world is a generated revision with the requests made for it. Everything follows from the seed.
type world struct {
	*rand.Rand
	cfg     Config
	parents map[remit.DecisionID]remit.Decision
	own     *Plan // as stageAlone printed it
	stages  map[remit.PermissionRef]*Printed
	self    string // the permission that is being made; it is no source of its own
}

func newWorld(seed uint64, withRules bool) *world {
	w := &world{Rand: rand.New(rand.NewPCG(seed, 7)), parents: map[remit.DecisionID]remit.Decision{}}
	w.cfg.Digest = remit.DigestOf([]byte(fmt.Sprint("revision", seed)))
	for i := range 2 + w.IntN(2) {
		w.cfg.Workflows = append(w.cfg.Workflows, w.workflow(i))
	}
	if seed%3 == 0 {
		w.cfg.Production = []string{"prod"}
	}
	if withRules {
		w.cfg.Rules = testRules()
	}
	w.cfg.Parent = func(id remit.DecisionID) (remit.Decision, bool) { d, ok := w.parents[id]; return d, ok }
	w.cfg.From = returned
	return w
}

func testRules() []Rule {
	return []Rule{{"freeze.rego", `package remit.rules

import data.remit.lib.names

deny contains "the freeze" if input.args.c == "freeze"

deny contains "not this agent" if names.bad(input.agent)

hold contains "look at it" if input.args.d == 7

hold contains "agents that ask for little" if input.asked.ttl_ns > 200000000000

approvers contains "finance" if input.asked.ttl_ns > 220000000000

approvers contains "finance" if input.args.d == 7

approvers contains "security" if input.asked.ttl_ns > 270000000000

ttl := 60 if input.args.e == true

ttl := "90s" if input.args.e == false

ttl := "soon" if input.args.e == "fault"
`}, {"rows.rego", `package remit.rules

rows := 10 if input.permission == "m1"

rows := 1.5 if input.args.b == "half"

columns contains c if {
	input.action == "db.select"
	some c in ["id", "amount"]
}

tier := "vm" if input.args.a == "vm"

obligations contains "mask" if some e in input.evidence

obligations contains 7 if input.args.f == "seven"
`}, {"names.rego", `package remit.lib.names

bad(agent) if startswith(agent, "agent/evil")
`}}
}

func pick[T any](w *world, from ...T) T { return from[w.IntN(len(from))] }

func (w *world) one(in int) bool { return w.IntN(in) == 0 }

func str(s string) remit.Value { return remit.StringValue(s) }

func num(s string) remit.Value {
	v, err := remit.NumberValue(s)
	if err != nil {
		panic(err)
	}
	return v
}

func image(name string, n int) string {
	return name + "@" + string(remit.DigestOf([]byte(fmt.Sprint(name, n))))
}

var parameters = []remit.Parameter{{Name: "app", Type: "name"}, {Name: "image", Type: "image"}, {Name: "scan", Type: "string"},
	{Name: "n", Type: "integer"}, {Name: "ratio", Type: "number"}, {Name: "flag", Type: "boolean"}}

func (w *world) workflow(i int) remit.Workflow {
	f := remit.Workflow{Name: fmt.Sprint("flow-", i), Digest: remit.DigestOf([]byte(fmt.Sprint("flow", i))), Parameters: parameters}
	for s := range 1 + w.IntN(2) {
		st := remit.Stage{Name: fmt.Sprint("stage-", s)}
		for m := range 4 + w.IntN(4) {
			st.May = append(st.May, w.permission(m))
		}
		f.Stages = append(f.Stages, st)
	}
	return f
}

func (w *world) permission(m int) remit.Permission {
	p := remit.Permission{Name: fmt.Sprint("m", m), Who: pick(w, remit.Name("agent/a"), "agent/b"), Action: pick(w, "k8s.apply", "db.select"),
		Target: pick(w, "prod", "test"), Where: map[string]remit.Predicate{}, TTL: time.Duration(w.IntN(4)) * time.Minute}
	w.self = p.Name
	if m > 0 && w.one(4) {
		p.Under = "m0"
	}
	for _, name := range []string{"a", "b", "c", "d", "e", "f", "columns"}[:1+w.IntN(7)] {
		if !w.one(4) {
			p.Where[name] = w.predicate(p.Under != "", 0)
		}
	}
	if w.one(4) {
		p.Hours = &remit.Hours{Days: [7]bool{true, w.one(2), true, w.one(2), true, w.one(2)}, From: w.IntN(1440), To: w.IntN(1441),
			Zone: pick(w, time.UTC, zone("Europe/Berlin"), zone("America/St_Johns"), zone("Pacific/Apia"))}
		if p.Hours.From == p.Hours.To {
			p.Hours = nil
		}
	}
	if w.one(8) {
		p.Sandbox = pick(w, "remote", "process", "kernel", "vm")
	}
	for w.one(2) && len(p.Evidence) < 4 {
		p.Evidence = append(p.Evidence, w.requirement(p.Under != ""))
	}
	return p
}

func zone(name string) *time.Location {
	z, err := time.LoadLocation(name)
	if err != nil {
		panic(err)
	}
	return z
}

func (w *world) requirement(call bool) remit.Requirement {
	if w.one(4) {
		a := &remit.ApprovalRequirement{Group: "finance", People: 1, By: pick(w, "", "not-starter"), Within: 15 * time.Minute}
		for w.one(2) {
			if a.When == nil {
				a.When = map[string]remit.Predicate{}
			}
			if is := w.predicate(call, 0); is.Kind != remit.PredicateFrom {
				a.When[pick(w, "a", "b", "c", "d")] = is
			}
		}
		return remit.Requirement{Kind: remit.EvidenceApproval, Approval: a}
	}
	r := remit.Requirement{Kind: pick(w, remit.EvidenceScan, remit.EvidenceProvenance, remit.EvidenceTicket), Source: pick(w, "one", "two")}
	if w.one(2) {
		r.ID = &remit.Term{Param: pick(w, "scan", "n", "flag")}
	}
	if w.one(2) {
		r.Of = &remit.Term{Param: "image"}
	}
	if w.one(2) {
		r.Worst = remit.Severity(1 + w.IntN(5))
	}
	if w.one(2) {
		r.Within = time.Hour
	}
	if w.one(2) {
		r.Match = map[string]remit.Term{"state": {Value: str("approved")}, "ratio": {Param: "ratio"}}
	}
	return r
}

func (w *world) term(call bool) remit.Term {
	if call && w.one(3) {
		return remit.Term{Call: pick(w, "x", "y")}
	}
	if w.one(2) {
		return remit.Term{Param: pick(w, "app", "image", "n", "ratio", "flag")}
	}
	return remit.Term{Value: w.literal()}
}

func (w *world) literal() remit.Value {
	return pick(w, str("id"), str("amount"), str("production"), str(`q"\`+"\n{}é"), str("freeze"), str("vm"), num("7"), num("7.5"), num("9007199254740993"),
		remit.BoolValue(true), remit.ListValue(num("1"), str("x")), remit.ObjectValue(map[string]remit.Value{"k": num("0.1")}), str(""))
}

// patterns and what matches them.
var patterns = map[string]string{"CHG-[0-9]+": "CHG-12", "a|bc": "bc", `[^"\\]*é`: "xé", "": ""}

func (w *world) predicate(call bool, depth int) remit.Predicate {
	p := remit.Predicate{Kind: pick(w, remit.PredicateEqual, remit.PredicateEqual, remit.PredicateSubset, remit.PredicateRange, remit.PredicatePattern,
		remit.PredicateAny, remit.PredicateObject, remit.PredicateEqual, remit.PredicateRange, remit.PredicateSubset)}
	if depth < 2 && w.one(8) {
		p.Kind = pick(w, remit.PredicateFrom, remit.PredicateChoice, remit.PredicateChoice)
	}
	switch p.Kind {
	case remit.PredicateEqual:
		p.Terms = []remit.Term{w.term(call)}
	case remit.PredicateSubset:
		for range 1 + w.IntN(3) {
			p.Terms = append(p.Terms, w.term(call))
		}
	case remit.PredicateRange:
		low, high := num(pick(w, "-5", "0.01", "7", "0")), num(pick(w, "7", "7.25", "1000", "9007199254740993"))
		p.Min, p.Max = &low, &high
		if w.one(4) {
			p.Min = nil
		} else if w.one(4) {
			p.Max = nil
		}
	case remit.PredicatePattern:
		p.Pattern = regexp.MustCompile("^(?:" + pick(w, slices.Sorted(maps.Keys(patterns))...) + ")$")
	case remit.PredicateObject:
		p.Fields = map[string]remit.Predicate{}
		for _, name := range []string{"k", "l", "m"}[:w.IntN(3)] {
			if depth < 2 {
				p.Fields[name] = w.predicate(call, depth+1)
			}
		}
	case remit.PredicateFrom:
		p.Source = w.source()
	case remit.PredicateChoice:
		for range w.IntN(3) {
			p.Terms = append(p.Terms, w.term(call))
		}
		for range w.IntN(3) {
			p.Sources = append(p.Sources, w.source())
		}
		p.Empty = w.one(2)
	}
	return p
}

func (w *world) source() remit.Source {
	other := map[bool]string{true: "m2", false: "m1"}[w.self == "m1" || w.self != "m2" && w.one(2)]
	return remit.Source{From: other, Path: pick(w, "/rows/*/id", "words:/text")}
}

// returned is what earlier calls of every run returned.
func returned(_ remit.RunID, permission, path string, v remit.Value) bool {
	return permission == "m1" && (v.Text() == "id" || v.Text() == "7.5") || path == "words:/text" && v.Text() == "amount"
}

// ask is one generated request with what it runs into.
type ask struct {
	req    remit.Request
	run    remit.Run
	mutate func(i int, f *remit.Found) // changes what would be found for need i
	held   remit.Held                  // what people said of it
}

// ask makes a request that satisfies some permission, and then breaks it in no, one or two places.
func (w *world) ask() *ask {
	flow := &w.cfg.Workflows[w.IntN(len(w.cfg.Workflows))]
	st := &flow.Stages[w.IntN(len(flow.Stages))]
	may := &st.May[w.IntN(len(st.May))]
	a := &ask{run: remit.Run{ID: "run-1", Workflow: flow.Name, Digest: flow.Digest, Stage: st.Name, State: remit.RunActive}}
	a.run.Params = map[string]remit.Value{"app": str(pick(w, "shop", "id")), "image": str(image("registry.example/foo", w.IntN(2))),
		"scan": str("scan-789"), "n": num(pick(w, "7", "42", "9007199254740993")), "ratio": num(pick(w, "0.5", "7")), "flag": remit.BoolValue(w.one(2))}
	a.req = remit.Request{At: w.time(may.Hours), Agent: may.Who, Action: may.Action, Target: may.Target, Run: a.run.ID, Via: "authzen", // where limits are told
		Keeps:   []string{"mask"}, // else the line denies by itself what the rules of a world ask for
		Sandbox: pick(w, remit.TierVM, remit.TierVM, remit.TierVM, remit.TierKernel, remit.TierProcess, remit.TierRemote, "", "docker"),
		Caller:  remit.Principal{ID: spiffeid.RequireFromString("spiffe://example.org/x"), Level: pick(w, remit.LevelSandbox, remit.LevelSandbox, remit.LevelNode, remit.LevelUser)}}
	a.run.Expires, a.run.StageExpires = a.req.At.Add(time.Hour), a.req.At.Add(time.Hour)
	if w.one(3) {
		a.req.Permission, a.req.Fill = may.Name, w.one(2)
	}
	if w.one(3) {
		a.req.TTL = time.Duration(1+w.IntN(300)) * time.Second
	}
	if w.one(2) {
		a.held = remit.Held{ID: "hold-1", State: remit.HeldApproved, Forget: a.req.At.AddDate(1, 0, 0), // that it lapses is the line's, not the policy's
			Answers: []remit.Answer{{Person: "operator/bob", Account: "b",
				Groups: pick(w, []string{"finance"}, []string{"finance", "security"}, []string{"sales"}), Approve: true,
				At: a.req.At.Add(-pick(w, time.Minute, ruleWithin, ruleWithin+1))}}}
	}
	s := scope{params: a.run.Params}
	if may.Under != "" {
		id := remit.DecisionID(fmt.Sprint("dec-", w.IntN(1000)))
		w.parents[id] = remit.Decision{ID: id, Effect: remit.Allow, Run: a.run.ID, Args: remit.Args{"x": w.literal(), "y": num("3")},
			Permission: remit.PermissionRef{Workflow: flow.Name, Stage: st.Name, Name: may.Under}}
		a.req.Under, s.inside, s.call = id, true, w.parents[id].Args
	}
	a.req.Args = remit.Args{}
	for _, name := range slices.Sorted(maps.Keys(may.Where)) {
		is := may.Where[name]
		if v := w.sample(&is, &s); !v.IsNull() && !(a.req.Fill && w.one(2)) {
			a.req.Args[name] = v
		}
	}
	a.mutate = func(int, *remit.Found) {}
	for range pick(w, 0, 1, 1, 1, 1, 2) {
		w.break1(a)
	}
	return a
}

// time is inside the window, most of the time.
func (w *world) time(h *remit.Hours) time.Time {
	for {
		at := time.Date(2026, 3, 1+w.IntN(60), w.IntN(24), w.IntN(60), w.IntN(60), w.IntN(1e9), time.UTC)
		if h == nil || open(h, at) || w.one(200) {
			return at
		}
	}
}

// sample is a value that holds p, at a boundary where there is one.
func (w *world) sample(p *remit.Predicate, s *scope) remit.Value {
	switch p.Kind {
	case remit.PredicateEqual:
		v, _ := s.resolve(&p.Terms[0])
		return v
	case remit.PredicateSubset:
		v, _ := s.resolve(&p.Terms[w.IntN(len(p.Terms))])
		if w.one(2) && v.Kind() != remit.List {
			return v
		}
		second, ok := s.resolve(&p.Terms[w.IntN(len(p.Terms))])
		if !ok {
			return remit.ListValue(v)
		}
		return remit.ListValue(v, second)
	case remit.PredicateRange:
		switch {
		case p.Min != nil && (p.Max == nil || w.one(2)):
			return *p.Min
		default:
			return *p.Max
		}
	case remit.PredicatePattern:
		return str(patterns[strings.TrimSuffix(strings.TrimPrefix(p.Pattern.String(), "^(?:"), ")$")])
	case remit.PredicateAny:
		return pick(w, w.literal(), remit.Value{}, num("0.12345678901234567890"))
	case remit.PredicateObject:
		fields := map[string]remit.Value{}
		for name, is := range p.Fields {
			fields[name] = w.sample(&is, s)
		}
		return remit.ObjectValue(fields)
	case remit.PredicateFrom:
		return w.returned()
	case remit.PredicateChoice:
		if len(p.Terms) == 0 || w.one(2) {
			return pick(w, w.returned(), remit.Value{}, remit.ListValue())
		}
		v, _ := s.resolve(&p.Terms[w.IntN(len(p.Terms))])
		return pick(w, v, remit.ListValue(v, str("id")))
	}
	return w.literal()
}

func (w *world) returned() remit.Value {
	return pick(w, str("id"), num("7.5"), str("amount"), remit.ListValue(str("id"), num("7.5")))
}

func (w *world) break1(a *ask) {
	names := slices.Sorted(maps.Keys(a.req.Args))
	switch n := w.IntN(16); {
	case n < 5 && len(names) > 0:
		name := pick(w, names...)
		a.req.Args[name] = w.near(a.req.Args[name])
	case n == 5:
		a.req.Args[pick(w, "zz", "e", "f", `é"`)] = pick(w, w.literal(), remit.Value{}, str("fault"), str("seven"))
	case n == 6 && len(names) > 0:
		delete(a.req.Args, pick(w, names...))
	case n == 7:
		a.req.At = a.req.At.Add(time.Duration(w.IntN(48*60)) * time.Minute)
		a.run.Expires, a.run.StageExpires = a.req.At.Add(time.Hour), a.req.At.Add(time.Hour)
	case n == 8:
		w.breakParent(a)
	case n == 9:
		pick(w, func() { a.run.Digest = remit.DigestOf(nil) }, func() { a.run.Stage = "stage-9" }, func() { a.run.Workflow = "other" },
			func() { a.req.Agent = "agent/evil" }, func() { a.req.Target = "test" }, func() { a.req.Permission = "m1" })()
	case n == 10:
		name := pick(w, "app", "image", "scan", "n", "ratio")
		a.run.Params[name] = pick(w, remit.Value{}, str(""), num("0.12345678901234567890"), remit.ListValue(), str("foo:v1"), str("Foo/bar@sha256:00"),
			str(image("host.example:5000/a__b-c", 1)))
	case n == 11:
		a.req.Caller.Level = remit.LevelUser
	default:
		which := w.IntN(3)
		how := w.breakFact(a)
		a.mutate = func(i int, f *remit.Found) {
			if i == which {
				how(f)
			}
		}
	}
}

// near is a value next to v.
func (w *world) near(v remit.Value) remit.Value {
	switch v.Kind() {
	case remit.Number:
		next := v.Text() + ".1"
		if strings.Contains(v.Text(), ".") {
			next = v.Text() + "1"
		}
		return pick(w, num(next), str(v.Text()), num("7"), num("1000.0000000001"), num("9007199254740992"), num("-5.000001"),
			num("1000.00000000000000001"), remit.Value{})
	case remit.List:
		e := v.Elements()
		return pick(w, remit.ListValue(), remit.ListValue(append(slices.Clone(e), str("other"))...), remit.ListValue(append(slices.Clone(e), remit.Value{})...),
			remit.ListValue(e[0:min(1, len(e))]...), str("other"))
	case remit.Object:
		f := maps.Clone(v.Fields())
		f["extra"] = pick(w, remit.Value{}, str("x"))
		return remit.ObjectValue(f)
	case remit.String:
		return pick(w, str(v.Text()+"x"), str(strings.ToUpper(v.Text())), str(""), remit.ListValue(v), num("7"), remit.Value{}, str(v.Text()+"\n"))
	}
	return w.literal()
}

func (w *world) breakParent(a *ask) {
	d, ok := w.parents[a.req.Under]
	if !ok {
		a.req.Under = "dec-nobody"
		return
	}
	d.ID += "x"
	pick(w, func() { d.Effect = remit.Hold }, func() { d.Run = "run-2" }, func() { d.Permission.Name = "m2" }, func() { d.Permission.Stage = "no" },
		func() { d.Args = remit.Args{"y": num("0.12345678901234567890")} }, func() { a.req.Under = "" })()
	if a.req.Under != "" {
		a.req.Under = d.ID
		w.parents[d.ID] = d
	}
}

func (w *world) breakFact(a *ask) func(*remit.Found) {
	edge := pick(w, time.Duration(0), 1, -1)
	return pick(w,
		func(f *remit.Found) {
			f.Evidence, f.Reason = nil, &remit.Reason{Code: remit.ReasonEvidenceSigner, Of: "evidence.x"}
		},
		func(f *remit.Found) { f.Evidence, f.Reason = nil, nil },
		func(f *remit.Found) { f.Evidence, f.Reason = nil, &remit.Reason{Code: remit.ReasonApproval} },
		func(f *remit.Found) { f.Evidence.Subjects = []remit.Digest{remit.DigestOf([]byte("other"))} },
		func(f *remit.Found) { f.Evidence.Made = a.req.At.Add(-time.Hour + edge) },
		func(f *remit.Found) { f.Evidence.Made = a.req.At.Add(time.Minute + edge) },
		func(f *remit.Found) { f.Evidence.Made = time.Time{} },
		func(f *remit.Found) { f.Evidence.Made = time.Date(1500, 1, 1, 0, 0, 0, 0, time.UTC) },
		func(f *remit.Found) { f.Evidence.Until = a.req.At.Add(edge) },
		func(f *remit.Found) { f.Evidence.Until = time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC) },
		func(f *remit.Found) { f.Evidence.Worst = remit.SeverityUnset },
		func(f *remit.Found) { f.Evidence.Worst = remit.SeverityHigh },
		func(f *remit.Found) { f.Evidence.Name = "scan-1" },
		func(f *remit.Found) { f.Evidence.Superseded = "evid-2" },
		func(f *remit.Found) { f.Evidence.Source = "three" },
		func(f *remit.Found) { f.Evidence.Kind = remit.EvidenceCI },
		func(f *remit.Found) { f.Evidence.Fields = map[string]string{"state": "open", "group": "finance"} },
	)
}

// decide sends the request down the real line, with this plan in it, and returns the decision as recorded.
func (a *ask) decide(t testing.TB, p *Plan) remit.Decision {
	line, err := authorizer.New(authorizer.Config{Policy: func() authorizer.Policy { return p }, State: a, Evidence: a, Record: a, Broker: noBroker{}, Acts: noActs{}})
	if err != nil {
		t.Fatal(err)
	}
	d, err := line.Decide(context.Background(), &a.req)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// Posture and the rest are the state that the request runs into.
func (a *ask) Posture(remit.Name) remit.Posture               { return remit.Posture{} }
func (a *ask) Run(remit.RunID) (remit.Run, bool)              { return a.run, true }
func (a *ask) Epoch(remit.EpochKey) uint64                    { return 0 }
func (a *ask) HeldOf(remit.RunID) int                         { return 0 }
func (a *ask) HeldAs(remit.Digest) (remit.Held, uint64, bool) { return a.held, 0, a.held.ID != "" }
func (a *ask) Launch(remit.LaunchID) (remit.LaunchRecord, bool) {
	return remit.LaunchRecord{}, true
}
func (a *ask) Fresh(_ context.Context, found []remit.Found) ([]remit.Found, bool) {
	return found, true
}
func (a *ask) Commit(context.Context, remit.Change) (remit.Receipt, error) {
	return remit.Receipt{}, nil
}

// Collect finds a fact that serves each need, then lets the generator break it. Approvals are found when the run says so.
func (a *ask) Collect(_ context.Context, needs []remit.Need, req *remit.Request) []remit.Found {
	found := make([]remit.Found, len(needs))
	for i, n := range needs {
		e := &remit.Evidence{Kind: n.Kind, Source: n.Source, Name: n.ID, Made: req.At.Add(-time.Minute), Worst: remit.SeverityNone,
			Subjects: []remit.Digest{n.Of.Digest}, Fields: maps.Clone(n.Match)}
		if i == 1 {
			e.Until = req.At.Add(100 * time.Second)
		}
		found[i] = remit.Found{Need: n, Evidence: e}
		a.mutate(i, &found[i])
	}
	return found
}

type noBroker struct{ authorizer.Broker }

type noActs struct{ authorizer.Acts }
