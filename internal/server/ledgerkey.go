// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"remit"
	"remit/internal/config"
	"remit/internal/durable"
	"remit/internal/ledger"
	"remit/internal/ledger/witness"
	"remit/internal/store"
)

// fileNextLedgerKey is the new key of a rotation until the log's chain names it.
const fileNextLedgerKey = "keys/ledger.key.next"

// loadLedgerKey reads the ledger's key; the caller has the store open, so that nobody rotates meanwhile. A rotation that a crash cut short after the log's chain named the new key is finished
// first: from then on the old key must sign nothing.
func loadLedgerKey(dir string, keeper keeper) (*ledger.Key, error) {
	file, next := filepath.Join(dir, fileLedgerKey), filepath.Join(dir, fileNextLedgerKey)
	key, err := ledger.LoadKeyBy(keeper, file)
	if err != nil {
		return nil, err
	}
	newer, err := ledger.LoadKeyBy(keeper, next)
	if errors.Is(err, fs.ErrNotExist) {
		return key, nil
	}
	if err != nil {
		return nil, err
	}
	log, err := ledger.OpenLog(filepath.Join(dir, dirLedger), key.Public())
	if err != nil {
		return nil, err
	}
	if log.Key().String() != newer.Public().String() {
		return key, os.Remove(next) // it was never named: the rotation did not happen
	}
	return newer, install(dir, newer)
}

// install puts the next key in the place of the present one.
func install(dir string, key *ledger.Key) error {
	if err := os.Rename(filepath.Join(dir, fileNextLedgerKey), filepath.Join(dir, fileLedgerKey)); err != nil {
		return fmt.Errorf("install the ledger's new key: %w", err)
	}
	return durable.Replace(filepath.Join(dir, fileLedgerPub), []byte(key.Public().String()+"\n"), 0o644) // public
}

// rotated is the event of a rotation, the last that the old key signs.
type rotated struct {
	Step string `json:"step"`
	Key  string `json:"key"` // the new public key
	Note string `json:"note"`
}

// RotateLedgerKey replaces the key of a stopped server's ledger: the old key signs the new one, the event and its last size, and is
// then gone. Verifiers that pinned the old key follow the chain in the log's folder.
func RotateLedgerKey(ctx context.Context, dir string, passphrase remit.Secret) (string, error) {
	cfg, err := config.LoadServer(filepath.Join(dir, fileServer))
	if err != nil {
		return "", err
	}
	keeper, err := openKeeper(cfg.Data, passphrase)
	if err != nil {
		return "", err
	}
	var old *ledger.Key
	cipher, err := readStateCipher(filepath.Join(cfg.Data, fileStateKey), keeper)
	if err != nil {
		return "", err
	}
	s, err := store.Open(store.Config{Path: filepath.Join(cfg.Data, fileState), Cipher: cipher,
		Sign: func(first, size uint64, root [32]byte) (string, []byte, error) {
			return old.SignBatch(first, size, root)
		}})
	if err != nil {
		return "", &remit.Error{Code: remit.CodeConflict, Msg: err.Error(), Hint: "stop the server first"}
	}
	defer s.Close() //nolint:errcheck // all is durable
	if old, err = loadLedgerKey(cfg.Data, keeper); err != nil {
		return "", err
	}
	key, err := rotateIn(ctx, cfg.Data, s, old, keeper)
	if err != nil {
		return "", err
	}
	return key.Public().String(), install(cfg.Data, key)
}

// rotateIn records the rotation with nobody else writing, and then publishes it beside the log.
func rotateIn(ctx context.Context, dir string, s *store.Store, old *ledger.Key, keeper keeper) (*ledger.Key, error) {
	key, err := ledger.CreateKeyBy(keeper, filepath.Join(dir, fileNextLedgerKey), old.Name())
	if err != nil {
		return nil, err
	}
	upTo := s.LastSeq() + 1 // the event below
	text, err := ledger.NewRotation(old, key, upTo)
	if err != nil {
		return nil, err
	}
	body, err := json.Marshal(rotated{"ledger key rotated", key.Public().String(), string(text)})
	if err != nil {
		return nil, err
	}
	receipt, err := s.Commit(ctx, remit.Change{Events: []remit.Event{{At: time.Now(), Kind: remit.EventAuthority, By: "remit", Data: body}}})
	if err != nil {
		return nil, err
	}
	if receipt.Seq != upTo {
		return nil, fmt.Errorf("the rotation is entry %d, not %d: rotate again", receipt.Seq, upTo)
	}
	return key, ledger.AddRotation(filepath.Join(dir, dirLedger), text)
}

// cosigners asks the witnesses of remit.yaml for each checkpoint; nil when there are none.
func (s *Server) cosigners() (func(context.Context, []byte, func(context.Context, uint64) ([][]byte, error)) ([]byte, error), error) {
	if len(s.cfg.Witnesses) == 0 {
		return nil, nil
	}
	c := witness.ClientConfig{Quorum: s.cfg.Quorum}
	for _, w := range s.cfg.Witnesses {
		key, err := witness.ParseKey(w.Key)
		if err != nil {
			return nil, err
		}
		c.Peers = append(c.Peers, witness.Peer{URL: w.URL, Key: key})
	}
	client, err := witness.NewClient(c)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context, checkpoint []byte, prove func(context.Context, uint64) ([][]byte, error)) ([]byte, error) {
		return client.Cosign(ctx, checkpoint, prove)
	}, nil
}
