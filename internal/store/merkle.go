// SPDX-License-Identifier: Apache-2.0

package store

import (
	"crypto/sha256"
	"fmt"
	"math/bits"

	"remit"
)

// batchTree is the RFC 6962 Merkle tree over the entries of one batch (section 2.1). Level 0 is the leaves; a node without a
// right neighbour moves up as it is.
type batchTree struct {
	first     uint64
	levels    [][][32]byte
	key       string
	signature []byte
}

// grow makes the tree over entries, of which there is at least one: text holds them one after the other, each after its leaf prefix,
// ends says where each ends.
func (t *batchTree) grow(text []byte, ends []int) {
	leaves, start := make([][32]byte, len(ends)), 0
	for i, end := range ends {
		leaves[i] = sha256.Sum256(text[start:end])
		start = end
	}
	t.levels = append(make([][][32]byte, 0, bits.Len(uint(len(ends)))+1), leaves)
	for below := leaves; len(below) > 1; below = t.levels[len(t.levels)-1] {
		level := make([][32]byte, 0, (len(below)+1)/2)
		for i := 0; i+1 < len(below); i += 2 {
			level = append(level, hashChildren(&below[i], &below[i+1]))
		}
		if len(below)%2 == 1 {
			level = append(level, below[len(below)-1])
		}
		t.levels = append(t.levels, level)
	}
}

func hashChildren(left, right *[32]byte) [32]byte {
	var b [65]byte
	b[0] = 1
	copy(b[1:33], left[:])
	copy(b[33:], right[:])
	return sha256.Sum256(b[:])
}

func (t *batchTree) size() int { return len(t.levels[0]) }

func (t *batchTree) root() [32]byte { return t.levels[len(t.levels)-1][0] }

func (t *batchTree) sign(sign func(first, size uint64, root [32]byte) (string, []byte, error)) (err error) {
	t.key, t.signature, err = sign(t.first, uint64(t.size()), t.root())
	if err != nil {
		return fmt.Errorf("sign a batch: %w", err)
	}
	return nil
}

// receipt is the proof for the entry with the given number. It is made in the caller's goroutine.
func (t *batchTree) receipt(seq uint64) remit.Receipt {
	i := int(seq - t.first)
	leaf := t.levels[0][i]
	r := remit.Receipt{Seq: seq, Leaf: leaf[:], First: t.first, Size: uint64(t.size()), Key: t.key, Signature: t.signature,
		Path: make([][]byte, 0, len(t.levels)-1)}
	for _, level := range t.levels[:len(t.levels)-1] {
		if sibling := i ^ 1; sibling < len(level) {
			r.Path = append(r.Path, level[sibling][:])
		}
		i >>= 1
	}
	return r
}
