// SPDX-License-Identifier: Apache-2.0

// Command eval judges policy on recorded runs of real agents, honest and hijacked: eval agentdojo DIR writes a workflow for each task
// from the user's words and the tools' descriptions, plays the runs through a running gateway, and says what was denied; eval behaviour
// DIR says how the runs stand out from baselines; eval learn DIR learns workflows from honest runs of half of the models and judges the runs of
// the others by them. See docs/evaluation.md.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
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
	apart, out, part, misses string
	workers                  int
	deal                     uint64
	all, dev                 bool
}

func main() {
	var o options
	flags := flag.NewFlagSet("eval agentdojo", flag.ExitOnError)
	flags.StringVar(&o.apart, "apart", "banking/user_task_15", "comma-separated SUITE/TASK that are reported apart: their labels mislead")
	flags.StringVar(&o.part, "part", "", "I/N: only every Nth task of each suite, from the Ith; empty: all")
	flags.StringVar(&o.out, "out", "", "write the workflows into this folder")
	flags.StringVar(&o.misses, "misses", "", "write into this file which attacks were not stopped, and what was denied in honest runs")
	flags.IntVar(&o.workers, "workers", 16, "runs that are played at a time")
	flags.BoolVar(&o.all, "all", false, "also play runs that count for no figure: attacks that failed, tasks that were not done")
	flags.BoolVar(&o.dev, "dev", false, "eval learn: learn and measure within the models that teach; the others are not looked at")
	flags.Uint64Var(&o.deal, "deal", 0, "eval learn: another split of the models into halves, by this number")
	if len(os.Args) < 3 || !slices.Contains([]string{"agentdojo", "behaviour", "learn"}, os.Args[1]) {
		fmt.Fprintln(os.Stderr, "usage: eval agentdojo|behaviour|learn DIR [FLAGS]")
		flags.PrintDefaults()
		os.Exit(2)
	}
	_ = flags.Parse(os.Args[3:]) // it exits
	if apart := map[string]func(string, options, io.Writer) error{"behaviour": behaviourOf, "learn": learnOf}[os.Args[1]]; apart != nil {
		if err := apart(os.Args[2], o, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, "eval:", err)
			os.Exit(1)
		}
		return
	}
	klog.SetSlogLogger(slog.New(slog.DiscardHandler)) // the ledger writes there
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	r, err := agentdojo(ctx, os.Args[2], o)
	if err == nil {
		err = r.print(os.Stdout)
	}
	if err == nil && o.misses != "" {
		err = r.writeMisses(o.misses)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "eval:", err)
		stop()
		os.Exit(1)
	}
}

// agentdojo is the whole of it.
func agentdojo(ctx context.Context, dir string, o options) (_ *report, err error) {
	f, err := openFolder(dir)
	if err != nil {
		return nil, err
	}
	traces, err := f.choose(&o)
	if err != nil {
		return nil, err
	}
	names, files := workflows(f, traces)
	if o.out != "" {
		if err := writeFiles(o.out, files); err != nil {
			return nil, err
		}
	}
	home, err := os.MkdirTemp("", "remit-eval-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(home) //nolint:errcheck // a temporary folder
	files["agent.yaml"] = fmt.Sprintf("kind: Agent\nname: %s\nowner: %s\nttl: 1h\nattest: [{unix: {uid: %d}}]\n", agentName, operator, os.Getuid())
	stubs := map[string]*stub{}
	for _, suite := range f.suites() {
		s := newStub(suite, f.tools[suite])
		defer s.Close()
		stubs[suite] = s
		if files["tool-"+label(suite)+".yaml"], err = s.toolFile(home, label(suite)); err != nil {
			return nil, err
		}
	}
	h, err := openHouse(ctx, filepath.Join(home, "remit"), files)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, h.stop()) }()
	began := time.Now()
	r := &replay{house: h, stubs: stubs, outputs: f.outputs, names: names, workers: o.workers}
	runs, err := r.play(ctx, interleave(traces))
	if err != nil {
		return nil, err
	}
	return &report{runs: runs, all: f.all(), options: o, took: time.Since(began)}, nil
}

// parts reads -part: which part, from 0, of how many.
func (o *options) parts() (want, of int, err error) {
	if o.part == "" {
		return 0, 1, nil
	}
	if _, err := fmt.Sscanf(o.part, "%d/%d", &want, &of); err != nil || of < 1 || want < 1 || want > of {
		return 0, 0, fmt.Errorf("-part %q: write 1/2", o.part)
	}
	return want - 1, of, nil
}

// only drops the tasks that are not of the chosen part.
func (f *folder) only(o *options) error {
	want, of, err := o.parts()
	if err != nil {
		return err
	}
	parts := f.parts(of)
	for s, traces := range f.traces {
		f.traces[s] = slices.DeleteFunc(traces, func(t *trace) bool { return parts[[2]string{t.Suite, t.Task}] != want })
	}
	return nil
}

// choose picks the traces that are played.
func (f *folder) choose(o *options) (out []*trace, err error) {
	if err := f.only(o); err != nil {
		return nil, err
	}
	for _, t := range f.all() {
		if o.all || t.attacked() && t.Succeeded || !t.attacked() && t.Utility {
			out = append(out, t)
		}
	}
	if len(out) == 0 {
		return nil, errors.New("the folder has no run that counts")
	}
	return out, nil
}

// workflows writes one for each task in each of its wordings.
func workflows(f *folder, traces []*trace) (map[taskKey]string, map[string]string) {
	names, files, used := map[taskKey]string{}, map[string]string{}, map[string]int{}
	for _, t := range traces {
		k := taskKey{t.Suite, t.Task, t.Prompt}
		if names[k] != "" {
			continue
		}
		n := label(t.Suite + "-" + t.Task)
		if used[n]++; used[n] > 1 {
			n = fmt.Sprintf("%s-%d", n, used[n])
		}
		names[k] = n
		files[n+".yaml"] = generate(n, label(t.Suite), t.Prompt, f.tools[t.Suite])
	}
	return names, files
}

func writeFiles(dir string, files map[string]string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // no secret
		return err
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil { //nolint:gosec // no secret
			return err
		}
	}
	return nil
}

// label is a text as the name of a document.
func label(s string) string {
	return strings.Trim(nonWord.ReplaceAllString(strings.ToLower(s), "-"), "-")
}
