// SPDX-License-Identifier: Apache-2.0

package script_test

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// groups are the commands that have commands below them: their verb is two words.
var groups = []string{"agent", "credential", "evidence", "grant", "ledger", "policy", "run", "sandbox", "tool", "workflow"}

// commandOf returns the verb of a command line that begins with remit: "serve", "run start".
func commandOf(line string) string {
	words := strings.Fields(line)[1:]
	for len(words) > 0 && strings.HasPrefix(words[0], "-") { // --dir DIR before the verb
		words = words[min(2, len(words)):]
	}
	if len(words) == 0 {
		return ""
	}
	if len(words) > 1 && slices.Contains(groups, words[0]) {
		return words[0] + " " + words[1]
	}
	return words[0]
}

// TestReadme checks that every command of README.md is run by a script. A make target counts as the command that it runs.
func TestReadme(t *testing.T) {
	readme, err := os.ReadFile(filepath.Join("..", "..", "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	var promised []string
	for _, block := range regexp.MustCompile("(?s)```sh\n(.*?)```").FindAllStringSubmatch(string(readme), -1) {
		for line := range strings.Lines(block[1]) {
			if strings.HasPrefix(line, "remit ") {
				promised = append(promised, commandOf(line))
			}
		}
	}
	if len(promised) < 5 {
		t.Fatalf("README.md promises only %v: is it read rightly?", promised)
	}
	scripts, err := filepath.Glob(filepath.Join("testdata", "*.txtar"))
	if err != nil {
		t.Fatal(err)
	}
	done := map[string]bool{}
	call := regexp.MustCompile(`(?m)^(?:exec|! exec|exits \d|eventually) (remit .*)$`)
	for _, script := range scripts {
		b, err := os.ReadFile(script)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range call.FindAllStringSubmatch(string(b), -1) {
			done[commandOf(m[1])] = true
		}
	}
	for _, p := range promised {
		if !done[p] {
			t.Errorf("README.md promises %q, and no script in testdata runs it", "remit "+p)
		}
	}
}

// TestPages checks that a script runs every command of a page, exactly as it is written there.
func TestPages(t *testing.T) {
	for page, want := range map[string]struct {
		script   string
		commands int
	}{"policy-ci.md": {"signed.txtar", 20}, "mcp.md": {"clients.txtar", 11}} {
		doc, err := os.ReadFile(filepath.Join("..", "..", "docs", page))
		if err != nil {
			t.Fatal(err)
		}
		script, err := os.ReadFile(filepath.Join("testdata", want.script))
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for _, block := range regexp.MustCompile("(?s)```sh\n(.*?)```").FindAllStringSubmatch(string(doc), -1) {
			for line := range strings.Lines(block[1]) {
				command, _, _ := strings.Cut(line, " #")
				command = strings.TrimSpace(command)
				n++
				if !strings.Contains(string(script), "\nexec "+command+"\n") && !strings.Contains(string(script), " -- "+command+"\n") { // as an agent
					t.Errorf("%s does not run %q", want.script, command)
				}
			}
		}
		if n < want.commands {
			t.Errorf("%s has only %d commands: is it read rightly?", page, n)
		}
	}
}
