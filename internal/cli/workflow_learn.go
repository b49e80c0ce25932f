// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"os"
	"time"

	"github.com/spf13/cobra"

	"remit"
	"remit/internal/config"
	"remit/internal/server"
)

// learnFlags are what stands on the command line.
type learnFlags struct {
	agent, run, since, until, bound, ceiling, hours, traces, startBy, to string
	keep                                                                 []string
}

func (a *app) workflowLearnCommand() *cobra.Command {
	var f learnFlags
	cmd := &cobra.Command{Use: "learn NAME", Short: "Write the smallest workflow that would have allowed what was done under workflow NAME",
		Long: "Narrow workflow NAME to what the allowed decisions of the ledger used, and print it as a file, with what it rests on as comments.\n" +
			"Nothing is applied. Denied decisions, and those of runs that a finding is about, do not teach. Needs the role auditor.",
		Example: "  remit workflow learn deploy --since 2026-11-01 --to deploy.yaml",
		Args:    cobra.ExactArgs(1), RunE: func(c *cobra.Command, args []string) error { return a.workflowLearn(c.Context(), args[0], &f) }}
	flags := cmd.Flags()
	flags.StringVar(&f.agent, "agent", "", "only decisions of this agent")
	flags.StringVar(&f.run, "run", "", "only decisions of this run")
	flags.StringVar(&f.since, "since", "", "only decisions from this day or time (2026-11-01, or RFC 3339) on")
	flags.StringVar(&f.until, "until", "", "only decisions before it")
	flags.StringVar(&f.bound, "bound", "", "the configuration directory whose workflow NAME it never exceeds (default: the revision of the newest decision)")
	flags.StringVar(&f.ceiling, "ceiling", "", "the directory of the ceiling that it must stay within, too")
	flags.StringSliceVar(&f.keep, "keep", nil, "permissions of the bound that stay as they are, used or not")
	flags.StringVar(&f.hours, "hours", "", "bind it to the hours of the week that were used, in this time zone")
	flags.StringVar(&f.traces, "traces", "", "learn from this file of runs, a line of JSON each, not from the ledger; needs --bound, and no server")
	flags.StringVar(&f.startBy, "start-by", "", "with --traces, where the bound has no workflow NAME: who may start its runs (operator/NAME)")
	flags.StringVar(&f.to, "to", "", "write the workflow to this file, which must not exist")
	return cmd
}

func (a *app) workflowLearn(ctx context.Context, name string, f *learnFlags) error {
	o, err := f.options(name)
	if err != nil {
		return err
	}
	learned, err := a.learn(ctx, &o, f)
	if err != nil {
		return err
	}
	return a.showLearned(learned, f.to)
}

func (a *app) learn(ctx context.Context, o *server.LearnOptions, f *learnFlags) (*server.Learned, error) {
	if f.traces == "" {
		c, err := a.client()
		if err != nil {
			return nil, err
		}
		return server.Learn(ctx, c, *o)
	}
	if f.bound == "" {
		return nil, badUse("--traces needs --bound: the configuration that declares the agents and tools")
	}
	file, err := os.Open(f.traces)
	if err != nil {
		return nil, badUse("%v", err)
	}
	traces, err := server.ReadTraces(file)
	_ = file.Close() // it was only read
	if err != nil {
		return nil, err
	}
	return server.LearnTraces(traces, *o, remit.Name(f.startBy))
}

func (f *learnFlags) options(name string) (o server.LearnOptions, err error) {
	o = server.LearnOptions{Workflow: name, Agent: f.agent, Run: f.run, Keep: f.keep}
	for _, t := range []struct {
		flag, text string
		into       *time.Time
	}{{"since", f.since, &o.Since}, {"until", f.until, &o.Until}} {
		if t.text == "" {
			continue
		}
		if *t.into, err = time.Parse(time.DateOnly, t.text); err != nil {
			*t.into, err = time.Parse(time.RFC3339, t.text)
		}
		if err != nil {
			return o, badUse("--%s %q is no time: write 2026-11-01, or 2026-11-01T08:00:00Z", t.flag, t.text)
		}
	}
	for _, d := range []struct {
		dir  string
		into *map[string][]byte
	}{{f.bound, &o.Bound}, {f.ceiling, &o.Ceiling}} {
		if d.dir == "" {
			continue
		}
		if *d.into, err = config.Read(d.dir); err != nil {
			return o, badUse("%v", err)
		}
	}
	if f.hours != "" {
		if o.Hours, err = time.LoadLocation(f.hours); err != nil || f.hours == "Local" {
			return o, badUse("--hours %q is no time zone: write Europe/Berlin or UTC", f.hours)
		}
	}
	return o, nil
}

func (a *app) showLearned(l *server.Learned, to string) error {
	if to != "" {
		if err := writeNew(to, []byte(l.File)); err != nil {
			return badUse("%v", err)
		}
	}
	err := a.show(l, func() {
		if to == "" {
			_, _ = a.out.Write([]byte(l.File))
		}
	})
	a.note("learned from %d acts of %d runs; remit policy replay shows what it would have changed", l.Acts, l.Runs)
	for _, s := range l.Skipped {
		a.note("not learned from: %d, %s (first %s)", s.Count, s.Why, s.First)
	}
	return err
}

func writeNew(path string, b []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Close()); err != nil {
		err = errors.Join(err, os.Remove(path)) // half a workflow is none
	}
	return err
}
