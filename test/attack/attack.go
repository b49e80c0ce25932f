// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"remit/internal/api"
)

// attack is one script while it runs.
type attack struct {
	profile *Profile
	script  *script
	holders map[string]*holder
	admin   *api.Client

	mu      sync.Mutex // guards logFrom and last while commands race
	last    *answer
	logFrom int64 // where the server's log stood when the last request was made

	received         string // the last answer with a receipt
	got, by, verdict string
	refusals         int
	undo             []func()
	logins           map[string]*dbLogin
	houses           []*house
}

// holder is who makes requests: a stolen certificate with its key, or nobody.
type holder struct {
	fetched
	cert   *tls.Certificate
	client *http.Client
}

// answer is what a request, a call or a program got.
type answer struct {
	status  string // "401", "denied", "exit 3", "PermissionDenied"
	reasons []string
	allowed bool
	text    string // all of it
	ids     []string
}

func (a *answer) String() string {
	return strings.TrimSpace(a.status + " " + strings.Join(a.reasons, " "))
}

type scriptCommand = func(ts *testscript.TestScript, neg bool, args []string)

func (a *attack) commands() map[string]scriptCommand {
	own := map[string]func(*testscript.TestScript, []string) error{
		"become": a.become, "start": a.start, "token": a.token, "jwt": a.jwt, "forge": a.forge, "certificate": a.certificate,
		"operator": a.operator, "grab": a.grab, "carry": a.carry, "fill": a.fill, "desk": a.desk, "sign": a.sign, "reload": a.reload, "digest": a.digest, "jobtoken": a.jobToken,
		"allowed": a.isAllowed, "answered": a.isAnswered, "refused": a.isRefused, "race": a.race, "storm": a.storm, "restart": a.restart, "flip": a.flip,
		"configure": a.configure, "eventually": a.eventually, "grant": a.grant, "suspend": a.suspend, "slowly": a.slowly, "launch": a.launch, "together": a.together, "downgrade": a.downgrade,
		"flood": a.flood, "spoil": a.spoil, "receipt": a.receipt, "rewrite": a.rewrite, "savetext": a.savetext, "protobuf": a.protobuf, "cluster": a.clusterAdmin,
		"eventually-dead": a.eventuallyDead, "eventually-gone": a.eventuallyGone, "without": a.without,
		"key": a.key, "person": a.person, "browse": a.browse, "approve": a.approve, "member": a.member,
		"held": a.held, "lent": a.lent, "steal": a.steal, "found": a.found, "serve": a.serve, "halt": a.halt, "signed-house": a.signedHouse, "bundle": a.bundle, "double": a.double, "skew": a.skew,
	}
	out := map[string]scriptCommand{}
	for name, do := range own {
		out[name] = func(ts *testscript.TestScript, neg bool, args []string) {
			if neg {
				ts.Fatalf("%s cannot be negated", name)
			}
			if err := do(ts, args); err != nil {
				ts.Fatalf("%s: %v", name, err)
			}
		}
	}
	for name, ask := range a.asking() {
		out[name] = func(ts *testscript.TestScript, _ bool, args []string) {
			a.mark()
			got, err := ask(ts, args)
			if err != nil {
				ts.Fatalf("%s: %v", name, err)
			}
			a.last = got
			if strings.Contains(got.text, `"receipt"`) {
				a.received = got.text
			}
			ts.Logf("%s\n%s", got, clip(got.text, 2000))
		}
	}
	return out
}

// asking are the commands that get an answer, for allowed, answered and refused to judge.
func (a *attack) asking() map[string]func(*testscript.TestScript, []string) (*answer, error) {
	return map[string]func(*testscript.TestScript, []string) (*answer, error){
		"evaluate": a.evaluate, "ask": a.ask, "send": a.send, "manage": a.manage, "attempt": a.attempt, "fetch": a.fetch, "tool": a.tool, "kube": a.kube,
		"raw": a.raw, "readable": a.readable, "terminal": a.terminal,
		"login": a.login, "finish": a.finish, "call": a.call, "mcp": a.mcp, "sql": a.sql,
	}
}

func (a *attack) setUp(e *testscript.Env) error {
	p := a.profile
	for k, v := range map[string]string{"SERVER": p.Server, "TRUST": p.TrustDomain, "ADMIN": p.Admin, "WORKLOAD": p.Workload, "DIR": p.Dir,
		"ACTION": p.Act.Action, "TARGET": p.Act.Target, "TOOL": toolPath, "REMIT": p.Remit, "LOG": p.Log, "BUNDLE": p.Bundle,
		"AGENT": "spiffe://" + p.TrustDomain + "/" + p.Identities["agent"].Name, "OTHER": "spiffe://" + p.TrustDomain + "/" + p.Identities["other"].Name} {
		e.Setenv(k, v)
	}
	if p.lab != nil {
		for k, v := range p.lab.env() {
			e.Setenv(k, v)
		}
	}
	if err := os.Chmod(e.WorkDir, 0o755); err != nil || p.Admin == "" {
		return err
	}
	var err error
	a.admin, err = api.NewClient(p.Admin)
	return err
}

func (a *attack) close() {
	for i := len(a.undo) - 1; i >= 0; i-- {
		a.undo[i]()
	}
	for _, h := range a.holders {
		h.client.CloseIdleConnections()
	}
}

// mark notes where the server's log stands, so that only what is written from here on counts.
func (a *attack) mark() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.logFrom = 0
	if info, err := os.Stat(a.profile.Log); err == nil {
		a.logFrom = info.Size()
	}
}

func (a *attack) logged() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	b, err := os.ReadFile(a.profile.Log)
	if err != nil || int64(len(b)) < a.logFrom {
		return ""
	}
	return string(b[a.logFrom:])
}

// isAllowed: allowed. The last answer is the one that the legitimate caller gets.
func (a *attack) isAllowed(_ *testscript.TestScript, _ []string) error {
	if a.last == nil || !a.last.allowed {
		return fmt.Errorf("what is legitimate is not allowed: %s\n%s", a.last, a.evidence(a.last))
	}
	return nil
}

// isAnswered: answered STATUS [REASON…]. For what cannot be allowed without effect: it got past everything up to there.
func (a *attack) isAnswered(_ *testscript.TestScript, args []string) error {
	if a.last == nil || !covers(a.last.String(), strings.Join(args, " ")) {
		return fmt.Errorf("what is legitimate got %s\n%s", a.last, a.evidence(a.last))
	}
	return nil
}

// isRefused: refused ['EXPECTED' 'PHRASE']. The last answer is the refusal that the header names, or the one that is named here, and
// the guard that it names has spoken.
func (a *attack) isRefused(ts *testscript.TestScript, args []string) error {
	expected, phrase, file := a.script.expected, a.script.phrase, a.script.file
	if len(args) > 0 {
		expected = args[0]
	}
	if len(args) > 1 {
		phrase, file = args[1], "here"
	}
	if a.last == nil {
		return fmt.Errorf("nothing was attempted")
	}
	return a.judge(ts, a.last, expected, phrase, file)
}

func (a *attack) judge(ts *testscript.TestScript, got *answer, expected, phrase, file string) error {
	if a.got == "" || expected == a.script.expected {
		a.got = got.String()
	}
	if got.allowed {
		a.got, a.verdict, a.by = got.String(), verdictSucceeded, ""
		return fmt.Errorf("THE ATTACK SUCCEEDED: %s\n%s", got, got.text)
	}
	pattern, err := regexp.Compile(phrase)
	if err != nil {
		return err
	}
	evidence := ""
	for end := time.Now().Add(3 * time.Second); ; time.Sleep(20 * time.Millisecond) { // the log may come after the answer
		evidence = a.evidence(got)
		if pattern.MatchString(evidence) || time.Now().After(end) {
			break
		}
	}
	if !covers(got.String(), expected) || !pattern.MatchString(evidence) {
		a.got, a.verdict, a.by = got.String(), verdictOther, clip(strings.ReplaceAll(strings.TrimSpace(got.text), "\n", " "), 80)
		return fmt.Errorf("refused, but not as %s by %q of %s: %s\n%s", expected, phrase, file, got, evidence)
	}
	a.refusals++
	a.by = a.script.file + ": " + a.script.phrase
	ts.Logf("refused by %s: %s\n%s", file, pattern.FindString(evidence), clip(evidence, 2000))
	return nil
}

// evidence is everything that says which guard refused: the answer, remit why, and the server's log since the request.
func (a *attack) evidence(got *answer) string {
	if got == nil {
		return ""
	}
	var b bytes.Buffer
	b.WriteString(got.text)
	for _, id := range got.ids {
		if a.admin == nil {
			break
		}
		var why api.Why
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		if err := a.admin.Get(ctx, "/v1/why/"+id, nil, &why); err == nil {
			b.WriteString("\n" + why.Text) // not the whole decision: its parameters could match anything
		}
		cancel()
	}
	b.WriteString("\n" + a.logged())
	return b.String()
}

// race: race MOST TIMES COMMAND [ARG…]. The same request many times at once; at most MOST may be allowed, and the others are refused
// as the header says, or because they lost the race.
func (a *attack) race(ts *testscript.TestScript, args []string) error {
	var most, times int
	if _, err := fmt.Sscan(args[0]+" "+args[1], &most, &times); err != nil {
		return err
	}
	ask, ok := a.asking()[args[2]]
	if !ok {
		return fmt.Errorf("%s gets no answer", args[2])
	}
	a.mark()
	answers := make([]*answer, times)
	errs := make([]error, times)
	var wg sync.WaitGroup
	for i := range times {
		wg.Go(func() { answers[i], errs[i] = ask(ts, args[3:]) })
	}
	wg.Wait()
	passed := 0
	var refused *answer
	for i, got := range answers {
		switch {
		case errs[i] != nil:
			return errs[i]
		case covers(got.String(), a.script.expected):
			refused = got
		case !covers(got.String(), lostRace):
			passed++
		}
	}
	if passed > most {
		a.verdict, a.got = verdictSucceeded, fmt.Sprintf("%d of %d passed", passed, times)
		return fmt.Errorf("THE ATTACK SUCCEEDED: %d of %d passed, at most %d may", passed, times, most)
	}
	if passed < most {
		return fmt.Errorf("%d of %d passed: even the legitimate one did not", passed, times)
	}
	if refused == nil { // all lost it: what the script asks afterwards is judged
		return nil
	}
	a.last = refused
	return a.judge(ts, a.last, a.script.expected, a.script.phrase, a.script.file)
}

// lostRace is what a request gets that was decided while another changed what it rests on.
const lostRace = "denied state_changed"

// attempt COMMAND [ARG…]: a program; exit 0 is success.
func (a *attack) attempt(ts *testscript.TestScript, args []string) (*answer, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Dir = ts.MkAbs(".")
	cmd.Env = append(os.Environ(), "REMIT_TEST_SECRET=launchers-own", "OPERATOR_TOKEN=launchers-own")
	out, err := cmd.CombinedOutput()
	got := &answer{status: "exit", reasons: []string{fmt.Sprint(cmd.ProcessState.ExitCode())}, allowed: err == nil, text: string(out)}
	got.ids = decisionPattern.FindAllString(got.text, 3)
	return got, nil
}

var decisionPattern = regexp.MustCompile(`dec-[a-z2-7]{26}`)

// operator ARG…: remit as the operator, who must succeed.
func (a *attack) operator(ts *testscript.TestScript, args []string) error {
	got, err := a.attempt(ts, append([]string{a.profile.Remit, "--server", a.profile.Admin}, args...))
	if err != nil {
		return err
	}
	a.last = got
	if !got.allowed {
		return fmt.Errorf("remit %s: %s\n%s", strings.Join(args, " "), got, got.text)
	}
	return nil
}

// grab NAME RE: sets a variable to the first group that matches what the last command got.
func (a *attack) grab(ts *testscript.TestScript, args []string) error {
	m := regexp.MustCompile(args[1]).FindStringSubmatch(a.last.text)
	if len(m) != 2 {
		return fmt.Errorf("%s does not match\n%s", args[1], a.last.text)
	}
	ts.Setenv(args[0], m[1])
	return nil
}

var placeholder = regexp.MustCompile(`@([A-Z_]+)@`)

// fill FROM TO: copies a file and replaces @NAME@ by the variable.
func (a *attack) fill(ts *testscript.TestScript, args []string) error {
	text := placeholder.ReplaceAllStringFunc(ts.ReadFile(args[0]), func(s string) string { return ts.Getenv(strings.Trim(s, "@")) })
	return os.WriteFile(ts.MkAbs(args[1]), []byte(text), 0o644)
}

// eventually COMMAND [ARG…]: a program that succeeds within ten seconds.
func (a *attack) eventually(ts *testscript.TestScript, args []string) error {
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		got, err := a.attempt(ts, args)
		if err != nil || got.allowed {
			a.last = got
			return err
		}
		if time.Now().After(end) {
			return fmt.Errorf("not in ten seconds: %s", got.text)
		}
	}
}
