// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"

	"remit/internal/server"
)

func (a *app) policyCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "policy", Short: "Policy: test, export, replay, bundle, sign, key"}
	test := &cobra.Command{Use: "test DIR [CASES…]", Short: "Run policy cases and Rego tests against configuration files, without a server",
		Long: "Run policy cases (YAML files with cases) and the tests of the organisation's Rego (*_test.rego) against the configuration\nin DIR. Without CASES, all *.yaml and *_test.rego of DIR-tests beside DIR are taken.",
		Args: cobra.MinimumNArgs(1), RunE: a.policyTest}
	var to string
	export := &cobra.Command{Use: "export [DIR]", Short: "Print the active workflows, or those of DIR, as Rego, for opa eval", Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			files := map[string][]byte{}
			if len(args) > 0 {
				var err error
				if files, err = server.Export(args[0]); err != nil {
					return badUse("%v", err)
				}
			} else if err := a.get(c.Context(), "/v1/policy/export", nil, &files); err != nil {
				return err
			}
			return a.writeFiles(files, to)
		}}
	export.Flags().StringVar(&to, "to", "", "folder for the files; without it they are printed")
	cmd.AddCommand(test, export, a.policyReplayCommand(), a.policyBundleCommand(), a.policySignCommand(), a.policyKeyCommand())
	return cmd
}

func (a *app) policyTest(c *cobra.Command, args []string) error {
	cases := args[1:]
	if len(cases) == 0 {
		for _, pattern := range []string{"*.yaml", "*_test.rego"} {
			found, err := filepath.Glob(filepath.Join(filepath.Clean(args[0])+"-tests", pattern))
			if err != nil {
				return badUse("%v", err)
			}
			cases = append(cases, found...)
		}
	}
	if len(cases) == 0 {
		return badUse("no cases").hint("name their files, or put them into %s-tests", filepath.Clean(args[0]))
	}
	outcomes, err := server.TestPolicy(c.Context(), args[0], cases)
	if err != nil {
		return badUse("%v", err)
	}
	failed := 0
	for _, o := range outcomes {
		if !o.Pass {
			failed++
		}
	}
	err = a.show(outcomes, func() {
		for _, o := range outcomes {
			if !o.Pass {
				fmt.Fprintf(a.out, "FAIL  %s: %s\n", clean(o.Name), clean(o.Why))
			} else if !a.quiet {
				fmt.Fprintf(a.out, "ok    %s\n", clean(o.Name))
			}
		}
	})
	if err == nil && failed > 0 {
		return fmt.Errorf("%d of %d cases failed", failed, len(outcomes))
	}
	return err
}

func (a *app) writeFiles(files map[string][]byte, to string) error {
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if to == "" {
			fmt.Fprintf(a.out, "# %s\n%s\n", name, files[name])
			continue
		}
		if err := os.MkdirAll(to, 0o755); err != nil {
			return badUse("%v", err)
		}
		if err := os.WriteFile(filepath.Join(to, filepath.Base(name)), files[name], 0o644); err != nil {
			return badUse("%v", err)
		}
	}
	return nil
}
