// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"remit"
	"remit/internal/api"
)

func (a *app) grantCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "grant", Short: "Grants: request, list, show, verify, revoke"}
	cmd.AddCommand(
		a.grantRequestCommand(),
		&cobra.Command{Use: "list", Short: "List grants, live ones first", Args: cobra.NoArgs, RunE: a.grantList},
		&cobra.Command{Use: "show GRANT", Short: "Show one", Args: cobra.ExactArgs(1), RunE: a.grantShow},
		&cobra.Command{Use: "verify GRANT", Short: "Try what a live grant may not do, without effect, with a twin of it", Args: cobra.ExactArgs(1),
			Long: `Mints a twin of a live grant, of equal scope and for nobody else, and tries with it what the grant allows and what it does
not: at Kubernetes other images, names, namespaces and kinds, secrets, exec, deletion; at PostgreSQL other rows, columns and
tables, other roles, functions, COPY, large objects; at both, more authority. Nothing that is tried has an effect: dry runs, access
reviews, objects that do not exist, transactions that are rolled back. The twin is ended, and the result is recorded in the ledger.
What cannot be tried without effect is listed as not tried.

Exits with 1 if a forbidden act passed, or if nothing granted did.`, RunE: a.grantVerify},
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
	var g api.Grant
	if err := a.get(c.Context(), "/v1/grants/"+args[0], nil, &g); err != nil {
		return err
	}
	return a.show(g, func() {
		a.printGrant(&g.Grant)
		a.printActs(g.Observation, g.Acts, g.Gaps)
	})
}

// printActs says what is known of the acts under a grant, and how.
func (a *app) printActs(how string, acts, gaps []api.Entry) {
	switch how {
	case "observed":
		fmt.Fprintf(a.out, "acts: observed by the target's audit log, %d so far\n", len(acts))
	case "reported":
		fmt.Fprintf(a.out, "acts: %d reported by an enforcement point; nobody else saw them\n", len(acts))
	case "unobservable":
		fmt.Fprintln(a.out, "acts: UNOBSERVABLE: nothing at the target tells them")
	}
	for _, e := range gaps {
		fmt.Fprintf(a.out, "audit gap #%d: %s\n", e.Seq, clean(string(e.Event)))
	}
}

func (a *app) showGrant(g *remit.Grant) error {
	return a.show(g, func() { a.printGrant(g) })
}

func (a *app) printGrant(g *remit.Grant) {
	a.fields("grant", string(g.ID), "decision", string(g.Decision), "agent", string(g.Agent), "run", string(g.Run),
		"permission", g.Permission.Workflow+"/"+g.Permission.Stage+"/"+g.Permission.Name, "action", g.Action, "target", g.Target,
		"scope", remit.ObjectValue(g.Scope).String(), "state", string(g.State), "issued", stamp(g.Issued), "expires", stamp(g.Expires),
		"ended", stamp(g.Ended), "why", g.Why)
	a.showBounds(g)
}

func (a *app) showBounds(g *remit.Grant) {
	for _, b := range g.Bounds {
		fmt.Fprintln(a.out, "bounded:", clean(b))
	}
	for _, b := range g.NotBounded {
		fmt.Fprintln(a.out, "NOT bounded:", clean(b))
	}
	if g.WorstCase > 0 {
		fmt.Fprintf(a.out, "worst case: usable up to %s longer if Remit is dead\n", g.WorstCase)
	}
	if g.TwinOf != "" {
		fmt.Fprintf(a.out, "made only to verify %s\n", g.TwinOf)
	}
}

func (a *app) grantVerify(c *cobra.Command, args []string) error {
	var v remit.Verification
	if err := a.post(c.Context(), "/v1/grants/"+args[0]+"/verify", struct{}{}, &v); err != nil {
		return err
	}
	if err := a.show(v, func() { a.showVerification(&v) }); err != nil {
		return err
	}
	if !v.Holds {
		return fmt.Errorf("grant %s does not hold to its bounds, or nothing could be shown", v.Grant)
	}
	return nil
}

func (a *app) showVerification(v *remit.Verification) {
	var rows [][]string
	count := map[remit.TrialOutcome]int{}
	for i := range v.Trials {
		t := &v.Trials[i]
		mark, may := "ok", "forbidden"
		if t.Granted {
			may = "granted"
		}
		switch {
		case t.Wrong():
			mark = "WRONG"
		case t.Outcome == remit.TrialNotTried:
			mark = "-"
		}
		count[t.Outcome]++
		rows = append(rows, []string{mark, may, string(t.Outcome), t.Act, t.How, t.Detail})
	}
	a.table(". ACT-IS OUTCOME ACT HOW DETAIL", rows)
	fmt.Fprintf(a.out, "grant %s, tried with its twin %s: %d refused, %d passed, %d not tried; the bounds hold: %t\n", v.Grant, v.Twin,
		count[remit.TrialRefused], count[remit.TrialPassed], count[remit.TrialNotTried], v.Holds)
}
