// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	tlog "github.com/transparency-dev/formats/log"
	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
	"github.com/transparency-dev/tessera/client"

	"remit"
	"remit/internal/durable"
)

// Checkpoint is a signed statement of the log's size and root.
type Checkpoint struct {
	Size uint64
	Root [32]byte
	Note []byte // the signed note, as published
}

// maxCheckpoint bounds a checkpoint with the cosignatures of its witnesses, in bytes.
const maxCheckpoint = 64 << 10

// ParseCheckpoint parses and verifies a checkpoint note: the log's own signature, origin and form.
func ParseCheckpoint(text []byte, key PublicKey) (Checkpoint, error) {
	bad := func(cause error) (Checkpoint, error) {
		return Checkpoint{}, &remit.Error{Code: remit.CodeInvalid, Msg: "this is no checkpoint that " + key.Name() + " signed", Cause: cause}
	}
	if key.verifier == nil {
		return bad(errors.New("no public key"))
	}
	if len(text) > maxCheckpoint {
		return bad(fmt.Errorf("%d bytes: the limit is %d", len(text), maxCheckpoint))
	}
	var claimed tlog.Checkpoint // whose keys are asked; nothing of it is believed before one of them verifies
	if _, err := claimed.Unmarshal(text); err != nil {
		return bad(err)
	}
	var cp *tlog.Checkpoint
	err := errors.New("no key")
	for _, v := range key.verifiers(claimed.Size) {
		if cp, _, _, err = tlog.ParseCheckpoint(text, key.Name(), v); err == nil {
			break
		}
	}
	if err != nil {
		return bad(err)
	}
	if len(cp.Hash) != 32 {
		return bad(fmt.Errorf("a root of %d bytes", len(cp.Hash)))
	}
	return Checkpoint{Size: cp.Size, Root: [32]byte(cp.Hash), Note: bytes.Clone(text)}, nil
}

// Log reads a log's files. It needs no more than them and the public key, and is safe for concurrent use, also while a
// Sequencer writes.
type Log struct {
	dir   string
	key   PublicKey
	first string
	files client.FileFetcher
}

// Key returns the newest key of the log's chain.
func (l *Log) Key() PublicKey { return l.key }

// FirstKey returns the first key of the log's chain, as text: it names this log for good.
func (l *Log) FirstKey() string { return l.first }

// OpenLog returns a reader of the log in dir. The key may be any of the log's chain, best the first.
func OpenLog(dir string, key PublicKey) (*Log, error) {
	if key.verifier == nil {
		return nil, &remit.Error{Code: remit.CodeInvalid, Msg: "a log cannot be read without its public key",
			Hint: "use the key that remit init printed, not one from the log's own folder"}
	}
	notes, err := Rotations(dir)
	if err != nil {
		return nil, err
	}
	first := key.text
	if key, err = key.Follow(notes); err != nil {
		return nil, err
	}
	if len(notes) > 0 {
		r, err := parseRotation(notes[0])
		if err != nil {
			return nil, err
		}
		first = r.old.text
	}
	return &Log{dir: dir, key: key, first: first, files: client.FileFetcher{Root: dir}}, nil
}

// Checkpoint returns the published checkpoint, verified.
func (l *Log) Checkpoint() (Checkpoint, error) {
	text, err := readBounded(filepath.Join(l.dir, "checkpoint"), maxCheckpoint)
	if err != nil {
		return Checkpoint{}, fmt.Errorf("read the checkpoint: %w", err)
	}
	return ParseCheckpoint(text, l.key)
}

// Consistent proves from the tiles that the published log contains all that the remembered checkpoint vouched for. It reads a
// few tiles; Verify reads everything.
func (l *Log) Consistent(ctx context.Context, remembered Checkpoint) error {
	now, err := l.Checkpoint()
	if err != nil {
		return err
	}
	bad := func(format string, args ...any) error {
		return &remit.Error{Code: remit.CodeInvalid, Msg: fmt.Sprintf(format, args...),
			Hint: "keep the remembered checkpoint: it is the proof"}
	}
	switch {
	//remit:guard S34 TestRollBack
	case now.Size < remembered.Size:
		return bad("the log was rolled back: it had %d entries, now %d", remembered.Size, now.Size)
	//remit:guard S34 TestRewritten
	case now.Size == remembered.Size && now.Root != remembered.Root:
		return bad("the log has two heads of size %d", now.Size)
	case now.Size == remembered.Size || remembered.Size == 0:
		return nil
	}
	builder, err := client.NewProofBuilder(ctx, now.Size, l.files.ReadTile)
	if err != nil {
		return fmt.Errorf("prove consistency: %w", err)
	}
	path, err := builder.ConsistencyProof(ctx, remembered.Size, now.Size)
	if err != nil {
		return fmt.Errorf("prove consistency: %w", err)
	}
	err = proof.VerifyConsistency(rfc6962.DefaultHasher, remembered.Size, now.Size, path, remembered.Root[:], now.Root[:])
	if err != nil {
		return bad("the log was rewritten before entry %d", remembered.Size+1)
	}
	return nil
}

// Remember keeps the log's checkpoint in a file outside of it, after proving that it follows from the one that is there. A
// client calls it after each visit; on an error the file is left as it was.
func (l *Log) Remember(ctx context.Context, path string) (Checkpoint, error) {
	text, err := readBounded(path, maxCheckpoint)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return Checkpoint{}, fmt.Errorf("read the remembered checkpoint: %w", err)
	default:
		old, err := ParseCheckpoint(text, l.key)
		if err != nil {
			return Checkpoint{}, fmt.Errorf("the remembered checkpoint %s: %w", path, err)
		}
		//remit:guard S34 TestRollBack
		if err := l.Consistent(ctx, old); err != nil {
			return Checkpoint{}, err
		}
	}
	now, err := l.Checkpoint()
	if err != nil {
		return Checkpoint{}, err
	}
	return now, durable.Replace(path, now.Note, 0o600)
}

func readBounded(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // only read
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("%s has more than %d bytes", path, limit)
	}
	return b, err
}
