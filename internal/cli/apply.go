// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"remit"
	"remit/internal/api"
	"remit/internal/server"
)

func (a *app) applyCommand() *cobra.Command {
	var dry bool
	cmd := &cobra.Command{Use: "apply [DIR]", Short: "Check the configuration directory and make it the active revision (as SIGHUP does)", Args: cobra.MaximumNArgs(1),
		Long: "Check the server's configuration directory and make it the active revision, as SIGHUP does. With --dry-run, say what would\nchange and apply nothing; then DIR may be a directory elsewhere, such as a checkout.",
		RunE: func(c *cobra.Command, args []string) error {
			r, err := a.apply(c, args, dry)
			if err != nil {
				return err
			}
			return a.show(r, func() { a.printApplied(r) })
		}}
	cmd.Flags().BoolVar(&dry, "dry-run", false, "check and compare only")
	return cmd
}

func (a *app) apply(c *cobra.Command, args []string, dry bool) (r api.Applied, err error) {
	switch {
	case len(args) == 0 && dry:
		return r, a.post(c.Context(), "/v1/apply?dry_run=true", nil, &r)
	case len(args) == 0:
		return r, a.post(c.Context(), "/v1/apply", nil, &r)
	case !dry:
		return r, badUse("the server applies its own directory only").hint("put the files there, or add --dry-run to compare")
	}
	files, envelope, err := server.ReadBundle(args[0])
	if err != nil {
		return r, badUse("%v", err)
	}
	return r, a.post(c.Context(), "/v1/apply/compare", api.Compare{Files: files, Bundle: envelope}, &r)
}

func (a *app) printApplied(r api.Applied) {
	verb := "active"
	if r.DryRun {
		verb = "would become active"
	}
	by := "unsigned"
	if r.Version > 0 {
		by = fmt.Sprintf("version %d, signed by %s", r.Version, strings.Join(r.Signers, ", "))
	}
	fmt.Fprintf(a.out, "revision %s %s (%s); changed: %s\n", r.Revision, verb, clean(by), clean(strings.Join(r.Changed, ", ")))
	a.printChanges(r.Changes)
	if r.Ended > 0 {
		fmt.Fprintf(a.out, "%d grants of removed agents or targets ended\n", r.Ended)
	}
	for _, name := range r.Unpinned {
		fmt.Fprintf(a.out, "%s is not pinned yet: what its server says first will be trusted (remit tool pin %s)\n", name, strings.TrimPrefix(string(name), "tool/"))
	}
	for _, w := range r.Warnings {
		fmt.Fprintf(a.out, "warning: %s\n", clean(w))
	}
	if r.Refused != "" {
		fmt.Fprintf(a.out, "it would be refused as it is: %s\n", clean(r.Refused))
	}
}

func (a *app) printChanges(all []remit.PolicyChange) {
	if len(all) == 0 {
		return
	}
	var rows [][]string
	for _, c := range all {
		rows = append(rows, []string{c.What, c.Of, c.Line, c.Text})
	}
	a.table("CHANGE OF LINE WHAT", rows)
}
