// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"remit/internal/server"
)

func (a *app) sandboxCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "sandbox", Short: "What tools run in: list, show, doctor"}
	cmd.AddCommand(&cobra.Command{Use: "list", Short: "List the sandboxes that tools have now", Args: cobra.NoArgs, RunE: a.sandboxList},
		&cobra.Command{Use: "show SANDBOX", Short: "Show one: what it is and did, also after its end", Args: cobra.ExactArgs(1), RunE: a.sandboxShow})
	cmd.AddCommand(&cobra.Command{Use: "doctor", Short: "Run a sandbox of every kind on this host, and say what it can do and what it lacks",
		Long: "Runs one sandbox of every kind on this host, without a server, and compares what it says. For each kind: whether it\nworks, its tier, which limits the host enforces, and for everything that is missing the fix. Run it as the user that\nremit serve runs as. Fails if no kind of tier kernel or better works.",
		Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error { return a.sandboxDoctor(c) }})
	return cmd
}

func (a *app) sandboxDoctor(c *cobra.Command) error {
	reports, err := server.ProbeSandboxes(c.Context())
	if err != nil {
		return err
	}
	good := false
	for _, r := range reports {
		good = good || r.Works && (r.Tier == "kernel" || r.Tier == "vm")
	}
	err = a.show(reports, func() {
		for _, r := range reports {
			if r.Works {
				fmt.Fprintf(a.out, "ok    %s: tier %s, %s; limits: %s\n", r.Driver, r.Tier, clean(r.Evidence), strings.Join(r.Limits, ", "))
				fmt.Fprintf(a.out, "      from nothing to its answer in %s\n", r.Took.Round(time.Millisecond))
			} else {
				fmt.Fprintf(a.out, "FAIL  %s: no sandbox of tier %s on this host\n", r.Driver, r.Tier)
			}
			for _, p := range r.Problems {
				fmt.Fprintf(a.out, "      %s\n      fix: %s\n", clean(p.What), clean(p.Fix))
			}
		}
	})
	if err == nil && !good {
		return fmt.Errorf("no sandbox of tier kernel or better works on this host: tools that ask for one are denied")
	}
	return err
}
