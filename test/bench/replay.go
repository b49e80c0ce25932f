// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"remit/internal/server"
)

// replay asks for as many decisions as the flag says over HTTPS, as agents do, and has the shipped command judge them all again by a
// configuration in which one of the workflows differs.
func (b *bench) replay(ctx context.Context) error {
	ours := *b
	ours.opa = "" // nobody to compare with
	c, err := ours.newContest(ctx, "replay", false)
	b.stops = append(b.stops, ours.stops...)
	if err != nil {
		return err
	}
	for c.sides[0].answers < int64(b.replayed) {
		if _, err := c.sides[0].measure(agents, 2*b.round); err != nil {
			return err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	next := b.path("next")
	if err := writeChanged(next, policyFiles(false)); err != nil {
		return err
	}
	m, err := b.commandOn(ctx, c.in, next)
	if err != nil {
		return err
	}
	r := m.report
	if int64(r.Decisions) != c.sides[0].answers || r.NotJudged != 0 || r.Different == 0 || r.Same+r.Different != r.Decisions || len(r.Groups) != permissions {
		return fmt.Errorf("%d answers; the report: %d decisions, %d the same, %d different in %d groups, %d not judged", c.sides[0].answers, r.Decisions, r.Same, r.Different, len(r.Groups), r.NotJudged)
	}
	n := float64(r.Decisions)
	b.table.add(row{what: fmt.Sprintf("replay of %d recorded decisions, %d different, by CPU of two cores", r.Decisions, r.Different),
		ours: fmt.Sprintf("%s by the clock, %s/s; CPU of the command %s µs, of the server %s µs; it holds %s MB", m.took.Round(10*time.Millisecond), figure(n/m.took.Seconds()),
			figure(float64(m.command.Microseconds())/n), figure(float64(m.server.Microseconds())/n), figure(float64(m.memory)/1e6)),
		got: (m.command + m.server).Seconds() / 2 / n * 1e6, want: 60, unit: "s a million"})
	return nil
}

// writeChanged writes the files with a shorter life for what the first workflow grants.
func writeChanged(dir string, files map[string]string) error {
	first := workflowName(0) + ".yaml"
	files[first] = strings.ReplaceAll(files[first], "ttl: 5m", "ttl: 2m")
	err := os.Mkdir(dir, 0o700)
	for file, content := range files {
		err = errors.Join(err, os.WriteFile(filepath.Join(dir, file), []byte(content), 0o600))
	}
	return err
}

// replayRun is what one run of the command took and found.
type replayRun struct {
	took, command, server time.Duration // by the clock, and of processor time
	memory                int64         // most that the command held, in bytes
	report                server.ReplayReport
}

func (b *bench) commandOn(ctx context.Context, in *installation, dir string) (m replayRun, err error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Minute)
	defer cancel()
	var out, said bytes.Buffer
	cmd := exec.CommandContext(ctx, b.remit, "--dir", in.dir, "policy", "replay", dir, "--output", "json")
	cmd.Stdout, cmd.Stderr = &out, &said
	before, err := cpu(in.pid)
	if err != nil {
		return m, err
	}
	began := time.Now()
	err = cmd.Run()
	m.took = time.Since(began)
	if cmd.ProcessState.ExitCode() != 3 { // some differ
		return m, fmt.Errorf("policy replay: %w\n%s", errors.Join(err, ctx.Err()), said.Bytes())
	}
	after, err := cpu(in.pid)
	m.server, m.command = after-before, cmd.ProcessState.UserTime()+cmd.ProcessState.SystemTime()
	if u, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage); ok {
		m.memory = u.Maxrss << 10
	}
	return m, errors.Join(err, json.Unmarshal(out.Bytes(), &m.report))
}
