// SPDX-License-Identifier: Apache-2.0

package store_test

import (
	"context"
	"crypto/ed25519"
	"encoding/binary"
	"path/filepath"
	"testing"
	"time"

	"remit"
	"remit/internal/store"
)

// testKey signs the batches of tests.
var testKey = ed25519.NewKeyFromSeed(make([]byte, 32))

func signBatch(first, size uint64, root [32]byte) (string, []byte, error) {
	return "test", ed25519.Sign(testKey, batchText(first, size, root)), nil
}

func batchText(first, size uint64, root [32]byte) []byte {
	return append(binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, first), size), root[:]...)
}

func open(t testing.TB, cfg store.Config) *store.Store {
	t.Helper()
	if cfg.Path == "" {
		cfg.Path = filepath.Join(t.TempDir(), "remit.db")
	}
	if cfg.Sign == nil {
		cfg.Sign = signBatch
	}
	s, err := store.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func commit(t testing.TB, s *store.Store, c remit.Change) remit.Receipt {
	t.Helper()
	r, err := s.Commit(context.Background(), c)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func newRun() remit.Run {
	now := time.Now().UTC()
	return remit.Run{ID: remit.NewRunID(), Workflow: "deploy", Digest: "sha256:00", Stage: "deploy", State: remit.RunActive,
		Params:  map[string]remit.Value{"app": remit.StringValue("shop"), "n": remit.IntValue(7)},
		Sources: map[string]string{"app": "operator/ci"}, Starter: "operator/ci",
		Started: now, StageStarted: now, Expires: now.Add(time.Hour), StageExpires: now.Add(time.Minute)}
}
