// SPDX-License-Identifier: Apache-2.0

package store

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"zombiezen.com/go/sqlite"

	"remit"
)

// Entries read the same however many share a row: one by one, from any number on, with what is stored beside them, also after some
// of that was erased, and after the store was opened again.
func TestRowsOfSeveralEntries(t *testing.T) {
	cfg := Config{Path: t.TempDir() + "/db", Sign: func(_, _ uint64, _ [32]byte) (string, []byte, error) { return "k", make([]byte, 64), nil }}
	s, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(1, 2))
	payloads := [][]byte{nil}
	for _, size := range []int{1, 2, 100, 1, 700} { // events in one change
		var c remit.Change
		for range size {
			e := remit.Event{Kind: remit.EventDecision, Data: fmt.Appendf(nil, `{"n":%d,"x":"%s"}`, len(payloads), strings.Repeat("x", rng.IntN(900)))}
			if rng.IntN(3) > 0 {
				e.Payload = bytes.Repeat([]byte{byte(len(payloads)), 0, 'p'}, rng.IntN(40))
			}
			payloads, c.Events = append(payloads, e.Payload), append(c.Events, e)
		}
		if _, err := s.Commit(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
	check := func() {
		t.Helper()
		for after := range len(payloads) {
			found, err := s.Entries(uint64(after), 3)
			if err != nil || len(found) != min(3, len(payloads)-1-after) || (len(found) > 0 && found[0].Seq != uint64(after+1)) {
				t.Fatalf("after %d: %d entries, %v", after, len(found), err)
			}
			e, ok, err := s.Entry(uint64(after))
			if err != nil || ok != (after > 0) || !bytes.Equal(e.Payload, payloads[after]) {
				t.Fatalf("entry %d: %v %v, payload %q instead of %q", after, ok, err, e.Payload, payloads[after])
			}
			if want := fmt.Sprintf(`"n":%d,`, after); ok && !strings.Contains(string(e.Body), want) {
				t.Fatalf("entry %d is %s", after, e.Body)
			}
		}
	}
	check()
	rows := 0
	err = s.read(func(conn *sqlite.Conn) error {
		return query1(conn, rowsSQL, func(*sqlite.Stmt) error { rows++; return nil }, 0)
	})
	if err != nil || rows > len(payloads)/4 {
		t.Errorf("%d rows for %d entries: %v", rows, len(payloads)-1, err)
	}
	var c remit.Change
	for range 100 {
		n := 1 + rng.IntN(len(payloads)-1)
		c.Rows, payloads[n] = append(c.Rows, remit.Erasure{Entries: []uint64{uint64(n)}}), nil
	}
	if _, err := s.Commit(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	check()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if s, err = Open(cfg); err != nil {
		t.Fatal(err)
	}
	check()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}
