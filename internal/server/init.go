// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"crypto/cipher"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"remit"
	"remit/internal/config"
	"remit/internal/ledger"
	"remit/internal/store"
)

// The layout of a server's directory.
const (
	fileServer    = "remit.yaml"
	dirConfig     = "config"
	dirKeys       = "keys"
	dirLedger     = "ledger"
	fileState     = "state.db"
	fileLedgerKey = "keys/ledger.key"
	fileLedgerPub = "ledger.pub"
	fileBundle    = "bundle.pem"
)

// InitOptions say what remit init makes.
type InitOptions struct {
	Dir         string
	TrustDomain string
	Operator    string // the first operator's name, without operator/
	UID         uint32
	HTTPS       string // HOST:PORT
}

// Init makes a server's directory: remit.yaml, an empty configuration, the ledger's key and the authority's keys. It never
// touches one that exists.
func Init(_ context.Context, o InitOptions) (err error) {
	td, err := spiffeid.TrustDomainFromString(o.TrustDomain)
	if err != nil {
		return &remit.Error{Code: remit.CodeInvalid, Msg: fmt.Sprintf("%q is not a trust domain: %v", o.TrustDomain, err), Hint: "write company.com"}
	}
	if _, err := remit.ParseName("operator/" + o.Operator); err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(o.Dir, fileServer)); err == nil {
		return &remit.Error{Code: remit.CodeConflict, Msg: o.Dir + " is a server's directory already", Hint: "remit --dir OTHER init makes another"}
	}
	for _, d := range []struct {
		name string
		mode os.FileMode
	}{{"", 0o711}, {dirConfig, 0o755}, {dirKeys, 0o700}, {dirLedger, 0o700}} {
		if err := os.MkdirAll(filepath.Join(o.Dir, d.name), d.mode); err != nil {
			return fmt.Errorf("make %s: %w", o.Dir, err)
		}
	}
	key, err := ledger.CreateKey(filepath.Join(o.Dir, fileLedgerKey), td.Name()+"/remit")
	if err != nil {
		return err
	}
	if err := createIdentities(o.Dir, td); err != nil {
		return err
	}
	if _, err := createStateKey(filepath.Join(o.Dir, fileStateKey)); err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(filepath.Join(o.Dir, fileLedgerPub), []byte(key.Public().String()+"\n"), 0o644),
		os.WriteFile(filepath.Join(o.Dir, fileServer), config.DefaultServer(td.Name(), o.Operator, o.UID, o.HTTPS), 0o644))
}

// Restore puts a backup in the place of a stopped server's state. The old state is kept beside it. The ledger's folder stays:
// a backup that is older than the log is refused by the sequencer when the server starts.
func Restore(_ context.Context, dir, backup string) error {
	cfg, err := config.LoadServer(filepath.Join(dir, fileServer))
	if err != nil {
		return err
	}
	key, err := ledger.LoadKey(filepath.Join(cfg.Data, fileLedgerKey))
	if err != nil {
		return err
	}
	state := filepath.Join(cfg.Data, fileState)
	next := state + ".restore"
	if err := copyFile(backup, next); err != nil {
		return &remit.Error{Code: remit.CodeInvalid, Msg: "the backup cannot be read: " + err.Error()}
	}
	// Opening both proves that the backup is a state that this program can read, and that no server holds the old one.
	cipher, err := openStateKey(filepath.Join(cfg.Data, fileStateKey))
	if err != nil {
		return err
	}
	for _, path := range []string{next, state} {
		if err := opens(path, key, cipher); err != nil {
			return errors.Join(err, os.Remove(next))
		}
	}
	aside := state + "." + time.Now().UTC().Format("20060102-150405")
	for _, suffix := range []string{"", "-wal", "-shm"} {
		if err := os.Rename(state+suffix, aside+suffix); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("keep the old state: %w", err)
		}
	}
	return os.Rename(next, state)
}

func opens(path string, key *ledger.Key, cipher cipher.AEAD) error {
	s, err := store.Open(store.Config{Path: path, Sign: key.SignBatch, Cipher: cipher})
	if err != nil {
		return &remit.Error{Code: remit.CodeConflict, Msg: err.Error(), Hint: "stop the server first"}
	}
	return s.Close()
}

func copyFile(from, to string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Sync(), out.Close())
}
