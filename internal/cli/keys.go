// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"remit"
	"remit/internal/config"
	"remit/internal/server"
)

// credentialPassphrase is the name of the systemd credential (LoadCredential=, LoadCredentialEncrypted=).
const credentialPassphrase = "remit-passphrase"

const (
	envPassphraseFile = "REMIT_PASSPHRASE_FILE"
	envPassphrase     = "REMIT_PASSPHRASE"
)

func unlockFlag(cmd *cobra.Command, file *string) {
	cmd.Flags().StringVar(file, "passphrase-file", "", "the passphrase of wrapped key files (default $"+envPassphraseFile+
		", the systemd credential "+credentialPassphrase+", $"+envPassphrase+")")
}

// unlock finds the passphrase of wrapped key files; none is the zero Secret.
func (a *app) unlock(file string) (remit.Secret, error) {
	if file == "" {
		file = os.Getenv(envPassphraseFile)
	}
	if dir := os.Getenv("CREDENTIALS_DIRECTORY"); file == "" && dir != "" {
		given := filepath.Join(dir, credentialPassphrase)
		if _, err := os.Stat(given); !errors.Is(err, fs.ErrNotExist) {
			file = given
		}
	}
	if file != "" {
		return readPassphrase(file)
	}
	s := remit.NewSecret(os.Getenv(envPassphrase))
	return s, os.Unsetenv(envPassphrase) // what this process starts has no need of it
}

func readPassphrase(file string) (remit.Secret, error) {
	s, err := config.SecretRef{File: file}.Resolve()
	if err != nil {
		return s, badUse("%v", err).hint("the file holds the passphrase alone, with mode 0600")
	}
	return s, nil
}

func (a *app) keysCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "keys", Short: "The key files of a stopped server"}
	var file string
	wrap := &cobra.Command{Use: "wrap --passphrase-file FILE", Short: "Wrap the key files by a passphrase, which serve needs from then on", Args: cobra.NoArgs,
		Long: "Wrap the key files by a passphrase (age, scrypt). The plaintext that stood in the files may still be on the disk and in\nbackups: where that matters, begin with remit init --passphrase-file.",
		RunE: func(c *cobra.Command, _ []string) error {
			passphrase, err := readPassphrase(file)
			if err != nil {
				return err
			}
			n, err := server.WrapKeys(c.Context(), a.dir, passphrase, 0)
			if err != nil {
				return err
			}
			a.note("wrapped %d files; the server starts with remit serve --passphrase-file, or the systemd credential %s", n, credentialPassphrase)
			return nil
		}}
	wrap.Flags().StringVar(&file, "passphrase-file", "", "the passphrase, alone in a file of mode 0600")
	_ = wrap.MarkFlagRequired("passphrase-file")
	cmd.AddCommand(wrap)
	return cmd
}
