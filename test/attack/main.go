// SPDX-License-Identifier: Apache-2.0

// Attack attacks an installation of Remit: each script of test/attack/scripts is one attack, which first shows that the same
// act works where it is legitimate, then makes the attempt, and names the guard that must refuse it. Without -profile a
// laboratory is set up: the shipped binary on a folder of its own, with agents of users of their own, and with a real
// Kubernetes API server where -cluster says so. docs/attack.md is the manual.
//
//	go run ./test/attack -remit bin/remit [-cluster] [-run S10] [-profile FILE] [-o json] [-v]
//
// It exits with 1 if an attack succeeded, was refused by another guard than the one it names, or could not be judged.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"text/tabwriter"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == "tool" {
		os.Exit(toolMain(os.Args[2:]))
	}
	os.Exit(run())
}

type options struct {
	remit, profile, scripts, only, output string
	cluster, verbose, list                bool
}

func run() int {
	var o options
	flag.StringVar(&o.remit, "remit", "bin/remit", "the binary that the laboratory runs")
	flag.StringVar(&o.profile, "profile", "", "attack this installation instead of the laboratory")
	flag.StringVar(&o.scripts, "scripts", "test/attack/scripts", "where the attacks are")
	flag.StringVar(&o.only, "run", "", "only attacks whose name or rule matches this regular expression")
	flag.StringVar(&o.output, "o", "table", "table or json")
	flag.BoolVar(&o.cluster, "cluster", false, "give the laboratory a Kubernetes API server")
	flag.BoolVar(&o.verbose, "v", false, "show what every script did")
	flag.BoolVar(&o.list, "list", false, "list the attacks and run none")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	scripts, err := readScripts(o.scripts, o.only)
	if err != nil {
		return fault(err)
	}
	if o.list {
		list(scripts)
		return 0
	}
	if err := makeTool(); err != nil {
		return fault(err)
	}
	defer os.RemoveAll(toolDir)
	p, done, err := installation(ctx, &o)
	defer done()
	if err != nil {
		return fault(err)
	}
	work, err := os.MkdirTemp("", "remit-attacks-")
	if err != nil {
		return fault(err)
	}
	defer os.RemoveAll(work)
	_ = os.Chmod(work, 0o755)
	var results []result
	for _, s := range scripts {
		if ctx.Err() != nil {
			break
		}
		r := runScript(p, s, work, o.verbose)
		results = append(results, r)
		fmt.Fprintf(os.Stderr, "%-11s %s (%.1f s)%s\n", r.verdict, s.name, r.took.Seconds(), detail(&r, o.verbose))
	}
	return report(results, &o)
}

func fault(err error) int {
	fmt.Fprintln(os.Stderr, "attack:", err)
	return 1
}

// installation is what is attacked: the profile's, or a laboratory.
func installation(ctx context.Context, o *options) (*Profile, func(), error) {
	if o.profile != "" {
		p, err := readProfile(o.profile)
		return p, func() {}, err
	}
	l, err := newLab(ctx, o.remit, o.cluster)
	if err != nil {
		return nil, l.close, err
	}
	return l.profile, l.close, nil
}

func detail(r *result, verbose bool) string {
	switch {
	case r.verdict == verdictRefused && !verbose:
		return ""
	case r.verdict == verdictNotRun:
		return ": " + r.why
	}
	return "\n    " + strings.ReplaceAll(strings.TrimSpace(r.log), "\n", "\n    ")
}

func list(scripts []*script) {
	w := tabwriter.NewWriter(os.Stdout, 0, 4, 2, ' ', 0)
	for _, s := range scripts {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", s.name, s.rule, s.title, s.expected, s.file)
	}
	_ = w.Flush()
}

// report prints the table and returns the exit code.
func report(results []result, o *options) int {
	count := map[string]int{}
	for _, r := range results {
		count[r.verdict]++
	}
	if o.output == "json" {
		type line struct {
			Attack   string `json:"attack"`
			Rule     string `json:"rule"`
			Attacker string `json:"attacker"`
			Expected string `json:"expected"`
			Got      string `json:"got"`
			Guard    string `json:"guard"`
			Verdict  string `json:"verdict"`
			Why      string `json:"why,omitempty"`
		}
		lines := []line{}
		for _, r := range results {
			lines = append(lines, line{r.name, r.rule, r.attacker, r.expected, r.got, r.by, r.verdict, r.why})
		}
		_ = json.NewEncoder(os.Stdout).Encode(lines)
	} else {
		w := tabwriter.NewWriter(os.Stdout, 0, 4, 2, ' ', 0)
		fmt.Fprintln(w, "ATTACK\tRULE\tEXPECTED\tGOT\tBY WHICH GUARD\tVERDICT")
		for _, r := range results {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", r.name, r.rule, r.expected, clip(r.got, 48), clip(r.by, 64), r.verdict)
		}
		_ = w.Flush()
	}
	bad := count[verdictSucceeded] + count[verdictOther] + count[verdictBroken]
	fmt.Fprintf(os.Stderr, "%d attacks: %d refused by the guard that should, %d succeeded, %d refused by another guard, %d broken, %d not run\n",
		len(results), count[verdictRefused], count[verdictSucceeded], count[verdictOther], count[verdictBroken], count[verdictNotRun])
	if bad > 0 || count[verdictRefused] == 0 {
		return 1
	}
	return 0
}

func clip(s string, n int) string {
	if len(s) > n {
		return s[:n-1] + "…"
	}
	return s
}
