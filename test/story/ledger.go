// SPDX-License-Identifier: Apache-2.0

package story

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// Ledger verifies offline, then tampers with a copy.
func (s *Story) Ledger(ctx context.Context) error {
	time.Sleep(2 * time.Second) // an event is in the log within two seconds
	log, key := s.Path("remit", "ledger"), s.Path("remit", "ledger.pub")
	s.Ask("remit ledger verify, with the files and the public key only")
	r := s.Remit(ctx, "ledger", "verify", log, "--key", key)
	if r.Code != 0 {
		return fmt.Errorf("the untouched ledger does not verify: %s", r)
	}
	s.Told("%s", LastLine(r.Out), r.Took)
	copied := s.Path("tampered")
	if err := os.CopyFS(copied, os.DirFS(log)); err != nil {
		return fmt.Errorf("copy the ledger: %w", err)
	}
	where, err := flipOneBit(copied, s.Rand.IntN)
	if err != nil {
		return err
	}
	s.Ask("the same of a copy with one bit flipped in %s", where)
	r = s.Remit(ctx, "ledger", "verify", copied, "--key", key)
	if r.Code == 0 {
		return errors.New("the tampered ledger verifies")
	}
	s.Told("found: %s", LastLine(r.Errs+r.Out), r.Took)
	return nil
}

// flipOneBit flips a bit in an entry bundle of the log.
func flipOneBit(log string, intn func(int) int) (string, error) {
	var files []string
	err := filepath.WalkDir(filepath.Join(log, "tile", "entries"), func(p string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			files = append(files, p)
		}
		return err
	})
	if err != nil || len(files) == 0 {
		return "", fmt.Errorf("no entries under %s: %w", log, errors.Join(err, os.ErrNotExist))
	}
	// Partial bundles of earlier sizes may lie beside the newest; all hold the same entries, so tamper with each.
	offset := -1
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			return "", fmt.Errorf("read an entry bundle: %w", err)
		}
		if offset < 0 {
			offset = 2 + intn(min(200, len(b)-2))
		}
		if offset < len(b) {
			b[offset] ^= 1
		}
		if err := os.WriteFile(f, b, 0o644); err != nil {
			return "", fmt.Errorf("write an entry bundle: %w", err)
		}
	}
	rel, _ := filepath.Rel(log, files[0])
	return fmt.Sprintf("%s, byte %d", rel, offset), nil
}
