// SPDX-License-Identifier: Apache-2.0

// Package cli is the command line: one file per subcommand. Commands print what was asked for on standard output, tables by
// default and JSON with --output json, and what went wrong on standard error with the next step. Exit codes: 0 allowed or
// done, 1 fault, 2 bad use or file, 3 denied, 4 held, 5 unreachable; remit exec exits as its child does.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"remit"
	"remit/internal/api"
)

// Version is set by the linker for releases.
var Version = "dev"

// app is what commands share: the streams and the flags that all of them have.
type app struct {
	in       io.Reader
	out, err io.Writer

	output string
	server string
	dir    string
	limit  int
	after  string
	quiet  bool
}

// Main runs the command that args name and returns the exit code.
func Main(args []string, in io.Reader, out, errw io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	a := &app{in: in, out: out, err: errw}
	root := a.root()
	root.SetArgs(args)
	return a.exit(root.ExecuteContext(ctx))
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:           "remit",
		Short:         "Zero-trust access for autonomous agents",
		Long:          "Remit gives an autonomous agent its remit: who it is, what it may do in this run, at this stage, right now,\nfor how many minutes, and afterwards the proof of what it did.",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.SetIn(a.in)
	root.SetOut(a.out)
	root.SetErr(a.err)
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return badUse("%v", err).hint("%s --help shows the flags", c.CommandPath())
	})
	f := root.PersistentFlags()
	f.StringVarP(&a.output, "output", "o", "table", "table or json")
	f.StringVar(&a.server, "server", "", "admin socket, or https://HOST:PORT after remit login (default $REMIT_SERVER, else DIR/run/admin.sock)")
	f.StringVar(&a.dir, "dir", defaultDir(), "the server's directory, where remit.yaml is")
	f.IntVar(&a.limit, "limit", 100, "at most so many items")
	f.StringVar(&a.after, "after", "", "items after this one, as the last answer's next says")
	f.BoolVarP(&a.quiet, "quiet", "q", false, "print only what was asked for")
	root.PersistentPreRunE = func(c *cobra.Command, _ []string) error {
		if err := c.ValidateRequiredFlags(); err != nil {
			return badUse("%v", err).hint("%s --help shows the flags", c.CommandPath())
		}
		if a.output != "table" && a.output != "json" {
			return badUse("--output is table or json, not %q", a.output)
		}
		return nil
	}
	root.AddCommand(a.serveCommands()...)
	root.AddCommand(a.agentCommand(), a.clockCommand(), a.workflowCommand(), a.runCommand(), a.grantCommand(), a.evidenceCommand(), a.ledgerCommand(),
		a.policyCommand(), a.whyCommand(), a.execCommand(), a.credentialCommand(), a.doctorCommand(), a.sandboxCommand(), a.quickstartCommand(),
		a.sweepCommand(), a.witnessCommand(), a.loginCommand(), a.logoutCommand(), a.mcpCommand(), a.clientCommand(), a.toolCommand(), a.approvalCommand(), a.findingCommand())
	strict(root)
	return root
}

// strict makes every command below c refuse arguments that it does not know as bad use, with the next step.
func strict(c *cobra.Command) {
	for _, sub := range c.Commands() {
		strict(sub)
	}
	if known := c.Args; known != nil {
		c.Args = func(c *cobra.Command, args []string) error {
			if err := known(c, args); err != nil {
				return badUse("%v", err).hint("%s --help shows how it is used", c.CommandPath())
			}
			return nil
		}
	}
	if c.Runnable() {
		return
	}
	c.Args, c.RunE = cobra.ArbitraryArgs, func(c *cobra.Command, args []string) error {
		if len(args) == 0 {
			return c.Help()
		}
		next := c.CommandPath() + " --help lists the commands"
		if like := c.SuggestionsFor(args[0]); len(like) > 0 {
			next = fmt.Sprintf("did you mean %s %s?", c.CommandPath(), like[0])
		}
		return badUse("unknown command %q for %q", args[0], c.CommandPath()).hint("%s", next)
	}
}

func defaultDir() string {
	if d := os.Getenv("REMIT_DIR"); d != "" {
		return d
	}
	return "remit"
}

// address is where the flags and the environment say that the server is; "" for nothing.
func (a *app) address() string {
	if a.server != "" {
		return a.server
	}
	return os.Getenv("REMIT_SERVER")
}

// client returns the client of the admin socket that the flags name, or of the server where the person is logged in: when that
// is what the flags name, or when they name nothing and no server has its socket here.
func (a *app) client() (*api.Client, error) {
	address := a.address()
	local := filepath.Join(a.dir, "run", "admin.sock")
	if address == "" {
		if _, err := os.Lstat(local); err == nil {
			return api.NewClient(local)
		}
	}
	if address != "" && !strings.HasPrefix(address, "https://") {
		return api.NewClient(address)
	}
	s, err := loadSession()
	if errors.Is(err, errNoSession) && address == "" {
		return api.NewClient(local)
	}
	if err != nil {
		return nil, err
	}
	if address != "" && strings.TrimSuffix(address, "/") != strings.TrimSuffix(s.Server, "/") {
		return nil, badUse("you are logged in at %s, not at %s", s.Server, address).hint("remit login --server %s --ca bundle.pem", address)
	}
	return s.client()
}

func (a *app) get(ctx context.Context, path string, query url.Values, out any) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	return c.Get(ctx, path, query, out)
}

func (a *app) post(ctx context.Context, path string, in, out any) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	return c.Post(ctx, path, in, out)
}

func (a *app) page() url.Values {
	q := url.Values{"limit": {strconv.Itoa(a.limit)}}
	if a.after != "" {
		q.Set("after", a.after)
	}
	return q
}

// noteNext says how to see the rest of a list.
func (a *app) noteNext(next string) {
	if next != "" && a.output == "table" {
		a.note("more: --after %s", next)
	}
}

// note writes a remark for people to standard error.
func (a *app) note(format string, args ...any) {
	if !a.quiet {
		fmt.Fprintf(a.err, format+"\n", args...)
	}
}

// useError is bad use or a bad file: exit code 2.
type useError struct{ msg, next string }

func badUse(format string, args ...any) *useError {
	return &useError{msg: fmt.Sprintf(format, args...)}
}

func (e *useError) hint(format string, args ...any) *useError {
	e.next = fmt.Sprintf(format, args...)
	return e
}

func (e *useError) Error() string { return e.msg }

// childError carries the exit code of a command that remit exec ran.
type childError struct{ code int }

func (e *childError) Error() string { return "exit " + strconv.Itoa(e.code) }

// exit prints err and returns its exit code.
func (a *app) exit(err error) int {
	if err == nil {
		return 0
	}
	if child, ok := errors.AsType[*childError](err); ok {
		return child.code
	}
	code, hint := 1, ""
	if use, ok := errors.AsType[*useError](err); ok {
		code, hint = 2, use.next
	} else if e, ok := errors.AsType[*remit.Error](err); ok {
		code, hint = exitOf(e.Code), e.Hint
	}
	fmt.Fprintln(a.err, "remit:", err)
	if hint != "" {
		fmt.Fprintln(a.err, "hint:", hint)
	}
	return code
}

func exitOf(c remit.Code) int {
	switch c {
	case remit.CodeInvalid, remit.CodeNotFound:
		return 2
	case remit.CodeDenied, remit.CodeForbidden, remit.CodeUnauthenticated:
		return 3
	case remit.CodeHeld:
		return 4
	case remit.CodeUnavailable:
		return 5
	}
	return 1
}
