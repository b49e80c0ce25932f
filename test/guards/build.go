// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// switchEnv names the guard that a test binary runs without. Tests that start other processes hand it on.
const switchEnv = "REMIT_GUARD_OFF"

// overlayEnv names the overlay, for tests that build the programs that they start.
const overlayEnv = "REMIT_GUARD_OVERLAY"

// helper is added to every package that has guards.
const helper = `// SPDX-License-Identifier: Apache-2.0

package %s

import "os"

var remitGuardOff = os.Getenv("` + switchEnv + `")

func remitGuard(guard string) bool { return guard != remitGuardOff }

func remitGuardValue[T any](guard string, v T) T {
	if guard == remitGuardOff {
		var zero T
		return zero
	}
	return v
}
`

// workshop builds test binaries in which each guard can be switched off by name, so that one build serves all guards.
type workshop struct {
	root, dir string // the module, and where overlay and binaries go
	overlay   string
	built     map[string]string // binary by package directory
}

// newWorkshop writes the changed files and the overlay that puts them in place of the real ones; the tree stays untouched.
func newWorkshop(root string, sources []*source) (*workshop, error) {
	w := &workshop{root: root, dir: filepath.Join(root, "bin", "guards"), built: map[string]string{}}
	replace := map[string]string{}
	put := func(rel string, text []byte) error {
		to := filepath.Join(w.dir, "_src", rel) // go leaves out what begins with _
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		replace[filepath.Join(root, rel)] = to
		return os.WriteFile(to, text, 0o644)
	}
	for _, s := range sources {
		if err := put(s.path, s.mutant()); err != nil {
			return nil, fmt.Errorf("write the changed %s: %w", s.path, err)
		}
		name := filepath.Join(filepath.Dir(s.path), "remit_guard_switch.go")
		if err := put(name, fmt.Appendf(nil, helper, s.file.Name.Name)); err != nil {
			return nil, fmt.Errorf("write the switch: %w", err)
		}
	}
	text, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return nil, err
	}
	w.overlay = filepath.Join(w.dir, "overlay.json")
	return w, os.WriteFile(w.overlay, text, 0o644)
}

// build compiles the tests of a package.
func (w *workshop) build(ctx context.Context, dir string) (string, error) {
	if bin, ok := w.built[dir]; ok {
		return bin, nil
	}
	fmt.Fprintf(os.Stderr, "building the tests of %s\n", dir)
	bin := filepath.Join(w.dir, strings.ReplaceAll(dir, "/", "-")+".test")
	cmd := exec.CommandContext(ctx, "go", "test", "-c", "-vet=off", "-overlay", w.overlay, "-o", bin, "./"+dir)
	cmd.Dir = w.root
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the tests of %s: %w\n%s", dir, err, out)
	}
	w.built[dir] = bin
	return bin, nil
}

// outcome of one test in one run.
type outcome string

const (
	passed  outcome = "passed"
	failed  outcome = "failed"
	skipped outcome = "skipped"
	missing outcome = "missing" // no such test ran
	hung    outcome = "timed out"
)

// test runs one test with the guard switched off ("" for none) and returns what came of it and what it said.
func (w *workshop) test(ctx context.Context, m *mark, name, guard string, short bool, most time.Duration) (outcome, string) {
	ctx, cancel := context.WithTimeout(ctx, most+10*time.Second)
	defer cancel()
	args := []string{"-test.v", "-test.count=1", "-test.run", pattern(name), "-test.timeout", most.String()}
	if short {
		args = append(args, "-test.short")
	}
	cmd := exec.CommandContext(ctx, w.built[m.Dir], args...)
	cmd.Dir = filepath.Join(w.root, m.Dir)
	cmd.Env = append(os.Environ(), switchEnv+"="+guard, overlayEnv+"="+w.overlay)
	cmd.WaitDelay = time.Second // a child may keep the pipe open
	out, err := cmd.CombinedOutput()
	text := string(out)
	switch {
	case ctx.Err() != nil || strings.Contains(text, "panic: test timed out"):
		return hung, text
	case err != nil:
		return failed, text
	case strings.Contains(text, "--- SKIP: "+name+" ") && !strings.Contains(text, "--- PASS: "+name+" "):
		return skipped, text
	case strings.Contains(text, "--- PASS: "+name+" "):
		return passed, text
	}
	return missing, text
}

// pattern matches exactly the test, or subtest, of that name.
func pattern(name string) string {
	parts := strings.Split(name, "/")
	for i, p := range parts {
		parts[i] = "^" + p + "$"
	}
	return strings.Join(parts, "/")
}
