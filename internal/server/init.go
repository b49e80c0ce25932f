// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"remit"
	"remit/internal/config"
	"remit/internal/keyfile"
	"remit/internal/ledger"
	"remit/internal/store"
)

// The layout of a server's directory.
const (
	dirFederation = "federation" // the last bundles of other trust domains
	fileServer    = "remit.yaml"
	dirConfig     = "config"
	dirKeys       = "keys"
	dirLedger     = "ledger"
	dirTools      = "tools" // copies of tools' files
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
	// Passphrase wraps the key files; zero: they are plaintext. Work is what a guess costs; 0: about a second.
	Passphrase remit.Secret
	Work       int
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
	keeper, err := o.keeper()
	if err != nil {
		return err
	}
	key, err := ledger.CreateKeyBy(keeper, filepath.Join(o.Dir, fileLedgerKey), td.Name()+"/remit")
	if err != nil {
		return err
	}
	if err := createIdentities(o.Dir, td, keeper); err != nil {
		return err
	}
	if _, err := createStateKey(filepath.Join(o.Dir, fileStateKey), keeper); err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(filepath.Join(o.Dir, fileLedgerPub), []byte(key.Public().String()+"\n"), 0o644),
		os.WriteFile(filepath.Join(o.Dir, fileServer), config.DefaultServer(td.Name(), o.Operator, o.UID, o.HTTPS), 0o644))
}

// keeper of key files: nil is plaintext.
type keeper interface {
	Wrap(plain []byte) ([]byte, error)
	Unwrap(stored []byte) ([]byte, error)
}

func (o *InitOptions) keeper() (keeper, error) {
	if o.Passphrase.IsZero() {
		return nil, nil
	}
	return keyfile.Create(filepath.Join(o.Dir, dirKeys), o.Passphrase, o.Work)
}

// openKeeper unlocks the key files of a server's data directory.
func openKeeper(data string, passphrase remit.Secret) (keeper, error) {
	k, err := keyfile.Open(filepath.Join(data, dirKeys), passphrase)
	if k == nil { // a nil *Age would be a Keeper
		return nil, err
	}
	return k, err
}

// WrapKeys wraps the key files of a stopped server by a passphrase, and returns how many it wrapped. It can be repeated after it was
// cut short.
func WrapKeys(_ context.Context, dir string, passphrase remit.Secret, work int) (int, error) {
	cfg, err := config.LoadServer(filepath.Join(dir, fileServer))
	if err != nil {
		return 0, err
	}
	lock, err := store.Lock(filepath.Join(cfg.Data, fileState))
	//remit:guard S7 TestWrapKeys
	if err != nil {
		return 0, &remit.Error{Code: remit.CodeConflict, Msg: err.Error(), Hint: "stop the server first"}
	}
	defer lock.Close() //nolint:errcheck // releases the lock in any case
	keys := filepath.Join(cfg.Data, dirKeys)
	k, err := keyfile.Open(keys, passphrase)
	if _, absent := os.Stat(filepath.Join(keys, keyfile.File)); errors.Is(absent, os.ErrNotExist) {
		k, err = keyfile.Create(keys, passphrase, work)
	}
	if err != nil {
		return 0, err
	}
	return k.Rewrite(keys)
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
