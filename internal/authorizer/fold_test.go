// SPDX-License-Identifier: Apache-2.0

package authorizer_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"remit"
	"remit/internal/authorizer"
	"remit/internal/store"
)

// folding is a line that denies, and folds what it denied.
func folding(t *testing.T) *line {
	t.Helper()
	l := setUp(t)
	l.permitted = false
	var err error
	l.auth, err = authorizer.New(authorizer.Config{Policy: func() authorizer.Policy { return l }, State: l.store, Evidence: l, Record: l,
		Broker: l, Acts: l.store, Fold: &authorizer.Fold{Window: 10 * time.Second}})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// recorded is an event of the ledger, and where it stands.
type recorded struct {
	Seq      uint64
	Kind     remit.EventKind
	Decision remit.DecisionID
	Data     struct {
		Count  uint64
		Others uint64
		Into   []struct {
			Decision remit.DecisionID
			Count    uint64
		}
	}
}

func (l *line) ledger(t *testing.T, kind remit.EventKind) (out []recorded) {
	t.Helper()
	entries, _, err := l.store.Events(store.EventFilter{}, 0, 1000)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		var r recorded
		if err := json.Unmarshal(e.Open().Body, &r); err != nil {
			t.Fatal(err)
		}
		if r.Kind == kind {
			out = append(out, r)
		}
	}
	return out
}

// TestRepeatedDenialsFold: the first denial is on record before it is answered, what follows is answered with it, and one event
// says how many there were. The receipt of a folded answer is that of the denial it names.
func TestRepeatedDenialsFold(t *testing.T) {
	l := folding(t)
	first, err := l.auth.Decide(t.Context(), l.request())
	if err != nil || first.Effect != remit.Deny || first.Receipt == nil {
		t.Fatalf("%v, %+v", err, first)
	}
	for range 99 {
		d, _, cred, err := l.auth.Grant(t.Context(), l.request())
		if err != nil || d.Effect != remit.Deny || d.Reasons[0].Code != remit.ReasonNoPermission || !cred.Secret.IsZero() {
			t.Fatalf("%v, %+v", err, d)
		}
		if d.ID != first.ID || d.Receipt == nil || d.Receipt.Seq != first.Receipt.Seq {
			t.Fatalf("the answer names %s at %v, not the recorded %s", d.ID, d.Receipt, first.ID)
		}
	}
	all := l.ledger(t, remit.EventDecision)
	if len(all) != 1 || all[0].Decision != first.ID || all[0].Seq != first.Receipt.Seq {
		t.Fatalf("decisions on record: %+v", all)
	}
	if err := l.auth.Flush(t.Context(), l.now.Add(time.Second), false); err != nil || len(l.ledger(t, remit.EventFolded)) != 0 {
		t.Fatalf("flushed before the window ended: %v", err)
	}
	if err := l.auth.Flush(t.Context(), l.now.Add(10*time.Second), false); err != nil {
		t.Fatal(err)
	}
	folded := l.ledger(t, remit.EventFolded)
	if len(folded) != 1 || folded[0].Decision != first.ID || folded[0].Data.Count != 99 || folded[0].Data.Others != 0 ||
		len(folded[0].Data.Into) != 1 || folded[0].Data.Into[0].Count != 99 {
		t.Fatalf("folded: %+v", folded)
	}
	l.now = l.now.Add(11 * time.Second)
	if d, err := l.auth.Decide(t.Context(), l.request()); err != nil || d.ID == first.ID {
		t.Errorf("a denial was folded into one of an earlier window: %v, %s", err, d.ID)
	}
}

// TestOnlyTheSameFolds: another reason, agent, run or request is on record in full, an allow or a hold always.
func TestOnlyTheSameFolds(t *testing.T) {
	l := folding(t)
	ask := func(change func(*remit.Request)) remit.DecisionID {
		t.Helper()
		req := l.request()
		change(req)
		d, err := l.auth.Decide(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		if got := l.lastDecision(t); got.ID != d.ID || got.Effect != d.Effect {
			t.Errorf("answered %s %s, on record %s %s", d.ID, d.Effect, got.ID, got.Effect)
		}
		return d.ID
	}
	seen := map[remit.DecisionID]bool{}
	for _, change := range []func(*remit.Request){
		func(*remit.Request) {},
		func(r *remit.Request) { r.Args = remit.Args{"name": remit.StringValue("bar")} },
		func(r *remit.Request) { r.Target = "staging" },
		func(r *remit.Request) { r.Run = "" },
		func(r *remit.Request) { r.Agent = "agent/other" },
		func(r *remit.Request) { r.Caller.Credential = "other" },
		func(r *remit.Request) {
			r.Refused = []remit.Reason{{Code: remit.ReasonRunToken, Got: "not a run token"}}
		},
		func(r *remit.Request) {
			r.Refused = []remit.Reason{{Code: remit.ReasonRunToken, Got: "the signature is wrong"}}
		},
		func(r *remit.Request) { l.store.SetSuspended(agent, "test") },
	} {
		id := ask(change)
		if seen[id] {
			t.Errorf("%s answers two different requests", id)
		}
		seen[id] = true
	}
	other := func(r *remit.Request) { r.Agent = "agent/other" }
	l.permitted = true
	for _, effect := range []remit.Effect{remit.Allow, remit.Hold} {
		l.judgement.Effect = effect
		if first := ask(other); ask(other) == first {
			t.Errorf("two answers %s are one", effect)
		}
	}
}

// TestVaryingFloodFolds: what a flooder can vary without end does not make an event each; how many there were is on record.
func TestVaryingFloodFolds(t *testing.T) {
	l := folding(t)
	for i := range 500 {
		req := l.request()
		req.Target, req.Args = fmt.Sprintf("t%d", i), remit.Args{fmt.Sprintf("a%d", i): remit.IntValue(int64(i))}
		if d, err := l.auth.Decide(t.Context(), req); err != nil || d.Effect != remit.Deny || d.Receipt == nil {
			t.Fatalf("%v, %+v", err, d)
		}
	}
	if err := l.auth.Flush(t.Context(), l.now, true); err != nil {
		t.Fatal(err)
	}
	decisions, folded := l.ledger(t, remit.EventDecision), l.ledger(t, remit.EventFolded)
	if len(decisions) != 64 || len(folded) != 1 || folded[0].Data.Count != 436 || folded[0].Data.Others != 436 {
		t.Errorf("%d decisions on record, folded: %+v", len(decisions), folded)
	}
}

// TestFoldOfAFailedRecord: an answer never stands on a denial that is not on record. Those who waited for it record their own, or
// get no answer.
func TestFoldOfAFailedRecord(t *testing.T) {
	l := folding(t)
	broken := &fullDisk{line: l, err: errors.New("disk full")}
	var err error
	l.auth, err = authorizer.New(authorizer.Config{Policy: func() authorizer.Policy { return l }, State: l.store, Evidence: l, Record: broken,
		Broker: l, Acts: l.store, Fold: &authorizer.Fold{Window: 10 * time.Second}})
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		broken.fail = make(chan struct{})
		for range 8 {
			go func() {
				if d, err := l.auth.Decide(context.Background(), l.request()); err == nil || d.Receipt != nil {
					t.Errorf("answered %+v, and nothing is on record", d)
				}
			}()
		}
		synctest.Wait() // one writes, and the others wait for it
		close(broken.fail)
		synctest.Wait()
	})
	if n := len(l.ledger(t, remit.EventDecision)); n != 0 {
		t.Fatalf("%d decisions on record", n)
	}
	broken.err = nil
	d, err := l.auth.Decide(t.Context(), l.request())
	if err != nil || d.Receipt == nil || l.lastDecision(t).ID != d.ID {
		t.Errorf("after the disk came back: %v, %+v", err, d)
	}
}

// fullDisk is a store whose disk is full until err is nil.
type fullDisk struct {
	*line
	fail chan struct{}
	err  error
}

func (f *fullDisk) Commit(ctx context.Context, c remit.Change) (remit.Receipt, error) {
	if f.err != nil {
		<-f.fail
		return remit.Receipt{}, f.err
	}
	return f.line.Commit(ctx, c)
}

// TestNewWindowFlushesTheOld: counts of a window that a newer one replaced are recorded, too.
func TestNewWindowFlushesTheOld(t *testing.T) {
	l := folding(t)
	for range 3 {
		for range 5 {
			if _, err := l.auth.Decide(t.Context(), l.request()); err != nil {
				t.Fatal(err)
			}
		}
		l.now = l.now.Add(20 * time.Second)
	}
	if err := l.auth.Flush(t.Context(), l.now, true); err != nil {
		t.Fatal(err)
	}
	total := uint64(0)
	for _, f := range l.ledger(t, remit.EventFolded) {
		total += f.Data.Count
	}
	if n := len(l.ledger(t, remit.EventDecision)); n != 3 || total != 12 {
		t.Errorf("%d decisions and %d folded, of 15", n, total)
	}
}
