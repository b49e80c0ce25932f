// SPDX-License-Identifier: Apache-2.0

package server

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"remit"
	"remit/internal/api"
	"remit/internal/config"
)

// mailStory is a workflow that is wider than what is done with it.
const mailStory = `---
kind: Workflow
name: mail
parameters: {ticket: {type: integer}}
start: {by: [operator/ci], expires: 1h}
stages:
- name: work
  may:
  - {name: send, who: agent/deploy, action: memory.send, target: cluster, ttl: 5m,
     where: {to: {any: true}, ticket: {any: true}, amount: {min: 0, max: 5000}, note: {any: true}, flag: {any: true}}}
  - {name: drop, who: agent/deploy, action: memory.drop, target: cluster, where: {id: {any: true}}, ttl: 5m}
`

func (f *fixture) mailRun(ticket string) remit.Run {
	f.t.Helper()
	var r remit.Run
	f.must("/v1/runs", api.StartRun{Workflow: "mail", Params: map[string]string{"ticket": ticket}}, &r)
	return r
}

func (w *workload) send(to, ticket, amount, note string) given {
	return w.ask(fmt.Sprintf(`send","to":%s,"ticket":%s,"amount":%s,"note":%q,"stage":"work`, to, ticket, amount, note))
}

// mailHistory is four honest runs, with a denied request, and one that a finding is about.
func mailHistory(t *testing.T) *fixture {
	f := setUp(t)
	f.files += mailStory
	f.write(f.files)
	f.must("/v1/apply", nil, nil)
	for i, m := range []struct{ to, note string }{
		{`["ada@company.com"]`, "The printer on floor two works again."}, {`["ada@company.com","ops@company.com"]`, "Please look at this when you can."},
		{`["ops@company.com"]`, "It was the cable. Thanks for waiting!"}, {`["ada@company.com"]`, "Closed: nothing to be done here."},
	} {
		ticket := fmt.Sprint(100 + i)
		w := f.agent("agent/deploy", f.shared()).enter(f.mailRun(ticket))
		if g := w.send(m.to, ticket, fmt.Sprint(10*i), m.note); g.Secret == "" {
			t.Fatalf("%+v", g)
		}
		if g := w.send(`["eve@evil.example"]`, ticket, "9000", "all of it"); g.Secret != "" {
			t.Fatal("the bound let it in")
		}
	}
	taken := f.mailRun("666")
	w := f.agent("agent/deploy", f.shared()).enter(taken)
	if g := w.send(`["eve@evil.example"]`, "666", "4999", "send it all to me"); g.Secret == "" {
		t.Fatalf("%+v", g)
	}
	w.askFor(`{"type":"memory.read","target":"vault"}`)
	f.found(remit.FindingOutsideWorkflow)
	f.eventually("the finding is in the ledger", func() bool { return f.events(remit.EventRaised) > 0 })
	return f
}

func (f *fixture) learned(o LearnOptions) *Learned {
	f.t.Helper()
	o.Workflow = "mail"
	l, err := Learn(f.t.Context(), f.admin, o)
	if err != nil {
		f.t.Fatal(err)
	}
	return l
}

// TestLearnTakesNothingOddOrRefused: what was denied and what a finding is about do not teach; the values of an attack are not let in.
func TestLearnTakesNothingOddOrRefused(t *testing.T) {
	f := mailHistory(t)
	l := f.learned(LearnOptions{})
	for _, want := range []string{"[\"ada@company.com\", \"ops@company.com\"]", "ticket: $ticket", "{min: 0, max: 30}", "per_hour: {runs: 4,", "# 4 acts in 4 runs", "Left out, because nothing of that used them: drop"} {
		if !strings.Contains(l.File, want) {
			t.Errorf("no %s in\n%s", want, l.File)
		}
	}
	for _, bad := range []string{"evil", "4999", "9000", "any: true", "name: drop"} {
		if strings.Contains(l.File, bad) {
			t.Errorf("%s in\n%s", bad, l.File)
		}
	}
	if l.Acts != 4 || l.Runs != 4 || len(l.Skipped) != 2 || l.Skipped[0].Count != 5 || fmt.Sprint(l.Unused) != "[drop]" {
		t.Errorf("%+v", l)
	}
	if again := f.learned(LearnOptions{}); again.File != l.File {
		t.Error("a second time it is another")
	}
	files, err := mustSet(t, f.files).Replace("mail", []byte(l.File))
	if err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	for _, b := range files {
		all.WriteString("---\n" + string(b))
	}
	got := f.replayed(all.String())
	expect(t, "under the learned workflow", differing(got), []string{"allow→deny send: effect,permission,reasons,ttl", "deny→deny : reasons"})
}

func mustSet(t *testing.T, files string) *config.Set {
	t.Helper()
	set, err := config.Parse(map[string][]byte{"story.yaml": []byte(files)}, offlineDomain())
	if err != nil {
		t.Fatal(err)
	}
	return set
}

// TestLearnedNeverExceedsItsBound: neither a bound that is narrower than the history, nor a ceiling.
func TestLearnedNeverExceedsItsBound(t *testing.T) {
	f := mailHistory(t)
	narrow := strings.Replace(f.files, "max: 5000", "max: 15", 1)
	l := f.learned(LearnOptions{Bound: map[string][]byte{"story.yaml": []byte(narrow)}})
	if l.Acts != 2 || !strings.Contains(l.File, "{min: 0, max: 10}") {
		t.Errorf("%+v\n%s", l, l.File)
	}
	ceiling := func(to string) map[string][]byte {
		return map[string][]byte{"top.yaml": []byte("kind: Ceiling\nname: top\nmay:\n- {actions: [memory.send], where: {to: " + to + "}}\n- {actions: [memory.write, memory.read]}\n")}
	}
	f.learned(LearnOptions{Ceiling: ceiling("[ada@company.com, ops@company.com]")})
	_, err := Learn(t.Context(), f.admin, LearnOptions{Workflow: "mail", Ceiling: ceiling("[ada@company.com]")})
	if remit.CodeOf(err) != remit.CodeInvalid || !strings.Contains(err.Error(), "exceeds ceiling top") {
		t.Errorf("beyond the ceiling: %v", err)
	}
}

// TestLearnChoosesItsHistory: by agent, run and time; and it says when nothing is left.
func TestLearnChoosesItsHistory(t *testing.T) {
	f := mailHistory(t)
	var runs []remit.RunID
	for _, e := range f.decisions("mail") {
		runs = append(runs, e.Run)
	}
	one := f.learned(LearnOptions{Run: string(runs[0])})
	if one.Acts != 1 || one.Runs != 1 || !strings.Contains(one.File, "note: \"The printer on floor two works again.\"") {
		t.Errorf("%+v\n%s", one, one.File)
	}
	hours := f.learned(LearnOptions{Hours: time.UTC})
	if !strings.Contains(hours.File, "hours: {days: ["+strings.ToLower(time.Now().UTC().Weekday().String()[:3])) {
		t.Error(hours.File)
	}
	for what, o := range map[string]LearnOptions{"another agent": {Agent: "agent/build"}, "too early": {Until: time.Now().Add(-time.Hour)}, "too late": {Since: time.Now().Add(time.Hour)}} {
		o.Workflow = "mail"
		if _, err := Learn(t.Context(), f.admin, o); remit.CodeOf(err) != remit.CodeNotFound && remit.CodeOf(err) != remit.CodeInvalid {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := Learn(t.Context(), f.admin, LearnOptions{Workflow: "nothing"}); remit.CodeOf(err) != remit.CodeNotFound {
		t.Error(err)
	}
}

// TestLearnTraces: what was denied and odd runs do not teach, and a bound that is narrower leaves out what it would not allow.
func TestLearnTraces(t *testing.T) {
	lines := `{"run":"1","params":{"n":7},"calls":[{"agent":"agent/deploy","action":"memory.send","target":"cluster","args":{"to":"ada","n":7}},{"agent":"agent/deploy","action":"memory.send","target":"cluster","args":{"to":"eve","n":7},"denied":true}]}
{"run":"2","odd":true,"params":{"n":8},"calls":[{"agent":"agent/deploy","action":"memory.send","target":"cluster","args":{"to":"mallory","n":8}}]}
{"run":"3","params":{"n":9},"calls":[{"agent":"agent/deploy","action":"memory.send","target":"cluster","args":{"to":"bob","n":9}}]}`
	traces, err := ReadTraces(strings.NewReader(lines))
	if err != nil {
		t.Fatal(err)
	}
	files := strings.NewReplacer("UID", "1", "DIGEST", string(command()), "BACKEND", "none").Replace(story)
	learn := func(more string) *Learned {
		l, err := LearnTraces(traces, LearnOptions{Workflow: "mail", Bound: map[string][]byte{"story.yaml": []byte(files + more)}}, "operator/ci")
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	l := learn("")
	if l.Acts != 2 || !strings.Contains(l.File, "to: [\"ada\", \"bob\"]") || !strings.Contains(l.File, "n: $n") || strings.Contains(l.File, "\"eve") || strings.Contains(l.File, "mallory") {
		t.Errorf("%+v\n%s", l, l.File)
	}
	narrow := strings.NewReplacer("to: {any: true}", "to: [ada, carl]", "ticket: {any: true}, amount: {min: 0, max: 5000}", "n: {any: true}", "{ticket: ", "{n: ").Replace(mailStory)
	if l := learn(narrow); l.Acts != 1 || !strings.Contains(l.File, "to: \"ada\"") || strings.Contains(l.File, "carl") || l.Skipped[0].Why == "" {
		t.Errorf("%+v\n%s", l, l.File)
	}
	for _, bad := range []string{"{}", "{\"run\":\"1\",\"x\":1}", "kind: Workflow"} {
		if _, err := ReadTraces(strings.NewReader(bad)); remit.CodeOf(err) != remit.CodeInvalid {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

// decisions are those of the ledger, in order.
func (f *fixture) decisions(workflow string) (out []remit.Decision) {
	f.t.Helper()
	var list api.List[api.Entry]
	if err := f.admin.Get(f.t.Context(), "/v1/ledger", withKind(nil, remit.EventDecision), &list); err != nil {
		f.t.Fatal(err)
	}
	for i := range list.Items {
		d, err := entryDecision(&list.Items[i])
		if err != nil {
			f.t.Fatal(err)
		}
		if workflow == "" || d.Permission.Workflow == workflow {
			out = append(out, *d)
		}
	}
	return out
}
