// SPDX-License-Identifier: Apache-2.0

package run_test

import (
	"encoding/json"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"pgregory.net/rapid"

	"remit"
	"remit/internal/run"
)

var (
	noon = time.Date(2026, 3, 2, 12, 0, 0, 0, time.UTC)
	td   = spiffeid.RequireTrustDomainFromString("company.com")
)

const image = "registry.example/foo@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

func agent(name string) run.Actor {
	n := remit.Name("agent/" + name)
	return run.Actor{Name: n, Principal: remit.Principal{ID: spiffeid.RequireFromPath(td, "/agent/"+name), Thumbprint: strings.Repeat("a", 43)}}
}

func person(name string, roles ...string) run.Actor {
	n := remit.Name("operator/" + name)
	return run.Actor{Name: n, Principal: remit.Principal{Person: n, Roles: roles}}
}

// flow has the stages a, b and c; agent/x acts in a and b, agent/y in b and c, and each ends the stages in which it acts.
func flow() *remit.Workflow {
	may := func(who remit.Name) remit.Permission {
		return remit.Permission{Name: "p", Who: who, Where: map[string]remit.Predicate{
			"app": {Kind: remit.PredicateObject, Fields: map[string]remit.Predicate{"in": {Kind: remit.PredicateEqual, Terms: []remit.Term{{Param: "app"}}}}}}}
	}
	return &remit.Workflow{Name: "w", Digest: remit.DigestOf([]byte("w")),
		Parameters: []remit.Parameter{{Name: "app", Type: "name"}},
		Start:      remit.Start{By: []remit.Name{"operator/ci"}, Expires: time.Hour},
		Stages: []remit.Stage{
			{Name: "a", End: []remit.Name{"agent/x"}, May: []remit.Permission{may("agent/x")}, Expires: 10 * time.Minute},
			{Name: "b", End: []remit.Name{"agent/x", "agent/y"}, May: []remit.Permission{may("agent/x"), may("agent/y")}},
			{Name: "c", May: []remit.Permission{may("agent/y")}, Expires: 50 * time.Minute},
		}}
}

func start(t testing.TB, w *remit.Workflow) remit.Run {
	t.Helper()
	r, events, err := run.Start(w, remit.NewRunID(), person("ci"), run.Input{Params: map[string]string{"app": "foo"}}, noon)
	if err != nil || len(events) != 1 {
		t.Fatal(events, err)
	}
	return r
}

func wantCode(t testing.TB, what string, err error, code remit.Code) {
	t.Helper()
	if remit.CodeOf(err) != code {
		t.Errorf("%s: %v, want code %s", what, err, code)
	}
}

func TestStory(t *testing.T) {
	w := flow()
	r := start(t, w)
	if r.Stage != "a" || r.State != remit.RunActive || !r.StageExpires.Equal(noon.Add(10*time.Minute)) || !r.Expires.Equal(noon.Add(time.Hour)) ||
		r.Sources["app"] != "operator/ci" || r.Starter != "operator/ci" || r.Epoch != 0 {
		t.Errorf("%+v", r)
	}
	b, events, err := run.Advance(r, w, agent("x"), "", noon.Add(time.Minute))
	if err != nil || b.Stage != "b" || b.Epoch != 1 || !b.StageExpires.Equal(r.Expires) || events[0].Kind != remit.EventRunStage {
		t.Fatal(b, err)
	}
	if got := string(events[0].Data); got != `{"from":"a","stage_expires":"2026-03-02T13:00:00Z","to":"b"}` || events[0].By != "spiffe://company.com/agent/x" {
		t.Error(got)
	}
	c, _, err := run.Advance(b, w, agent("y"), "c", noon.Add(20*time.Minute))
	if err != nil || !c.StageExpires.Equal(c.Expires) {
		t.Fatal("a stage must not outlive its run", c, err)
	}
	f, events, err := run.Finish(c, w, person("ci"), noon.Add(21*time.Minute))
	if err != nil || f.State != remit.RunFinished || string(events[0].Data) != `{"stage":"c","state":"finished","why":"finished by operator/ci"}` {
		t.Fatal(f, err)
	}
	if r.Stage != "a" || b.Stage != "b" {
		t.Error("a transition changed its predecessor")
	}
}

func TestStartEvent(t *testing.T) {
	_, events, _ := run.Start(flow(), remit.NewRunID(), person("ci"), run.Input{Params: map[string]string{"app": "foo"}}, noon)
	var event struct {
		Data struct {
			Params  map[string]string `json:"params"`
			Sources map[string]string `json:"sources"`
		} `json:"data"`
	}
	e := remit.Entry{Body: events[0].AppendJSON(nil, 1), Payload: events[0].Payload}
	if strings.Contains(string(e.Body), "foo") {
		t.Errorf("a parameter's value stands in the entry: %s", e.Body)
	}
	if err := json.Unmarshal(e.Open().Body, &event); err != nil || event.Data.Params["app"] != "foo" || event.Data.Sources["app"] != "operator/ci" {
		t.Error(string(e.Open().Body), err)
	}
	if events[0].Kind != remit.EventRunStarted || !events[0].At.Equal(noon) || events[0].By != "operator/ci" {
		t.Errorf("%+v", events[0])
	}
}

func TestWhoMayStart(t *testing.T) {
	in := run.Input{Params: map[string]string{"app": "foo"}}
	begin := func(w *remit.Workflow, by run.Actor) error {
		_, _, err := run.Start(w, remit.NewRunID(), by, in, noon)
		return err
	}
	wantCode(t, "a stranger", begin(flow(), person("eve", "admin")), remit.CodeForbidden)
	wantCode(t, "nobody", begin(flow(), run.Actor{}), remit.CodeUnauthenticated)
	wantCode(t, "a name without proof", begin(flow(), run.Actor{Name: "operator/ci"}), remit.CodeUnauthenticated)
	wantCode(t, "an agent under a person's name", begin(flow(), run.Actor{Name: "operator/ci", Principal: agent("x").Principal}), remit.CodeUnauthenticated)
	wantCode(t, "a person under another's name", begin(flow(), run.Actor{Name: "operator/ci", Principal: person("eve").Principal}), remit.CodeUnauthenticated)
	w := flow()
	w.Start.By = append(w.Start.By, "agent/x")
	wantCode(t, "who acts, without self", begin(w, agent("x")), remit.CodeForbidden)
	w.Start.Self = true
	wantCode(t, "who acts, with a value of its own", begin(w, agent("x")), remit.CodeInvalid) // S9
	w.Parameters[0].Name = "remark"
	in.Params = map[string]string{"remark": "foo"}
	wantCode(t, "who acts, with a value that binds nothing", begin(w, agent("x")), "")
}

func TestSources(t *testing.T) {
	w := flow()
	w.Parameters = append(w.Parameters, remit.Parameter{Name: "customer", Type: "integer", Source: "ticket.customer"})
	fact := run.Verified{Value: "555", Source: "ticket.customer", Evidence: "change-desk CHG-1"}
	said := map[string]string{"app": "foo"}
	for _, c := range []struct {
		name string
		in   run.Input
		want remit.Code
	}{
		{"verified", run.Input{said, map[string]run.Verified{"customer": fact}}, ""},
		{"from the starter", run.Input{map[string]string{"app": "foo", "customer": "555"}, nil}, remit.CodeInvalid},
		{"from both", run.Input{map[string]string{"app": "foo", "customer": "555"}, map[string]run.Verified{"customer": fact}}, remit.CodeInvalid},
		{"from nowhere", run.Input{said, nil}, remit.CodeInvalid},
		{"from another field", run.Input{said, map[string]run.Verified{"customer": {"555", "ticket.requester", "x"}}}, remit.CodeInvalid},
		{"from no evidence", run.Input{said, map[string]run.Verified{"customer": {"555", "ticket.customer", ""}}}, remit.CodeInvalid},
		{"verified, of no source", run.Input{nil, map[string]run.Verified{"customer": fact, "app": {"foo", "", "x"}}}, remit.CodeInvalid},
		{"from both, of no source", run.Input{said, map[string]run.Verified{"customer": fact, "app": {"foo", "", "x"}}}, remit.CodeInvalid},
		{"one too many", run.Input{map[string]string{"app": "foo", "x": "y"}, map[string]run.Verified{"customer": fact}}, remit.CodeInvalid},
		{"one too many verified", run.Input{said, map[string]run.Verified{"customer": fact, "x": fact}}, remit.CodeInvalid},
		{"one too few", run.Input{nil, map[string]run.Verified{"customer": fact}}, remit.CodeInvalid},
	} {
		r, _, err := run.Start(w, remit.NewRunID(), person("ci"), c.in, noon)
		wantCode(t, c.name, err, c.want)
		if err == nil && (r.Sources["customer"] != "ticket.customer of change-desk CHG-1" || r.Params["customer"].Text() != "555") {
			t.Errorf("%+v", r)
		}
	}
}

func TestParameter(t *testing.T) {
	one, ten := remit.IntValue(1), remit.IntValue(10)
	for _, c := range []struct {
		p    remit.Parameter
		raw  string
		want string // its text; empty: refused
	}{
		{remit.Parameter{Type: "name"}, "foo-1.bar", "foo-1.bar"}, {remit.Parameter{Type: "name"}, "Foo", ""}, {remit.Parameter{Type: "name"}, "", ""},
		{remit.Parameter{Type: "name"}, "a/../b", ""}, {remit.Parameter{Type: "name"}, "foo\n", ""}, {remit.Parameter{Type: "name"}, strings.Repeat("a", 254), ""},
		{remit.Parameter{Type: "string"}, "any thing", "any thing"}, {remit.Parameter{Type: "string"}, "", ""}, {remit.Parameter{Type: "string"}, "a\x00b", ""},
		{remit.Parameter{Type: "string"}, "\xff", ""}, {remit.Parameter{Type: "string"}, "a\u202eb", ""}, {remit.Parameter{Type: "string"}, strings.Repeat("a", 5000), ""},
		{remit.Parameter{Type: "string", Pattern: regexp.MustCompile(`^(?:CHG-[0-9]+)$`)}, "CHG-1", "CHG-1"},
		{remit.Parameter{Type: "string", Pattern: regexp.MustCompile(`^(?:CHG-[0-9]+)$`)}, "CHG-1x", ""},
		{remit.Parameter{Type: "integer"}, "7.0", "7"}, {remit.Parameter{Type: "integer"}, "7.5", ""}, {remit.Parameter{Type: "integer"}, "0x7", ""}, {remit.Parameter{Type: "integer"}, "", ""},
		{remit.Parameter{Type: "integer", Min: &one, Max: &ten}, "1", "1"}, {remit.Parameter{Type: "integer", Min: &one}, "0", ""}, {remit.Parameter{Type: "integer", Max: &ten}, "11", ""},
		{remit.Parameter{Type: "number", Max: &ten}, "9.99", "9.99"}, {remit.Parameter{Type: "number", Max: &ten}, "10.0000001", ""}, {remit.Parameter{Type: "number"}, "NaN", ""},
		{remit.Parameter{Type: "integer", OneOf: []remit.Value{one}}, "1.0", "1"}, {remit.Parameter{Type: "integer", OneOf: []remit.Value{one}}, "2", ""},
		{remit.Parameter{Type: "boolean"}, "true", "true"}, {remit.Parameter{Type: "boolean"}, "yes", ""},
		{remit.Parameter{Type: "image"}, image, image}, {remit.Parameter{Type: "image"}, "registry.example/foo:v1", ""}, {remit.Parameter{Type: "image"}, "", ""},
		{remit.Parameter{Type: "image"}, strings.Replace(image, "@", ":v1@", 1), image},
		{remit.Parameter{Type: "else"}, "x", ""},
	} {
		v, err := run.Parameter(&c.p, c.raw)
		if v.Text() != c.want || (err == nil) != (c.want != "") || err != nil && remit.CodeOf(err) != remit.CodeInvalid {
			t.Errorf("%s %.40q: %v, %v", c.p.Type, c.raw, v, err)
		}
	}
}

func TestAdvanceRefuses(t *testing.T) {
	w := flow()
	r := start(t, w)
	b, _, err := run.Advance(r, w, agent("x"), "b", noon)
	if err != nil {
		t.Fatal(err)
	}
	c, _, err := run.Advance(b, w, agent("y"), "", noon)
	if err != nil {
		t.Fatal(err)
	}
	other := flow()
	other.Digest = remit.DigestOf([]byte("other"))
	frozen, _, _ := run.Freeze(r, "remit", "x", noon)
	finished, _, _ := run.Finish(r, w, person("ci"), noon)
	for _, x := range []struct {
		name string
		r    remit.Run
		w    *remit.Workflow
		by   run.Actor
		to   string
		at   time.Time
		want remit.Code
	}{
		{"the starter, whom end does not name", r, w, person("ci"), "", noon, remit.CodeForbidden},
		{"an admin", r, w, person("root", "admin"), "", noon, remit.CodeForbidden},
		{"an agent of the next stage", r, w, agent("y"), "", noon, remit.CodeForbidden},
		{"back", b, w, agent("x"), "a", noon, remit.CodeConflict},
		{"to itself", b, w, agent("x"), "b", noon, remit.CodeConflict},
		{"over a stage", r, w, agent("x"), "c", noon, remit.CodeConflict},
		{"to nowhere", r, w, agent("x"), "z", noon, remit.CodeConflict},
		{"past the end", c, w, person("ci"), "", noon, remit.CodeConflict},
		{"an agent where end names nobody", c, w, agent("y"), "", noon, remit.CodeForbidden},
		{"after the stage's time", r, w, agent("x"), "", noon.Add(10 * time.Minute), remit.CodeConflict},
		{"after the run's time", b, w, agent("x"), "", noon.Add(time.Hour), remit.CodeConflict},
		{"frozen", frozen, w, agent("x"), "", noon, remit.CodeConflict},
		{"finished", finished, w, agent("x"), "", noon, remit.CodeConflict},
		{"a changed workflow", r, other, agent("x"), "", noon, remit.CodeConflict},
		{"nobody", r, w, run.Actor{}, "", noon, remit.CodeUnauthenticated},
	} {
		next, events, err := run.Advance(x.r, x.w, x.by, x.to, x.at)
		wantCode(t, x.name, err, x.want)
		if events != nil || next.Stage != x.r.Stage || next.Epoch != x.r.Epoch {
			t.Errorf("%s: the run moved", x.name)
		}
	}
}

func TestWhoMayFinish(t *testing.T) {
	w := flow()
	r := start(t, w)
	for _, c := range []struct {
		name string
		w    *remit.Workflow
		by   run.Actor
		want remit.Code
	}{
		{"starter", w, person("ci"), ""}, {"end of the stage", w, agent("x"), ""}, {"responder", w, person("r", "responder"), ""},
		{"admin", w, person("r", "admin"), ""}, {"author", w, person("r", "author"), remit.CodeForbidden},
		{"another agent", w, agent("y"), remit.CodeForbidden}, {"nobody", w, run.Actor{}, remit.CodeUnauthenticated},
		{"starter without a workflow", nil, person("ci"), ""}, {"agent without a workflow", nil, agent("x"), remit.CodeForbidden},
	} {
		_, _, err := run.Finish(r, c.w, c.by, noon)
		wantCode(t, c.name, err, c.want)
	}
	late, _, err := run.Finish(r, w, person("ci"), noon.Add(2*time.Hour))
	if err != nil || late.State != remit.RunFinished {
		t.Error("ending must not depend on time", err)
	}
	_, _, err = run.Finish(late, w, person("ci"), noon)
	wantCode(t, "twice", err, remit.CodeConflict)
}

func TestActive(t *testing.T) {
	w := flow()
	w.Stages[0].End = append(w.Stages[0].End, "operator/lead")
	r := start(t, w)
	for name, want := range map[remit.Name]bool{"agent/x": true, "operator/lead": true, "agent/y": false, "operator/ci": false, "": false} {
		if run.Active(&r, w, name) != want {
			t.Errorf("%s: active is not %t", name, want)
		}
	}
	b, _, _ := run.Advance(r, w, agent("x"), "", noon)
	if !run.Active(&b, w, "agent/y") || run.Active(&b, w, "operator/lead") {
		t.Error("who is active follows the stage")
	}
	frozen, _, _ := run.Freeze(r, "remit", "x", noon)
	if run.Active(&frozen, w, "agent/x") {
		t.Error("nobody is active in a frozen run")
	}
	other := flow()
	other.Digest = "sha256:x"
	if run.Active(&r, other, "agent/x") {
		t.Error("nobody is active under a changed workflow")
	}
}

func TestFreeze(t *testing.T) {
	r := start(t, flow())
	frozen, events, err := run.Freeze(r, "operator/sec", "agent/x is suspended", noon)
	if err != nil || frozen.Live(noon) || frozen.Epoch != 1 || string(events[0].Data) != `{"stage":"a","state":"frozen","why":"agent/x is suspended"}` {
		t.Error(frozen, err)
	}
	_, _, err = run.Freeze(frozen, "remit", "x", noon)
	wantCode(t, "freeze twice", err, remit.CodeConflict)
}

func TestExpire(t *testing.T) {
	r := start(t, flow())
	for _, c := range []struct {
		at  time.Duration
		why string
	}{{10*time.Minute - 1, ""}, {10 * time.Minute, "the time of stage a is over"}, {time.Hour, "the run's time is over"}} {
		next, events, due := run.Expire(r, noon.Add(c.at))
		if due != (c.why != "") || due && (next.State != remit.RunExpired || !strings.Contains(string(events[0].Data), c.why)) {
			t.Errorf("%s: %+v", c.at, next)
		}
	}
	expired, _, _ := run.Expire(r, noon.Add(time.Hour))
	if _, _, due := run.Expire(expired, noon.Add(2*time.Hour)); due {
		t.Error("expired twice")
	}
}

// TestMachine takes any steps in any order: stages only rise, the epoch rises by one with each change and never else, time
// limits are never moved back, and nothing leads out of an ended run.
func TestMachine(t *testing.T) {
	w := flow()
	rapid.Check(t, func(t *rapid.T) {
		r, _, err := run.Start(w, remit.NewRunID(), person("ci"), run.Input{Params: map[string]string{"app": "foo"}}, noon)
		if err != nil {
			t.Fatal(err)
		}
		at := noon
		actors := []run.Actor{person("ci"), agent("x"), agent("y"), person("r", "responder"), {}}
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			at = at.Add(time.Duration(rapid.IntRange(0, 600).Draw(t, "seconds")) * time.Second)
			by := rapid.SampledFrom(actors).Draw(t, "by")
			to := rapid.SampledFrom([]string{"", "a", "b", "c"}).Draw(t, "to")
			before, next := r, r
			var events []remit.Event
			switch rapid.SampledFrom([]string{"advance", "finish", "expire", "freeze"}).Draw(t, "step") {
			case "advance":
				if next, events, err = run.Advance(r, w, by, to, at); err == nil && !before.Live(at) {
					t.Fatal("advanced when it was not live")
				}
			case "finish":
				next, events, _ = run.Finish(r, w, by, at)
			case "expire":
				next, events, _ = run.Expire(r, at)
			case "freeze":
				next, events, _ = run.Freeze(r, "remit", "x", at)
			}
			check(t, &before, &next, events)
			r = next
		}
	})
}

func check(t *rapid.T, before, next *remit.Run, events []remit.Event) {
	ended := before.State == remit.RunFinished || before.State == remit.RunExpired
	switch {
	case next.Epoch != before.Epoch+uint64(len(events)):
		t.Fatalf("epoch %d, then %d with %d events", before.Epoch, next.Epoch, len(events))
	case len(events) == 0 && (next.State != before.State || next.Stage != before.Stage || !next.StageExpires.Equal(before.StageExpires)):
		t.Fatal("a change without an event")
	case ended && len(events) > 0:
		t.Fatal("a step out of an ended run")
	case next.Stage < before.Stage || next.Stage > before.Stage && next.Stage[0]-before.Stage[0] != 1:
		t.Fatalf("from stage %s to %s", before.Stage, next.Stage)
	case !next.Expires.Equal(before.Expires) || next.StageExpires.After(next.Expires):
		t.Fatal("time limits moved")
	}
	for _, e := range events {
		if !json.Valid(e.Data) || e.By == "" || e.Run != next.ID {
			t.Fatalf("event %+v", e)
		}
	}
}

// TestStageIsLeftOnlyWithItsFacts: S9. Every fact that the stage's end asks for must be among those that were found.
func TestStageIsLeftOnlyWithItsFacts(t *testing.T) {
	w := flow()
	one, two := remit.ExitFact{Permission: "p", Fact: remit.FactGranted}, remit.ExitFact{Permission: "p", Fact: remit.FactExecuted}
	w.Stages[0].When = []remit.ExitFact{one, two}
	r := start(t, w)
	for _, facts := range [][]remit.ExitFact{nil, {one}, {two}, {one, {Permission: "q", Fact: remit.FactExecuted}}} {
		if next, _, err := run.Advance(r, w, agent("x"), "", noon, facts...); remit.CodeOf(err) != remit.CodeConflict || next.Stage != "a" {
			t.Errorf("with %v: %v in stage %s", facts, err, next.Stage)
		}
	}
	next, events, err := run.Advance(r, w, agent("x"), "", noon, two, one)
	if err != nil || next.Stage != "b" || !strings.Contains(string(events[0].Data), "p executed") {
		t.Errorf("%v, %+v, %s", err, next, events[0].Data)
	}
}
