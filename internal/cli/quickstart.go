// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"github.com/spf13/cobra"

	"remit/internal/quickstart"
)

func (a *app) quickstartCommand() *cobra.Command {
	return &cobra.Command{Use: "quickstart", Short: "Play the story on this machine, decisions only, in a temporary folder", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return quickstart.Run(c.Context(), a.out) }}
}
