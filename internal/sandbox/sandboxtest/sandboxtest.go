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
// both. If this process is one that a test started to own a sandbox and be killed, it does that with the driver that own makes.
func Main(m *testing.M, executable, state *string, own func(state, executable string) (sandbox.Driver, error)) (int, error) {
	if dir := os.Getenv(ownerVariable); dir != "" {
		d, err := own(dir, os.Getenv(ownerVariable+"_EXE"))
		if err == nil {
			err = beOwner(d)
		}
		return 1, err
	}
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
	args := []string{"build", "-trimpath", "-ldflags=-s -w", "-o", to}
	if overlay := os.Getenv("REMIT_GUARD_OVERLAY"); overlay != "" { // test/guards switches off what the program does
		args = append(args, "-overlay", overlay)
	}
	cmd := exec.Command("go", append(args, "remit/internal/sandbox/sandboxtest/"+name)...)
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

// ownerVariable tells a process to own a sandbox: the folder of the driver's state.
const ownerVariable = "REMIT_TEST_SANDBOX_OWNER"

// beOwner starts a sandbox, says its name and waits to be killed.
func beOwner(d sandbox.Driver) error {
	i, err := d.Prepare(context.Background(), sandbox.Spec{ID: remit.NewSandboxID(), Command: Shell("sleep 1000 & sleep 1000")})
	if err != nil {
		return err
	}
	if err := i.Start(context.Background()); err != nil {
		return err
	}
	fmt.Println(i.ID())
	select {}
}

// Unguarded returns a program that becomes executable under the name, with the guard switched off that test/guards names: a sandbox's
// parts get no environment. Without such a guard it is executable itself.
func Unguarded(executable, name string) (string, error) {
	guard := os.Getenv("REMIT_GUARD_OFF")
	if guard == "" {
		return executable, nil
	}
	at := executable + "-" + name
	script := fmt.Sprintf("#!/bin/bash\nexport REMIT_GUARD_OFF=%q\nexec -a %s %s \"$@\"\n", guard, name, executable)
	return at, os.WriteFile(at, []byte(script), 0o755)
}
