// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"log/slog"

	"github.com/spf13/cobra"

	"remit/internal/quickstart"
	"remit/internal/server"
)

func (a *app) quickstartCommand() *cobra.Command {
	return &cobra.Command{Use: "quickstart", Short: "Play the story on this machine, decisions only, in a temporary folder", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			server.LibraryLogs(slog.New(slog.DiscardHandler))
			return quickstart.Run(c.Context(), a.out)
		}}
}
