// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/rfc6962"
	"github.com/transparency-dev/tessera/api/layout"
	"golang.org/x/mod/sumdb/note"

	"remit"
)

const bundleWidth = layout.EntryBundleWidth

// ProblemKind is what is wrong with a log.
type ProblemKind string

// The kinds.
const (
	ProblemCheckpoint ProblemKind = "checkpoint" // the published checkpoint is missing, malformed or not signed by the key
	ProblemMissing    ProblemKind = "missing"    // a bundle, tile or entry is not there
	ProblemEntry      ProblemKind = "entry"      // an entry was changed
	ProblemNumber     ProblemKind = "number"     // an entry stands in another's place: removed, inserted or reordered
	ProblemTile       ProblemKind = "tile"       // a hash in a tile was changed
	ProblemRoot       ProblemKind = "root"       // all entries together do not give the signed root
	ProblemRollback   ProblemKind = "rollback"   // a remembered checkpoint vouches for more entries than there are
	ProblemRewritten  ProblemKind = "rewritten"  // a remembered checkpoint vouches for other entries
	ProblemWitness    ProblemKind = "witness"    // too few witnesses cosigned the checkpoint
	ProblemReceipt    ProblemKind = "receipt"    // a receipt is false, or its entry is not here
)

// Problem is one thing that is wrong. Seq is the number of the first entry that it is about; 0 is the log as a whole.
type Problem struct {
	Seq  uint64      `json:"seq,omitempty"`
	Kind ProblemKind `json:"kind"`
	What string      `json:"what"`
}

// Gap is a range of entries, both ends included.
type Gap struct {
	First uint64 `json:"first"`
	Last  uint64 `json:"last"`
}

// Report is what Verify found.
type Report struct {
	Origin   string `json:"origin"`
	Size     uint64 `json:"size"`     // entries that the checkpoint vouches for, all of which were read
	Root     []byte `json:"root"`     // of the checkpoint
	Receipts int    `json:"receipts"` // receipts that were compared
	// Witnesses names those of the given witnesses that cosigned the checkpoint.
	Witnesses []string  `json:"witnesses,omitempty"`
	Problems  []Problem `json:"problems,omitempty"`
	Unlisted  int       `json:"unlisted,omitempty"` // problems beyond the first hundred
	// Unsequenced are entries that are durable, by the store or by a receipt, but not in the log that was verified.
	Unsequenced *Gap `json:"unsequenced,omitempty"`
	// Strays are files that belong to no log of this size. They prove and disprove nothing.
	Strays []string `json:"strays,omitempty"`
}

// Intact reports whether nothing is wrong with what is in the log.
func (r *Report) Intact() bool { return len(r.Problems) == 0 }

// Complete reports whether the log is intact and holds all that is known to be durable.
func (r *Report) Complete() bool { return r.Intact() && r.Unsequenced == nil }

const maxProblems = 100

func (r *Report) add(seq uint64, kind ProblemKind, format string, args ...any) {
	if len(r.Problems) == maxProblems {
		r.Unlisted++
		return
	}
	r.Problems = append(r.Problems, Problem{Seq: seq, Kind: kind, What: fmt.Sprintf(format, args...)})
}

// VerifyOptions is what is known beside the files; all is optional.
type VerifyOptions struct {
	// Remembered are checkpoint notes that were seen before, signed by the same key.
	Remembered [][]byte
	// Receipts that were handed out.
	Receipts []remit.Receipt
	// Witnesses are keys of witnesses, of which Quorum must have cosigned the checkpoint; 0 is none.
	Witnesses []note.Verifier
	Quorum    int
	// Tail reads the store's entries, to name those that are not in the log yet.
	Tail interface {
		Entries(after uint64, limit int) ([]remit.Entry, error)
	}
}

// Verify reads the whole log and checks it against the public key: signature and form of the checkpoint, every entry's
// number, every hash in every tile, the root, and what the options add. What is wrong with the log is in the Report; the
// error is for what kept Verify from reading.
func (l *Log) Verify(ctx context.Context, opts VerifyOptions) (Report, error) {
	c := checker{log: l, report: Report{Origin: l.key.Name(), Receipts: len(opts.Receipts)}}
	cp, err := l.Checkpoint()
	if err != nil {
		c.report.add(0, ProblemCheckpoint, "%v", err)
		return c.report, nil
	}
	c.cp, c.report.Size, c.report.Root = cp, cp.Size, cp.Root[:]
	c.witnessed(opts)
	c.remember(opts.Remembered)
	c.expect(opts.Receipts)
	if err := c.entries(ctx); err != nil {
		return c.report, err
	}
	if err := c.upperTiles(ctx); err != nil {
		return c.report, err
	}
	c.judgeRoot()
	if err := c.tail(opts); err != nil {
		return c.report, err
	}
	if err := c.strays(); err != nil {
		return c.report, err
	}
	slices.SortStableFunc(c.report.Problems, func(a, b Problem) int { return cmp.Compare(a.Seq, b.Seq) })
	return c.report, nil
}

// checker is one verification under way.
type checker struct {
	log        *Log
	report     Report
	cp         Checkpoint
	remembered []Checkpoint
	receipts   map[uint64][]byte // leaf hash by number
	highest    uint64            // number of any receipt

	byEntries, byTiles *compact.Range // the tree as the entries make it, and as the lowest tiles say
	differ             []uint64       // numbers of entries that differ from their tile
	roots              [][32]byte     // of full bundles, for the tiles above
}

// witnessed counts the cosignatures of the given witnesses.
func (c *checker) witnessed(opts VerifyOptions) {
	for _, w := range opts.Witnesses {
		if n, err := note.Open(c.cp.Note, note.VerifierList(w)); err == nil && len(n.Sigs) == 1 {
			c.report.Witnesses = append(c.report.Witnesses, w.Name())
		}
	}
	//remit:guard S34 TestWitnessedLog internal/server
	if len(c.report.Witnesses) < opts.Quorum {
		c.report.add(0, ProblemWitness, "%d of %d witnesses cosigned the checkpoint, %d are needed", len(c.report.Witnesses), len(opts.Witnesses), opts.Quorum)
	}
}

// remember verifies the remembered checkpoints and finds a roll-back.
func (c *checker) remember(notes [][]byte) {
	for _, text := range notes {
		old, err := ParseCheckpoint(text, c.log.key)
		switch {
		case err != nil:
			c.report.add(0, ProblemCheckpoint, "a remembered checkpoint: %v", err)
		//remit:guard S34 TestRollBack
		case old.Size > c.cp.Size:
			c.report.add(c.cp.Size+1, ProblemRollback, "the log was rolled back: a checkpoint vouched for %d entries, now there are %d",
				old.Size, c.cp.Size)
		default:
			c.remembered = append(c.remembered, old)
		}
	}
}

// expect verifies the receipts and remembers their leaf hashes.
func (c *checker) expect(receipts []remit.Receipt) {
	c.receipts = make(map[uint64][]byte, len(receipts))
	for _, r := range receipts {
		//remit:guard S34 TestChangedTail
		if err := VerifyReceipt(r, nil, c.log.key); err != nil {
			c.report.add(0, ProblemReceipt, "%v", err)
			continue
		}
		if leaf, ok := c.receipts[r.Seq]; ok && string(leaf) != string(r.Leaf) {
			c.report.add(r.Seq, ProblemReceipt, "two receipts vouch for different entries with number %d", r.Seq)
		}
		c.receipts[r.Seq] = r.Leaf
		c.highest = max(c.highest, r.Seq)
	}
}

// entries reads every bundle and its lowest tile.
func (c *checker) entries(ctx context.Context) error {
	f := compact.RangeFactory{Hash: rfc6962.DefaultHasher.HashChildren}
	c.byEntries, c.byTiles = f.NewEmptyRange(0), f.NewEmptyRange(0)
	for first := uint64(0); first < c.cp.Size; first += bundleWidth {
		if err := ctx.Err(); err != nil {
			return err
		}
		n := int(min(bundleWidth, c.cp.Size-first))
		hashes := c.bundle(ctx, first, n)
		tile := c.lowestTile(ctx, first, n)
		for i := range n {
			entry, inTile := hashes[i], tile[i]
			switch {
			case entry == nil && inTile == nil:
				entry, inTile = &[32]byte{}, &[32]byte{}
			case entry == nil:
				entry = inTile
			case inTile == nil:
				inTile = entry
			//remit:guard S34 TestTampering
			case *entry != *inTile:
				c.differ = append(c.differ, first+uint64(i)+1)
			}
			hashes[i] = entry
			if err := errors.Join(c.byEntries.Append(entry[:], nil), c.byTiles.Append(inTile[:], nil)); err != nil {
				return err
			}
			c.compare(first+uint64(i)+1, entry)
		}
		if n == bundleWidth {
			c.roots = append(c.roots, subtreeRoot(hashes))
		}
	}
	return nil
}

// compare holds an entry against its receipt, and the tree so far against remembered checkpoints.
func (c *checker) compare(seq uint64, leaf *[32]byte) {
	//remit:guard S34 TestRewritten
	if want, ok := c.receipts[seq]; ok && string(want) != string(leaf[:]) {
		c.report.add(seq, ProblemReceipt, "a receipt vouches for another entry with number %d", seq)
	}
	for _, old := range c.remembered {
		if old.Size != seq {
			continue
		}
		root, err := c.byEntries.GetRootHash(nil)
		//remit:guard S34 TestRewritten
		if err != nil || string(root) != string(old.Root[:]) {
			c.report.add(0, ProblemRewritten, "the first %d entries are not those that a remembered checkpoint vouches for", old.Size)
		}
	}
}

// judgeRoot compares the computed root with the signed one, which also tells whether an entry or its tile was changed.
func (c *checker) judgeRoot() {
	good := func(r *compact.Range) bool {
		root := rfc6962.DefaultHasher.EmptyRoot()
		if r.End() > 0 {
			var err error
			if root, err = r.GetRootHash(nil); err != nil {
				return false
			}
		}
		return string(root) == string(c.cp.Root[:])
	}
	entries, tiles := good(c.byEntries), good(c.byTiles)
	for _, seq := range c.differ {
		switch {
		case entries:
			c.report.add(seq, ProblemTile, "the hash of entry %d in its tile was changed", seq)
		case tiles:
			c.report.add(seq, ProblemEntry, "entry %d was changed", seq)
		default:
			c.report.add(seq, ProblemEntry, "entry %d does not match its hash in the tile", seq)
		}
	}
	//remit:guard S34 TestTampering
	if !entries {
		c.report.add(0, ProblemRoot, "the %d entries do not give the root that the checkpoint signs", c.cp.Size)
	}
}

// tailChunk is how many entries are read from the store at once.
const tailChunk = 4096

// tail names what is durable but not in the log.
func (c *checker) tail(opts VerifyOptions) error {
	last := c.cp.Size
	for opts.Tail != nil {
		entries, err := opts.Tail.Entries(last, tailChunk)
		if err != nil {
			return fmt.Errorf("read the store's entries after %d: %w", last, err)
		}
		if len(entries) == 0 {
			break
		}
		for _, e := range entries {
			//remit:guard S34 TestForgedTail
			if e.Seq != last+1 {
				c.report.add(last+1, ProblemMissing, "the store has entry %d where %d belongs", e.Seq, last+1)
			}
			//remit:guard S34 TestForgedTail
			if seq, err := entrySeq(e.Body); err != nil || seq != e.Seq {
				c.report.add(e.Seq, ProblemNumber, "the store's entry %d carries another number", e.Seq)
			}
			h := e.Hash()
			//remit:guard S34 TestForgedTail
			if want, ok := c.receipts[e.Seq]; ok && string(want) != string(h[:]) {
				c.report.add(e.Seq, ProblemReceipt, "a receipt vouches for another entry with number %d than the store's", e.Seq)
			}
			last = e.Seq
		}
	}
	//remit:guard S34 TestDroppedEntry
	if opts.Tail != nil {
		c.lost(last)
	}
	//remit:guard S34 TestDroppedEntry
	if end := max(last, c.highest); end > c.cp.Size {
		c.report.Unsequenced = &Gap{First: c.cp.Size + 1, Last: end}
	}
	return nil
}

// lost reports receipts for entries that are neither in the log nor in the store.
func (c *checker) lost(last uint64) {
	var seqs []uint64
	for seq := range c.receipts {
		if seq > last {
			seqs = append(seqs, seq)
		}
	}
	slices.Sort(seqs)
	for _, seq := range seqs {
		c.report.add(seq, ProblemReceipt, "entry %d has a receipt, but is neither in the log nor in the store", seq)
	}
}
