// SPDX-License-Identifier: Apache-2.0

// Command guards switches off every guard of the security model in turn and demands that its tests go red.
//
// A guard is marked on the line directly above it:
//
//	//remit:guard S11 TestStateMovedDuringMint
//	if moved {
//		return refuse
//	}
//
// that is: rule, tests, and the directory of the tests' package where it is another one. Switched off, an if never runs its
// body, and another statement does not run at all. All guards are compiled once, each with a switch, through go's -overlay;
// the tree stays as it is. A test that hangs without the guard, or that fails with it, is a fault of the mark, not a success.
//
// With -check nothing runs: marks and the table in THREAT_MODEL.md must agree; -write writes the table.
package main

import (
	"context"
	"flag"
	"fmt"
	"hash/fnv"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

type options struct {
	rule, file, part    string
	list, check, write  bool
	fewer, short, shout bool
	unlisted            bool
	timeout             time.Duration
}

func main() {
	var o options
	flag.StringVar(&o.rule, "rule", "", "only guards of this rule, as S11")
	flag.StringVar(&o.file, "file", "", "only guards in files whose path contains this")
	flag.StringVar(&o.part, "part", "", "only the I-th of N parts, as 3/8; commit/N takes the part by the commit's hash")
	flag.BoolVar(&o.list, "list", false, "print the guards and run nothing")
	flag.BoolVar(&o.check, "check", false, "run nothing; fail unless marks, tests and the table in THREAT_MODEL.md agree")
	flag.BoolVar(&o.unlisted, "unlisted", false, "with -check: let there be guards that the table does not list yet")
	flag.BoolVar(&o.write, "write", false, "write the table in THREAT_MODEL.md")
	flag.BoolVar(&o.fewer, "fewer", false, "with -write: let the table shrink")
	flag.BoolVar(&o.short, "short", false, "leave out tests that skip under -short; they are reported as not run")
	flag.BoolVar(&o.shout, "v", false, "print what the tests of a guard that stays green said")
	flag.DurationVar(&o.timeout, "timeout", 2*time.Minute, "for one test")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "guards:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) error {
	out, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		return fmt.Errorf("find the module: %w", err)
	}
	root := strings.TrimSpace(string(out))
	sources, err := collect(root)
	if err != nil {
		return err
	}
	var marks []mark
	for _, s := range sources {
		marks = append(marks, s.marks...)
	}
	switch {
	case o.write:
		return write(root, marks, o.fewer)
	case o.check:
		if bad := check(root, marks, o.unlisted); len(bad) > 0 {
			return fmt.Errorf("marks and table differ; go run ./test/guards -write brings the table up to date\n%s", strings.Join(bad, "\n"))
		}
		return nil
	}
	chosen, err := choose(ctx, marks, o)
	if err != nil {
		return err
	}
	if o.list {
		for _, m := range chosen {
			fmt.Printf("%-4s %s:%d %s  %s: %s\n", m.Rule, m.File, m.Line, m.Func, m.Dir, strings.Join(m.Tests, ","))
		}
		return nil
	}
	w, err := newWorkshop(root, sources)
	if err != nil {
		return err
	}
	return w.runAll(ctx, chosen, o)
}

// choose keeps what the flags name, in order of packages so that progress reads well.
func choose(ctx context.Context, marks []mark, o options) ([]mark, error) {
	part, parts, err := readPart(ctx, o.part)
	if err != nil {
		return nil, err
	}
	var chosen []mark
	for _, m := range marks {
		h := fnv.New32a()
		fmt.Fprintf(h, "%s %s", m.Rule, m.where())
		if (o.rule == "" || m.Rule == o.rule) && strings.Contains(m.File, o.file) && int(h.Sum32()%uint32(parts)) == part {
			chosen = append(chosen, m)
		}
	}
	slices.SortStableFunc(chosen, func(a, b mark) int { return strings.Compare(a.Dir, b.Dir) })
	return chosen, nil
}

// readPart reads I/N with I from 1, or commit/N, into a part from 0 and a number of parts.
func readPart(ctx context.Context, s string) (part, parts int, err error) {
	if s == "" {
		return 0, 1, nil
	}
	if n, ok := strings.CutPrefix(s, "commit/"); ok {
		out, err := exec.CommandContext(ctx, "git", "rev-parse", "HEAD").Output()
		if err != nil {
			return 0, 0, fmt.Errorf("read the commit's hash: %w", err)
		}
		h := fnv.New32a()
		h.Write(out)
		s = fmt.Sprintf("%d/%s", h.Sum32()%10000, n)
		if _, err := fmt.Sscanf(s, "%d/%d", &part, &parts); err != nil || parts < 1 {
			return 0, 0, fmt.Errorf("part %q: want commit/N", s)
		}
		return part % parts, parts, nil
	}
	if _, err := fmt.Sscanf(s, "%d/%d", &part, &parts); err != nil || part < 1 || part > parts {
		return 0, 0, fmt.Errorf("part %q: want I/N with I from 1 to N, or commit/N", s)
	}
	return part - 1, parts, nil
}

// verdict is what came of one guard.
type verdict struct{ word, detail string }

// runAll prints one line a guard and fails unless all that could be run went red.
func (w *workshop) runAll(ctx context.Context, marks []mark, o options) error {
	_ = syscall.Setpriority(syscall.PRIO_PROCESS, 0, 10) // best effort: only politeness
	start, count := time.Now(), map[string]int{}
	whole := map[string]verdict{} // by package and test: how the test does with every guard in place
	for i := range marks {
		m := &marks[i]
		v := w.judge(ctx, m, o, whole)
		if ctx.Err() != nil {
			return fmt.Errorf("stopped after %d of %d guards: %w", i, len(marks), ctx.Err())
		}
		count[v.word]++
		fmt.Printf("[%d/%d %3.0f s] %-7s | %-4s | %s:%d %s | %s: %s\n", i+1, len(marks), time.Since(start).Seconds(), v.word, m.Rule,
			m.File, m.Line, m.Func, m.Dir, strings.Join(m.Tests, ","))
		if v.detail != "" {
			fmt.Println("    " + strings.ReplaceAll(strings.TrimSpace(v.detail), "\n", "\n    "))
		}
	}
	fmt.Printf("%d guards: %d red, %d GREEN, %d FAULT, %d not run; %.0f s\n", len(marks), count["red"], count["GREEN"], count["FAULT"],
		count["not run"], time.Since(start).Seconds())
	if count["GREEN"]+count["FAULT"] > 0 {
		return fmt.Errorf("%d guards are not held by their tests", count["GREEN"]+count["FAULT"])
	}
	return nil
}

// judge runs the guard's tests once with everything in place and once without the guard.
func (w *workshop) judge(ctx context.Context, m *mark, o options, whole map[string]verdict) verdict {
	if _, err := w.build(ctx, m.Dir); err != nil {
		return verdict{"FAULT", err.Error()}
	}
	for _, name := range m.Tests {
		key := filepath.Join(m.Dir, name)
		v, ok := whole[key]
		if !ok {
			v = w.whole(ctx, m, name, o)
			whole[key] = verdict{v.word, "see above: " + name}
		}
		if v.word == "FAULT" || v.word == "not run" {
			return v
		}
		got, text := w.test(ctx, m, name, m.Guard, v.word == "short", o.timeout)
		switch {
		case got == hung:
			return verdict{"FAULT", name + " hangs without the guard; it should fail\n" + tail(text)}
		case got != failed && o.shout:
			return verdict{"GREEN", name + " " + string(got) + "\n" + text}
		case got != failed:
			return verdict{"GREEN", name + " " + string(got)}
		}
	}
	return verdict{"red", ""}
}

// whole runs a test with every guard in place: under -short if it does not skip then, else in full.
func (w *workshop) whole(ctx context.Context, m *mark, name string, o options) verdict {
	got, text := w.test(ctx, m, name, "", true, o.timeout)
	if got == passed {
		return verdict{word: "short"}
	}
	if got == skipped && !o.short {
		if got, text = w.test(ctx, m, name, "", false, o.timeout); got == passed {
			return verdict{word: "long"}
		}
	}
	if got == skipped {
		return verdict{"not run", name + " is skipped here: " + tail(text)}
	}
	return verdict{"FAULT", fmt.Sprintf("%s %s with every guard in place\n%s", name, got, tail(text))}
}

func tail(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(lines[max(0, len(lines)-15):], "\n")
}
