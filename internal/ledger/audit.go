// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"

	"remit"
)

// AuditStatus is what became of one receipt.
type AuditStatus string

// The statuses.
const (
	AuditProven      AuditStatus = "proven"      // the receipted entry is in the log
	AuditUnsequenced AuditStatus = "unsequenced" // its number is beyond the published log
	AuditFalse       AuditStatus = "false"       // the ledger's key did not sign this receipt
	AuditMissing     AuditStatus = "missing"     // the log holds another entry at that number, or none that can be proven
	AuditOther       AuditStatus = "other"       // the receipted entry is in the log, but records another answer
)

// AuditResult is the answer for one receipt.
type AuditResult struct {
	Seq      uint64           `json:"seq"`
	Status   AuditStatus      `json:"status"`
	Decision remit.DecisionID `json:"decision_id,omitempty"` // as the entry says, if it is a decision
	Effect   string           `json:"effect,omitempty"`
	Why      string           `json:"why,omitempty"`
}

// Audit proves, for each receipt, that the entry it vouches for is in the published log, and that it records the answer that the
// receipt came with. The results are in the order of the receipts; the error is for a log without a valid checkpoint.
func (l *Log) Audit(ctx context.Context, receipts []Promise) ([]AuditResult, error) {
	cp, err := l.Checkpoint()
	if err != nil {
		return nil, err
	}
	out := make([]AuditResult, len(receipts))
	for i, r := range receipts {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		out[i] = l.audit(ctx, r, cp)
	}
	return out, nil
}

func (l *Log) audit(ctx context.Context, held Promise, cp Checkpoint) AuditResult {
	r := held.Receipt
	out := AuditResult{Seq: r.Seq}
	as := func(s AuditStatus, why string) AuditResult {
		out.Status, out.Why = s, why
		return out
	}
	//remit:guard S34 TestDroppedEntry
	if err := VerifyReceipt(r, nil, l.key); err != nil {
		return as(AuditFalse, err.Error())
	}
	if r.Seq > cp.Size {
		return as(AuditUnsequenced, "the entry is durable by its receipt, but not in the log yet")
	}
	p, err := l.Prove(ctx, r.Seq)
	if err != nil {
		return as(AuditMissing, err.Error())
	}
	//remit:guard S34 TestRewritten
	if leaf := (remit.Entry{Body: p.Entry}).Hash(); !bytes.Equal(leaf[:], r.Leaf) {
		return as(AuditMissing, "the log holds another entry at this number")
	}
	out.Decision, out.Effect = answerOf(p.Entry)
	//remit:guard S34 TestReceiptOfAnotherAnswer
	if held.Decision != "" && (held.Decision != out.Decision || held.Effect != out.Effect) {
		return as(AuditOther, fmt.Sprintf("the answer was %s %s", held.Decision, held.Effect))
	}
	return as(AuditProven, "")
}

// answerOf reads which decision an entry records; none: it is of another kind.
func answerOf(entry []byte) (remit.DecisionID, string) {
	var e struct {
		Kind     remit.EventKind  `json:"kind"`
		Decision remit.DecisionID `json:"decision"`
		Data     struct {
			Effect string `json:"effect"`
		} `json:"data"`
	}
	if err := json.Unmarshal(entry, &e); err != nil || e.Kind != remit.EventDecision {
		return "", ""
	}
	return e.Decision, e.Data.Effect
}
