// SPDX-License-Identifier: Apache-2.0

package store

import (
	"errors"
	"math/rand/v2"
	"slices"
	"testing"

	"zombiezen.com/go/sqlite"
)

// TestIndexFindsWhatAScanFinds compares the index with a plain scan of the same refs: hashes that fill several blocks, hashes that
// stand once, the least and the greatest, before and after the store is opened again.
func TestIndexFindsWhatAScanFinds(t *testing.T) {
	cfg := Config{Path: t.TempDir() + "/db", Sign: func(_, _ uint64, _ [32]byte) (string, []byte, error) { return "k", make([]byte, 64), nil }}
	s, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(1, 2))
	common := []uint64{0, 1, rng.Uint64(), rng.Uint64(), ^uint64(0)}
	var all []ref
	for seq := uint64(1); len(all) < 3*segmentRefs; seq++ {
		all = append(all, ref{common[rng.IntN(len(common))], seq}, ref{common[2], seq}, ref{rng.Uint64(), seq})
	}
	stopWriter(s)
	s.index.add(all)
	for {
		refs := s.index.next()
		if refs == nil {
			break
		}
		if err := s.insertSegment(sortRefs(refs)); err != nil {
			t.Fatal(err)
		}
	}
	if len(s.index.segments) != 2 || len(s.index.waiting) == 0 {
		t.Fatalf("%d segments, %d refs wait", len(s.index.segments), len(s.index.waiting))
	}
	compare(t, s, all, append(common, all[2].hash, all[len(all)-1].hash, 12345))
	indexed := s.index.indexed()
	if err := s.release(); err != nil {
		t.Fatal(err)
	}
	if s, err = Open(cfg); err != nil {
		t.Fatal(err)
	}
	defer s.Close()                                                           //nolint:errcheck // nothing is written
	all = slices.DeleteFunc(all, func(r ref) bool { return r.seq > indexed }) // those that waited had no events
	compare(t, s, all, append(common, all[2].hash, all[len(all)-1].hash, 12345))
}

// stopWriter ends the goroutines and leaves the connections to the test.
func stopWriter(s *Store) {
	close(s.closing)
	s.wg.Wait()
	s.closing = make(chan struct{})
}

var errStop = errors.New("stop")

func compare(t *testing.T, s *Store, all []ref, hashes []uint64) {
	t.Helper()
	last := all[len(all)-1].seq
	for _, hash := range hashes {
		for _, after := range []uint64{0, 1, 5000, last / 2, last - 1, last} {
			var want, got []uint64
			for _, r := range all {
				if r.hash == hash && r.seq > after && (len(want) == 0 || want[len(want)-1] != r.seq) {
					want = append(want, r.seq)
				}
			}
			err := s.read(func(conn *sqlite.Conn) error {
				return s.mentions(conn, hash, after, func(seq uint64) error {
					if len(got) == 0 || got[len(got)-1] != seq {
						got = append(got, seq)
					}
					return nil
				})
			})
			if err != nil || !slices.Equal(got, want) {
				t.Fatalf("hash %d after %d: %d events, want %d (%v)", hash, after, len(got), len(want), err)
			}
		}
		err := s.read(func(conn *sqlite.Conn) error {
			return s.mentions(conn, hash, 0, func(uint64) error { return errStop })
		})
		if err != nil && !errors.Is(err, errStop) {
			t.Fatal(err)
		}
	}
}
