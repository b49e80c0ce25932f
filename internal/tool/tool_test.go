// SPDX-License-Identifier: Apache-2.0

package tool_test

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"remit"
	"remit/internal/tool"
)

// process is a Box of a bare process: what this package does with a sandbox, without one.
type process struct {
	cmd    *exec.Cmd
	in     io.WriteCloser
	out    io.Reader
	done   chan struct{}
	report tool.Report
	about  tool.About
	call   func() (tool.Call, bool)
}

func (p *process) About() tool.About                     { return p.about }
func (p *process) Stdin() io.WriteCloser                 { return p.in }
func (p *process) Stdout() io.Reader                     { return p.out }
func (p *process) Now() (u tool.Usage, a *tool.Activity) { return }
func (p *process) Done() <-chan struct{}                 { return p.done }
func (p *process) Start(context.Context) error {
	if err := p.cmd.Start(); err != nil {
		return err
	}
	go func() {
		p.report.Cause = "exited"
		if err := p.cmd.Wait(); err != nil && p.cmd.ProcessState.ExitCode() < 0 {
			p.report.Cause = "killed"
		}
		close(p.done)
	}()
	return nil
}

func (p *process) Destroy(context.Context) (tool.Report, error) {
	if p.cmd.Process == nil {
		return tool.Report{Cause: "killed"}, nil
	}
	_ = p.cmd.Process.Kill()
	<-p.done
	return p.report, nil
}

type world struct {
	*tool.Catalogue
	t       *testing.T
	command []string

	mu      sync.Mutex
	made    []*process
	changes []remit.Change
	stands  func() error
	commit  func() error
	now     time.Time
}

func newWorld(t *testing.T, command ...string) *world {
	w := &world{t: t, command: command, now: time.Now()}
	c, err := tool.New(tool.Config{Make: w.make, Stands: func(tool.Claim, *remit.Tool) error {
		if w.stands != nil {
			return w.stands()
		}
		return nil
	}, Commit: func(_ context.Context, c remit.Change) (remit.Receipt, error) {
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.commit != nil {
			if err := w.commit(); err != nil {
				return remit.Receipt{}, err
			}
		}
		w.changes = append(w.changes, c)
		return remit.Receipt{}, nil
	}, Now: func() time.Time { w.mu.Lock(); defer w.mu.Unlock(); return w.now }})
	if err != nil {
		t.Fatal(err)
	}
	w.Catalogue = c
	t.Cleanup(c.Close)
	return w
}

func (w *world) make(_ context.Context, o tool.Order) (tool.Box, error) {
	p := &process{cmd: exec.Command(w.command[0], w.command[1:]...), done: make(chan struct{}), call: o.Call,
		about: tool.About{Sandbox: remit.NewSandboxID(), Tier: remit.TierProcess, Driver: "process", Program: w.command[0]}}
	var err error
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	r, err := p.cmd.StdoutPipe()
	p.out = r
	w.mu.Lock()
	defer w.mu.Unlock()
	w.made = append(w.made, p)
	return p, err
}

func claim(run string) tool.Claim {
	return tool.Claim{Tool: "tool/x", Run: remit.RunID(run), Stage: "work"}
}

func (w *world) open(c tool.Claim) *tool.Session {
	w.t.Helper()
	s, err := w.Open(w.t.Context(), c, &remit.Tool{Name: c.Tool})
	if err != nil {
		w.t.Fatal(err)
	}
	return s
}

// records waits for n changes and returns their kinds.
func (w *world) records(n int) string {
	w.t.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		w.mu.Lock()
		var kinds []string
		for _, c := range w.changes {
			kinds = append(kinds, string(c.Events[0].Kind))
		}
		w.mu.Unlock()
		if len(kinds) >= n {
			return strings.Join(kinds, " ")
		}
		if time.Now().After(end) {
			w.t.Fatalf("records: %q", kinds)
		}
	}
}

func TestOneSandboxForAClaim(t *testing.T) {
	w := newWorld(t, "/bin/cat")
	one := w.open(claim("run-a"))
	if w.open(claim("run-a")) != one || w.open(claim("run-b")) == one {
		t.Error("a sandbox is of one run, stage and tool")
	}
	if _, err := io.WriteString(one, "hello\n"); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 10)
	if n, err := one.Read(b); string(b[:n]) != "hello\n" {
		t.Errorf("%q %v", b[:n], err)
	}
	w.End(t.Context(), "the run ended", func(c tool.Claim, _ *remit.Tool) bool { return c.Run == "run-a" })
	if w.open(claim("run-a")) == one {
		t.Error("an ended sandbox came back")
	}
	if got := w.records(4); strings.Count(got, "sandbox.started") != 3 || strings.Count(got, "sandbox.ended") != 1 {
		t.Error(got)
	}
}

// S24: what a tool sends is decided under the call that it serves, and outside one not at all.
func TestOutsideACallNothingIsSent(t *testing.T) {
	w := newWorld(t, "/bin/cat")
	s := w.open(claim("run-a"))
	asked := w.made[0].call
	if c, ok := asked(); ok {
		t.Errorf("before any call: %+v", c)
	}
	leave, err := s.Turn(t.Context(), &remit.Decision{ID: "dec-a"})
	if err != nil {
		t.Fatal(err)
	}
	c, ok := asked()
	if !ok || c.ID != "dec-a" {
		t.Errorf("%+v", c)
	}
	short, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := s.Turn(short, &remit.Decision{ID: "dec-b"}); err == nil {
		t.Error("two calls at once")
	}
	leave()
	select {
	case <-c.Done:
	default:
		t.Error("the call goes on")
	}
	if c, ok := asked(); ok {
		t.Errorf("after the call: %+v", c)
	}
}

// S24: what a tool still does for a call that was given up could not be told from the next call's.
func TestGivenUpCallEndsTheSandbox(t *testing.T) {
	w := newWorld(t, "/bin/cat")
	s := w.open(claim("run-a"))
	ctx, cancel := context.WithCancel(t.Context())
	leave, err := s.Turn(ctx, &remit.Decision{ID: "dec-a"})
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	leave()
	if w.open(claim("run-a")) == s {
		t.Error("the sandbox goes on")
	}
	if _, err := s.Turn(t.Context(), &remit.Decision{ID: "dec-b"}); err == nil {
		t.Error("it takes another call")
	}
}

// S20: nothing of a tool runs before the ledger knows; and what could not be recorded is gone.
func TestStartIsOnRecordFirst(t *testing.T) {
	w := newWorld(t, "/bin/cat")
	w.commit = func() error { return errors.New("disk full") }
	if _, err := w.Open(t.Context(), claim("run-a"), &remit.Tool{}); err == nil || w.made[0].cmd.Process != nil {
		t.Errorf("it ran: %v", err)
	}
}

// S11: a claim that is ended while its sandbox starts has none.
func TestEndedWhileStarting(t *testing.T) {
	w := newWorld(t, "/bin/cat")
	w.stands = func() error {
		go w.End(context.Background(), "the stage ended", func(tool.Claim, *remit.Tool) bool { return true })
		return errors.New("the run is elsewhere")
	}
	if _, err := w.Open(t.Context(), claim("run-a"), &remit.Tool{}); err == nil || len(w.made) != 0 {
		t.Errorf("%v, %d made", err, len(w.made))
	}
	if len(w.List()) != 0 {
		t.Error("it is listed")
	}
}

// S35: a tool that crashes at once is not started as fast as it is asked for.
func TestCrashesAreBraked(t *testing.T) {
	w := newWorld(t, "/bin/false")
	starts := 0
	for range 50 {
		if _, err := w.Open(t.Context(), claim("run-a"), &remit.Tool{}); err == nil {
			starts++
		} else if remit.CodeOf(err) != remit.CodeUnavailable {
			t.Fatal(err)
		}
		w.End(t.Context(), "", func(tool.Claim, *remit.Tool) bool { return false })
		time.Sleep(2 * time.Millisecond)
	}
	w.records(2)
	if len(w.made) > 10 {
		t.Errorf("it was started %d times", len(w.made))
	}
	w.mu.Lock()
	w.now = w.now.Add(2 * time.Minute)
	w.mu.Unlock()
	if _, err := w.Open(t.Context(), claim("run-a"), &remit.Tool{}); err != nil {
		t.Errorf("after a pause: %v", err)
	}
}

// S35: each has memory of the host.
func TestSandboxesAreBounded(t *testing.T) {
	w := newWorld(t, "/bin/cat")
	var err error
	n := 0
	for ; err == nil && n < 40; n++ {
		_, err = w.Open(t.Context(), claim("run-"+strings.Repeat("a", n+1)), &remit.Tool{})
	}
	if remit.CodeOf(err) != remit.CodeExhausted || n != 33 {
		t.Errorf("after %d: %v", n, err)
	}
}

// S27: what was reviewed is what runs.
func TestChangedFilesAreNotRun(t *testing.T) {
	from, dir := t.TempDir(), filepath.Join(t.TempDir(), "copies")
	write := func(name, content string, mode os.FileMode) {
		t.Helper()
		if err := errors.Join(os.MkdirAll(filepath.Dir(filepath.Join(from, name)), 0o755), os.WriteFile(filepath.Join(from, name), []byte(content), mode)); err != nil {
			t.Fatal(err)
		}
	}
	write("bin/run", "#!/bin/sh", 0o755)
	write("lib/a.py", "a", 0o600)
	if err := os.Symlink("../lib/a.py", filepath.Join(from, "bin/a")); err != nil {
		t.Fatal(err)
	}
	digest, err := tool.Digest(from)
	if err != nil {
		t.Fatal(err)
	}
	files, err := tool.NewFiles(dir)
	if err != nil {
		t.Fatal(err)
	}
	of := remit.ToolFiles{From: from, Digest: digest}
	copied, err := files.Take(of)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := tool.Digest(copied); again != digest {
		t.Errorf("the copy differs: %s %v", again, err)
	}
	for name, change := range map[string]func(){
		"content": func() { write("lib/a.py", "b", 0o600) },
		"more":    func() { write("lib/b.py", "b", 0o600) },
		"mode":    func() { _ = os.Chmod(filepath.Join(from, "lib/a.py"), 0o755) },
		"less":    func() { _ = os.Remove(filepath.Join(from, "bin/run")) },
		"link": func() {
			_ = os.Remove(filepath.Join(from, "bin/a"))
			_ = os.Symlink("/etc/passwd", filepath.Join(from, "bin/a"))
		},
		"not files": func() { _ = os.RemoveAll(from) },
	} {
		change()
		if got, err := files.Take(of); err == nil {
			t.Errorf("%s: %s runs", name, got)
		}
		fresh, err := tool.NewFiles(filepath.Join(t.TempDir(), "copies"))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := fresh.Take(of); err == nil {
			t.Errorf("%s, the first time: %s runs", name, got)
		}
		restore(t, copied, from)
		if now, _ := tool.Digest(from); now != digest {
			t.Fatalf("%s: not restored", name)
		}
	}
	if got, err := files.Take(of); err != nil || got != copied {
		t.Errorf("as they were: %s %v", got, err)
	}
}

func restore(t *testing.T, from, to string) {
	t.Helper()
	if err := os.RemoveAll(to); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("cp", "-a", from, to).CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, out)
	}
}
