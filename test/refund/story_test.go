// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"remit/internal/testpostgres"
)

// TestStory plays the story on a remit of this tree.
func TestStory(t *testing.T) {
	bin := build(t)
	for _, args := range [][]string{{"workflow", "check"}, {"policy", "test"}} { // as the example's README says
		if out, err := exec.CommandContext(t.Context(), filepath.Join(bin, "remit"), append(args, "../../examples/refund/config")...).CombinedOutput(); err != nil {
			t.Errorf("remit %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	if out, err := play(t, bin, "../../examples/refund"); err != nil || !strings.Contains(out, "Every step went as told") {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestStoryFindsAHole plays it with rules that have a hole: the story has to fail there, and to say so.
func TestStoryFindsAHole(t *testing.T) {
	bin := build(t)
	for _, h := range []struct{ name, rule, hole, found string }{
		{"any customer's rows", "target: read-transactions/read, where: {customer: $customer,", "target: read-transactions/read, where: {customer: {any: true},",
			"another customer: it is not denied"},
		{"nobody approves", "when: {amount: {above: 100}}", "when: {amount: {above: 5000}}", "it is not denied with approval_needed"},
	} {
		t.Run(h.name, func(t *testing.T) {
			examples := t.TempDir()
			if err := os.CopyFS(examples, os.DirFS("../../examples/refund")); err != nil {
				t.Fatal(err)
			}
			file := filepath.Join(examples, "config", "refund.yaml")
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(string(b), h.rule) {
				t.Fatalf("the example has no rule %q", h.rule)
			}
			if err := os.WriteFile(file, []byte(strings.Replace(string(b), h.rule, h.hole, 1)), 0o600); err != nil {
				t.Fatal(err)
			}
			if out, err := play(t, bin, examples); err == nil || !strings.Contains(out, h.found) {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}

// build skips where the story cannot be played, and returns a folder with its programs.
func build(t *testing.T) string {
	t.Helper()
	if testing.Short() {
		t.Skip("the story takes a minute, which SHORT=1 leaves out")
	}
	if os.Getuid() != 0 {
		t.Skip("the story needs root, for sandboxes and a user of the agent's own")
	}
	if _, err := testpostgres.Bin(); errors.Is(err, testpostgres.ErrMissing) {
		t.Skip(err)
	}
	if _, err := os.Stat("../node/node_modules/oidc-provider"); err != nil {
		t.Skip("the story needs oidc-provider (make node)")
	}
	dir := t.TempDir()
	for to, from := range map[string]string{"remit": "remit/cmd/remit", "refund": "remit/test/refund"} {
		build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", filepath.Join(dir, to), from)
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("build %s: %v\n%s", from, err, out)
		}
	}
	return dir
}

func play(t *testing.T, bin, examples string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 6*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(bin, "refund"), "-remit", filepath.Join(bin, "remit"), "-examples", examples)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 20 * time.Second
	out, err := cmd.CombinedOutput()
	return string(out), err
}
