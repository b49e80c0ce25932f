// SPDX-License-Identifier: Apache-2.0

package learn_test

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"remit"
	"remit/internal/config"
	"remit/internal/learn"
	"remit/internal/policy"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

var begin = time.Date(2026, 11, 2, 8, 0, 0, 0, time.UTC)

const world = "kind: Agent\nname: clerk\n---\nkind: Target\nname: desk\ntype: external\n"

// bound permits the clerk everything; each act names its permission.
func bound() remit.Workflow {
	free := remit.Predicate{Kind: remit.PredicateAny}
	w := remit.Workflow{Name: "work", Digest: "any", Start: remit.Start{By: []remit.Name{"operator/ci"}, Expires: time.Hour, Runs: 200, Values: 100},
		Parameters: []remit.Parameter{{Name: "customer", Type: "integer"}}, Stages: []remit.Stage{{Name: "one"}}}
	for _, name := range []string{"find", "send", "pay"} {
		where := map[string]remit.Predicate{}
		for _, arg := range []string{"a", "b", "c", "d"} {
			where[arg] = free
		}
		w.Stages[0].May = append(w.Stages[0].May, remit.Permission{Name: name, Who: "agent/clerk", Action: "desk." + name, Target: "desk", Where: where, TTL: time.Minute})
	}
	return w
}

// judge is the learned file, loaded as the server loads it.
type judge struct {
	plan     *policy.Plan
	workflow remit.Workflow
	from     map[string]bool
}

func load(t testing.TB, text []byte) *judge {
	t.Helper()
	set, err := config.Parse(map[string][]byte{"world.yaml": []byte(world), "work.yaml": text}, spiffeid.RequireTrustDomainFromString("company.com"))
	if err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	return compile(t, set.Workflows[0])
}

func compile(t testing.TB, w remit.Workflow) *judge {
	t.Helper()
	j := &judge{workflow: w}
	var err error
	j.plan, err = policy.Compile(policy.Config{Workflows: []remit.Workflow{w}, Digest: "rev", Agents: []remit.Name{"agent/clerk"}, Targets: []string{"desk"},
		From: func(_ remit.RunID, permission, path string, v remit.Value) bool {
			return j.from[permission+path+v.String()]
		}})
	if err != nil {
		t.Fatal(err)
	}
	return j
}

func (j *judge) allows(a *learn.Act) bool {
	j.from = map[string]bool{}
	for _, f := range a.From {
		name, rest, _ := strings.Cut(strings.TrimPrefix(f.Arg, "/"), "/")
		v := a.Args[name]
		if rest != "" {
			for i, e := range v.Elements() {
				if fmt.Sprint(i) == rest {
					v = e
				}
			}
		}
		j.from[f.Permission+f.Path+v.String()] = true
	}
	req := remit.Request{At: a.At, Agent: "agent/clerk", Action: "desk." + a.Permission, Target: "desk", Args: a.Args, Run: "run", Sandbox: a.Tier}
	run := remit.Run{ID: "run", Workflow: "work", Digest: j.workflow.Digest, Stage: "one", Params: a.Params}
	m := j.plan.Match(&req, &run)
	return m.Permission != nil && m.Ref.Name == a.Permission
}

// history draws acts: constants, parameters, results, numbers, dates, prose, names, lists, objects and what is sometimes absent.
func history(r *rand.Rand) (out []learn.Act) {
	runs := 1 + r.IntN(8)
	for run := range runs {
		customer := remit.IntValue(int64(500 + r.IntN(4)))
		for range 1 + r.IntN(4) {
			a := learn.Act{Run: fmt.Sprint(run), At: begin.Add(time.Duration(run)*23*time.Hour + time.Duration(r.IntN(300))*time.Minute),
				Permission: []string{"find", "send", "pay"}[r.IntN(3)], Args: remit.Args{}, Params: map[string]remit.Value{"customer": customer}}
			for _, arg := range []string{"a", "b", "c", "d"} {
				if v := draw(r, arg, customer); !v.IsNull() {
					a.Args[arg] = v
				}
			}
			if v := a.Args["b"]; v.Kind() == remit.String && a.Permission == "send" {
				a.From = []remit.FromFact{{Permission: "find", Path: "/who/*/mail", Arg: "/b"}}
			}
			out = append(out, a)
		}
	}
	return out
}

var proseTexts = []string{"all is well here", "Nothing: to see, really.", "see you at ten o'clock", "it costs 7.50 in all", "look at evil.example now", "\"quoted\"\n$and: more words", "- a list it seems"}

func draw(r *rand.Rand, arg string, customer remit.Value) remit.Value {
	name := func() remit.Value {
		return remit.StringValue([]string{"ada", "bob", "$eve", "null", "7", "no"}[r.IntN(6)])
	}
	switch k := r.IntN(9); {
	case arg == "a":
		return customer
	case arg == "b" && k < 7:
		return remit.StringValue(fmt.Sprintf("c%d@example.com", r.IntN(1000)))
	case arg == "b":
		return remit.Value{}
	case arg == "c":
		return remit.StringValue(proseTexts[r.IntN(len(proseTexts))] + strings.Repeat("!", r.IntN(3)))
	case k == 0:
		return remit.Value{}
	case k == 1:
		return remit.ListValue()
	case k == 2:
		return remit.ListValue(name(), name())
	case k == 3:
		return remit.ObjectValue(map[string]remit.Value{"min": remit.IntValue(1), "to": name()})
	case k == 4:
		return remit.BoolValue(r.IntN(2) == 0)
	case k < 7:
		v, _ := remit.NumberValue(fmt.Sprintf("%d.%d", r.IntN(100), r.IntN(10)))
		return v
	}
	return name()
}

func learned(t testing.TB, acts []learn.Act, o learn.Options) (remit.Workflow, []byte) {
	t.Helper()
	l := learn.New(bound(), o)
	for i := range acts {
		if err := l.Add(&acts[i]); err != nil {
			t.Fatal(err)
		}
	}
	w, err := l.Workflow()
	if err != nil {
		t.Fatal(err)
	}
	text, err := l.Text(&w, nil)
	if err != nil {
		t.Fatal(err)
	}
	return w, text
}

// TestLearnedAllowsItsHistory: whatever was done, the file loads, the engine allows all of it by it, it is within the bound, and nothing of it
// can be taken away.
func TestLearnedAllowsItsHistory(t *testing.T) {
	for seed := range uint64(400) {
		r := rand.New(rand.NewPCG(seed, 6))
		acts := history(r)
		o := learn.Options{}
		if seed%2 == 0 {
			o.Hours = time.UTC
		}
		w, text := learned(t, acts, o)
		if _, again := learned(t, acts, o); string(again) != string(text) {
			t.Fatalf("seed %d: not the same twice", seed)
		}
		j := load(t, text)
		for i := range acts {
			if !j.allows(&acts[i]) {
				t.Fatalf("seed %d: %+v is denied by\n%s", seed, acts[i], text)
			}
		}
		b := bound()
		if wider := config.Wider(&w, &b); len(wider) > 0 {
			t.Fatalf("seed %d: %+v\n%s", seed, wider, text)
		}
		for _, n := range narrower(w) {
			j := compile(t, n.w)
			denied := false
			for i := range acts {
				denied = denied || !j.allows(&acts[i])
			}
			if !denied {
				t.Fatalf("seed %d: %s is not needed in\n%s", seed, n.what, text)
			}
		}
	}
}

type variant struct {
	what string
	w    remit.Workflow
}

// narrower are all workflows with one thing less: a permission, an argument, an entry of a list, an end of a range, an hour.
func narrower(w remit.Workflow) (out []variant) {
	edit := func(i int, what string, f func(*remit.Permission)) {
		c := w
		c.Stages = []remit.Stage{w.Stages[0]}
		c.Stages[0].May = append([]remit.Permission(nil), w.Stages[0].May...)
		p := c.Stages[0].May[i]
		where := map[string]remit.Predicate{}
		for k, v := range p.Where {
			where[k] = v
		}
		p.Where = where
		f(&p)
		c.Stages[0].May[i] = p
		out = append(out, variant{p.Name + ": " + what, c})
	}
	for i := range w.Stages[0].May {
		p := &w.Stages[0].May[i]
		edit(i, "the permission", func(p *remit.Permission) { p.Target, p.Action = "desk", "desk.never" })
		for arg, is := range p.Where {
			edit(i, arg, func(p *remit.Permission) { delete(p.Where, arg) })
			for _, less := range lesser(is) {
				edit(i, fmt.Sprintf("%s: instead of %s: %s", arg, config.DescribePredicate(is), config.DescribePredicate(less)), func(p *remit.Permission) { p.Where[arg] = less })
			}
		}
		if h := p.Hours; h != nil {
			for _, by := range [][2]int{{60, 0}, {0, -60}} {
				if h.To-h.From > 60 {
					edit(i, "an hour", func(p *remit.Permission) {
						p.Hours = &remit.Hours{Days: h.Days, From: h.From + by[0], To: h.To + by[1], Zone: h.Zone}
					})
				}
			}
		}
	}
	return out
}

func lesser(is remit.Predicate) (out []remit.Predicate) {
	for k := range is.Terms {
		if len(is.Terms)+len(is.Sources) > 1 {
			less := is
			less.Terms = append(append([]remit.Term(nil), is.Terms[:k]...), is.Terms[k+1:]...)
			out = append(out, less)
		}
	}
	for k := range is.Sources {
		if len(is.Terms)+len(is.Sources) > 1 {
			less := is
			less.Sources = append(append([]remit.Source(nil), is.Sources[:k]...), is.Sources[k+1:]...)
			out = append(out, less)
		}
	}
	if is.Empty && len(is.Terms)+len(is.Sources) > 0 {
		less := is
		less.Empty = false
		out = append(out, less)
	}
	if is.Kind == remit.PredicateRange {
		for _, b := range []struct{ from, to *remit.Value }{{is.Max, is.Max}, {is.Min, is.Min}} {
			less := is
			less.Min, less.Max = b.from, b.to
			if order, _ := is.Min.Compare(*is.Max); order != 0 {
				out = append(out, less)
			}
		}
	}
	for name, f := range is.Fields {
		for _, l := range lesser(f) {
			less := is
			less.Fields = map[string]remit.Predicate{}
			for k, v := range is.Fields {
				less.Fields[k] = v
			}
			less.Fields[name] = l
			out = append(out, less)
		}
	}
	return out
}

// TestDatesWithAWord: where most values are dates, any date and any day in a word may come, and of other words just those that were said.
func TestDatesWithAWord(t *testing.T) {
	act := func(run int, date string) learn.Act {
		return learn.Act{Run: fmt.Sprint(run), At: begin, Permission: "pay", Args: remit.Args{"a": remit.StringValue(date)}}
	}
	acts := []learn.Act{act(1, "2026-03-01"), act(2, "2026-03-05"), act(3, "2026-04-01"), act(4, "today"), act(5, "payday"), act(6, "2026-04-02")}
	_, text := learned(t, acts, learn.Options{})
	j := load(t, text)
	for value, want := range map[string]bool{"2027-01-01": true, "today": true, "tomorrow": true, "payday": true, "never": false, "today at evil.example": false, "2027-01-01 x": false} {
		if a := act(7, value); j.allows(&a) != want {
			t.Errorf("%q is allowed: %v, by\n%s", value, !want, text)
		}
	}
	for i, other := range []string{"never", "tomorrow"} {
		acts[i] = act(i+1, other) // four of six are no dates
	}
	_, text = learned(t, acts, learn.Options{})
	j = load(t, text)
	for _, value := range []string{"2027-01-01", "yesterday"} {
		if a := act(7, value); j.allows(&a) {
			t.Errorf("%q, which nobody gave, is allowed by\n%s", value, text)
		}
	}
}

// TestTwoWords: two words are what somebody worded, unless the second may be a name or there is a number; three runs show that they change.
func TestTwoWords(t *testing.T) {
	for _, c := range []struct {
		seen, next string
		want       bool
	}{
		{"Dinner refund|Sushi dinner|Late lunch", "Refund for dinner", true},
		{"Ada Lovelace|Alan Turing|Grace Hopper", "Eve Evil", false},
		{"room 7|room 8|room 9", "room 10", false},
		{"Dinner refund|Dinner refund|Dinner refund", "Sushi dinner", false},
	} {
		var acts []learn.Act
		for i, v := range strings.Split(c.seen, "|") {
			acts = append(acts, learn.Act{Run: fmt.Sprint(i), At: begin, Permission: "pay", Args: remit.Args{"a": remit.StringValue(v)}})
		}
		_, text := learned(t, acts, learn.Options{})
		a := learn.Act{Run: "next", At: begin, Permission: "pay", Args: remit.Args{"a": remit.StringValue(c.next)}}
		if load(t, text).allows(&a) != c.want {
			t.Errorf("%q is allowed: %v, by\n%s", c.next, !c.want, text)
		}
	}
}

// TestUnchanged: who changes a record, which an earlier result named by the same field, may repeat what stands in it, and nothing else.
func TestUnchanged(t *testing.T) {
	act := func(run int, from, args string) learn.Act {
		a := learn.Act{Run: fmt.Sprint(run), At: begin, Permission: "pay"}
		if err := a.Args.UnmarshalJSON([]byte(args)); err != nil {
			t.Fatal(err)
		}
		for _, f := range strings.Fields(from) {
			a.From = append(a.From, remit.FromFact{Permission: "find", Path: "/list/*/" + f, Arg: "/" + f})
		}
		return a
	}
	find := learn.Act{Run: "1", At: begin, Permission: "find"}
	acts := []learn.Act{find, act(1, "a", `{"a":7,"b":100}`), act(2, "a", `{"a":7,"b":100,"c":"x"}`)}
	w, text := learned(t, acts, learn.Options{})
	b := bound()
	if wider := config.Wider(&w, &b); len(wider) > 0 {
		t.Errorf("%+v", wider)
	}
	j := load(t, text)
	for _, c := range []struct {
		from, args string
		want       bool
	}{
		{"a d", `{"a":7,"b":100,"d":"as it is"}`, true}, {"a c", `{"a":7,"b":100,"c":"as it is"}`, true}, {"a", `{"a":7,"b":100,"c":"x"}`, true},
		{"a", `{"a":7,"b":100,"d":"another"}`, false}, {"a", `{"a":7,"b":100,"c":"another"}`, false}, {"a b", `{"a":7,"b":200}`, false},
	} {
		if a := act(3, c.from, c.args); j.allows(&a) != c.want {
			t.Errorf("%s is allowed: %v, by\n%s", c.args, !c.want, text)
		}
	}
	acts[2].From = nil // in one of two acts nothing had named the record
	_, text = learned(t, acts, learn.Options{})
	if a := act(3, "a d", `{"a":7,"b":100,"d":"as it is"}`); load(t, text).allows(&a) {
		t.Errorf("an argument that nobody gave is allowed by\n%s", text)
	}
}
