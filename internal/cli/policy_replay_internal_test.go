// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"remit"
	"remit/internal/server"
)

// hostile is what an agent may have called things.
const hostile = `<script>alert(1)</script>"'&` + "\x1b[31m"

func hostileReport() server.ReplayReport {
	group := server.ReplayGroup{Agent: hostile, Action: hostile, Target: hostile, Differs: []string{hostile}, Count: 1, Decisions: []remit.DecisionID{hostile},
		Was: server.ReplayAnswer{Effect: remit.Allow, Permission: remit.PermissionRef{Workflow: hostile, Stage: hostile, Name: hostile}, TTL: hostile},
		Now: server.ReplayAnswer{Reasons: []string{hostile}, Obligations: []string{hostile}, Limits: map[string]int64{hostile: 1}}}
	return server.ReplayReport{Revision: hostile, Decisions: 3, Different: 1, NotJudged: 1, Same: 1, Groups: []server.ReplayGroup{group},
		Unknown: []server.ReplayUnknown{{Why: hostile, Count: 1, Decisions: []remit.DecisionID{hostile}}},
		Unused:  []remit.PermissionRef{{Workflow: hostile, Stage: hostile, Name: hostile}}}
}

// TestReplayReportEscapes: whatever things are called, the page runs nothing and the terminal is not drawn on.
func TestReplayReportEscapes(t *testing.T) {
	page := filepath.Join(t.TempDir(), "report.html")
	var out bytes.Buffer
	a := &app{out: &out, err: &out, output: "table"}
	if code := codeOfExit(a.showReplay(hostileReport(), page)); code != 3 {
		t.Errorf("exit code %d", code)
	}
	b, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(b), "&lt;script&gt;alert(1)&lt;/script&gt;&#34;&#39;&amp;"); n < 12 || strings.Contains(string(b), "<script") {
		t.Errorf("%d escaped in\n%s", n, b)
	}
	if strings.Contains(out.String(), "\x1b") {
		t.Errorf("%q", out.String())
	}
	if info, err := os.Stat(page); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info.Mode(), err)
	}
}

// codeOfExit is the exit code that an error stands for; 1 for one that has none of its own.
func codeOfExit(err error) int {
	if child, ok := errors.AsType[*childError](err); ok {
		return child.code
	}
	if err != nil {
		return 1
	}
	return 0
}

// TestReplayExitCodes: 0 none differs, 3 some do, 1 none could be judged.
func TestReplayExitCodes(t *testing.T) {
	for want, r := range map[int]server.ReplayReport{
		0: {Decisions: 2, Same: 1, NotJudged: 1},
		3: {Decisions: 2, Same: 1, Different: 1, Groups: hostileReport().Groups},
		1: {Decisions: 2, NotJudged: 2},
	} {
		var out bytes.Buffer
		a := &app{out: &out, err: &out, output: "json"}
		if got := codeOfExit(a.showReplay(r, "")); got != want {
			t.Errorf("%+v: exit code %d, want %d", r, got, want)
		}
	}
	a := &app{out: &bytes.Buffer{}, err: &bytes.Buffer{}, output: "table"}
	if got := codeOfExit(a.showReplay(server.ReplayReport{}, "")); got != 0 {
		t.Errorf("an empty history: %d", got)
	}
}
