// SPDX-License-Identifier: Apache-2.0

// Package sandboxtest is the suite that every sandbox driver passes: the isolation table, the limits, and that nothing is left.
package sandboxtest

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"remit"
	"remit/internal/sandbox"
)

// Main builds the program that is the parts of sandboxes, statically, makes a folder for a driver's state, runs the tests and removes
// both.
func Main(m *testing.M, executable, state *string) (int, error) {
	dir, err := os.MkdirTemp("", "box")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	*executable, *state = filepath.Join(dir, "remit"), filepath.Join(dir, "state")
	if err := Build("box", *executable); err != nil {
		return 0, err
	}
	return m.Run(), nil
}

// Build builds one of the programs below this package, statically.
func Build(name, to string) error {
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", to, "remit/internal/sandbox/sandboxtest/"+name)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build the parts of sandboxes: %w: %s", err, out)
	}
	return nil
}

// Short returns a folder whose path is short enough for sockets.
func Short(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "box")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// Result is what a command in a sandbox did.
type Result struct {
	Exit   sandbox.Exit
	Out    string
	Err    string
	ReadBy error
}

// Run runs a command to its end, and destroys the sandbox.
func Run(t testing.TB, d sandbox.Driver, s sandbox.Spec) Result {
	t.Helper()
	ctx, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	i := Start(t, d, s)
	_ = i.Stdin().Close()
	out, err := io.ReadAll(i.Stdout())
	exit, werr := i.Wait(ctx)
	if werr != nil {
		t.Fatalf("wait: %v; it said %.500q and %.500q", werr, out, i.Stderr())
	}
	if err := i.Destroy(ctx); err != nil {
		t.Errorf("destroy: %v", err)
	}
	return Result{exit, string(out), string(i.Stderr()), err}
}

// Start prepares and starts a sandbox, which the test's end destroys.
func Start(t testing.TB, d sandbox.Driver, s sandbox.Spec) *sandbox.Instance {
	t.Helper()
	if s.ID == "" {
		s.ID = remit.NewSandboxID()
	}
	i, err := d.Prepare(t.Context(), s)
	if err != nil {
		t.Fatalf("prepare: %v", err)
	}
	t.Cleanup(func() {
		if err := i.Destroy(context.Background()); err != nil {
			t.Errorf("destroy: %v", err)
		}
	})
	if err := i.Start(t.Context()); err != nil {
		t.Fatalf("start: %v; it said %s", err, i.Stderr())
	}
	return i
}

// Shell is a command of the shell.
func Shell(lines ...string) []string { return []string{"/bin/sh", "-c", strings.Join(lines, "\n")} }
