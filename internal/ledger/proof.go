// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"context"
	"fmt"

	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
	"github.com/transparency-dev/tessera/client"

	"remit"
)

// Proof shows that an entry is in the log that a checkpoint vouches for.
type Proof struct {
	Seq        uint64   `json:"seq"`
	Entry      []byte   `json:"entry"`      // the entry's bytes
	Path       [][]byte `json:"path"`       // RFC 6962 audit path of index Seq-1
	Checkpoint []byte   `json:"checkpoint"` // the signed note
}

// Prove returns the proof for an entry by its number. An entry that is not in the published log yet is remit.CodeUnavailable: the
// receipt stands for it until then.
func (l *Log) Prove(ctx context.Context, seq uint64) (Proof, error) {
	cp, err := l.Checkpoint()
	if err != nil {
		return Proof{}, err
	}
	if seq == 0 {
		return Proof{}, &remit.Error{Code: remit.CodeInvalid, Msg: "entries are numbered from 1"}
	}
	if seq > cp.Size {
		return Proof{}, &remit.Error{Code: remit.CodeUnavailable, Msg: fmt.Sprintf("entry %d is not in the log, which has %d entries", seq, cp.Size),
			Hint: "an entry is published within two seconds; until then its receipt proves it"}
	}
	body, err := l.entry(ctx, seq, cp.Size)
	if err != nil {
		return Proof{}, err
	}
	builder, err := client.NewProofBuilder(ctx, cp.Size, l.files.ReadTile)
	if err != nil {
		return Proof{}, fmt.Errorf("prove entry %d: %w", seq, err)
	}
	path, err := builder.InclusionProof(ctx, seq-1)
	if err != nil {
		return Proof{}, fmt.Errorf("prove entry %d: %w", seq, err)
	}
	p := Proof{Seq: seq, Entry: body, Path: path, Checkpoint: cp.Note}
	if err := VerifyProof(p, l.key); err != nil {
		return Proof{}, fmt.Errorf("the log is damaged: %w", err)
	}
	return p, nil
}

// Entry returns an entry of the published log, proven.
func (l *Log) Entry(ctx context.Context, seq uint64) (remit.Entry, error) {
	p, err := l.Prove(ctx, seq)
	return remit.Entry{Seq: seq, Body: p.Entry}, err
}

func (l *Log) entry(ctx context.Context, seq, size uint64) ([]byte, error) {
	index := seq - 1
	bundle, err := client.GetEntryBundle(ctx, l.files.ReadEntryBundle, index/bundleWidth, size)
	if err != nil {
		return nil, fmt.Errorf("read entry %d: %w", seq, err)
	}
	if i := index % bundleWidth; i < uint64(len(bundle.Entries)) {
		return bundle.Entries[i], nil
	}
	return nil, &remit.Error{Code: remit.CodeInvalid, Msg: fmt.Sprintf("the log is damaged: entry %d is missing from its bundle", seq)}
}

// VerifyProof checks a proof with the public key alone.
func VerifyProof(p Proof, key PublicKey) error {
	bad := func(why string) error {
		return &remit.Error{Code: remit.CodeInvalid, Msg: fmt.Sprintf("proof of entry %d: %s", p.Seq, why)}
	}
	cp, err := ParseCheckpoint(p.Checkpoint, key)
	if err != nil {
		return err
	}
	if p.Seq == 0 || p.Seq > cp.Size || len(p.Path) > maxPath {
		return bad("its numbers do not fit together")
	}
	if seq, err := entrySeq(p.Entry); err != nil || seq != p.Seq {
		return bad("the entry carries another number")
	}
	leaf := remit.Entry{Body: p.Entry}.Hash()
	//remit:guard S34 TestProofs
	if err := proof.VerifyInclusion(rfc6962.DefaultHasher, p.Seq-1, cp.Size, leaf[:], p.Path, cp.Root[:]); err != nil {
		return bad("its path does not lead to the checkpoint's root")
	}
	return nil
}
