// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	tlog "github.com/transparency-dev/formats/log"
	"github.com/transparency-dev/tessera/api/layout"
	"github.com/transparency-dev/tessera/client"
	"golang.org/x/mod/sumdb/note"
)

// writer writes the log's files: full bundles and tiles once, as soon as they are full, and what is not full with each
// checkpoint that vouches for it.
type writer struct {
	*edge
	files
	key        *Key
	published  uint64    // size of the published checkpoint
	at         time.Time // when it was published
	superseded []string  // folders of tiles that were not full and now are
	cosign     func(context.Context, []byte, func(context.Context, uint64) ([][]byte, error)) ([]byte, error)
}

// fill writes the bundle and the tiles that are full, and begins the next.
func (w *writer) fill() error {
	for level := 0; w.full(level); level++ {
		if err := w.put(level, 0); err != nil {
			return err
		}
		w.carry(level)
	}
	return nil
}

// put writes the last tile of a level, and with the lowest one its bundle. Partial is its number of hashes, 0 when it is full.
func (w *writer) put(level int, partial uint8) error {
	l := &w.levels[level]
	names := []string{layout.TilePath(uint64(level), l.index, partial)}
	if level == 0 {
		names = append(names, layout.EntriesPath(l.index, partial))
		if err := w.files.put(names[1], w.bundle); err != nil {
			return err
		}
	}
	if partial == 0 && l.written > 0 {
		for _, name := range names {
			w.superseded = append(w.superseded, filepath.Join(w.dir, name+".p"))
		}
	}
	l.written = len(l.hashes)
	text := make([]byte, 0, len(l.hashes)*32)
	for i := range l.hashes {
		text = append(text, l.hashes[i][:]...)
	}
	return w.files.put(names[0], text)
}

// publish makes everything durable, signs the checkpoint that vouches for it, and removes what it supersedes: clients that look
// for a part of a tile take the full one instead.
func (w *writer) publish() error {
	for level := range w.levels {
		if l := &w.levels[level]; len(l.hashes) > l.written {
			if err := w.put(level, uint8(len(l.hashes))); err != nil {
				return err
			}
		}
	}
	if err := w.sync(); err != nil {
		return err
	}
	root, err := w.root()
	if err != nil {
		return err
	}
	text := tlog.Checkpoint{Origin: w.key.Name(), Size: w.size, Hash: root}.Marshal()
	signed, err := note.Sign(&note.Note{Text: string(text)}, w.key.signer)
	if err != nil {
		return err
	}
	if w.cosign != nil && w.size > 0 {
		if signed, err = w.cosign(context.Background(), signed, w.prove); err != nil {
			return fmt.Errorf("%w: %w", errUnwitnessed, err)
		}
	}
	if err := w.replace(layout.CheckpointPath, signed); err != nil {
		return err
	}
	w.published, w.at = w.size, time.Now()
	for _, folder := range w.superseded {
		_ = os.RemoveAll(folder) // what stays does no harm
	}
	w.superseded = w.superseded[:0]
	return nil
}

// prove proves that the tree, as it was just written, extends what it was at a smaller size.
func (w *writer) prove(ctx context.Context, from uint64) ([][]byte, error) {
	files := client.FileFetcher{Root: w.dir}
	builder, err := client.NewProofBuilder(ctx, w.size, files.ReadTile)
	if err != nil {
		return nil, err
	}
	return builder.ConsistencyProof(ctx, from, w.size)
}
