// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"net/url"
	"strings"

	"github.com/spf13/cobra"

	"remit"
	"remit/internal/api"
)

func (a *app) findingCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "finding", Short: "What the ledger shows to be odd: list, show, close"}
	var state, agent, kind string
	list := &cobra.Command{Use: "list", Short: "List findings, newest first", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		q := a.page()
		for name, v := range map[string]string{"state": state, "agent": agent, "kind": kind} {
			if v != "" && v != "all" {
				q.Set(name, v)
			}
		}
		return a.findingList(c, q)
	}}
	list.Flags().StringVar(&state, "state", "open", "open, closed or all")
	list.Flags().StringVar(&agent, "agent", "", "only of this agent")
	list.Flags().StringVar(&kind, "kind", "", "only of this kind")
	cmd.AddCommand(list,
		&cobra.Command{Use: "show FINDING", Short: "Show one, with the entries of the ledger that it rests on", Args: cobra.ExactArgs(1), RunE: func(c *cobra.Command, args []string) error {
			var f remit.Finding
			if err := a.get(c.Context(), "/v1/findings/"+url.PathEscape(args[0]), nil, &f); err != nil {
				return err
			}
			return a.showFinding(&f)
		}},
		a.reasoned("close FINDING", "Note that somebody looked; a suspension stays until remit agent reinstate", func(c *cobra.Command, id string, r api.Reasoned) error {
			var f remit.Finding
			if err := a.post(c.Context(), "/v1/findings/"+url.PathEscape(id)+"/close", r, &f); err != nil {
				return err
			}
			return a.showFinding(&f)
		}))
	return cmd
}

func (a *app) findingList(c *cobra.Command, q url.Values) error {
	var list api.List[remit.Finding]
	if err := a.get(c.Context(), "/v1/findings", q, &list); err != nil {
		return err
	}
	return a.show(list, func() {
		var rows [][]string
		for _, f := range list.Items {
			rows = append(rows, []string{string(f.ID), stamp(f.At), f.Severity.String(), string(f.Kind), string(f.Agent), f.Response.String(), f.Text})
		}
		a.table("FINDING AT SEVERITY KIND AGENT DONE TEXT", rows)
		a.noteNext(list.Next)
	})
}

func (a *app) showFinding(f *remit.Finding) error {
	var events []string
	for _, seq := range f.Events {
		events = append(events, fmt.Sprint(seq))
	}
	return a.show(f, func() {
		a.fields("finding", string(f.ID), "state", string(f.State), "kind", string(f.Kind), "severity", f.Severity.String(), "agent", string(f.Agent),
			"run", string(f.Run), "target", f.Target, "at", stamp(f.At), "what", f.Text, "done", f.Response.String(), "held back", f.Held,
			"ledger entries", strings.Join(events, " "), "closed", stamp(f.Closed), "by", f.ClosedBy, "why", f.Why)
	})
}
