// SPDX-License-Identifier: Apache-2.0

// Command bench measures Remit beside what does a comparable job, in one run, round by round in turn, and prints one table:
// medians, the processor time that each side spent, and whether a target is met. Only loopback is used, and load is bounded in
// count and time. It fails when something does not work, when an answer is missing in the ledger, or when a target is missed
// tenfold; how fast a machine is never fails it.
package main

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"k8s.io/klog/v2"
)

// options are the flags.
type options struct {
	remit, opa, fsck, manifests string
	short                       bool
	rounds, replayed            int
	round                       time.Duration
	only, profile               string
}

// bench is one run.
type bench struct {
	options
	dir   string
	table table
	stops []func()
}

func main() {
	var o options
	flag.StringVar(&o.remit, "remit", "bin/remit", "the shipped binary")
	flag.StringVar(&o.opa, "opa", "bin/opa", "OPA, built from test/peers; empty: leave out what compares with it")
	flag.StringVar(&o.fsck, "fsck", "bin/fsck", "Tessera's fsck, built from test/peers")
	flag.StringVar(&o.manifests, "manifests", "deploy/kubernetes", "the manifests to apply")
	flag.BoolVar(&o.short, "short", false, "leave out what needs the Kubernetes API server")
	flag.IntVar(&o.rounds, "rounds", 5, "rounds; medians are printed")
	flag.DurationVar(&o.round, "round", time.Second, "length of one round of one side")
	flag.StringVar(&o.only, "only", "", "comma-separated chapters: policy,behaviour,ledger,identity,process,sandbox,decisions,replay,flood,mcp,tools,postgres,kubernetes,suspension; empty: all")
	flag.IntVar(&o.replayed, "replayed", 50_000, "decisions that the chapter replay makes and judges again, at least")
	flag.StringVar(&o.profile, "profile", "", "write a CPU profile of the decisions to this file, server and client in this process; no comparison")
	flag.Parse()
	klog.SetSlogLogger(slog.New(slog.DiscardHandler)) // Tessera and client-go write there
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if o.profile != "" {
		o.only, o.opa, o.rounds = "decisions", "", 1
	}
	b := &bench{options: o}
	if err := b.run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		stop()
		os.Exit(1)
	}
}

func (b *bench) run(ctx context.Context) (err error) {
	if b.dir, err = os.MkdirTemp("", "remit-bench-"); err != nil {
		return fmt.Errorf("make a folder: %w", err)
	}
	defer os.RemoveAll(b.dir) //nolint:errcheck // a temporary folder
	defer b.stopAll()
	began, before := time.Now(), load()
	for _, chapter := range []struct {
		name string
		do   func(context.Context) error
	}{
		{"policy", b.policy}, {"behaviour", b.behaviour}, {"ledger", b.ledger}, {"identity", b.identity}, {"process", b.process}, {"sandbox", b.sandboxes}, {"decisions", b.decisions},
		{"replay", b.replay}, {"flood", b.flood}, {"mcp", b.mcp}, {"tools", b.tools}, {"postgres", b.postgres}, {"kubernetes", b.kubernetes},
		{"suspension", b.suspension},
	} {
		if b.only != "" && !slices.Contains(strings.Split(b.only, ","), chapter.name) || (chapter.name == "kubernetes" || chapter.name == "suspension") && b.short {
			continue
		}
		fmt.Fprintf(os.Stderr, "%s …\n", chapter.name)
		if err := chapter.do(ctx); err != nil {
			return fmt.Errorf("%s: %w", chapter.name, err)
		}
		b.stopAll()
	}
	fmt.Printf("\n%s\n\n%d rounds of %s a side, medians; load average before %s, after %s; %s in all.\n\n", machine(), b.rounds, b.round,
		before, load(), time.Since(began).Round(time.Second))
	b.table.print(os.Stdout)
	return b.table.verdict()
}

func (b *bench) path(elem ...string) string {
	return filepath.Join(append([]string{b.dir}, elem...)...)
}

// stopAll ends what the chapter started, the last first.
func (b *bench) stopAll() {
	for _, stop := range slices.Backward(b.stops) {
		stop()
	}
	b.stops = nil
}
