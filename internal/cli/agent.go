// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"remit"
	"remit/internal/api"
)

func (a *app) agentCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "agent", Short: "Agents and tools: list, show, blast-radius, suspend, reinstate"}
	cmd.AddCommand(
		&cobra.Command{Use: "list", Short: "List agents and tools", Args: cobra.NoArgs, RunE: a.agentList},
		&cobra.Command{Use: "show NAME", Short: "Show one", Args: cobra.ExactArgs(1), RunE: a.agentShow},
		&cobra.Command{Use: "blast-radius NAME", Short: "Say what it could do, if somebody else had it now, and for how long", Args: cobra.ExactArgs(1), RunE: a.agentBlastRadius},
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
	switch {
	case g.Suspended:
		return "suspended"
	case g.StepUp != "":
		return "stepped up: " + g.StepUp + " approves"
	case g.Throttled:
		return "throttled"
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
		for _, step := range s.Steps {
			fmt.Fprintf(a.out, "  %s after %.1f ms\n", step.What, step.MS)
		}
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

func (a *app) agentBlastRadius(c *cobra.Command, args []string) error {
	var b api.BlastRadius
	if err := a.get(c.Context(), agentPath(args[0])+"/blast-radius", nil, &b); err != nil {
		return err
	}
	return a.show(b, func() {
		fmt.Fprintf(a.out, "%s is %s; at %s:\n", b.Agent.Name, agentState(b.Agent), stamp(b.At))
		fmt.Fprintf(a.out, "\n%d live grants\n", len(b.Grants))
		var rows [][]string
		for _, g := range b.Grants {
			rows = append(rows, []string{string(g.ID), string(g.Agent), g.Action, g.Target, scopeText(g.Scope), fmt.Sprintf("%.1f", g.Minutes)})
		}
		a.tableIfAny("GRANT HOLDER ACTION TARGET SCOPE MINUTES", rows)
		fmt.Fprintf(a.out, "\n%d things that it could obtain now\n", len(b.Now))
		a.powers(b.Now)
		fmt.Fprintf(a.out, "\n%d more that it could reach by itself\n", len(b.Later))
		a.powers(b.Later)
		rows = nil
		for _, r := range b.Remaining {
			rows = append(rows, []string{r.What, r.Where, stamp(r.Until), r.Why})
		}
		fmt.Fprintf(a.out, "\n%d things that a suspension would not end\n", len(rows))
		a.tableIfAny("WHAT WHERE UNTIL WHY", rows)
	})
}

func (a *app) tableIfAny(head string, rows [][]string) {
	if len(rows) > 0 {
		a.table(head, rows)
	}
}

func (a *app) powers(list []api.Power) {
	var rows [][]string
	for _, p := range list {
		var where []string
		for _, name := range slices.Sorted(maps.Keys(p.Where)) {
			where = append(where, name+" "+p.Where[name])
		}
		who := string(p.Who)
		if p.Through != "" {
			who += " in " + p.Through
		}
		rows = append(rows, []string{string(p.Run), p.Workflow + "/" + p.Stage + "/" + p.Permission, who, p.Action, p.Target, strings.Join(where, ", "), strings.Join(p.Needs, ", "), stamp(p.Until)})
	}
	a.tableIfAny("RUN PERMISSION WHO ACTION TARGET WHERE NEEDS UNTIL", rows)
}

// scopeText writes a scope in one line.
func scopeText(args remit.Args) string {
	var out []string
	for _, name := range slices.Sorted(maps.Keys(args)) {
		out = append(out, name+"="+args[name].String())
	}
	return strings.Join(out, " ")
}
