// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"remit"
	"remit/internal/api"
	"remit/internal/gateway/admin"
	"remit/internal/store"
)

// eraseChunk is how many entries one commit erases: their numbers stand in its event.
const eraseChunk = 1000

// erased is the event of one commit of an erasure. What was looked for is not in it.
type erased struct {
	By      string          `json:"by"` // run, entry or value
	Entries [][2]uint64     `json:"entries,omitempty"`
	Runs    []remit.RunID   `json:"runs,omitempty"` // whose parameters and scopes were erased from the state, too
	Why     json.RawMessage `json:"why"`
}

// opErase forgets the values behind commitments (S33): those of a run, of one entry, or of every entry that mentions a value.
// The entries stay. A run that lives needs its values, so it is refused.
func (s *Server) opErase(ctx context.Context, c admin.Call) (any, error) {
	var in api.Erase
	if err := c.Decode(&in); err != nil {
		return nil, err
	}
	in.Reason = strings.TrimSpace(in.Reason)
	if in.Reason == "" || len(in.Reason) > 500 {
		return nil, &remit.Error{Code: remit.CodeInvalid, Msg: "a reason of 1 to 500 characters is needed", Hint: "add --reason TEXT"}
	}
	by, seqs, runs, err := s.erasable(&in)
	if err != nil {
		return nil, err
	}
	var live []string
	for _, id := range slices.Sorted(maps.Keys(runs)) {
		if r, ok := s.store.Run(id); ok && !r.Over() {
			live = append(live, string(id))
		}
	}
	//remit:guard S33 TestErase
	if len(live) > 0 {
		return nil, &remit.Error{Code: remit.CodeConflict, Msg: fmt.Sprintf("%d runs still live and need their values: %s", len(live), strings.Join(live[:min(len(live), 5)], ", ")),
			Hint: "remit run finish RUN, then erase again"}
	}
	for _, l := range s.store.LiveLeases(nil) {
		//remit:guard S33 TestEraseWaitsForLeases
		if runs[l.Run] {
			return nil, &remit.Error{Code: remit.CodeConflict, Msg: fmt.Sprintf("lease %s of run %s is still %s: ending it needs its scope", l.ID, l.Run, l.State),
				Hint: "remit doctor shows whether its target answers; erase again when remit run show RUN lists no live grant", ID: string(l.ID)}
		}
	}
	rows, err := s.withoutValues(runs)
	if err != nil {
		return nil, err
	}
	out := api.Erased{Entries: len(seqs), Runs: slices.Sorted(maps.Keys(runs))}
	for len(rows) > 0 || len(seqs) > 0 {
		n, m := min(len(seqs), eraseChunk), min(len(rows), eraseChunk)
		if err := s.erase(ctx, c.Who, by, in.Reason, seqs[:n], rows[:m], out.Runs); err != nil {
			return out, err
		}
		seqs, rows = seqs[n:], rows[m:]
	}
	return out, nil
}

func (s *Server) erase(ctx context.Context, who remit.Principal, by, why string, seqs []uint64, rows []seenRow, runs []remit.RunID) error {
	seal := &remit.Seal{}
	body, err := json.Marshal(erased{By: by, Entries: ranges(seqs), Runs: runs[:min(len(runs), 500)], Why: seal.Text("why", why)})
	if err != nil {
		return err
	}
	e := remit.Event{At: s.now(), Kind: remit.EventErased, By: who.String(), Data: body, Payload: seal.Payload}
	change := remit.Change{Rows: []remit.Row{remit.Erasure{Entries: seqs, Runs: runs}}, Events: []remit.Event{e}}
	for _, r := range rows {
		change.Rows = append(change.Rows, r.Row)
		//remit:guard S33 TestEraseSetsNothingBack
		change.Require = append(change.Require, remit.Precondition{Key: r.EpochKey(), Epoch: r.epoch})
	}
	_, err = s.store.Commit(ctx, change)
	s.parents.forget()
	if err != nil {
		return fmt.Errorf("erase %d entries: %w", len(seqs), err)
	}
	return nil
}

// ranges folds numbers in order into first and last.
func ranges(seqs []uint64) (out [][2]uint64) {
	for _, n := range seqs {
		if last := len(out) - 1; last >= 0 && out[last][1]+1 == n {
			out[last][1] = n
			continue
		}
		out = append(out, [2]uint64{n, n})
	}
	return out
}

// erasable finds the entries that still have what is to be erased, and the runs that they are of.
func (s *Server) erasable(in *api.Erase) (by string, seqs []uint64, runs map[remit.RunID]bool, err error) {
	runs = map[remit.RunID]bool{}
	collect := func(f store.EventFilter, wanted func(remit.Entry) bool) error {
		for after := uint64(0); ; {
			entries, next, err := s.store.Events(f, after, 1000)
			if err != nil {
				return err
			}
			for _, e := range entries {
				if len(e.Payload)+len(e.Private) > 0 && wanted(e) {
					seqs = append(seqs, e.Seq)
					runs[runOf(e)] = true
				}
			}
			if after = next; next == 0 {
				delete(runs, "")
				return nil
			}
		}
	}
	switch {
	case in.Run != "" && in.Entry == 0 && in.Value == "":
		if _, ok := s.store.Run(in.Run); !ok {
			return "", nil, nil, notFound("run", string(in.Run))
		}
		err = collect(store.EventFilter{Run: in.Run}, func(remit.Entry) bool { return true })
		runs[in.Run] = true
		return "run", seqs, runs, err
	case in.Entry != 0 && in.Run == "" && in.Value == "":
		e, ok, err := s.store.Entry(in.Entry)
		if err == nil && !ok {
			err = notFound("ledger entry", fmt.Sprint(in.Entry))
		}
		if id := runOf(e); id != "" {
			if r, ok := s.store.Run(id); ok && !r.Over() {
				runs[id] = true // refused; of a run that is over only this entry is erased
			}
		}
		return "entry", []uint64{in.Entry}, runs, err
	case in.Value != "" && in.Run == "" && in.Entry == 0:
		err = collect(store.EventFilter{}, func(e remit.Entry) bool { return e.Mentions(in.Value) })
		return "value", seqs, runs, err
	}
	return "", nil, nil, &remit.Error{Code: remit.CodeInvalid, Msg: "name what to erase: a run, an entry or a value, one of them",
		Hint: "remit ledger erase --run RUN | --entry SEQ | --value TEXT"}
}

func runOf(e remit.Entry) remit.RunID {
	var h struct {
		Run remit.RunID `json:"run"`
	}
	_ = json.Unmarshal(e.Body, &h)
	return h.Run
}

// seenRow is a row to write back, if it did not move since its epoch was read: a state that changed meanwhile is not set back.
type seenRow struct {
	remit.Row
	epoch uint64
}

// withoutValues returns the rows of runs that are over, with their grants and leases, without parameters and scopes.
func (s *Server) withoutValues(runs map[remit.RunID]bool) (rows []seenRow, err error) {
	for id := range runs {
		epoch := s.store.Epoch(remit.RunKey(id))
		r, ok := s.store.Run(id)
		if !ok {
			continue
		}
		r.Params, r.Sources = blank(r.Params), nil
		rows = append(rows, seenRow{r, epoch})
		for after := remit.GrantID(""); ; {
			grants, err := s.store.Grants(store.GrantFilter{Run: id}, 1000, after)
			if err != nil {
				return nil, err
			}
			for _, g := range grants {
				of, err := s.grantWithoutValues(g.ID)
				if err != nil {
					return nil, err
				}
				rows, after = append(rows, of...), g.ID
			}
			if len(grants) < 1000 {
				break
			}
		}
	}
	return rows, nil
}

// grantWithoutValues returns a grant and its leases. Each is read after its epoch.
func (s *Server) grantWithoutValues(id remit.GrantID) (rows []seenRow, err error) {
	leases, err := s.store.LeasesOf(id)
	if err != nil {
		return nil, err
	}
	for _, l := range leases {
		epoch := s.store.Epoch(l.EpochKey())
		l, ok := s.store.Lease(l.ID)
		if !ok {
			return nil, notFound("lease", string(l.ID))
		}
		l.Scope, l.Why = blank(l.Scope), ""
		rows = append(rows, seenRow{l, epoch})
	}
	epoch := s.store.Epoch(remit.GrantKey(id))
	g, ok := s.store.Grant(id)
	if !ok {
		return nil, notFound("grant", string(id))
	}
	g.Scope, g.Bounds, g.NotBounded, g.Why = blank(g.Scope), nil, nil, ""
	return append(rows, seenRow{g, epoch}), nil
}

// blank keeps the names.
func blank(values map[string]remit.Value) map[string]remit.Value {
	out := make(map[string]remit.Value, len(values))
	for name := range values {
		out[name] = remit.StringValue("[erased]")
	}
	return out
}

// opCheck says whether an entry commits to a value in a place, and returns the disclosure that proves it. It is recorded:
// whoever tries many values leaves a trace.
func (s *Server) opCheck(_ context.Context, c admin.Call) (any, error) {
	var in api.CheckValue
	if err := c.Decode(&in); err != nil {
		return nil, err
	}
	seq, err := seqOf(c)
	if err != nil {
		return nil, err
	}
	e, ok, err := s.store.Entry(seq)
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, notFound("ledger entry", c.Path("seq"))
	}
	for _, d := range e.Reveal().Disclosures() {
		var text string
		if d.Path != in.Path {
			continue
		}
		if json.Unmarshal(d.Value, &text) != nil {
			text = string(d.Value)
		}
		if text == in.Value {
			return api.Checked{Matches: true, Disclosure: d.Text}, nil
		}
		return api.Checked{}, nil
	}
	return nil, &remit.Error{Code: remit.CodeNotFound, Msg: fmt.Sprintf("entry %d has no value at %.80q, or it was erased", seq, in.Path),
		Hint: fmt.Sprintf("remit ledger show %d lists the places", seq)}
}
