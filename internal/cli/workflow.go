// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"remit/internal/api"
)

func (a *app) workflowCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "workflow", Short: "Workflows: list, show, check, learn"}
	cmd.AddCommand(
		&cobra.Command{Use: "list", Short: "List the active revision's workflows", Args: cobra.NoArgs, RunE: a.workflowList},
		&cobra.Command{Use: "show NAME", Short: "Show one", Args: cobra.ExactArgs(1), RunE: a.workflowShow},
		a.workflowCheckCommand(),
		a.workflowLearnCommand(),
	)
	return cmd
}

func (a *app) workflowList(c *cobra.Command, _ []string) error {
	var list api.List[api.Workflow]
	if err := a.get(c.Context(), "/v1/workflows", a.page(), &list); err != nil {
		return err
	}
	return a.show(list, func() {
		var rows [][]string
		for _, w := range list.Items {
			var stages []string
			for _, s := range w.Stages {
				stages = append(stages, s.Name)
			}
			rows = append(rows, []string{w.Name, strings.Join(w.Parameters, ","), strings.Join(stages, ",")})
		}
		a.table("NAME PARAMETERS STAGES", rows)
		a.noteNext(list.Next)
	})
}

func (a *app) workflowShow(c *cobra.Command, args []string) error {
	var w api.Workflow
	if err := a.get(c.Context(), "/v1/workflows/"+args[0], nil, &w); err != nil {
		return err
	}
	return a.show(w, func() {
		a.fields("name", w.Name, "digest", string(w.Digest), "parameters", strings.Join(w.Parameters, ", "))
		for _, s := range w.Stages {
			fmt.Fprintf(a.out, "stage %s\n", clean(s.Name))
			for _, m := range s.May {
				fmt.Fprintf(a.out, "  may %s\n", clean(m))
			}
		}
	})
}
