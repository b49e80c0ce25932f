// SPDX-License-Identifier: Apache-2.0

package server

import (
	"slices"
	"strings"
	"testing"

	"remit"
	"remit/internal/policy"
	"remit/internal/store"
)

// TestSecondOpinion: S32. Every decision is judged again here; the true plan agrees with the printed Rego, and of a broken plan, which
// does not look at the application, the grant ends and a finding is on record.
func TestSecondOpinion(t *testing.T) {
	f := setUp(t, "attest:\n", "second_opinion: {one_in: 1}\nattest:\n")
	r := f.startRun()
	w := f.agent("agent/deploy", f.shared()).enter(r)
	if w.ask("write").Secret == "" || w.ask("build").Secret != "" || w.ask("secret").Secret != "" {
		t.Fatal("the plan does not do what it should")
	}
	f.eventually("what was decided was judged", func() bool { return f.srv.opinions.judged.Load() >= 2 })
	if n := f.events(remit.EventFinding); n != 0 || f.backend.count() != 1 {
		entries, _, _ := f.srv.store.Events(store.EventFilter{Kind: remit.EventFinding}, 0, 10)
		for _, e := range entries {
			t.Errorf("%s", e.Reveal().Open().Body)
		}
		t.Fatalf("%d findings about a true plan", n)
	}
	broken := *f.srv.rev.Load()
	flows := slices.Clone(broken.set.Workflows)
	for i := range flows {
		flows[i].Stages = slices.Clone(flows[i].Stages)
		for j := range flows[i].Stages {
			may := slices.Clone(flows[i].Stages[j].May)
			for k := range may {
				may[k].Where = map[string]remit.Predicate{"app": {Kind: remit.PredicateAny}}
			}
			flows[i].Stages[j].May = may
		}
	}
	var err error
	if broken.plan, err = policy.Compile(policy.Config{Workflows: flows, Digest: broken.set.Digest, Epoch: broken.epoch}); err != nil {
		t.Fatal(err)
	}
	f.srv.rev.Store(&broken)
	g := w.ask("write") // without the application, which the broken plan does not miss
	if g.Secret == "" {
		t.Fatalf("%+v", g)
	}
	f.eventually("its grant ended", func() bool {
		got, _ := f.srv.store.Grant(g.Grant)
		return got.State == remit.GrantEnded && strings.Contains(got.Why, "a second opinion differs")
	})
	f.eventually("the finding is on record", func() bool {
		entries, _, err := f.srv.store.Events(store.EventFilter{Kind: remit.EventFinding, Grant: g.Grant}, 0, 10)
		return err == nil && len(entries) == 1 && strings.Contains(string(entries[0].Body), `"plan":"allow write`) &&
			strings.Contains(string(entries[0].Body), `"rego":"deny `)
	})
	if f.backend.count() != 1 {
		t.Errorf("%d leases stand, not the true plan's one", f.backend.count())
	}
}

// TestSecondOpinionOfRepeatedDenials: a denial that is answered with an earlier one's record carries no arguments and no digest of a
// workflow; judged again it would be workflow_changed to OPA.
func TestSecondOpinionOfRepeatedDenials(t *testing.T) {
	f := setUp(t, "attest:\n", "second_opinion: {one_in: 1}\nattest:\n")
	w := f.agent("agent/deploy", f.shared()).enter(f.startRun())
	for range 3 {
		if g := w.ask(`write","app":"theirs`); g.code() != "argument_mismatch" {
			t.Fatalf("%+v", g)
		}
	}
	if w.ask("write").Secret == "" {
		t.Fatal("the plan does not do what it should")
	}
	f.eventually("what was decided was judged", func() bool { return f.srv.opinions.judged.Load() >= 2 })
	if n := f.events(remit.EventDecision); n != 2 {
		t.Fatalf("%d decisions are on record", n)
	}
	if n := f.events(remit.EventFinding); n != 0 {
		t.Errorf("%d findings about a true plan", n)
	}
}

// TestSamplingNeverWaits: a full queue costs an answer nothing.
func TestSamplingNeverWaits(t *testing.T) {
	f := setUp(t, "attest:\n", "second_opinion: {one_in: 1}\nattest:\n")
	var d remit.Decision
	for range 20 * opinionQueue {
		f.srv.sample(&d, "")
	}
}
