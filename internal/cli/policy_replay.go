// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	_ "embed"
	"fmt"
	"html/template"
	"maps"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"remit/internal/server"
)

// replayHTML is the report: one file that loads and runs nothing.
//
//go:embed replay.html
var replayHTML string

const replayDiffs = 3 // exit code where decisions differ

func (a *app) policyReplayCommand() *cobra.Command {
	var html string
	filter := map[string]*string{}
	cmd := &cobra.Command{Use: "replay DIR", Short: "Which recorded decisions would differ under the configuration in DIR",
		Long: "Judge the decisions of the ledger by the configuration in DIR, as if it had been in force, and report which would differ.\n" +
			"--after SEQ begins behind that entry. Exit code 0: none of those judged differs; 3: some do; 1: none could be judged, or a fault.\n" +
			"What cannot be judged again is counted and named. Needs the role auditor.",
		Example: "  remit policy replay new/ --html report.html",
		Args:    cobra.ExactArgs(1), RunE: func(c *cobra.Command, args []string) error {
			q := url.Values{}
			for k, v := range filter {
				if *v != "" {
					q.Set(k, *v)
				}
			}
			return a.policyReplay(c.Context(), args[0], html, q)
		}}
	cmd.Flags().StringVar(&html, "html", "", "write the report as a page to this file, too")
	for _, k := range []string{"agent", "run"} {
		filter[k] = cmd.Flags().String(k, "", "only decisions of this "+k)
	}
	return cmd
}

func (a *app) policyReplay(ctx context.Context, dir, html string, q url.Values) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	r, err := server.NewReplay(dir, c)
	if err != nil {
		return badUse("%v", err)
	}
	err = r.Read(ctx, a.after, q, func(done int, seq uint64) { a.note("%d decisions, entry %d", done, seq) })
	if err != nil {
		return err
	}
	return a.showReplay(r.Report(), html)
}

func (a *app) showReplay(report server.ReplayReport, html string) error {
	if html != "" {
		if err := writeReplay(html, &report); err != nil {
			return badUse("%v", err)
		}
	}
	if err := a.show(report, func() { a.replayTable(&report) }); err != nil {
		return err
	}
	switch {
	case report.Different > 0:
		return &childError{code: replayDiffs}
	case report.NotJudged > 0 && report.Same == 0:
		return fmt.Errorf("none of %d decisions could be judged again", report.Decisions)
	}
	return nil
}

func (a *app) replayTable(report *server.ReplayReport) {
	if len(report.Groups) > 0 {
		var rows [][]string
		for i := range report.Groups {
			g := &report.Groups[i]
			rows = append(rows, []string{strconv.Itoa(g.Count), g.Was.Effect.String() + "→" + g.Now.Effect.String(), string(g.Agent), g.Action + " " + g.Target,
				strings.Join(g.Differs, ","), gist(&g.Was) + " → " + gist(&g.Now), string(g.Decisions[0])})
		}
		a.table("COUNT EFFECT AGENT ACT DIFFERS WAS→NOW FIRST", rows)
	}
	fmt.Fprintf(a.out, "%d decisions: %d the same, %d different (%d of them asked for a grant), %d not judged; beside them %d folded denials, not judged\n",
		report.Decisions, report.Same, report.Different, report.Grants, report.NotJudged, report.Folded)
	if report.Ungrouped > 0 {
		fmt.Fprintf(a.out, "%d different ones are beyond the groups shown\n", report.Ungrouped)
	}
	for _, u := range report.Unknown {
		fmt.Fprintf(a.out, "not judged: %d, %s (first %s)\n", u.Count, u.Why, u.Decisions[0])
	}
	for _, p := range report.Unused {
		fmt.Fprintf(a.out, "unused: %s/%s/%s\n", p.Workflow, p.Stage, p.Name)
	}
}

// gist says an answer in a few words.
func gist(answer *server.ReplayAnswer) string {
	words := slices.Concat([]string{answer.Permission.Name, answer.TTL}, answer.Reasons, answer.Obligations)
	for _, name := range slices.Sorted(maps.Keys(answer.Limits)) {
		words = append(words, fmt.Sprintf("%s=%d", name, answer.Limits[name]))
	}
	return strings.Join(slices.DeleteFunc(words, func(w string) bool { return w == "" }), ", ")
}

func writeReplay(path string, report *server.ReplayReport) error {
	page, err := template.New("replay").Funcs(template.FuncMap{"gist": func(r server.ReplayAnswer) string { return gist(&r) },
		"words": func(list []string) string { return strings.Join(list, ", ") }}).Parse(replayHTML)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	err = page.Execute(f, report)
	if closed := f.Close(); err == nil {
		err = closed
	}
	return err
}
