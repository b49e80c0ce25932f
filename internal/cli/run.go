// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"remit"
	"remit/internal/api"
)

func (a *app) runCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "run", Short: "Runs of workflows: start, list, show, advance, finish"}
	var params, evidence []string
	start := &cobra.Command{Use: "start WORKFLOW", Short: "Start a run", Args: cobra.ExactArgs(1),
		Example: "  remit run start deploy --param app=foo --param image=registry.example/foo:v1.2 --param scan=scan-789 --param ticket=CHG-1",
		RunE:    func(c *cobra.Command, args []string) error { return a.runStart(c, args[0], params, evidence) }}
	start.Flags().StringArrayVarP(&params, "param", "p", nil, "NAME=VALUE, as often as the workflow has parameters without a source")
	start.Flags().StringArrayVar(&evidence, "evidence", nil, "KIND=ID, the evidence that parameters with a source are fields of: ticket=CHG-1")
	var to string
	advance := &cobra.Command{Use: "advance RUN", Short: "Leave the present stage for the next", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return a.runChange(c, args[0], "advance", api.AdvanceRun{To: to})
		}}
	advance.Flags().StringVar(&to, "to", "", "the stage expected next; an error if it is another")
	cmd.AddCommand(start, advance, a.runTokenCommand(),
		&cobra.Command{Use: "list", Short: "List runs", Args: cobra.NoArgs, RunE: a.runList},
		&cobra.Command{Use: "show RUN", Short: "Show one", Args: cobra.ExactArgs(1), RunE: a.runShow},
		&cobra.Command{Use: "finish RUN", Short: "End a run and all its grants", Args: cobra.ExactArgs(1),
			RunE: func(c *cobra.Command, args []string) error { return a.runChange(c, args[0], "finish", nil) }},
	)
	return cmd
}

func parsePairs(pairs []string, flag string) (map[string]string, error) {
	out := map[string]string{}
	for _, p := range pairs {
		k, v, ok := strings.Cut(p, "=")
		if !ok || k == "" {
			return nil, badUse("%s %q is not NAME=VALUE", flag, p).hint("write %s name=value", flag)
		}
		if _, dup := out[k]; dup {
			return nil, badUse("%s %s stands twice", flag, k).hint("give each name once")
		}
		out[k] = v
	}
	return out, nil
}

func (a *app) runStart(c *cobra.Command, workflow string, pairs, evidence []string) error {
	params, err := parsePairs(pairs, "--param")
	if err != nil {
		return err
	}
	in := api.StartRun{Workflow: workflow, Params: params, Evidence: map[remit.EvidenceKind]string{}}
	named, err := parsePairs(evidence, "--evidence")
	if err != nil {
		return err
	}
	for kind, id := range named {
		in.Evidence[remit.EvidenceKind(kind)] = id
	}
	var r remit.Run
	if err := a.post(c.Context(), "/v1/runs", in, &r); err != nil {
		return err
	}
	if a.quiet && a.output == "table" {
		fmt.Fprintln(a.out, r.ID)
		return nil
	}
	return a.showRun(&r)
}

func (a *app) showRun(r *remit.Run) error {
	return a.show(r, func() {
		a.fields("run", string(r.ID), "workflow", r.Workflow, "state", string(r.State), "stage", r.Stage, "starter", string(r.Starter),
			"started", stamp(r.Started), "stage ends", stamp(r.StageExpires), "run ends", stamp(r.Expires))
		var names []string
		for n := range r.Params {
			names = append(names, n)
		}
		slices.Sort(names)
		for _, n := range names {
			a.fields("  "+n, fmt.Sprintf("%s (from %s)", r.Params[n].Text(), r.Sources[n]))
		}
	})
}

func (a *app) runList(c *cobra.Command, _ []string) error {
	var list api.List[remit.Run]
	if err := a.get(c.Context(), "/v1/runs", a.page(), &list); err != nil {
		return err
	}
	return a.show(list, func() {
		var rows [][]string
		for _, r := range list.Items {
			rows = append(rows, []string{string(r.ID), r.Workflow, r.Stage, string(r.State), string(r.Starter), stamp(r.Started)})
		}
		a.table("RUN WORKFLOW STAGE STATE STARTER STARTED", rows)
		a.noteNext(list.Next)
	})
}

func (a *app) runShow(c *cobra.Command, args []string) error {
	var r remit.Run
	if err := a.get(c.Context(), "/v1/runs/"+args[0], nil, &r); err != nil {
		return err
	}
	return a.showRun(&r)
}

func (a *app) runChange(c *cobra.Command, id, what string, body any) error {
	var r remit.Run
	if err := a.post(c.Context(), "/v1/runs/"+id+"/"+what, body, &r); err != nil {
		return err
	}
	return a.showRun(&r)
}

func (a *app) runTokenCommand() *cobra.Command {
	var cert, agent string
	cmd := &cobra.Command{Use: "token RUN", Short: "Issue a run token bound to a certificate", Args: cobra.ExactArgs(1),
		Long: "Issue a run token for an agent that is active in the run's present stage. It works only together with the\ncertificate given here; remit exec needs none, its tokens are bound to the launch.",
		RunE: func(c *cobra.Command, args []string) error {
			thumb, err := thumbprintOf(cert)
			if err != nil {
				return err
			}
			var t api.Token
			req := api.TokenRequest{Agent: remit.Name(agent), Thumbprint: thumb}
			if err := a.post(c.Context(), "/v1/runs/"+args[0]+"/token", req, &t); err != nil {
				return err
			}
			return a.show(t, func() { fmt.Fprintln(a.out, t.Token) })
		}}
	cmd.Flags().StringVar(&cert, "cert", "", "PEM file whose first certificate the holder has")
	cmd.Flags().StringVar(&agent, "as", "", "agent/NAME")
	_ = cmd.MarkFlagRequired("cert")
	_ = cmd.MarkFlagRequired("as")
	return cmd
}

// thumbprintOf returns the x5t#S256 of the first certificate in a PEM file (RFC 8705 section 3.1).
func thumbprintOf(file string) (string, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return "", badUse("%v", err)
	}
	for block, rest := pem.Decode(b); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			continue
		}
		if _, err := x509.ParseCertificate(block.Bytes); err != nil {
			return "", badUse("%s: %v", file, err)
		}
		return remit.Thumbprint(block.Bytes), nil
	}
	return "", badUse("%s holds no certificate", file).hint("give the agent's X.509-SVID in PEM")
}
