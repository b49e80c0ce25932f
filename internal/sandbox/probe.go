// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
	"time"

	"remit"
)

// Problem is something that a host lacks, and what to do about it.
type Problem struct {
	What string `json:"what"`
	Fix  string `json:"fix"`
}

// Report is what a driver can do on this host, and how that was found out.
type Report struct {
	Driver   string        `json:"driver"`
	Tier     remit.Tier    `json:"tier"`
	Works    bool          `json:"works"`              // a sandbox ran and said what was expected
	Evidence string        `json:"evidence,omitempty"` // what it said
	Took     time.Duration `json:"took,omitempty"`     // from nothing to its answer
	Limits   []string      `json:"limits,omitempty"`   // the limits that this host enforces
	Problems []Problem     `json:"problems,omitempty"` // why not more
}

const helloProgram = "/remit-hello"

// Hello answers a Probe: the binary is started as remit-hello inside a sandbox, with a word that it repeats beside what it sees.
// It reports whether this process was started so.
func Hello(args []string, out io.Writer) bool {
	if len(args) != 2 || path.Base(args[0]) != path.Base(helloProgram) {
		return false
	}
	release, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	fmt.Fprintf(out, "%s uid=%d kernel=%s\n", args[1], os.Getuid(), strings.TrimSpace(string(release)))
	return true
}

// TryOut runs a sandbox of d that answers with a fresh word, and returns what it said. executable is this program on the host; empty:
// the sandbox has it of its own.
func TryOut(ctx context.Context, d Driver, executable string) (said string, took time.Duration, err error) {
	ctx, stop := context.WithTimeout(ctx, 30*time.Second)
	defer stop()
	word := rand.Text()
	begun := time.Now()
	spec := Spec{ID: remit.NewSandboxID(), Command: []string{helloProgram, word}, Observe: true, Limits: Limits{Wall: 20 * time.Second, Output: 4 << 10}}
	if executable != "" {
		spec.Mounts = []Mount{{From: executable, At: helloProgram}}
	}
	i, err := d.Prepare(ctx, spec)
	if err != nil {
		return "", 0, err
	}
	defer func() { err = errors.Join(err, i.Destroy(ctx)) }()
	if err := i.Start(ctx); err != nil {
		return "", 0, err
	}
	out, err := io.ReadAll(i.Stdout())
	if err != nil {
		return "", 0, fmt.Errorf("read the answer: %w", err)
	}
	took = time.Since(begun)
	exit, err := i.Wait(ctx)
	if err != nil {
		return "", 0, err
	}
	said, ok := strings.CutPrefix(string(bytes.TrimSpace(out)), word+" ")
	if !ok || exit.Cause != CauseExited || exit.Code != 0 {
		return "", 0, fmt.Errorf("the sandbox did not answer: %s %s; it said %.200q and %.200q", exit, exit.Detail, out, i.Stderr())
	}
	return said, took, nil
}
