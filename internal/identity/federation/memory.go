// SPDX-License-Identifier: Apache-2.0

package federation

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"

	"remit/internal/durable"
)

// file is where a domain's last bundle is remembered. Another first bundle, or another endpoint, is another beginning: who replaces it in the
// server's file starts anew, on purpose.
func (b *Bundles) file(d *Domain) (string, error) {
	sum := sha256.New()
	fmt.Fprintf(sum, "%s\n%s\n", d.URL, d.EndpointID)
	if d.Bootstrap != nil {
		first, err := d.Bootstrap.Marshal()
		if err != nil {
			return "", fmt.Errorf("federation: %s: %w", d.TrustDomain, err)
		}
		sum.Write(first)
	}
	return filepath.Join(b.cfg.Dir, d.TrustDomain.Name()+"-"+hex.EncodeToString(sum.Sum(nil)[:8])+".json"), nil
}

// recall reads what is remembered. Workloads are not verified by it: it is of another time.
func (b *Bundles) recall() error {
	if b.cfg.Dir == "" {
		return nil
	}
	for i := range b.cfg.Domains {
		d := &b.cfg.Domains[i]
		name, err := b.file(d)
		if err != nil {
			return err
		}
		last, err := spiffebundle.Load(d.TrustDomain, name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("federation: the bundle of %s that is remembered cannot be read; take %s away to begin anew: %w", d.TrustDomain, name, err)
		}
		//remit:guard S8 TestRestartRemembersBundles
		b.held[d.TrustDomain] = held{bundle: last}
	}
	return nil
}

func (b *Bundles) remember(d *Domain, got *spiffebundle.Bundle) error {
	if b.cfg.Dir == "" {
		return nil
	}
	name, err := b.file(d)
	if err != nil {
		return err
	}
	text, err := got.Marshal()
	if err != nil {
		return fmt.Errorf("remember the bundle of %s: %w", d.TrustDomain, err)
	}
	if err := os.MkdirAll(b.cfg.Dir, 0o700); err != nil {
		return fmt.Errorf("remember the bundle of %s: %w", d.TrustDomain, err)
	}
	return durable.Replace(name, text, 0o600)
}
