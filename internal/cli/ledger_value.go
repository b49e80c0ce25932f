// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"remit"
	"remit/internal/api"
	"remit/internal/ledger"
)

func (a *app) ledgerShowCommand() *cobra.Command {
	var check string
	var disclose bool
	cmd := &cobra.Command{Use: "show SEQ", Short: "Show one entry, with its values as far as they are not erased", Args: cobra.ExactArgs(1),
		Long: "Show one entry. The log holds commitments; the values come from the store, which can forget them.\n--check asks whether a value stands behind a commitment, also a sensitive one; --disclose prints what an auditor needs to\ncheck the values shown with remit ledger verify --disclosed.",
		RunE: func(c *cobra.Command, args []string) error {
			if check != "" {
				return a.ledgerCheck(c.Context(), args[0], check)
			}
			return a.ledgerShow(c.Context(), args[0], disclose)
		}}
	cmd.Flags().StringVar(&check, "check", "", "PLACE=VALUE, such as args.customer_id=555")
	cmd.Flags().BoolVar(&disclose, "disclose", false, "print SEQ DISCLOSURE lines instead of the entry")
	return cmd
}

func (a *app) ledgerShow(ctx context.Context, seq string, disclose bool) error {
	var e api.Entry
	if err := a.get(ctx, "/v1/ledger/"+seq, nil, &e); err != nil {
		return err
	}
	if disclose {
		for _, d := range e.Disclosures {
			fmt.Fprintln(a.out, e.Seq, d)
		}
		return nil
	}
	return a.show(e, func() {
		b, _ := json.MarshalIndent(e.Event, "", "  ")
		fmt.Fprintln(a.out, string(b))
		if len(e.Erased) > 0 {
			fmt.Fprintln(a.out, "erased:", clean(strings.Join(e.Erased, ", ")))
		}
		if len(e.Sensitive) > 0 {
			fmt.Fprintln(a.out, "sensitive, not shown:", clean(strings.Join(e.Sensitive, ", ")))
		}
	})
}

func (a *app) ledgerCheck(ctx context.Context, seq, pair string) error {
	path, value, ok := strings.Cut(pair, "=")
	if !ok {
		return badUse("--check is PLACE=VALUE, not %q", pair).hint("such as args.customer_id=555")
	}
	var got api.Checked
	if err := a.post(ctx, "/v1/ledger/"+seq+"/check", api.CheckValue{Path: path, Value: value}, &got); err != nil {
		return err
	}
	if err := a.show(got, func() {
		if got.Matches {
			fmt.Fprintln(a.out, seq, got.Disclosure)
		}
	}); err != nil || got.Matches {
		return err
	}
	return fmt.Errorf("entry %s commits to another value of %s", seq, path)
}

func (a *app) ledgerEraseCommand() *cobra.Command {
	var in api.Erase
	var run string
	cmd := &cobra.Command{Use: "erase", Short: "Forget the values of a run, of an entry, or of every entry that mentions a value", Args: cobra.NoArgs,
		Long: "Forget values (role admin). The entries stay and the log still verifies; show, why and replay say erased. Runs that\nlive are refused. Backups keep what they hold: erase there, or let them go.",
		RunE: func(c *cobra.Command, _ []string) error {
			in.Run = remit.RunID(run)
			var out api.Erased
			if err := a.post(c.Context(), "/v1/ledger/erase", in, &out); err != nil {
				return err
			}
			return a.show(out, func() {
				fmt.Fprintf(a.out, "erased the values of %d entries and %d runs\n", out.Entries, len(out.Runs))
			})
		}}
	f := cmd.Flags()
	f.StringVar(&run, "run", "", "of this run")
	f.Uint64Var(&in.Entry, "entry", 0, "of this entry")
	f.StringVar(&in.Value, "value", "", "of every entry that mentions this text or number")
	f.StringVar(&in.Reason, "reason", "", "why; it stands in the ledger")
	_ = cmd.MarkFlagRequired("reason")
	return cmd
}

// checkDisclosed holds each disclosed value against the commitment in the verified log.
func (a *app) checkDisclosed(ctx context.Context, log *ledger.Log, file string) error {
	if file == "" {
		return nil
	}
	f, err := os.Open(file)
	if err != nil {
		return badUse("%v", err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 256<<10)
	for lines.Scan() {
		number, text, _ := strings.Cut(strings.TrimSpace(lines.Text()), " ")
		if number == "" {
			continue
		}
		seq, err := strconv.ParseUint(number, 10, 64)
		if err != nil {
			return badUse("%s: %.40q is not SEQ DISCLOSURE", file, lines.Text())
		}
		e, err := log.Entry(ctx, seq)
		if err != nil {
			return err
		}
		d, err := e.Check(text)
		if err != nil {
			return fmt.Errorf("a disclosed value does not hold: %w", err)
		}
		a.note("entry %d commits to %s = %s", seq, clean(d.Path), clean(string(d.Value)))
	}
	return lines.Err()
}
