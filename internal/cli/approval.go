// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"remit"
	"remit/internal/api"
)

func (a *app) approvalCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "approval", Short: "Requests that wait for people: list, show, approve, deny"}
	var state string
	list := &cobra.Command{Use: "list", Short: "List what is held for people, newest first", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return a.approvalList(c, state) }}
	list.Flags().StringVar(&state, "state", "pending", "pending, approved, denied, expired, used, or all")
	answer := func(use, short, long string) *cobra.Command {
		var in api.Answered
		sub := &cobra.Command{Use: use + " HOLD", Short: short, Long: long, Args: cobra.ExactArgs(1), RunE: func(c *cobra.Command, args []string) error {
			var v api.Approval
			if err := a.post(c.Context(), "/v1/approvals/"+url.PathEscape(args[0])+"/"+use, in, &v); err != nil {
				return err
			}
			return a.showApproval(&v)
		}}
		sub.Flags().StringVar(&in.Reason, "reason", "", "why, for the ledger")
		return sub
	}
	cmd.AddCommand(list,
		&cobra.Command{Use: "show HOLD", Short: "Show what is asked, how it differs from the last time, and who is asked", Args: cobra.ExactArgs(1), RunE: func(c *cobra.Command, args []string) error {
			var v api.Approval
			if err := a.get(c.Context(), "/v1/approvals/"+url.PathEscape(args[0]), nil, &v); err != nil {
				return err
			}
			return a.showApproval(&v)
		}},
		answer("approve", "Approve exactly this request, once", `Approves what remit approval show shows, and nothing else: another argument, run, stage or fact is another request. It counts for one
decision. You need a login of your own (remit login), the role approver and one of the groups that are asked; not the run's starter,
whoever launched the agent, its owner, or an author of the workflow.`),
		answer("deny", "Deny it, for as long as its run lives", `Denies the request for as long as its run lives. What was approved and not used yet can be denied still; what was used is ended with
remit grant revoke.`))
	return cmd
}

func (a *app) approvalList(c *cobra.Command, state string) error {
	q := a.page()
	if state != "all" {
		q.Set("state", state)
	}
	var list api.List[api.Approval]
	if err := a.get(c.Context(), "/v1/approvals", q, &list); err != nil {
		return err
	}
	return a.show(list, func() {
		var rows [][]string
		for _, v := range list.Items {
			rows = append(rows, []string{string(v.ID), string(v.State), left(&v), string(v.Agent), v.Action, v.Target, v.Workflow + "/" + v.Stage + "/" + v.For, asksFor(&v)})
		}
		a.table("HOLD STATE LEFT AGENT ACTION TARGET PERMISSION MISSING", rows)
		a.noteNext(list.Next)
	})
}

func left(v *api.Approval) string {
	if v.State != remit.HeldPending && v.State != remit.HeldApproved {
		return ""
	}
	return (time.Duration(v.Seconds) * time.Second).String()
}

// asksFor is who is still missing.
func asksFor(v *api.Approval) string {
	var out []string
	for _, p := range v.People {
		if p.Missing > 0 {
			out = append(out, fmt.Sprintf("%d of %s", p.Missing, p.Group))
		}
	}
	return strings.Join(out, ", ")
}

// showApproval prints facts that Remit knows first, then values as typed data with what the workflow says of each.
func (a *app) showApproval(v *api.Approval) error {
	return a.show(v, func() {
		a.fields("hold", string(v.ID), "state", string(v.State), "time left", left(v), "agent", string(v.Agent), "owner", v.Owner, "attested", v.Level,
			"action", v.Action, "target", v.Target, "permission", v.Workflow+"/"+v.Stage+"/"+v.For, "declared at", v.Line, "run", string(v.Run),
			"started by", string(v.Starter))
		a.askedValues("argument", v.Args)
		a.askedValues("parameter", v.Params)
		switch {
		case v.Last == nil:
			fmt.Fprintln(a.out, "nothing like it was approved before")
		case v.Last.Same:
			fmt.Fprintf(a.out, "the same as %s, approved %s\n", v.Last.ID, stamp(v.Last.At))
		default:
			fmt.Fprintf(a.out, "last is %s, approved %s\n", v.Last.ID, stamp(v.Last.At))
		}
		for _, e := range v.Evidence {
			fmt.Fprintln(a.out, "evidence:", clean(e))
		}
		a.wouldAllow(v.Would)
		for _, p := range v.People {
			fmt.Fprintf(a.out, "asked: %d of %s, %d missing\n", p.People, clean(p.Group), p.Missing)
		}
		for _, x := range v.Answers {
			word := "denied"
			if x.Approve {
				word = "approved"
			}
			fmt.Fprintf(a.out, "%s by %s %s %s\n", word, x.Person, stamp(x.At), clean(x.Reason))
		}
		if v.You != "" && v.State == remit.HeldPending {
			fmt.Fprintln(a.out, "you cannot approve it:", clean(v.You))
		}
	})
}

// wouldAllow prints what the agent would be given.
func (a *app) wouldAllow(w *api.WouldAllow) {
	if w == nil {
		return
	}
	if w.Not != "" {
		fmt.Fprintln(a.out, "approved now, it would be denied still:", clean(w.Not))
		return
	}
	what := "one decision, no credential"
	if w.Credential {
		what = "a credential"
	}
	if w.Seconds > 0 {
		what += fmt.Sprintf(" for at most %s", time.Duration(w.Seconds)*time.Second)
	}
	if !w.Until.IsZero() {
		what += ", not after " + stamp(w.Until)
	}
	fmt.Fprintln(a.out, "would allow:", what)
	for _, name := range slices.Sorted(maps.Keys(w.Limits)) {
		fmt.Fprintf(a.out, "limited: %s at most %d\n", clean(name), w.Limits[name])
	}
	for _, o := range w.Obligations {
		fmt.Fprintln(a.out, "obliged:", clean(o))
	}
	if w.Tier != "" {
		fmt.Fprintln(a.out, "sandbox: at least", clean(w.Tier))
	}
	for _, b := range w.Bounds {
		fmt.Fprintln(a.out, "bounded:", clean(b))
	}
	for _, b := range w.NotBounded {
		fmt.Fprintln(a.out, "not bounded:", clean(b))
	}
	if w.Hidden {
		fmt.Fprintln(a.out, "bounded: by sensitive values, which are not shown")
	}
	if w.WorstCase > 0 {
		fmt.Fprintln(a.out, "ends at worst, without Remit,", time.Duration(w.WorstCase)*time.Second, "late")
	}
}

func (a *app) askedValues(what string, list []api.AskedValue) {
	if len(list) == 0 {
		return
	}
	var rows [][]string
	for _, x := range list {
		value := x.Value
		if x.Length > 0 {
			value += fmt.Sprintf(" (cut: %d bytes)", x.Length)
		}
		rows = append(rows, []string{x.Name, x.Kind, value, x.Declared, x.Last})
	}
	a.table(strings.ToUpper(what)+" KIND VALUE DECLARED LAST", rows)
}
