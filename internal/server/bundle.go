// SPDX-License-Identifier: Apache-2.0

package server

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"remit"
	"remit/internal/bundle"
	"remit/internal/config"
	"remit/internal/durable"
)

// What authors do with their files and keys, without a server.

// ReadBundle reads the files of a directory and the envelope that lies there; nil: there is none.
func ReadBundle(dir string) (content map[string][]byte, envelope []byte, err error) {
	f, err := readFiles(dir)
	return f.content, f.envelope, err
}

// BundleOptions say what MakeBundle makes.
type BundleOptions struct {
	Dir         string
	TrustDomain string // empty: that of the bundle that lies there
	Again       bool   // a new version though no file changed, as after a change of keys
	Replace     bool   // the bundle that lies there was never active: make its version anew
}

// MakeBundle makes the unsigned bundle of a directory on top of the one that lies there. It answers the one that lies there when no
// file changed. Whether the files are well, Check says.
func MakeBundle(o BundleOptions) (*bundle.Bundle, error) {
	f, err := readFiles(o.Dir)
	if err != nil {
		return nil, err
	}
	of := bundle.OfConfiguration
	if _, err := config.ParseCeiling(f.content); err == nil {
		of = bundle.OfCeiling
	}
	var before *bundle.Bundle
	if f.envelope != nil {
		if before, err = bundle.Parse(f.envelope); err != nil {
			return nil, err
		}
		o.TrustDomain = cmp.Or(o.TrustDomain, before.For)
		if err := before.IsFor(of, o.TrustDomain); err != nil {
			return nil, err
		}
	}
	if _, err := spiffeid.TrustDomainFromString(o.TrustDomain); err != nil {
		return nil, &remit.Error{Code: remit.CodeInvalid, Msg: fmt.Sprintf("the trust domain that the bundle is for: %v", err), Hint: "add --for company.com"}
	}
	var b *bundle.Bundle
	switch {
	case before != nil && !o.Again && !o.Replace && before.Covers(f.content) == nil:
		return before, nil
	case before != nil && (o.Replace || len(before.Signers()) == 0): // nobody signed it, so it was never active
		b, err = before.Remade(f.content)
	default:
		b, err = bundle.New(of, o.TrustDomain, f.content, before)
	}
	if err != nil {
		return nil, err
	}
	return b, durable.Replace(filepath.Join(o.Dir, bundle.File), b.Bytes(), 0o644)
}

// SignBundle adds a signature to the bundle of dir, with the private key in a file.
func SignBundle(dir, keyFile string, passphrase []byte) (*bundle.Bundle, error) {
	f, err := readFiles(dir)
	if err != nil {
		return nil, err
	}
	if f.envelope == nil {
		return nil, &remit.Error{Code: remit.CodeInvalid, Msg: "there is no " + bundle.File + " in " + dir, Hint: "make it with remit policy bundle " + dir}
	}
	b, err := bundle.Parse(f.envelope)
	if err != nil {
		return nil, err
	}
	if err := b.Covers(f.content); err != nil {
		return nil, err
	}
	text, err := os.ReadFile(keyFile)
	if err != nil {
		return nil, err
	}
	key, err := bundle.ParsePrivateKey(text, passphrase)
	if err != nil {
		return nil, &remit.Error{Code: remit.CodeInvalid, Msg: fmt.Sprintf("%s: %v", keyFile, err), Hint: "remit policy key makes one; openssl genpkey and ssh-keygen do, too"}
	}
	if err := b.Sign(key); err != nil {
		return nil, err
	}
	return b, durable.Replace(filepath.Join(dir, bundle.File), b.Bytes(), 0o644)
}

// CreateAuthorKey makes a key pair: the private key in file, 0600, and the public one in file.pub.
func CreateAuthorKey(file string) (id string, err error) {
	key, err := bundle.NewPrivateKey()
	if err != nil {
		return "", err
	}
	private, public, err := key.PEM()
	if err != nil {
		return "", err
	}
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, os.ErrExist) {
		return "", &remit.Error{Code: remit.CodeConflict, Msg: file + " is there already", Hint: "choose another name"}
	}
	if err != nil {
		return "", err
	}
	_, err = f.Write(private)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return "", err
	}
	return key.ID(), os.WriteFile(file+".pub", public, 0o644)
}
