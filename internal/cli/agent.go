// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"remit/internal/api"
)

func (a *app) agentCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "agent", Short: "Agents and tools: list, show, suspend, reinstate"}
	cmd.AddCommand(
		&cobra.Command{Use: "list", Short: "List agents and tools", Args: cobra.NoArgs, RunE: a.agentList},
		&cobra.Command{Use: "show NAME", Short: "Show one", Args: cobra.ExactArgs(1), RunE: a.agentShow},
		a.reasoned("suspend NAME", "End all powers of an agent now, and deny it until it is reinstated", a.agentSuspend),
		a.reasoned("reinstate NAME", "Let a suspended agent ask again; ended grants and frozen runs stay ended", a.agentReinstate),
	)
	return cmd
}

// reasoned is a command with one argument and a reason.
func (a *app) reasoned(use, short string, do func(*cobra.Command, string, api.Reasoned) error) *cobra.Command {
	var r api.Reasoned
	cmd := &cobra.Command{Use: use, Short: short, Args: cobra.ExactArgs(1), RunE: func(c *cobra.Command, args []string) error {
		if strings.TrimSpace(r.Reason) == "" {
			return badUse("a reason is needed").hint("add --reason TEXT; it stands in the ledger")
		}
		return do(c, args[0], r)
	}}
	cmd.Flags().StringVar(&r.Reason, "reason", "", "why; it stands in the ledger")
	return cmd
}

// agentPath accepts deploy, agent/deploy and tool/kubectl.
func agentPath(name string) string {
	if !strings.Contains(name, "/") {
		name = "agent/" + name
	}
	return "/v1/agents/" + name
}

func (a *app) agentList(c *cobra.Command, _ []string) error {
	var list api.List[api.Agent]
	if err := a.get(c.Context(), "/v1/agents", a.page(), &list); err != nil {
		return err
	}
	return a.show(list, func() {
		var rows [][]string
		for _, g := range list.Items {
			rows = append(rows, []string{string(g.Name), g.ID, agentState(g), strconv.Itoa(g.Live), g.Owner})
		}
		a.table("NAME ID STATE LIVE OWNER", rows)
		a.noteNext(list.Next)
	})
}

func agentState(g api.Agent) string {
	if g.Suspended {
		return "suspended"
	}
	return "active"
}

func (a *app) agentShow(c *cobra.Command, args []string) error {
	var g api.Agent
	if err := a.get(c.Context(), agentPath(args[0]), nil, &g); err != nil {
		return err
	}
	return a.show(g, func() {
		a.fields("name", string(g.Name), "id", g.ID, "owner", g.Owner, "state", agentState(g), "reason", g.Reason,
			"live grants", strconv.Itoa(g.Live))
	})
}

func (a *app) agentSuspend(c *cobra.Command, name string, r api.Reasoned) error {
	var s api.Suspended
	if err := a.post(c.Context(), agentPath(name)+"/suspend", r, &s); err != nil {
		return err
	}
	return a.show(s, func() {
		fmt.Fprintf(a.out, "%s is suspended: %d grants ended and %d runs frozen in %.1f ms\n", s.Agent.Name, len(s.Ended), len(s.Runs), s.MS)
		for _, f := range s.Failed {
			fmt.Fprintln(a.out, "not ended yet, tried again every second:", clean(f))
		}
		if len(s.Remaining) == 0 {
			fmt.Fprintln(a.out, "nothing is left that it could do")
			return
		}
		fmt.Fprintln(a.out, "what is left, because no suspension ends it:")
		var rows [][]string
		for _, r := range s.Remaining {
			rows = append(rows, []string{clean(r.What), clean(r.Where), stamp(r.Until), clean(r.Why)})
		}
		a.table("WHAT WHERE UNTIL WHY", rows)
	})
}

func (a *app) agentReinstate(c *cobra.Command, name string, r api.Reasoned) error {
	var g api.Agent
	if err := a.post(c.Context(), agentPath(name)+"/reinstate", r, &g); err != nil {
		return err
	}
	return a.show(g, func() { fmt.Fprintf(a.out, "%s may ask again\n", g.Name) })
}
