// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"

	"github.com/spf13/cobra"

	"remit/internal/api"
	"remit/internal/server"
)

func (a *app) serveCommands() []*cobra.Command {
	return []*cobra.Command{a.initCommand(), a.serveCommand(), a.keysCommand(), a.applyCommand(), a.schemaCommand(), a.backupCommand(), a.restoreCommand(),
		a.versionCommand()}
}

func (a *app) initCommand() *cobra.Command {
	var o server.InitOptions
	var passphraseFile string
	cmd := &cobra.Command{Use: "init", Short: "Make a server's directory: keys, remit.yaml, an empty configuration", Args: cobra.NoArgs,
		Long: "Make a server's directory. The trust domain is permanent: every identity carries it. Your user becomes the\nfirst operator, with the role admin.",
		RunE: func(c *cobra.Command, _ []string) error {
			o.Dir, o.UID = a.dir, uint32(os.Getuid())
			if passphraseFile != "" {
				var err error
				if o.Passphrase, err = readPassphrase(passphraseFile); err != nil {
					return err
				}
			}
			if err := server.Init(c.Context(), o); err != nil {
				return err
			}
			a.note("made %s for trust domain %s; the ledger's public key is %s: keep a copy elsewhere", a.dir, o.TrustDomain,
				filepath.Join(a.dir, "ledger.pub"))
			a.note("next: put workflows into %s, then remit --dir %s serve", filepath.Join(a.dir, "config"), a.dir)
			return nil
		}}
	f := cmd.Flags()
	f.StringVar(&o.TrustDomain, "trust-domain", "", "the SPIFFE trust domain, such as company.com; permanent")
	f.StringVar(&o.Operator, "operator", "admin", "your name as operator")
	f.StringVar(&o.HTTPS, "https", "127.0.0.1:8443", "where agents and enforcement points connect")
	f.StringVar(&passphraseFile, "passphrase-file", "", "wrap the key files by the passphrase in this file, which serve needs then")
	_ = cmd.MarkFlagRequired("trust-domain")
	return cmd
}

func (a *app) serveCommand() *cobra.Command {
	var level, format, passphraseFile string
	cmd := &cobra.Command{Use: "serve", Short: "Run the server", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		log, err := a.logger(level, format)
		if err != nil {
			return err
		}
		server.LibraryLogs(log)
		collectLess()
		passphrase, err := a.unlock(passphraseFile)
		if err != nil {
			return err
		}
		s, err := server.New(c.Context(), server.Options{Dir: a.dir, Log: log, Version: Version, Passphrase: passphrase})
		if err != nil {
			return err
		}
		return s.Run(c.Context(), func(st api.Status) {
			fmt.Fprintf(a.out, "ready %s, trust domain %s, revision %.19s…\n", st.HTTPS, st.TrustDomain, st.Revision)
		})
	}}
	unlockFlag(cmd, &passphraseFile)
	cmd.Flags().StringVar(&level, "log-level", "info", "debug, info, warn or error")
	cmd.Flags().StringVar(&format, "log-format", "text", "text or json")
	return cmd
}

// mostHeap is where collecting begins to be worth more than what it costs: baselines of a hundred thousand agents stay below 2 GB with it.
const mostHeap = 1_900_000_000

// collectLess lets the heap of a server grow to four times of what lives before it is collected, where Go's default is twice:
// collecting was a tenth of what a decision costs, and little lives. Where much lives, it is collected as often as keeps it below mostHeap, if
// that is possible. GOGC and GOMEMLIMIT say otherwise.
func collectLess() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(300)
	}
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(mostHeap)
	}
}

func (a *app) logger(level, format string) (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, badUse("--log-level is debug, info, warn or error, not %q", level)
	}
	opts := &slog.HandlerOptions{Level: l}
	switch format {
	case "text":
		return slog.New(slog.NewTextHandler(a.err, opts)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(a.err, opts)), nil
	}
	return nil, badUse("--log-format is text or json, not %q", format)
}

func (a *app) schemaCommand() *cobra.Command {
	return &cobra.Command{Use: "schema", Short: "Print the JSON Schema of the configuration files", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			_, err := a.out.Write(server.Schema())
			return err
		}}
}

func (a *app) workflowCheckCommand() *cobra.Command {
	var ceiling string
	cmd := &cobra.Command{Use: "check DIR", Short: "Check configuration files, or a ceiling, without a server", Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			n, err := server.Check(args[0], ceiling)
			if err != nil {
				return badUse("%v", err).hint("remit schema prints what may stand in a file")
			}
			a.note("%d workflows are well", n)
			return nil
		}}
	cmd.Flags().StringVar(&ceiling, "ceiling", "", "the directory of the ceiling that they must stay within")
	return cmd
}

func (a *app) backupCommand() *cobra.Command {
	return &cobra.Command{Use: "backup FILE", Short: "Write a consistent copy of the state while the server runs; keys are not in it", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			path, err := filepath.Abs(args[0])
			if err != nil {
				return badUse("%v", err)
			}
			if err := a.post(c.Context(), "/v1/backup", map[string]string{"path": path}, nil); err != nil {
				return err
			}
			a.note("wrote %s; keep it with the keys of %s and with a copy of the ledger's folder", path, filepath.Join(a.dir, "keys"))
			return nil
		}}
}

func (a *app) restoreCommand() *cobra.Command {
	var beside bool
	var passphraseFile string
	cmd := &cobra.Command{Use: "restore FILE", Short: "Put a backup in the place of the state of a stopped server", Args: cobra.ExactArgs(1),
		Long: "Restore a backup: the log is verified, and the backup must be of this log. Where the log went on after the backup,\n--beside-newer-log starts the state at the log's head: all runs and leases end, suspensions of the time between hold,\nand an entry says what the state does not know.",
		RunE: func(c *cobra.Command, args []string) error {
			passphrase, err := a.unlock(passphraseFile)
			if err != nil {
				return err
			}
			r, err := server.Restore(c.Context(), a.dir, args[0], passphrase, beside)
			if err != nil {
				return err
			}
			return a.show(r, func() { a.showRestored(&r) })
		}}
	cmd.Flags().BoolVar(&beside, "beside-newer-log", false, "the log went on after the backup: end everything, and record what is lost")
	unlockFlag(cmd, &passphraseFile)
	return cmd
}

func (a *app) showRestored(r *server.Restored) {
	a.note("restored; the old state was kept beside it. Start the server with remit serve")
	g := r.Gap
	if g == nil {
		return
	}
	fmt.Fprintf(a.out, "entries %d to %d are known from the log only; %d runs and %d leases are ended, %d agents stay suspended\n",
		g.First, g.Last, len(g.EndedRuns), g.EndedLeases, len(g.Suspended))
	fmt.Fprintln(a.out, "not known:", g.Lost)
	for _, e := range g.Evidence {
		fmt.Fprintln(a.out, "add again:", clean(e))
	}
}

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{Use: "version", Short: "Print the version", Args: cobra.NoArgs, RunE: func(*cobra.Command, []string) error {
		return a.show(map[string]string{"version": Version}, func() { fmt.Fprintln(a.out, "remit", Version) })
	}}
}
