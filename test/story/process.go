// SPDX-License-Identifier: Apache-2.0

package story

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// Result is what a command did.
type Result struct {
	Argv      []string
	Out, Errs string
	Code      int
	Took      time.Duration
}

func (r Result) String() string {
	return fmt.Sprintf("%s: exit %d\n%s%s", strings.Join(r.Argv, " "), r.Code, r.Out, r.Errs)
}

// Command runs a program to its end, for at most a minute.
func Command(ctx context.Context, env []string, argv ...string) Result {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	var out, errs strings.Builder
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr, cmd.Env = &out, &errs, append(os.Environ(), env...)
	cmd.WaitDelay = 5 * time.Second
	began := time.Now()
	err := cmd.Run()
	r := Result{Argv: argv, Out: out.String(), Errs: errs.String(), Took: time.Since(began)}
	if err != nil {
		r.Code = -1
		if e, ok := errors.AsType[*exec.ExitError](err); ok {
			r.Code = e.ExitCode()
		} else {
			r.Errs += err.Error()
		}
	}
	return r
}

// Remit runs the command line against the story's installation.
func (s *Story) Remit(ctx context.Context, args ...string) Result {
	return Command(ctx, nil, append([]string{s.Path("bin", "remit"), "--dir", s.Path("remit")}, args...)...)
}

// Serve starts the story's installation.
func (s *Story) Serve(context.Context) error {
	_, err := s.Start(s.Path("remit.log"), "ready", s.Path("bin", "remit"), "--dir", s.Path("remit"), "serve")
	return err
}

// Programs copies programs to where every user can execute them: bin, by the names given.
func (s *Story) Programs(from map[string]string) error {
	if err := os.Mkdir(s.Path("bin"), 0o755); err != nil {
		return err
	}
	for to, from := range from {
		found, err := exec.LookPath(from)
		if err != nil {
			return err
		}
		b, err := os.ReadFile(found)
		if err != nil {
			return err
		}
		if err := os.WriteFile(s.Path("bin", to), b, 0o755); err != nil { //nolint:gosec // agents with users of their own run them
			return err
		}
	}
	return nil
}

// Start starts a server, waits for the line that says it is ready, and sees to its end.
func (s *Story) Start(log, ready string, argv ...string) (string, error) {
	file, err := os.Create(log)
	if err != nil {
		return "", err
	}
	cmd := exec.Command(argv[0], argv[1:]...)
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return "", err
	}
	cmd.Stderr = file
	if err := cmd.Start(); err != nil {
		return "", err
	}
	s.PIDs = append(s.PIDs, cmd.Process.Pid)
	lines, exited := make(chan string, 1), make(chan error, 1)
	go func() {
		scan := bufio.NewScanner(stdout)
		for scan.Scan() {
			fmt.Fprintln(file, scan.Text())
			if strings.HasPrefix(scan.Text(), ready) {
				lines <- scan.Text()
				break
			}
		}
		_, _ = io.Copy(file, stdout)
		exited <- cmd.Wait()
	}()
	s.Stop(func() {
		_ = cmd.Process.Signal(os.Interrupt)
		select {
		case <-exited:
		case <-time.After(10 * time.Second):
			_ = cmd.Process.Kill()
			<-exited
		}
		_ = file.Close()
	})
	select {
	case line := <-lines:
		return line, nil
	case err := <-exited:
		exited <- err
		b, _ := os.ReadFile(log)
		return "", fmt.Errorf("%s ended: %w\n%s", filepath.Base(argv[0]), errors.Join(err), b)
	case <-time.After(2 * time.Minute):
		return "", fmt.Errorf("%s is not ready after two minutes; see %s", filepath.Base(argv[0]), log)
	}
}

// LastLine is the last line of s that is not empty.
func LastLine(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return lines[len(lines)-1]
}

// DigestOf is the digest of a file.
func DigestOf(path string) (string, error) {
	b, err := os.ReadFile(path)
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:]), err
}

// FreePort is a port of the loopback that nobody listens on.
func FreePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}
