// SPDX-License-Identifier: Apache-2.0

package server

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"remit"
	"remit/internal/durable"
	"remit/internal/store"
)

// snapshotHead says what a follower's snapshot is of. It is the file's first line; what the detector saved follows, then the SHA-256 of
// both. A snapshot only saves time: one that is damaged, or of anything else than the ledger as it is now, is dropped, and the ledger read
// from its first entry.
type snapshotHead struct {
	Follower string    `json:"follower"`
	Config   string    `json:"config"` // digest of what decides what is learned
	Seq      uint64    `json:"seq"`    // the last entry that is in it
	Entry    string    `json:"entry"`  // hash of that entry
	Clean    uint64    `json:"clean"`  // what was erased up to this entry is not in it
	Written  time.Time `json:"written"`
	// Spent are suspensions by Remit itself, of the hard rules' follower.
	Spent map[remit.FindingID]time.Time `json:"spent,omitempty"`
}

const (
	maxSnapshotHead = 64 << 10
	snapshotEvery   = 20_000 // entries
	snapshotRests   = 50     // times as long as writing took: a large one is written seldom
)

// snapshotPath is where a follower's snapshot is, in the data folder.
func snapshotPath(data, follower string) string { return filepath.Join(data, follower+".snapshot") }

// dropSnapshots removes what followers saved.
func dropSnapshots(data string) error {
	var errs []error
	for _, name := range []string{followerName, baselinesName} {
		if err := os.Remove(snapshotPath(data, name)); !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// recall makes the follower's detector, from its snapshot where that is good, and returns the last entry that is in it.
func (s *Server) recall(f *follower) uint64 {
	head, err := s.loadSnapshot(f)
	if err == nil {
		f.clean = head.Clean
		s.findings.mu.Lock()
		for id, at := range head.Spent {
			s.findings.spend(id, at)
		}
		s.findings.mu.Unlock()
		s.log.Info("following the ledger goes on from a snapshot", "for", f.name, "entry", head.Seq)
		return head.Seq
	}
	if !errors.Is(err, fs.ErrNotExist) {
		s.log.Warn("a snapshot was dropped; the ledger is read from its first entry", "for", f.name, "why", err)
	}
	f.detector, f.clean = f.make(), s.store.LastSeq()
	return 0
}

// loadSnapshot fills the follower's detector. After an error that is of no use.
func (s *Server) loadSnapshot(f *follower) (head snapshotHead, err error) {
	file, err := os.Open(snapshotPath(s.cfg.Data, f.name))
	if err != nil {
		return head, err
	}
	defer file.Close() //nolint:errcheck // it was only read
	info, err := file.Stat()
	if err != nil || !info.Mode().IsRegular() || info.Size() < sha256.Size {
		return head, errors.Join(err, errors.New("it is no snapshot"))
	}
	hash := sha256.New()
	body := bufio.NewReaderSize(io.TeeReader(io.LimitReader(file, info.Size()-sha256.Size), hash), maxSnapshotHead)
	line, err := body.ReadSlice('\n')
	if err != nil || json.Unmarshal(line, &head) != nil {
		return head, errors.New("its head cannot be read")
	}
	if err := s.fits(f, &head); err != nil {
		return head, err
	}
	f.detector = f.make()
	if err := f.detector.Load(body); err != nil {
		return head, err
	}
	var want [sha256.Size]byte
	if _, err := io.ReadFull(file, want[:]); err != nil {
		return head, err
	}
	//remit:guard S36 TestSnapshotIsDropped
	if !bytes.Equal(hash.Sum(nil), want[:]) {
		return head, errors.New("its digest is not that of its content")
	}
	return head, nil
}

// fits reports why a snapshot is not one of this follower, configuration and ledger.
func (s *Server) fits(f *follower, head *snapshotHead) error {
	if head.Follower != f.name || head.Config != hex.EncodeToString(f.config[:]) {
		return errors.New("it is of another version or configuration")
	}
	e, ok, err := s.store.Entry(head.Seq)
	if err != nil {
		return err
	}
	hash := e.Hash()
	//remit:guard S36 TestSnapshotIsDropped
	if !ok || head.Entry != hex.EncodeToString(hash[:]) {
		return fmt.Errorf("it is not of this ledger: entry %d is missing or another one", head.Seq)
	}
	if f.forgets {
		erased, _, err := s.store.Events(store.EventFilter{Kind: remit.EventErased}, head.Clean, 1)
		//remit:guard S33 TestSnapshotForgets
		if err != nil || len(erased) > 0 {
			return errors.Join(err, errors.New("values were erased since"))
		}
	}
	return nil
}

// snapshot saves what the follower knows after an entry, unless it did so lately.
func (s *Server) snapshot(f *follower, last remit.Entry, now bool) {
	if last.Seq <= f.saved || !now && (last.Seq < f.saved+snapshotEvery || time.Now().Before(f.again)) {
		return
	}
	began, hash := time.Now(), last.Hash()
	head := snapshotHead{Follower: f.name, Config: hex.EncodeToString(f.config[:]), Seq: last.Seq, Entry: hex.EncodeToString(hash[:]), Clean: f.clean, Written: s.now()}
	if f.name == followerName {
		head.Spent = s.findings.lately(s.now())
	}
	err := durable.ReplaceBy(snapshotPath(s.cfg.Data, f.name), 0o600, func(w io.Writer) error {
		hash := sha256.New()
		both := io.MultiWriter(w, hash)
		err := errors.Join(json.NewEncoder(both).Encode(&head), f.detector.Save(both))
		if err == nil {
			_, err = w.Write(hash.Sum(nil))
		}
		return err
	})
	if err != nil {
		s.log.Warn("a snapshot was not written: a start will read more of the ledger", "for", f.name, "err", err)
	}
	f.saved, f.again = last.Seq, time.Now().Add(snapshotRests*time.Since(began))
}
