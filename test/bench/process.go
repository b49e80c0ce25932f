// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// process is a server that is measured.
type process struct {
	pid   int
	stop  func()
	ready time.Duration // from the start of the process to the line that says it is ready
}

// run starts a command that ends with this process, however that ends, and returns what tells its end. The kernel sends the signal when the
// thread that started the command ends, so one waits for it. SIGTERM, so that a server of ours ends its sandboxes, too.
func run(cmd *exec.Cmd, read func()) (exited chan error, err error) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	started := make(chan error)
	exited = make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			read() // all of its output, before Wait closes that
			exited <- cmd.Wait()
		}
	}()
	return exited, <-started
}

// start starts a server in the folder for its log and waits until it is ready: for the line, or where line is empty for the
// address to accept connections.
func (b *bench) start(name, line, address string, argv ...string) (*process, error) {
	log, err := os.Create(b.path(name + ".log"))
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stderr = log
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	began := time.Now()
	said := make(chan time.Duration, 1)
	exited, err := run(cmd, func() {
		scan := bufio.NewScanner(out)
		for scan.Scan() {
			if line != "" && strings.HasPrefix(scan.Text(), line) {
				said <- time.Since(began)
				break
			}
		}
		_, _ = io.Copy(io.Discard, out)
	})
	if err != nil {
		return nil, err
	}
	s := &process{pid: cmd.Process.Pid}
	ended := false
	s.stop = func() {
		if ended {
			return
		}
		ended = true
		_ = cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-exited:
		case <-time.After(20 * time.Second):
			_ = cmd.Process.Kill()
			<-exited
		}
		_ = log.Close()
	}
	b.stops = append(b.stops, s.stop)
	if line == "" {
		go func() { said <- accepts(address, began) }()
	}
	select {
	case s.ready = <-said:
		return s, nil
	case err := <-exited:
		exited <- err
		text, _ := os.ReadFile(log.Name())
		return nil, fmt.Errorf("%s ended: %w\n%s", filepath.Base(argv[0]), errors.Join(err, errors.New("before it was ready")), text)
	case <-time.After(time.Minute):
		return nil, fmt.Errorf("%s is not ready after a minute", filepath.Base(argv[0]))
	}
}

// accepts returns when the address accepts connections, or after a minute.
func accepts(address string, began time.Time) time.Duration {
	for time.Since(began) < time.Minute {
		if c, err := net.Dial("tcp", address); err == nil {
			_ = c.Close()
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	return time.Since(began)
}

// cpu is the processor time that a process has used, user and system (proc_pid_stat(5), fields 14 and 15), in clock ticks of
// 10 ms, which Linux fixes for user space.
func cpu(pid int) (time.Duration, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	if len(fields) < 13 {
		return 0, errors.New("stat of the process is too short")
	}
	user, err1 := strconv.ParseInt(fields[11], 10, 64)
	system, err2 := strconv.ParseInt(fields[12], 10, 64)
	return time.Duration(user+system) * 10 * time.Millisecond, errors.Join(err1, err2)
}

// resident is the memory that a process holds, in bytes.
func resident(pid int) (int64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kib, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			return kib << 10, err
		}
	}
	return 0, errors.New("no VmRSS")
}

// took runs a command to its end and returns how long that took, and what it printed.
func took(ctx context.Context, env []string, argv ...string) (time.Duration, string, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), env...)
	began := time.Now()
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, out)
	}
	return time.Since(began), string(out), err
}

func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}
