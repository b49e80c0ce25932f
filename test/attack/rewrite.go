// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"remit"
	"remit/internal/ledger"
	"remit/internal/store"
)

// rewrite LOG KEY OUT: another log of as many entries, which never happened, signed by the ledger's own key, as who holds that can.
func (a *attack) rewrite(ts *testscript.TestScript, args []string) (err error) {
	key, err := ledger.LoadKey(ts.MkAbs(args[1]))
	if err != nil {
		return err
	}
	genuine, err := ledger.OpenLog(ts.MkAbs(args[0]), key.Public())
	if err != nil {
		return err
	}
	want, err := genuine.Checkpoint()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "rewrite")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	s, err := store.Open(store.Config{Path: dir + "/db", Sign: key.SignBatch})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	for range want.Size {
		event := remit.Event{At: time.Now(), Kind: remit.EventDecision, Data: []byte(`{"effect":"deny"}`)}
		if _, err := s.Commit(context.Background(), remit.Change{Events: []remit.Event{event}}); err != nil {
			return err
		}
	}
	return publish(s, key, ts.MkAbs(args[2]), want.Size)
}

// publish writes the store's entries as a log.
func publish(s *store.Store, key *ledger.Key, dir string, size uint64) error {
	sequencer, err := ledger.NewSequencer(ledger.SequencerConfig{Dir: dir, Source: s, Key: key, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- sequencer.Run(ctx) }()
	defer func() { cancel(); <-done }()
	log, err := ledger.OpenLog(dir, key.Public())
	if err != nil {
		return err
	}
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if cp, err := log.Checkpoint(); err == nil && cp.Size == size {
			return nil
		}
	}
	return fmt.Errorf("the log of %d entries is not written", size)
}
