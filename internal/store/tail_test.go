// SPDX-License-Identifier: Apache-2.0

package store_test

import (
	"bytes"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"remit"
	"remit/internal/store"
)

// TestEntriesFromMemory: what is read from memory behind the writes is what is read from the disk after a restart, from every
// place and with every limit, also when memory holds only the newest; a hash that comes along is the entry's own.
func TestEntriesFromMemory(t *testing.T) {
	cfg := store.Config{Path: filepath.Join(t.TempDir(), "state.db")}
	s := open(t, cfg)
	big := strings.Repeat("x", 60<<10)
	for i := range 300 { // beyond what memory keeps
		events := []remit.Event{decisionEvent(fmt.Appendf(nil, `{"n":%d,"s":"%s"}`, i, big))}
		for range i % 3 {
			events = append(events, decisionEvent([]byte(`{}`)))
		}
		commit(t, s, remit.Change{Events: events})
	}
	last, hashed := s.LastSeq(), 0
	read := func(s *store.Store) (out [][]remit.Entry) {
		for _, after := range []uint64{0, 1, 2, last / 2, last - 9, last - 3, last - 2, last - 1, last, last + 5} {
			for _, limit := range []int{1, 2, 7, 4096} {
				entries, err := s.Entries(after, limit)
				if err != nil {
					t.Fatal(err)
				}
				for i := range entries {
					if e := &entries[i]; e.Leaf != nil {
						if *e.Leaf != e.Hash() {
							t.Fatalf("entry %d comes with a hash that is not its own", e.Seq)
						}
						e.Leaf, hashed = nil, hashed+1
					}
				}
				out = append(out, entries)
			}
		}
		return out
	}
	warm := read(s)
	if hashed == 0 {
		t.Error("no entry came with its hash")
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	cold := read(open(t, cfg))
	if !cmp.Equal(cold, warm, cmp.Comparer(bytes.Equal)) {
		t.Error("memory and disk differ")
	}
}
