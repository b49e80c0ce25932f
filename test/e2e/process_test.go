// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"remit/internal/api"
	"remit/internal/server"
)

// envCrashCommit makes this test binary a server that kills itself, as SIGKILL does, when its n-th commit is durable and
// nobody has learned of it yet.
const (
	envCrashCommit = "REMIT_E2E_CRASH_COMMIT"
	envCrashDir    = "REMIT_E2E_CRASH_DIR"
)

// serveAndCrash is remit serve, on the same parts, with the one hook that a crash at a commit needs.
func serveAndCrash() int {
	n, err := strconv.ParseUint(os.Getenv(envCrashCommit), 10, 64)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	s, err := server.New(context.Background(), server.Options{Dir: os.Getenv(envCrashDir), Version: "crash",
		Log: slog.New(slog.NewTextHandler(os.Stderr, nil)), OnCommit: func(done uint64) {
			if done == n {
				_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
				select {} // nothing of this process runs on
			}
			fmt.Println("commit", done)
		}})
	if err == nil {
		err = s.Run(context.Background(), func(st api.Status) { fmt.Println("ready", st.HTTPS) })
	}
	fmt.Fprintln(os.Stderr, err)
	return 1
}

// process is a started server. ctx ends with it, so that nobody waits for a dead one.
type process struct {
	cmd   *exec.Cmd
	ctx   context.Context
	ready chan string // gets the ready line; closed at the end of the output
	last  chan uint64 // the last commit that a crashing server counted
	log   *os.File
}

// startProcess starts a server and logs what it writes to a file.
func startProcess(log string, env []string, argv ...string) (*process, error) {
	file, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	p := &process{cmd: exec.Command(argv[0], argv[1:]...), ready: make(chan string, 1), last: make(chan uint64, 1), log: file}
	p.cmd.Env, p.cmd.Stderr = append(os.Environ(), env...), file
	out, err := p.cmd.StdoutPipe()
	if err == nil {
		err = p.cmd.Start()
	}
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	ctx, cancel := context.WithCancel(context.Background())
	p.ctx = ctx
	go func() {
		defer cancel()
		p.read(out)
		_ = p.cmd.Wait()
		_ = file.Close()
	}()
	return p, nil
}

func (p *process) read(out io.Reader) {
	defer close(p.ready)
	var last uint64
	scan := bufio.NewScanner(out)
	for scan.Scan() {
		line := scan.Text()
		if strings.HasPrefix(line, "ready") {
			p.ready <- line
		}
		if text, ok := strings.CutPrefix(line, "commit "); ok {
			last, _ = strconv.ParseUint(text, 10, 64)
		}
	}
	p.last <- last
}

// isReady waits for the ready line; false means that the process ended, or was not ready in time and was killed.
func (p *process) isReady() bool {
	select {
	case _, ok := <-p.ready:
		return ok
	case <-time.After(30 * time.Second):
		p.kill()
		return false
	}
}

// kill ends it as kill -9 does, and waits.
func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	<-p.ctx.Done()
}

// stop ends it in order.
func (p *process) stop() error {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.ctx.Done():
		if code := p.cmd.ProcessState.ExitCode(); code != 0 {
			return fmt.Errorf("exit code %d", code)
		}
		return nil
	case <-time.After(20 * time.Second):
		p.kill()
		return errors.New("it did not end on SIGTERM")
	}
}
