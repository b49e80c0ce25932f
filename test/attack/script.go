// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// script is one attack: a testscript whose first comment says what it is.
type script struct {
	name     string // the file's, without .txtar
	path     string
	title    string
	rule     string   // S10
	attacker string   // whose hands the attack is in
	expected string   // what the refusal must be: "401 invalid_client", "denied run_token_invalid", "exit 3"
	file     string   // where the guard stands that must refuse
	phrase   string   // what only that guard says, in the answer, in remit why or in the server's log
	needs    []string // of the profile
}

var (
	rulePattern  = regexp.MustCompile(`^S[0-9]+$`)
	fieldPattern = regexp.MustCompile(`^#\s+(rule|attacker|expected|guard|needs)\s+(.*\S)\s*$`)
)

// readScript reads the header: the title, then one line for each field.
func readScript(path string) (*script, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	s := &script{name: strings.TrimSuffix(filepath.Base(path), ".txtar"), path: path}
	first, _, _ := strings.Cut(string(b), "\n")
	s.title = strings.TrimSpace(strings.TrimPrefix(first, "#"))
	for line := range strings.Lines(string(b)) {
		if !strings.HasPrefix(line, "#") {
			break
		}
		m := fieldPattern.FindStringSubmatch(strings.TrimRight(line, "\n"))
		if m == nil {
			continue
		}
		switch m[1] {
		case "rule":
			s.rule = m[2]
		case "attacker":
			s.attacker = m[2]
		case "expected":
			s.expected = m[2]
		case "guard":
			s.file, s.phrase, _ = strings.Cut(m[2], " ")
			s.phrase = strings.TrimSpace(s.phrase)
		case "needs":
			s.needs = strings.Fields(m[2])
		}
	}
	if s.title == "" || !rulePattern.MatchString(s.rule) || s.attacker == "" || s.expected == "" || s.file == "" || s.phrase == "" {
		return nil, fmt.Errorf("%s: the first comment must give title, rule, attacker, expected, and guard as FILE PHRASE", path)
	}
	return s, nil
}

func readScripts(dir, only string) ([]*script, error) {
	pattern, err := regexp.Compile(only)
	if err != nil {
		return nil, err
	}
	paths, err := filepath.Glob(filepath.Join(dir, "*.txtar"))
	if err != nil {
		return nil, err
	}
	var out []*script
	for _, p := range paths {
		s, err := readScript(p)
		if err != nil {
			return nil, err
		}
		if pattern.MatchString(s.name) || pattern.MatchString(s.rule) {
			out = append(out, s)
		}
	}
	return out, nil
}

// The verdicts. Only the first is good; notRun is neither.
const (
	verdictRefused   = "refused"
	verdictSucceeded = "SUCCEEDED"   // the attacker got what he must not get
	verdictOther     = "OTHER GUARD" // refused, but not by the guard that should: luck
	verdictBroken    = "BROKEN"      // the script failed, or what is legitimate did not work: it proves nothing
	verdictNotRun    = "not run"
)

// result is one line of the table.
type result struct {
	*script
	got, by, verdict, why string
	took                  time.Duration
	log                   string
}

// runScript runs one attack against the installation of the profile.
func runScript(p *Profile, s *script, dir string, verbose bool) result {
	r := result{script: s, verdict: verdictNotRun}
	if lacks := p.lacks(s.needs); lacks != "" {
		r.why = "needs " + lacks
		return r
	}
	began := time.Now()
	a := &attack{profile: p, script: s, holders: map[string]*holder{}}
	t := &probe{verbose: verbose}
	work := filepath.Join(dir, s.name)
	t.Run(s.name, func(t testscript.T) {
		testscript.RunT(t, testscript.Params{Files: []string{s.path}, Cmds: a.commands(), Setup: a.setUp, RequireExplicitExec: true,
			WorkdirRoot: mustDir(work), ContinueOnError: false})
	})
	a.close()
	r.took, r.log = time.Since(began), t.log.String()
	r.got, r.by, r.verdict = a.got, a.by, a.verdict
	switch {
	case r.verdict == verdictSucceeded || r.verdict == verdictOther:
	case t.failed:
		r.verdict, r.why = verdictBroken, t.last
	case t.skipped:
		r.verdict, r.why = verdictNotRun, t.last
	case a.refusals == 0:
		r.verdict, r.why = verdictBroken, "nothing was attempted"
	default:
		r.verdict = verdictRefused
	}
	return r
}

func mustDir(path string) string {
	_ = os.MkdirAll(path, 0o755) // a failure shows when the script runs
	return path
}

// probe is what a script runs in: it notes failures instead of failing a test.
type probe struct {
	mu              sync.Mutex // guards the rest
	log             bytes.Buffer
	last            string
	verbose         bool
	failed, skipped bool
}

var _ testscript.T = (*probe)(nil)

func (t *probe) write(args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	fmt.Fprintln(&t.log, args...)
	t.last = strings.TrimSpace(fmt.Sprint(args...))
}

func (t *probe) Log(args ...any) { t.write(args...) }

func (t *probe) Skip(args ...any) {
	t.write(args...)
	t.mu.Lock()
	t.skipped = true
	t.mu.Unlock()
	runtime.Goexit()
}

func (t *probe) Fatal(args ...any) {
	t.write(args...)
	t.FailNow()
}

func (t *probe) FailNow() {
	t.mu.Lock()
	t.failed = true
	t.mu.Unlock()
	runtime.Goexit()
}

func (t *probe) Parallel()     {}
func (t *probe) Verbose() bool { return t.verbose }

// Run runs f to its end, on a goroutine of its own, because it may end by Goexit.
func (t *probe) Run(_ string, f func(testscript.T)) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		f(t)
	}()
	<-done
}

// covers reports whether what was got is one of what was expected, between which " or " stands: the same first word, and every further word
// among those got.
func covers(got, expected string) bool {
	have := strings.Fields(got)
	for one := range strings.SplitSeq(expected, " or ") {
		want := strings.Fields(one)
		missing := func(w string) bool { return !slices.Contains(have[1:], w) }
		if len(have) > 0 && len(want) > 0 && have[0] == want[0] && !slices.ContainsFunc(want[1:], missing) {
			return true
		}
	}
	return false
}
