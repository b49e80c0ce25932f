// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"remit/internal/testpostgres"
	"remit/test/story/storytest"
)

// TestStory plays the story on a remit of this tree. The report says what ended.
func TestStory(t *testing.T) {
	bin := build(t)
	storytest.Checked(t, bin, "../../examples/takeover/config")
	report := filepath.Join(t.TempDir(), "report.md")
	if out, err := storytest.Play(t, bin, "takeover", "-examples", "../../examples/takeover", "-report", report); err != nil || !strings.Contains(out, "Every step went as told") {
		t.Errorf("%v\n%s", err, out)
	}
	b, err := os.ReadFile(report)
	for _, want := range []string{"canary_touched", "the running statement of the open session", "leases (of the suspension)", "suspended"} {
		if err != nil || !strings.Contains(string(b), want) {
			t.Errorf("the report does not say %q: %v\n%s", want, err, b)
		}
	}
}

// TestStoryFindsAHole plays it with settings that have a hole: the story has to fail there, and to say so.
func TestStoryFindsAHole(t *testing.T) {
	bin := build(t)
	for _, h := range []struct{ name, file, rule, hole, found string }{
		{"a canary that only tells", "findings.yaml", "canary_touched: suspend", "canary_touched: notice", "the open session goes on"},
		{"salaries, too", "config/mail.yaml", "  - name: balance\n", "  - {name: salaries, who: agent/mail, action: http.get, target: payroll, where: {path: /v1/salaries}}\n  - name: balance\n",
			"it is not denied"},
	} {
		t.Run(h.name, func(t *testing.T) {
			examples := storytest.Holed(t, "../../examples/takeover", h.file, h.rule, h.hole)
			if out, err := storytest.Play(t, bin, "takeover", "-examples", examples); err == nil || !strings.Contains(out, h.found) {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}

// build skips where the story cannot be played, and returns a folder with its programs.
func build(t *testing.T) string {
	t.Helper()
	if _, err := testpostgres.Bin(); errors.Is(err, testpostgres.ErrMissing) {
		t.Skip(err)
	}
	return storytest.Build(t, "takeover")
}
