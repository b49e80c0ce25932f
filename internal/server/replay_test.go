// SPDX-License-Identifier: Apache-2.0

package server

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"remit"
	"remit/internal/api"
	"remit/internal/policy"
)

const replayRule = `---
kind: Rule
name: notes
rego: |
  package remit.rules
  hold contains "a note of the agent's own" if input.args.note == "please"
  approvers contains "sales"
  deny contains "rude" if input.args.note == "now"
`

// replayed judges the history of a server by other files.
func (f *fixture) replayed(files string) ReplayReport {
	f.t.Helper()
	dir := f.t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "story.yaml"), []byte(files), 0o600); err != nil {
		f.t.Fatal(err)
	}
	r, err := NewReplay(dir, f.admin)
	if err != nil {
		f.t.Fatal(err)
	}
	if err := r.Read(f.t.Context(), "", nil, nil); err != nil {
		f.t.Fatal(err)
	}
	got := r.Report()
	if got.Decisions != f.events(remit.EventDecision) || got.Decisions != got.Same+got.Different+got.NotJudged {
		f.t.Errorf("%d decisions are on record: %+v", f.events(remit.EventDecision), got)
	}
	return got
}

// differing says what differs, by group: "N was→now permission: parts".
func differing(r ReplayReport) (out []string) {
	for _, g := range r.Groups {
		out = append(out, g.Was.Effect.String()+"→"+g.Now.Effect.String()+" "+g.Was.Permission.Name+": "+strings.Join(g.Differs, ","))
	}
	slices.Sort(out)
	return out
}

func unjudged(r ReplayReport) (out []string) {
	for _, u := range r.Unknown {
		out = append(out, u.Why)
	}
	slices.Sort(out)
	return out
}

func expect(t *testing.T, what string, got, want []string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s: %q, want %q", what, got, want)
	}
}

// replayHistory is a server with one decision of each sort.
func replayHistory(t *testing.T) *refundDesk {
	d := setUpApprovals(t, 1)
	d.files += replayRule
	d.write(d.files)
	d.must("/v1/apply", nil, nil)
	w := d.agent("agent/deploy", d.shared()).enter(d.refunds(d.as("dave")))
	d.pay(w, "40", "")
	d.pay(w, "900", "") // held, approved, allowed
	if v, err := d.answer("bob", "approve", d.newest().ID); err != nil || v.State != remit.HeldApproved {
		t.Fatalf("%v %+v", err, v)
	}
	if g := d.pay(w, "900", ""); g.Secret == "" {
		t.Fatalf("approved: %+v", g)
	}
	d.pay(w, "41", `,"note":"please"`) // held by a rule, approved, allowed
	if v, err := d.answer("frank", "approve", d.newest().ID); err != nil || v.State != remit.HeldApproved {
		t.Fatalf("%v %+v", err, v)
	}
	if g := d.pay(w, "41", `,"note":"please"`); g.Secret == "" {
		t.Fatalf("approved: %+v", g)
	}
	d.pay(w, "42", `,"note":"now"`) // denied by a rule
	d.pay(w, "2000", "")            // denied: beyond the range
	for range 3 {
		d.pay(w, "2000", "") // folded
	}
	deploy := d.agent("agent/deploy", d.shared()).enter(d.startRun())
	deploy.ask("write")
	deploy.ask("secret") // denied: not launched
	deploy.ask("build")  // denied: another agent's
	deploy.token = ""
	deploy.ask("write") // denied before policy: no run
	return d
}

// TestReplay: under the same configuration no decision of a mixed history differs; under a narrower and a wider one just those that
// must. What was decided before policy was asked is counted, never as the same.
func TestReplay(t *testing.T) {
	d := replayHistory(t)
	before := []string{string(policy.UnknownRecord) + ": run_missing"}
	same := d.replayed(d.files)
	expect(t, "the same files", differing(same), nil)
	expect(t, "not judged", unjudged(same), before)
	if same.Same != d.events(remit.EventDecision)-1 || same.Same < 9 {
		t.Errorf("%+v", same)
	}
	unused := remit.PermissionRef{Workflow: "deploy", Stage: "prepare", Name: "build"}
	used := remit.PermissionRef{Workflow: "refunds", Stage: "refund", Name: "pay"}
	if !slices.Contains(same.Unused, unused) || slices.Contains(same.Unused, used) {
		t.Errorf("unused: %v", same.Unused)
	}
	narrow := d.replayed(strings.NewReplacer("max: 1000", "max: 500", "deny contains \"rude\" if input.args.note == \"now\"",
		"deny contains \"small\" if input.args.amount == 40\n  deny contains \"rude\" if input.args.note == \"now\"").Replace(d.files))
	expect(t, "narrower", differing(narrow), []string{"allow→deny pay: effect,permission,reasons,ttl,until", "allow→deny pay: effect,reasons,ttl", "hold→deny pay: effect,permission,reasons"})
	wide := d.replayed(strings.NewReplacer("max: 1000", "max: 5000", "above: 100", "above: 3000", "kind: Target\nname: vault\ntype: memory\nproduction: true",
		"kind: Target\nname: vault\ntype: memory").Replace(d.files))
	expect(t, "wider", differing(wide), []string{"allow→allow pay: until", "deny→allow : effect,permission,reasons,ttl", "deny→allow secret: effect,reasons,ttl", "hold→allow pay: effect,reasons,ttl"})
	if narrow.Grants != narrow.Different {
		t.Errorf("%d different, %d of them asked for a grant", narrow.Different, narrow.Grants)
	}
	shorter := d.replayed(strings.ReplaceAll(d.files, "where: {app: $app}, ttl: 5m", "where: {app: $app}, ttl: 2m"))
	expect(t, "shorter", differing(shorter), []string{"allow→allow write: ttl"})
	gone := d.replayed(d.files[:strings.Index(d.files, "---\nkind: Workflow\nname: refunds")])
	for _, c := range differing(gone) {
		if !strings.Contains(c, "→deny pay") && !strings.HasPrefix(c, "deny→deny") {
			t.Errorf("without the workflow: %s", c)
		}
	}
}

// TestReplayOfFilledArguments: where the permission may have filled an argument in, another constant is not called a denial.
func TestReplayOfFilledArguments(t *testing.T) {
	f := setUp(t)
	w := f.agent("agent/deploy", f.shared()).enter(f.startRun())
	if w.ask("write").Secret == "" {
		t.Fatal("no credential")
	}
	got := f.replayed(strings.Replace(f.files, "target: cluster, where: {app: $app}, ttl: 5m}", "target: cluster, where: {app: other}, ttl: 5m}", 1))
	expect(t, "another constant", differing(got), nil)
	expect(t, "another constant", unjudged(got), []string{string(policy.UnknownFilled)})
}

// TestReplayNeverCallsEqualWhatItCannotSee: sensitive and erased values, and denials that are only counted.
func TestReplayNeverCallsEqualWhatItCannotSee(t *testing.T) {
	f := setUp(t)
	w := f.agent("agent/deploy", f.shared()).enter(f.startRun())
	for range 3 {
		w.ask(`write","app":"theirs`)
	}
	gone := f.startWith("gone")
	f.agent("agent/build", f.shared()).enter(gone).ask("build")
	f.must("/v1/runs/"+string(gone.ID)+"/finish", nil, nil)
	f.backend.waitEmpty(t)
	f.must("/v1/ledger/erase", api.Erase{Run: gone.ID, Reason: "asked by the person"}, nil)
	f.write(strings.Replace(f.files, "{app: {type: name}}", "{app: {type: name, sensitive: true}}", 1))
	f.must("/v1/apply", nil, nil)
	f.agent("agent/deploy", f.shared()).enter(f.startWith("private")).ask("write")
	f.srv.recordFolded(t.Context(), true)
	got := f.replayed(f.files)
	expect(t, "differs", differing(got), nil)
	expect(t, "not judged", unjudged(got), []string{"erased values", "sensitive values"})
	if got.Same != 1 || got.NotJudged != 2 || got.Folded != 2 {
		t.Errorf("%+v", got)
	}
	if slices.Contains(got.Unused, remit.PermissionRef{Workflow: "deploy", Stage: "prepare", Name: "build"}) {
		t.Error("what cannot be judged may have used its permission")
	}
}

// TestReplayByManyIsReplayByOne: however many processors judge, the report is the one that judging one entry after the other makes.
func TestReplayByManyIsReplayByOne(t *testing.T) {
	d := replayHistory(t)
	d.grow("", 2500)
	dir := t.TempDir()
	files := strings.NewReplacer("max: 1000", "max: 500", "where: {app: $app}, ttl: 5m", "where: {app: $app}, ttl: 2m").Replace(d.files)
	if err := os.WriteFile(filepath.Join(dir, "story.yaml"), []byte(files), 0o600); err != nil {
		t.Fatal(err)
	}
	reports := map[int]ReplayReport{}
	for _, processors := range []int{0, 1, 2, 7} { // 0: one entry a page
		r, err := NewReplay(dir, d.admin)
		if err != nil {
			t.Fatal(err)
		}
		if processors == 0 {
			err = r.history.each(t.Context(), "", withKind(nil, remit.EventDecision), func(e *api.Entry) error { return r.page(t.Context(), []api.Entry{*e}) })
		} else {
			before := runtime.GOMAXPROCS(processors)
			err = r.Read(t.Context(), "", nil, nil)
			runtime.GOMAXPROCS(before)
		}
		if err != nil {
			t.Fatal(err)
		}
		got := r.Report()
		got.Folded = 0 // not of the page
		reports[processors] = got
		if diff := cmp.Diff(reports[0], got); diff != "" {
			t.Errorf("%d processors: %s", processors, diff)
		}
	}
	one := reports[0]
	if one.Decisions < 2500 || one.Different == 0 || one.NotJudged == 0 || one.Same == 0 || len(one.Groups) < 3 {
		t.Errorf("%+v", one)
	}
}

// TestListIsBounded: a list of large entries ends early and says where to go on; a damaged entry is an error, not an empty list.
func TestListIsBounded(t *testing.T) {
	var entries []remit.Entry
	for i := range uint64(400) {
		e := remit.Event{At: time.Now(), Kind: remit.EventAction, Data: []byte(`{"x":"` + strings.Repeat("x", 60_000) + `"}`)}
		entries = append(entries, remit.Entry{Seq: i + 1, Body: e.AppendJSON(nil, i+1)})
	}
	read := 0
	for rest := entries; len(rest) > 0; {
		text, err := entriesText(rest, 0)
		var list api.List[api.Entry]
		if err = errors.Join(err, json.Unmarshal(text, &list)); err != nil || len(list.Items) == 0 || len(text) > maxListed+70_000 {
			t.Fatalf("%v: %d entries, %d bytes", err, len(list.Items), len(text))
		}
		read += len(list.Items)
		rest = rest[len(list.Items):]
		if want := entries[read-1].Seq; list.Items[len(list.Items)-1].Seq != want || (list.Next == strconv.FormatUint(want, 10)) != (len(rest) > 0) {
			t.Fatalf("next %q after %d of %d", list.Next, read, len(entries))
		}
	}
	entries[1].Body = []byte(remit.EntryHead + `2,"kind":"action","data":{"x":]}`)
	if text, err := entriesText(entries[:3], 0); err == nil || text != nil {
		t.Errorf("a damaged entry: %v, %d bytes", err, len(text))
	}
}
