// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/mod/sumdb/note"

	"remit/internal/ledger"
	"remit/internal/ledger/witness"
	"remit/internal/server"
)

func (a *app) witnessCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "witness", Short: "Cosign the checkpoints of ledgers: init, serve"}
	cmd.AddCommand(a.witnessInitCommand(), a.witnessServeCommand())
	return cmd
}

func (a *app) witnessInitCommand() *cobra.Command {
	var name, key string
	cmd := &cobra.Command{Use: "init", Short: "Make a witness's key and print its public half", Args: cobra.NoArgs, RunE: func(*cobra.Command, []string) error {
		public, err := witness.CreateKey(key, name)
		if err != nil {
			return err
		}
		return a.show(map[string]string{"key": public}, func() { fmt.Fprintln(a.out, public) })
	}}
	cmd.Flags().StringVar(&name, "name", "", "the witness's name, such as witness.company.com")
	cmd.Flags().StringVar(&key, "key", "witness.key", "file to write")
	_ = cmd.MarkFlagRequired("name")
	return cmd
}

func (a *app) witnessServeCommand() *cobra.Command {
	var key, dir, listen, cert, certKey string
	var logs []string
	cmd := &cobra.Command{Use: "serve", Short: "Serve C2SP tlog-witness for the given logs", Args: cobra.NoArgs,
		Long: "Cosign a log's checkpoint only if it extends the last one that was cosigned. Run it on another machine and under other\npeople than the log's server: then neither can show two histories alone.",
		RunE: func(c *cobra.Command, _ []string) error {
			cfg := witness.Config{Dir: dir}
			var err error
			if cfg.Key, err = witness.LoadKey(key); err != nil {
				return err
			}
			for _, l := range logs {
				k, err := ledger.ParsePublicKey(textOrFile(l))
				if err != nil {
					return badUse("--log: %v", err).hint("give the file ledger.pub, or the key's text")
				}
				cfg.Logs = append(cfg.Logs, k.Verifier())
			}
			s, err := witness.NewServer(cfg)
			if err != nil {
				return err
			}
			return errors.Join(a.serveWitness(c.Context(), s, listen, cert, certKey), s.Close())
		}}
	f := cmd.Flags()
	f.StringVar(&key, "key", "witness.key", "the witness's key, from remit witness init")
	f.StringVar(&dir, "state", "witness", "folder for the last checkpoint of each log")
	f.StringArrayVar(&logs, "log", nil, "a log's public key, or a file with it; may be repeated, also with the keys of one log, in the order in\nwhich they replaced each other: once a later one signed, the earlier ones are over")
	f.StringVar(&listen, "listen", "127.0.0.1:8447", "HOST:PORT; beyond this host only with --tls-cert")
	f.StringVar(&cert, "tls-cert", "", "certificate file (PEM)")
	f.StringVar(&certKey, "tls-key", "", "its private key (PEM)")
	_ = cmd.MarkFlagRequired("log")
	return cmd
}

// serveWitness answers until ctx ends.
func (a *app) serveWitness(ctx context.Context, s *witness.Server, listen, cert, key string) error {
	host, _, err := net.SplitHostPort(listen)
	if err != nil {
		return badUse("--listen: %v", err)
	}
	if ip := net.ParseIP(host); cert == "" && host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return badUse("--listen %s is reached from other hosts", listen).hint("add --tls-cert and --tls-key, or listen on 127.0.0.1 behind a proxy")
	}
	srv := &http.Server{Handler: http.MaxBytesHandler(s, 128<<10), ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second,
		WriteTimeout: 10 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10}
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	if cert != "" {
		pair, err := tls.LoadX509KeyPair(cert, key)
		if err != nil {
			return errors.Join(badUse("--tls-cert: %v", err), l.Close())
		}
		l = tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS13})
	}
	fmt.Fprintln(a.out, "witness ready on", l.Addr())
	stop := context.AfterFunc(ctx, func() {
		sctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_ = srv.Shutdown(sctx)
	})
	defer stop()
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

func (a *app) rotateKeyCommand() *cobra.Command {
	var passphraseFile string
	cmd := &cobra.Command{Use: "rotate-key", Short: "Replace the ledger's key of a stopped server; the old key signs the new one", Args: cobra.NoArgs,
		Long: "Replace the ledger's key. Auditors keep the key that they pinned: verify follows the chain in the log's folder.\nGive witnesses the new key after the old one.",
		RunE: func(c *cobra.Command, _ []string) error {
			passphrase, err := a.unlock(passphraseFile)
			if err != nil {
				return err
			}
			key, err := server.RotateLedgerKey(c.Context(), a.dir, passphrase)
			if err != nil {
				return err
			}
			return a.show(map[string]string{"key": key}, func() { fmt.Fprintln(a.out, key) })
		}}
	unlockFlag(cmd, &passphraseFile)
	return cmd
}

// textOrFile returns what stands in a file, or the text itself.
func textOrFile(s string) string {
	if b, err := os.ReadFile(s); err == nil {
		return strings.TrimSpace(string(b))
	}
	return s
}

func witnessKeys(texts []string) ([]note.Verifier, error) {
	var out []note.Verifier
	for _, t := range texts {
		v, err := witness.ParseKey(textOrFile(t))
		if err != nil {
			return nil, badUse("--witness: %v", err).hint("remit witness init prints it")
		}
		out = append(out, v)
	}
	return out, nil
}

// memoryOf is the file that remembers the log's checkpoint: one for each log and first key, in the user's state directory.
func (a *app) memoryOf(log *ledger.Log, flag string) (string, error) {
	switch flag {
	case "off":
		return "", nil
	case "auto", "":
	default:
		return flag, nil
	}
	dir := os.Getenv("XDG_STATE_HOME")
	if dir == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return "", badUse("there is no place to remember the checkpoint: %v", err).hint("name one with --remember FILE, or --remember off")
		}
		dir = filepath.Join(home, ".local", "state")
	}
	dir = filepath.Join(dir, "remit", "checkpoints")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		a.note("the checkpoint is not remembered, so a log that is rolled back later goes unnoticed: %v; name a place with --remember FILE", err)
		return "", nil
	}
	sum := sha256.Sum256([]byte(log.FirstKey()))
	return filepath.Join(dir, hex.EncodeToString(sum[:16])), nil
}
