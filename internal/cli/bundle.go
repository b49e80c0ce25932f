// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"remit"
	"remit/internal/server"
)

// bundleView is a bundle as JSON.
type bundleView struct {
	Of       string       `json:"of"`
	For      string       `json:"for"`
	Version  uint64       `json:"version"`
	Manifest remit.Digest `json:"manifest"`
	Previous remit.Digest `json:"previous"`
	Files    int          `json:"files"`
	Signers  []string     `json:"key_ids"`
}

func (a *app) showBundle(v bundleView) error {
	return a.show(v, func() {
		a.fields("of", v.Of, "for", v.For, "version", strconv.FormatUint(v.Version, 10), "manifest", string(v.Manifest),
			"previous", string(v.Previous), "files", strconv.Itoa(v.Files), "signed by", strings.Join(v.Signers, ", "))
	})
}

func (a *app) policyBundleCommand() *cobra.Command {
	var o server.BundleOptions
	cmd := &cobra.Command{Use: "bundle DIR", Short: "Make the next version of a directory's bundle.json, to be signed", Args: cobra.ExactArgs(1),
		Long: "Check the files of DIR and make DIR/bundle.json: the next version after the one that lies there, with the digest of every\nfile, not yet signed. A bundle that nobody has signed is made anew; when no file changed, the bundle stays as it is.",
		RunE: func(_ *cobra.Command, args []string) error {
			o.Dir = args[0]
			if _, err := server.Check(o.Dir, ""); err != nil {
				return badUse("%v", err).hint("only what is well is bundled; remit schema prints what may stand in a file")
			}
			b, err := server.MakeBundle(o)
			if err != nil {
				return err
			}
			if n := len(b.Signers()); n > 0 {
				a.note("no file changed since version %d, which has %d signatures; --again makes a new version", b.Version, n)
			} else {
				a.note("next: remit policy sign %s --key FILE", args[0])
			}
			return a.showBundle(bundleView{b.Of, b.For, b.Version, b.Digest(), b.Previous, len(b.Files), b.Signers()})
		}}
	f := cmd.Flags()
	f.StringVar(&o.TrustDomain, "for", "", "the trust domain of the installation that it is for; left out: as before")
	f.BoolVar(&o.Again, "again", false, "make a new version though no file changed, as after a change of keys")
	f.BoolVar(&o.Replace, "replace", false, "the bundle that lies there was never applied: make its version anew, without its signatures")
	return cmd
}

func (a *app) policySignCommand() *cobra.Command {
	var key string
	cmd := &cobra.Command{Use: "sign DIR --key FILE", Short: "Sign a directory's bundle.json with an author's private key", Args: cobra.ExactArgs(1),
		Long: "Check that the files of DIR are as DIR/bundle.json has them, and add a signature. FILE is a private key in PEM or of OpenSSH:\nEd25519, or ECDSA on P-256 or P-384. A passphrase is taken from REMIT_PASSPHRASE.",
		RunE: func(_ *cobra.Command, args []string) error {
			b, err := server.SignBundle(args[0], key, []byte(os.Getenv("REMIT_PASSPHRASE")))
			if err != nil {
				return err
			}
			return a.showBundle(bundleView{b.Of, b.For, b.Version, b.Digest(), b.Previous, len(b.Files), b.Signers()})
		}}
	cmd.Flags().StringVar(&key, "key", "", "file of the private key")
	_ = cmd.MarkFlagRequired("key")
	return cmd
}

func (a *app) policyKeyCommand() *cobra.Command {
	return &cobra.Command{Use: "key FILE", Short: "Make an author's key pair: FILE and FILE.pub", Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			id, err := server.CreateAuthorKey(args[0])
			if err != nil {
				return err
			}
			a.note("keep %s where only its author can read it; %s.pub goes into remit.yaml, under authors or ceiling", args[0], args[0])
			return a.show(map[string]string{"key_id": id}, func() { fmt.Fprintln(a.out, id) })
		}}
}
