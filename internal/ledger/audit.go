// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"bytes"
	"context"

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
)

// AuditResult is the answer for one receipt.
type AuditResult struct {
	Seq    uint64      `json:"seq"`
	Status AuditStatus `json:"status"`
	Why    string      `json:"why,omitempty"`
}

// Audit proves, for each receipt, that the entry it vouches for is in the published log. The results are in the order of the
// receipts; the error is for a log without a valid checkpoint.
func (l *Log) Audit(ctx context.Context, receipts []remit.Receipt) ([]AuditResult, error) {
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

func (l *Log) audit(ctx context.Context, r remit.Receipt, cp Checkpoint) AuditResult {
	//remit:guard S34 TestDroppedEntry
	if err := VerifyReceipt(r, nil, l.key); err != nil {
		return AuditResult{r.Seq, AuditFalse, err.Error()}
	}
	if r.Seq > cp.Size {
		return AuditResult{r.Seq, AuditUnsequenced, "the entry is durable by its receipt, but not in the log yet"}
	}
	p, err := l.Prove(ctx, r.Seq)
	if err != nil {
		return AuditResult{r.Seq, AuditMissing, err.Error()}
	}
	//remit:guard S34 TestRewritten
	if leaf := (remit.Entry{Body: p.Entry}).Hash(); !bytes.Equal(leaf[:], r.Leaf) {
		return AuditResult{r.Seq, AuditMissing, "the log holds another entry at this number"}
	}
	return AuditResult{r.Seq, AuditProven, ""}
}
