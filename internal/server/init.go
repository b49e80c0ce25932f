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
	"remit/internal/ledger"
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
