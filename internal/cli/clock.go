// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"strings"

	"github.com/spf13/cobra"

	"remit/internal/api"
)

func (a *app) clockCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "clock", Short: "The server's time of day: confirm it after a jump"}
	var r api.Reasoned
	confirm := &cobra.Command{Use: "confirm", Short: "Say that the server's time of day is right, so that grants are given again", Args: cobra.NoArgs,
		Long: "After a jump of the clock by more than 5 seconds nothing is granted: windows, ages of evidence and ends of runs are all\nread off it. Look at the time of the host first; remit doctor shows it.",
		RunE: func(c *cobra.Command, _ []string) error {
			if strings.TrimSpace(r.Reason) == "" {
				return badUse("a reason is needed").hint("add --reason TEXT; it stands in the ledger")
			}
			var k api.Check
			if err := a.post(c.Context(), "/v1/clock/confirm", r, &k); err != nil {
				return err
			}
			return a.show(k, func() { a.showChecks([]api.Check{k}) })
		}}
	confirm.Flags().StringVar(&r.Reason, "reason", "", "why; it stands in the ledger")
	cmd.AddCommand(confirm)
	return cmd
}
