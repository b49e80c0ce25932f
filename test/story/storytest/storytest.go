// SPDX-License-Identifier: Apache-2.0

// Package storytest is what the tests of the stories share: a story is played as a user plays it, whole, and with a hole in its rules.
package storytest

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// Build skips where no story can be played, and returns a folder with remit and the story's program.
func Build(t *testing.T, name string) string {
	t.Helper()
	if testing.Short() {
		t.Skip("the story takes a minute, which SHORT=1 leaves out")
	}
	if os.Getuid() != 0 {
		t.Skip("the story needs root, for sandboxes and a user of the agent's own")
	}
	dir := t.TempDir()
	for to, from := range map[string]string{"remit": "remit/cmd/remit", name: "remit/test/" + name} {
		build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", filepath.Join(dir, to), from)
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("build %s: %v\n%s", from, err, out)
		}
	}
	return dir
}

// kept is how a story that did not go as told names the folder that it leaves.
var kept = regexp.MustCompile(`(?m)^kept: (/.+)$`)

// Play plays the story of that name in bin for at most six minutes, and returns all that it said. The folder that a story leaves when it
// does not go as told is removed, unless the test failed.
func Play(t *testing.T, bin, name string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 6*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(bin, name), append([]string{"-remit", filepath.Join(bin, "remit")}, args...)...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 20 * time.Second
	out, err := cmd.CombinedOutput()
	if left := kept.FindSubmatch(out); left != nil {
		t.Cleanup(func() {
			if t.Failed() {
				return
			}
			if err := os.RemoveAll(string(left[1])); err != nil {
				t.Error(err)
			}
		})
	}
	return string(out), err
}

// Checked runs the checks of the configuration that an example's README names.
func Checked(t *testing.T, bin, config string) {
	t.Helper()
	for _, args := range [][]string{{"workflow", "check"}, {"policy", "test"}} {
		if out, err := exec.CommandContext(t.Context(), filepath.Join(bin, "remit"), append(args, config)...).CombinedOutput(); err != nil {
			t.Errorf("remit %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
}

// Holed copies an example, with another text in place of one in a file of it, and returns the copy.
func Holed(t *testing.T, examples, file, rule, hole string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(examples)); err != nil {
		t.Fatal(err)
	}
	file = filepath.Join(dir, file)
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(b), rule) {
		t.Fatalf("the example has no rule %q", rule)
	}
	if err := os.WriteFile(file, []byte(strings.Replace(string(b), rule, hole, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}
