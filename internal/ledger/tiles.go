// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/transparency-dev/tessera/api"
	"github.com/transparency-dev/tessera/api/layout"

	"remit"
)

// bundle returns the leaf hashes of n entries from index first; nil where there is no entry. It reports what is missing, and
// entries that stand in another's place.
func (c *checker) bundle(ctx context.Context, first uint64, n int) []*[32]byte {
	out := make([]*[32]byte, n)
	raw, err := c.log.files.ReadEntryBundle(ctx, first/bundleWidth, uint8(n%bundleWidth))
	if err != nil {
		c.report.add(first+1, ProblemMissing, "the bundle of entries %d to %d cannot be read: %v", first+1, first+uint64(n), fileError(err))
		return out
	}
	entries, rest := splitBundle(raw)
	if len(rest) > 0 {
		c.report.add(first+uint64(len(entries))+1, ProblemEntry, "the bundle from entry %d on is malformed after %d entries", first+1, len(entries))
	}
	if len(entries) > n && n < bundleWidth {
		entries = entries[:n] // a fuller bundle that a later checkpoint will vouch for
	}
	if len(entries) != n {
		c.report.add(first+1, ProblemMissing, "the bundle of entries %d to %d holds %d entries instead of %d", first+1, first+uint64(n), len(entries), n)
	}
	for i := range min(n, len(entries)) {
		h := remit.Entry{Body: entries[i]}.Hash()
		out[i] = &h
		c.number(first+uint64(i)+1, entries[i])
	}
	return out
}

func (c *checker) number(want uint64, body []byte) {
	switch seq, err := entrySeq(body); {
	case err != nil:
		c.report.add(want, ProblemEntry, "entry %d is malformed: %v", want, err)
	case seq != want:
		c.report.add(want, ProblemNumber, "where entry %d belongs stands entry %d", want, seq)
	}
}

// splitBundle splits the tlog-tiles form, two bytes of length before each entry; rest is what does not fit it.
func splitBundle(raw []byte) (entries [][]byte, rest []byte) {
	for len(raw) >= 2 {
		n := int(raw[0])<<8 | int(raw[1])
		if len(raw) < 2+n {
			break
		}
		entries, raw = append(entries, raw[2:2+n]), raw[2+n:]
	}
	return entries, raw
}

// lowestTile returns n hashes from index first; nil where there is none.
func (c *checker) lowestTile(ctx context.Context, first uint64, n int) []*[32]byte {
	out := make([]*[32]byte, n)
	nodes := c.tile(ctx, 0, first/bundleWidth, n, first+1)
	for i := range min(n, len(nodes)) {
		h := [32]byte(nodes[i])
		out[i] = &h
	}
	return out
}

// tile reads n hashes of a tile; fewer, after a report, when they are not there. seq is the first entry below it.
func (c *checker) tile(ctx context.Context, level, index uint64, n int, seq uint64) [][]byte {
	raw, err := c.log.files.ReadTile(ctx, level, index, uint8(n%bundleWidth))
	var t api.HashTile
	if err == nil {
		err = t.UnmarshalText(raw)
	}
	if err != nil {
		c.report.add(seq, ProblemMissing, "the tile at level %d, number %d cannot be read: %v", level, index, fileError(err))
		return nil
	}
	if len(t.Nodes) < n || (n == bundleWidth && len(t.Nodes) > n) {
		c.report.add(seq, ProblemTile, "the tile at level %d, number %d holds %d hashes instead of %d", level, index, len(t.Nodes), n)
	}
	return t.Nodes[:min(n, len(t.Nodes))]
}

// fileError leaves out the path, which says nothing to a reader on another machine.
func fileError(err error) error {
	if p, ok := errors.AsType[*fs.PathError](err); ok {
		return p.Err
	}
	return err
}

// subtreeRoot is the root over 256 hashes.
func subtreeRoot(hashes []*[32]byte) [32]byte {
	level := make([][32]byte, len(hashes))
	for i, h := range hashes {
		level[i] = *h
	}
	return foldRoot(level)
}

// foldRoot hashes a power of two of nodes up to their root; it changes its argument.
func foldRoot(level [][32]byte) [32]byte {
	for len(level) > 1 {
		for i := range len(level) / 2 {
			var b [65]byte
			b[0] = 1
			copy(b[1:33], level[2*i][:])
			copy(b[33:], level[2*i+1][:])
			level[i] = sha256.Sum256(b[:])
		}
		level = level[:len(level)/2]
	}
	return level[0]
}

// upperTiles checks the tiles above the lowest: each hash in them is the root of the full tile below it.
func (c *checker) upperTiles(ctx context.Context) error {
	span := uint64(bundleWidth) // entries below one hash of this level
	for level, below := uint64(1), c.roots; len(below) > 0; level++ {
		var above [][32]byte
		for first := 0; first < len(below); first += bundleWidth {
			if err := ctx.Err(); err != nil {
				return err
			}
			want := below[first:min(first+bundleWidth, len(below))]
			nodes := c.tile(ctx, level, uint64(first/bundleWidth), len(want), uint64(first)*span+1)
			for i, node := range nodes {
				if !bytes.Equal(node, want[i][:]) {
					c.report.add(uint64(first+i)*span+1, ProblemTile,
						"hash %d in the tile at level %d, number %d does not match the entries from %d on", i, level, first/bundleWidth,
						uint64(first+i)*span+1)
				}
			}
			if len(want) == bundleWidth {
				above = append(above, foldRoot(bytes32(want)))
			}
		}
		below, span = above, span*bundleWidth
	}
	return nil
}

func bytes32(hs [][32]byte) [][32]byte { return append([][32]byte(nil), hs...) }

// strays looks at every file: a superseded partial tile or bundle must be the beginning of what superseded it; what belongs to
// no log of this size is listed.
func (c *checker) strays() error {
	return filepath.WalkDir(c.log.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(c.log.dir, path)
		if err != nil {
			return err
		}
		if d.IsDir() {
			if name == ".state" { // Tessera's own, from when it wrote the log: no part of it
				return filepath.SkipDir
			}
			return nil
		}
		if name == "checkpoint" || name == ".checkpoint" || name == ".lock" {
			return nil
		}
		c.stray(path, filepath.ToSlash(name))
		return nil
	})
}

func (c *checker) stray(path, name string) {
	t, ok := parseTileName(name)
	if !ok {
		c.report.Strays = append(c.report.Strays, name)
		return
	}
	size := c.cp.Size >> (8 * max(t.level, 0)) // hashes, or entries, at this level
	n := min(bundleWidth, size-min(size, t.index*bundleWidth))
	if n == 0 || t.partial == 0 || t.partial >= n {
		return // read already, or written for a checkpoint that is not published yet
	}
	full, err := c.current(t, uint8(n%bundleWidth))
	old, err2 := os.ReadFile(path)
	if errors.Join(err, err2) != nil {
		return // reported where it was read, or collected meanwhile
	}
	if !bytes.HasPrefix(full, old) {
		c.report.add(t.index*bundleWidth<<(8*max(t.level, 0))+1, ProblemTile, "the superseded %s is not the beginning of what superseded it", name)
	}
}

func (c *checker) current(t tileName, partial uint8) ([]byte, error) {
	if t.level < 0 {
		return c.log.files.ReadEntryBundle(context.Background(), t.index, partial)
	}
	return c.log.files.ReadTile(context.Background(), uint64(t.level), t.index, partial)
}

// tileName is the path of a tile, or of a bundle at level -1; partial is 0 for a full one.
type tileName struct {
	level   int
	index   uint64
	partial uint64
}

// parseTileName parses tile/LEVEL/INDEX[.p/WIDTH], and only the form that layout itself prints.
func parseTileName(name string) (tileName, bool) {
	rest, ok := strings.CutPrefix(name, "tile/")
	level, index, found := strings.Cut(rest, "/")
	if !ok || !found {
		return tileName{}, false
	}
	i, p, err := layout.ParseTileIndexPartial(index)
	if err != nil {
		return tileName{}, false
	}
	t := tileName{level: -1, index: i, partial: uint64(p)}
	want := layout.EntriesPath(i, p)
	if level != "entries" {
		if t.level, err = strconv.Atoi(level); err != nil || t.level < 0 || t.level > 7 {
			return tileName{}, false
		}
		want = layout.TilePath(uint64(t.level), i, p)
	}
	return t, want == name
}
