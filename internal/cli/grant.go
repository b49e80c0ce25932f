// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"remit"
	"remit/internal/api"
)

func (a *app) grantCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "grant", Short: "Grants: request, list, show, revoke"}
	cmd.AddCommand(
		a.grantRequestCommand(),
		&cobra.Command{Use: "list", Short: "List grants, live ones first", Args: cobra.NoArgs, RunE: a.grantList},
		&cobra.Command{Use: "show GRANT", Short: "Show one", Args: cobra.ExactArgs(1), RunE: a.grantShow},
		a.reasoned("revoke GRANT", "End a grant at its target now", func(c *cobra.Command, id string, r api.Reasoned) error {
			var g remit.Grant
			if err := a.post(c.Context(), "/v1/grants/"+id+"/revoke", r, &g); err != nil {
				return err
			}
			return a.showGrant(&g)
		}),
	)
	return cmd
}

func (a *app) grantList(c *cobra.Command, _ []string) error {
	var list api.List[remit.Grant]
	if err := a.get(c.Context(), "/v1/grants", a.page(), &list); err != nil {
		return err
	}
	return a.show(list, func() {
		var rows [][]string
		for _, g := range list.Items {
			rows = append(rows, []string{string(g.ID), string(g.Agent), g.Action, g.Target, string(g.State), stamp(g.Expires), g.Why})
		}
		a.table("GRANT AGENT ACTION TARGET STATE EXPIRES WHY", rows)
		a.noteNext(list.Next)
	})
}

func (a *app) grantShow(c *cobra.Command, args []string) error {
	var g remit.Grant
	if err := a.get(c.Context(), "/v1/grants/"+args[0], nil, &g); err != nil {
		return err
	}
	return a.showGrant(&g)
}

func (a *app) showGrant(g *remit.Grant) error {
	return a.show(g, func() {
		a.fields("grant", string(g.ID), "decision", string(g.Decision), "agent", string(g.Agent), "run", string(g.Run),
			"permission", g.Permission.Workflow+"/"+g.Permission.Stage+"/"+g.Permission.Name, "action", g.Action, "target", g.Target,
			"scope", remit.ObjectValue(g.Scope).String(), "state", string(g.State), "issued", stamp(g.Issued), "expires", stamp(g.Expires),
			"ended", stamp(g.Ended), "why", g.Why)
		for _, b := range g.Bounds {
			fmt.Fprintln(a.out, "bounded:", clean(b))
		}
		for _, b := range g.NotBounded {
			fmt.Fprintln(a.out, "NOT bounded:", clean(b))
		}
		if g.WorstCase > 0 {
			fmt.Fprintf(a.out, "worst case: usable up to %s longer if Remit is dead\n", g.WorstCase)
		}
	})
}
