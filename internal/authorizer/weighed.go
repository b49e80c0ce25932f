// SPDX-License-Identifier: Apache-2.0

package authorizer

import (
	"context"
	"fmt"
	"time"

	"remit"
)

// weighed is a decision before it is recorded, with what it rests on: epochs, and the facts as they were found.
type weighed struct {
	decision remit.Decision
	run      remit.Run
	policy   Policy
	match    remit.Match
	found    []remit.Found
	seen     []remit.Precondition
	cut      bool // see shorten

	throttled bool               // whether the agent is given only so much an hour
	stepUp    string             // the group that has to approve whatever the agent is given
	asks      []remit.Need       // approvals that rules ask for, and that nobody looked for yet
	asked     remit.Digest       // of the request, when people are asked about it
	uses      *remit.Held        // the approval that the decision rests on
	opens     *remit.Held        // what is held for the first time
	held      remit.Precondition // that it is the first
	late      bool               // see moved

	sensitive map[string]bool
}

// seal returns a Seal that knows what of the request is sensitive.
func (w *weighed) seal() *remit.Seal {
	s := &remit.Seal{Sensitive: w.sensitive}
	if len(w.sensitive) > 0 {
		s.Hide(w.decision.Args)
		s.Hide(w.decision.Params)
	}
	return s
}

// shorten turns a decision that is larger than an entry of the ledger into a denial that says who asked, and how much, but
// not everything that was asked: no request may be too large to leave a trace.
func (w *weighed) shorten() {
	d := &w.decision
	args := mustJSON(d.Args)
	w.cut = true
	*d = remit.Decision{ID: d.ID, At: d.At, Caller: d.Caller, Credential: d.Credential, Level: d.Level, Agent: d.Agent,
		Action: clip(d.Action), Target: clip(d.Target), Run: d.Run, Under: d.Under, Asked: clip(d.Asked), Via: d.Via,
		Policy: d.Policy, WorkflowDigest: d.WorkflowDigest}
	w.deny(remit.Reason{Code: remit.ReasonArgument, Of: "arguments", Want: "what an entry of the ledger holds",
		Got: fmt.Sprintf("%d bytes, %s", len(args), remit.DigestOf(args))})
}

func clip(s string) string { return remit.Clip(s, 200) }

func (w *weighed) deny(reasons ...remit.Reason) weighed {
	w.decision.Effect, w.decision.Reasons, w.decision.TTL, w.decision.Until, w.decision.Hold = remit.Deny, reasons, 0, time.Time{}, ""
	return *w
}

func (w *weighed) rests(key remit.EpochKey, epoch uint64) {
	w.seen = append(w.seen, remit.Precondition{Key: key, Epoch: epoch})
}

func (w *weighed) judge(ctx context.Context, req *remit.Request, found []remit.Found) {
	j := w.policy.Judge(ctx, req, &w.run, &w.match, found)
	d := &w.decision
	w.found, d.Evidence, d.Missing, d.Lacking = found, nil, nil, nil
	for i, f := range found {
		if f.Evidence != nil {
			d.Evidence = append(d.Evidence, *f.Evidence)
			continue
		}
		lack := remit.Lack{Need: i, Kind: f.Need.Kind}
		if f.Reason != nil {
			lack.Reason = *f.Reason
		}
		d.Missing, d.Lacking = append(d.Missing, f), append(d.Lacking, lack)
	}
	w.asks = j.Asks
	d.Effect, d.Reasons, d.TTL, d.Until, d.Limits, d.Obligations = j.Effect, j.Reasons, j.TTL, j.Until, j.Limits, j.Obligations
}
