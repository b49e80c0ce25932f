// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestScripts: every attack says what it is, names a file that there is, and no two are one.
func TestScripts(t *testing.T) {
	scripts, err := readScripts("scripts", "")
	if err != nil {
		t.Fatal(err)
	}
	if len(scripts) < 100 {
		t.Errorf("only %d attacks", len(scripts))
	}
	titles := map[string]bool{}
	for _, s := range scripts {
		if _, err := os.Stat(filepath.Join("..", "..", s.file)); err != nil {
			t.Errorf("%s: the guard's file: %v", s.name, err)
		}
		if titles[s.title] {
			t.Errorf("%s: there is another attack with this title", s.name)
		}
		titles[s.title] = true
		b, err := os.ReadFile(s.path)
		if err != nil {
			t.Fatal(err)
		}
		body := string(b)
		if !strings.Contains(body, "\nrefused") && !strings.Contains(body, "\nrace ") && !strings.Contains(body, "\nstorm ") {
			t.Errorf("%s demands no refusal", s.name)
		}
		legitimate := false
		for _, word := range []string{"\nallowed", "\nanswered", "\nrace ", "\nstorm ", "\noperator ", "\ngrant ", "\neventually "} {
			legitimate = legitimate || strings.Contains(body, word)
		}
		if !legitimate && s.name != "104-key-that-nobody-knows" && s.name != "014-socket-of-a-launch" {
			t.Errorf("%s does not show what works where it is legitimate", s.name)
		}
	}
}

// TestVerdicts: what the runner says of attacks that succeed, are refused rightly or by luck, prove nothing, or cannot be run.
func TestVerdicts(t *testing.T) {
	const head = "# Title\n#   rule      S1\n#   attacker  somebody\n#   expected  exit 3\n#   guard     script.go the right guard\n"
	for name, c := range map[string]struct{ body, want string }{
		"refused":           {"attempt true\nallowed\nattempt sh -c 'echo the right guard; exit 3'\nrefused\n", verdictRefused},
		"succeeded":         {"attempt true\nallowed\nattempt true\nrefused\n", verdictSucceeded},
		"another code":      {"attempt sh -c 'echo the right guard; exit 1'\nrefused\n", verdictOther},
		"another guard":     {"attempt sh -c 'echo another guard; exit 3'\nrefused\n", verdictOther},
		"nothing works":     {"attempt false\nallowed\nattempt sh -c 'echo the right guard; exit 3'\nrefused\n", verdictBroken},
		"nothing attempted": {"attempt true\nallowed\n", verdictBroken},
		"one of two":        {"attempt sh -c 'echo the right guard; exit 3'\nrefused\nattempt true\nrefused\n", verdictSucceeded},
		"race lost":         {"race 0 4 attempt true\n", verdictSucceeded},
		"race won":          {"race 0 4 attempt sh -c 'echo the right guard; exit 3'\n", verdictRefused},
		"a fault":           {"frobnicate\n", verdictBroken},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := runText(t, head+"\n"+c.body)
			if r.verdict != c.want {
				t.Errorf("%s, not %s:\n%s", r.verdict, c.want, r.log)
			}
		})
	}
	if r := runText(t, head+"#   needs     kubernetes\n\nrefused\n"); r.verdict != verdictNotRun || !strings.Contains(r.why, "kubernetes") {
		t.Errorf("%+v", r)
	}
}

func runText(t *testing.T, text string) result {
	t.Helper()
	file := filepath.Join(t.TempDir(), "s.txtar")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := readScript(file)
	if err != nil {
		t.Fatal(err)
	}
	return runScript(&Profile{}, s, t.TempDir(), false)
}

// TestReport: one attack that succeeded, was refused by luck or was not judged makes the whole a failure; so does a run in which none was refused.
func TestReport(t *testing.T) {
	s := &script{name: "x", rule: "S1"}
	for verdict, want := range map[string]int{verdictRefused: 0, verdictNotRun: 0, verdictSucceeded: 1, verdictOther: 1, verdictBroken: 1} {
		if got := report([]result{{script: s, verdict: verdictRefused}, {script: s, verdict: verdict}}, &options{output: "json"}); got != want {
			t.Errorf("%s: exit %d", verdict, got)
		}
	}
	if report([]result{{script: s, verdict: verdictNotRun}}, &options{output: "json"}) != 1 {
		t.Error("nothing was run, and all is well")
	}
}

// TestProfile: an unknown key, an unknown permission to touch, and a profile without a server are refused; what is not given is missing.
func TestProfile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "p.yaml")
	read := func(text string) (*Profile, error) {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return readProfile(file)
	}
	const good = "server: https://h:1/\nbundle: b.pem\ntrust_domain: company.com\n"
	for _, bad := range []string{"", "server: https://h\n", good + "touch: [everything]\n", good + "wrold: x\n"} {
		if _, err := read(bad); err == nil {
			t.Errorf("accepted: %q", bad)
		}
	}
	p, err := read(good + "workload: /w\nidentities: {agent: {name: agent/deploy}}\ntouch: [suspend]\n")
	if err != nil {
		t.Fatal(err)
	}
	if got := p.lacks([]string{"agent", "other", "touch:suspend", "touch:restart", "lab", "log", "kubernetes"}); got != "other, touch:restart, lab, log, kubernetes" {
		t.Errorf("lacks %s", got)
	}
}

// TestForge: a forged token differs from the genuine one in what was said, and a signature that is kept stays.
func TestForge(t *testing.T) {
	text, err := altered("eyJhIjoxfQ", "claims", map[string]string{"claims.sub": "x", "claims.exp": "7"})
	if err != nil || text != `{"a":1,"exp":7,"sub":"x"}` {
		t.Errorf("%s %v", text, err)
	}
	if text, err = altered("eyJhIjoxfQ", "header", map[string]string{"claims.sub": "x"}); err != nil || text != `{"a":1}` {
		t.Errorf("%s %v", text, err)
	}
}
