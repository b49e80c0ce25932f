// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"remit/internal/api"
)

func (a *app) whyCommand() *cobra.Command {
	var input bool
	cmd := &cobra.Command{Use: "why DECISION|GRANT", Short: "Explain a decision: permission, rule, missing evidence, and what would have to be true",
		Args: cobra.ExactArgs(1), RunE: func(c *cobra.Command, args []string) error {
			var w api.Why
			if err := a.get(c.Context(), "/v1/why/"+args[0], nil, &w); err != nil {
				return err
			}
			if input {
				fmt.Fprintf(a.out, "%s\n", w.Input)
				return nil
			}
			return a.show(w, func() { a.showWhy(&w) })
		}}
	cmd.Flags().BoolVar(&input, "input", false, "print the input under which stock opa eval gives the same answer with remit policy export")
	return cmd
}

func (a *app) showWhy(w *api.Why) {
	fmt.Fprintln(a.out, w.Text)
	if w.Grant != nil {
		fmt.Fprintf(a.out, "grant %s: %s, until %s\n", w.Grant.ID, w.Grant.State, stamp(w.Grant.Expires))
		a.showBounds(w.Grant)
		a.printActs(w.Observation, w.Acts, w.Gaps)
	}
	for _, e := range w.Acts {
		fmt.Fprintf(a.out, "#%d %s\n", e.Seq, clean(string(e.Event)))
	}
}

func (a *app) doctorCommand() *cobra.Command {
	var setup bool
	cmd := &cobra.Command{Use: "doctor [sandbox|TARGET]", Short: "Check this installation, one target, or the sandboxes of this host, and say what to mend",
		Args: cobra.MaximumNArgs(1), RunE: func(c *cobra.Command, args []string) error {
			if setup {
				return a.setup(c, args)
			}
			if len(args) == 1 && args[0] == "sandbox" {
				return a.sandboxDoctor(c)
			}
			path := "/v1/doctor"
			if len(args) == 1 {
				path += "/" + args[0]
			}
			var checks []api.Check
			if err := a.get(c.Context(), path, nil, &checks); err != nil {
				return err
			}
			bad := 0
			for _, k := range checks {
				if !k.OK {
					bad++
				}
			}
			if err := a.show(checks, func() { a.showChecks(checks) }); err != nil {
				return err
			}
			if bad > 0 {
				return fmt.Errorf("%d of %d checks failed", bad, len(checks))
			}
			return nil
		}}
	cmd.Flags().BoolVar(&setup, "setup", false, "print what an administrator runs at the target: for a database, SQL for psql")
	return cmd
}

func (a *app) setup(c *cobra.Command, args []string) error {
	if len(args) != 1 {
		return badUse("--setup needs the name of a target")
	}
	var s api.Setup
	if err := a.get(c.Context(), "/v1/doctor/"+args[0]+"/setup", nil, &s); err != nil {
		return err
	}
	return a.show(s, func() { fmt.Fprint(a.out, s.Text) })
}

func (a *app) showChecks(checks []api.Check) {
	for _, k := range checks {
		mark := "ok  "
		switch {
		case !k.OK:
			mark = "FAIL"
		case k.Warn:
			mark = "warn"
		}
		fmt.Fprintf(a.out, "%s  %s: %s\n", mark, clean(k.Name), clean(k.Text))
		if k.Fix != "" {
			fmt.Fprintf(a.out, "      %s\n", clean(k.Fix))
		}
	}
}
