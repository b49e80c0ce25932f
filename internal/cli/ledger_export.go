// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bufio"
	"context"
	"encoding/json"

	"github.com/spf13/cobra"

	"remit"
	"remit/internal/api"
	"remit/internal/signal"
)

// exportPage is how many entries are asked for at a time.
const exportPage = "500"

func (a *app) ledgerExportCommand() *cobra.Command {
	var form string
	cmd := &cobra.Command{Use: "export", Short: "Write findings, decisions and credentials as events of OCSF 1.9, one a line", Args: cobra.NoArgs,
		Long: `Write what receivers of signals can be told, findings, suspensions, decisions, grants and credentials, as events of OCSF 1.9, one a
line, oldest first, from after entry --after to the present end. It holds no values of arguments. Its events are those that a receiver
of form ocsf gets, with the same metadata.uid.`,
		Example: "  remit ledger export --form ocsf > events.jsonl",
		RunE: func(c *cobra.Command, _ []string) error {
			if form != "ocsf" {
				return badUse("--form %q is not known", form).hint("ocsf")
			}
			return a.ledgerExport(c.Context())
		}}
	cmd.Flags().StringVar(&form, "form", "ocsf", "ocsf")
	return cmd
}

func (a *app) ledgerExport(ctx context.Context) error {
	var st api.Status
	if err := a.get(ctx, "/v1/status", nil, &st); err != nil {
		return err
	}
	out := bufio.NewWriter(a.out)
	src, q := signal.Source{Version: st.Version, TrustDomain: st.TrustDomain}, a.page()
	q.Set("limit", exportPage)
	for more := true; more; {
		var list api.List[api.Entry]
		if err := a.get(ctx, "/v1/ledger", q, &list); err != nil {
			return err
		}
		for _, e := range list.Items {
			var h head
			_ = json.Unmarshal(e.Event, &h)
			if s, ok := signal.Of(remit.EventKind(h.Kind), remit.Entry{Seq: e.Seq, Body: e.Event}); ok {
				_, _ = out.Write(append(s.OCSF(src), '\n')) // Flush says what went wrong
			}
		}
		if more = list.Next != ""; more {
			q.Set("after", list.Next)
		}
		if err := out.Flush(); err != nil {
			return err
		}
	}
	return nil
}
