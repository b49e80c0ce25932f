// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"context"
	"fmt"
	"math/bits"
	"slices"

	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/rfc6962"
	"github.com/transparency-dev/tessera/api"
	"github.com/transparency-dev/tessera/client"

	"remit"
)

// edge is the growing right side of the log in memory: what no full tile and no full bundle holds yet.
type edge struct {
	size   uint64
	bundle []byte       // the unfinished bundle in its tlog-tiles form: each entry after two bytes of length
	levels []unfinished // by level of tile; the bundle belongs to the lowest
}

// unfinished is the last tile of a level, with fewer than 256 hashes.
type unfinished struct {
	index   uint64
	hashes  [][32]byte
	written int // hashes in the newest file of it, 0 for none
}

// add appends an entry. The 256th in a bundle makes it full, and has to be followed by carry.
func (e *edge) add(entry remit.Entry) {
	e.bundle = append(append(e.bundle, byte(len(entry.Body)>>8), byte(len(entry.Body))), entry.Body...)
	if entry.Leaf != nil { // its batch was signed over it
		e.push(0, *entry.Leaf)
	} else {
		e.push(0, entry.Hash())
	}
	e.size++
}

func (e *edge) push(level int, h [32]byte) {
	for level >= len(e.levels) {
		e.levels = append(e.levels, unfinished{hashes: make([][32]byte, 0, bundleWidth)})
	}
	e.levels[level].hashes = append(e.levels[level].hashes, h)
}

// full reports whether the tile of a level is complete.
func (e *edge) full(level int) bool {
	return level < len(e.levels) && len(e.levels[level].hashes) == bundleWidth
}

// carry begins a level's next tile and puts the root of the full one into the level above.
func (e *edge) carry(level int) {
	l := &e.levels[level]
	root := foldRoot(l.hashes) // overwrites them
	l.index, l.hashes, l.written = l.index+1, l.hashes[:0], 0
	if level == 0 {
		e.bundle = e.bundle[:0]
	}
	e.push(level+1, root)
}

// root is the root hash over all entries.
func (e *edge) root() ([]byte, error) {
	if e.size == 0 {
		return rfc6962.DefaultHasher.EmptyRoot(), nil
	}
	var perfect [][]byte // the roots of the perfect subtrees, the largest first
	for _, l := range slices.Backward(e.levels) {
		for rest := l.hashes; len(rest) > 0; {
			n := 1 << (bits.Len(uint(len(rest))) - 1)
			root := foldRoot(slices.Clone(rest[:n]))
			perfect, rest = append(perfect, root[:]), rest[n:]
		}
	}
	f := compact.RangeFactory{Hash: rfc6962.DefaultHasher.HashChildren}
	r, err := f.NewRange(0, e.size, perfect)
	if err != nil {
		return nil, err
	}
	return r.GetRootHash(nil)
}

// loadEdge reads the right side of the log that the checkpoint vouches for. Files that do not lead to its root are refused: what
// is built on them would be damaged, too.
func (l *Log) loadEdge(ctx context.Context, cp Checkpoint) (*edge, error) {
	e := &edge{}
	if n := int(cp.Size % bundleWidth); n > 0 {
		bundle, err := client.GetEntryBundle(ctx, l.files.ReadEntryBundle, cp.Size/bundleWidth, cp.Size)
		if err != nil {
			return nil, fmt.Errorf("read the newest entries: %w", err)
		}
		for _, body := range bundle.Entries[:min(n, len(bundle.Entries))] {
			e.add(remit.Entry{Body: body})
		}
	}
	e.size = cp.Size
	for level, here := 0, cp.Size; here > 0; level, here = level+1, here/bundleWidth {
		if level == len(e.levels) {
			e.levels = append(e.levels, unfinished{})
		}
		n := int(here % bundleWidth)
		e.levels[level].index, e.levels[level].written = here/bundleWidth, n
		if level == 0 || n == 0 {
			continue
		}
		hashes, err := l.hashes(ctx, uint64(level), here/bundleWidth, n)
		if err != nil {
			return nil, fmt.Errorf("read the newest tile of level %d: %w", level, err)
		}
		e.levels[level].hashes = hashes
	}
	root, err := e.root()
	//remit:guard S34 TestSequencerRefusesDamagedFiles
	if err != nil || string(root) != string(cp.Root[:]) {
		return nil, fmt.Errorf("%w: the newest tiles do not lead to the root that the checkpoint of size %d names (%v); "+
			"remit ledger verify says what differs", errDisorder, cp.Size, err)
	}
	return e, nil
}

// hashes reads the first n hashes of a tile.
func (l *Log) hashes(ctx context.Context, level, index uint64, n int) ([][32]byte, error) {
	raw, err := l.files.ReadTile(ctx, level, index, uint8(n%bundleWidth))
	if err != nil {
		return nil, err
	}
	var t api.HashTile
	if err := t.UnmarshalText(raw); err != nil {
		return nil, err
	}
	if len(t.Nodes) < n {
		return nil, fmt.Errorf("it holds %d hashes instead of %d", len(t.Nodes), n)
	}
	out := make([][32]byte, n, bundleWidth)
	for i := range out {
		out[i] = [32]byte(t.Nodes[i])
	}
	return out, nil
}
