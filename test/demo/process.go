// SPDX-License-Identifier: Apache-2.0

package main

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

// result is what a command did.
type result struct {
	argv      []string
	out, errs string
	code      int
	took      time.Duration
}

func (r result) String() string {
	return fmt.Sprintf("%s: exit %d\n%s%s", strings.Join(r.argv, " "), r.code, r.out, r.errs)
}

func command(ctx context.Context, env []string, argv ...string) result {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	var out, errs strings.Builder
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr, cmd.Env = &out, &errs, append(os.Environ(), env...)
	cmd.WaitDelay = 5 * time.Second
	began := time.Now()
	err := cmd.Run()
	r := result{argv: argv, out: out.String(), errs: errs.String(), took: time.Since(began)}
	if err != nil {
		r.code = -1
		if e, ok := errors.AsType[*exec.ExitError](err); ok {
			r.code = e.ExitCode()
		} else {
			r.errs += err.Error()
		}
	}
	return r
}

func (s *story) remit(ctx context.Context, args ...string) result {
	return command(ctx, nil, append([]string{s.path("bin", "remit"), "--dir", s.path("remit")}, args...)...)
}

func (s *story) adminKubectl(ctx context.Context, args ...string) result {
	return command(ctx, []string{"KUBECONFIG=" + s.cluster.kubeconfig}, append([]string{s.path("bin", "kubectl")}, args...)...)
}

func (s *story) asAgent(ctx context.Context, args ...string) result {
	return s.remit(ctx, append([]string{"exec", "--run", s.run, "--as", "agent/deploy", "--for", "apply", "--"}, args...)...)
}

func (s *story) kubectlAsAgent(ctx context.Context, args ...string) result {
	return s.asAgent(ctx, append([]string{s.path("bin", "kubectl")}, args...)...)
}

const holdCommand = "hold"

// hold is what this program does when it is launched as an agent that works on with what it got: it runs a command, passes on
// what that prints, and stays until its input ends.
func hold(argv []string) int {
	cmd := exec.Command(argv[0], argv[1:]...) //nolint:gosec // the demo's own command
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	_, _ = io.Copy(io.Discard, os.Stdin)
	return 0
}

// holdAsAgent runs a command as the agent, returns the line that it prints, and lets its launch live on until the demo ends:
// a credential ends with the launch of who asked for it.
func (s *story) holdAsAgent(argv ...string) (string, error) {
	cmd := exec.Command(s.path("bin", "remit"), append([]string{"--dir", s.path("remit"), "exec", "--run", s.run, "--as", "agent/deploy",
		"--for", "apply", "--", s.path("bin", "agent"), holdCommand}, argv...)...)
	cmd.Stderr = os.Stderr
	in, err1 := cmd.StdinPipe()
	out, err2 := cmd.StdoutPipe()
	if err := errors.Join(err1, err2); err != nil {
		return "", err
	}
	if err := cmd.Start(); err != nil {
		return "", err
	}
	s.stops = append(s.stops, func() {
		_ = in.Close()
		late := time.AfterFunc(10*time.Second, func() { _ = cmd.Process.Kill() })
		_ = cmd.Wait()
		late.Stop()
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		return "", fmt.Errorf("no credential: %w", err)
	}
	return strings.TrimSpace(line), nil
}

// start starts a server, waits for the line that says it is ready, and sees to its end.
func (s *story) start(log, ready string, argv ...string) (string, error) {
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
	s.pids = append(s.pids, cmd.Process.Pid)
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
	s.stops = append(s.stops, func() {
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

func (s *story) ask(format string, args ...any) { fmt.Printf("  asked   "+format+"\n", args...) }

func (s *story) told(format, arg string, took time.Duration) {
	if strings.Contains(format, "%s") {
		format = fmt.Sprintf(format, arg)
	}
	if took > 0 {
		format += fmt.Sprintf("  [%.1f ms]", float64(took.Microseconds())/1e3)
	}
	fmt.Println("  told    " + format)
}

func lastLine(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return lines[len(lines)-1]
}

func digestOf(path string) (string, error) {
	b, err := os.ReadFile(path)
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:]), err
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}
