// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"remit"
	"remit/internal/api"
)

func (a *app) toolCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "tool", Short: "Tools: list, show, digest, pin, review"}
	cmd.AddCommand(a.toolPinCommand(), a.toolReviewCommand(), a.toolDigestCommand(),
		&cobra.Command{Use: "list", Short: "List tools", Args: cobra.NoArgs, RunE: a.toolList},
		&cobra.Command{Use: "show NAME", Short: "Show one: what it runs in on this host, and what would keep it from starting", Args: cobra.ExactArgs(1), RunE: a.toolShow})
	return cmd
}

func (a *app) toolReviewCommand() *cobra.Command {
	return &cobra.Command{
		Use: "review NAME", Short: "Compare what a tool's server says of its tools with what was pinned", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			var r api.ToolReview
			if err := a.get(c.Context(), "/v1/tools/"+strings.TrimPrefix(args[0], "tool/")+"/review", nil, &r); err != nil {
				return err
			}
			return a.show(r, func() {
				var rows [][]string
				for _, t := range r.Tools {
					rows = append(rows, []string{t.Name, t.State, string(t.Digest)})
				}
				a.table("NAME STATE DIGEST", rows)
				for _, t := range r.Tools {
					if t.State != api.ToolReviewed {
						fmt.Fprintf(a.out, "\n%s is %s\n", clean(t.Name), t.State)
						a.described("was", t.Pinned)
						a.described("now", t.Now)
					}
				}
			})
		},
	}
}

// described prints a description for a person: what a server wrote is shown escaped, or it could draw over the terminal.
func (a *app) described(when string, raw json.RawMessage) {
	if len(raw) > 0 {
		fmt.Fprintf(a.out, "  %s: %+q\n", when, raw)
	}
}

func (a *app) toolPinCommand() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use: "pin NAME", Short: "Print what a tool's server says of its tools, as a file of pins to read and keep",
		Long:    "Ask the tool's server what it says of its tools now, and print that as the file of pins that the Tool's pins: names.\nRead it before you keep it: agents and their models are shown exactly this.",
		Example: "  remit tool pin crm --file remit/config/crm.pins.json", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			var r api.ToolReview
			if err := a.get(c.Context(), "/v1/tools/"+strings.TrimPrefix(args[0], "tool/")+"/review", nil, &r); err != nil {
				return err
			}
			b, err := pinsOf(r)
			if err != nil {
				return err
			}
			if file == "" {
				_, err = a.out.Write(b)
				return err
			}
			if err := os.WriteFile(file, b, 0o644); err != nil { //nolint:gosec // descriptions are no secret
				return badUse("%v", err)
			}
			a.note("wrote %s: read it, then remit apply", file)
			return nil
		},
	}
	cmd.Flags().StringVar(&file, "file", "", "write it there")
	return cmd
}

func pinsOf(r api.ToolReview) ([]byte, error) {
	type pin struct {
		Digest remit.Digest    `json:"digest"`
		Tool   json.RawMessage `json:"tool"`
	}
	out := struct {
		Tools map[string]pin `json:"tools"`
	}{map[string]pin{}}
	for _, t := range r.Tools {
		if t.State != api.ToolGone {
			out.Tools[t.Name] = pin{t.Digest, t.Now}
		}
	}
	b, err := json.MarshalIndent(out, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("write pins: %w", err)
	}
	return append(b, '\n'), nil
}
