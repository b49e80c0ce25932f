// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
)

// victim is set for the process that TestServersEndWithTheBench kills.
const victim = "REMIT_TEST_BENCH_VICTIM"

// stays says that it is ready, and stays.
var stays = []string{"/bin/sh", "-c", "echo ready; exec sleep 600"}

// TestServersEndWithTheBench: a bench that is killed leaves no server.
func TestServersEndWithTheBench(t *testing.T) {
	if os.Getenv(victim) != "" {
		b := &bench{dir: t.TempDir()}
		s, err := b.start("server", "ready", "", stays...)
		fmt.Println("server", s.pid, err)
		select {} // until it is killed
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, "-test.run=^TestServersEndWithTheBench$")
	cmd.Env = append(os.Environ(), victim+"=1", "TMPDIR="+t.TempDir())
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var pid int
	scan := bufio.NewScanner(out)
	for pid == 0 && scan.Scan() {
		_, _ = fmt.Sscanf(scan.Text(), "server %d <nil>", &pid)
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	if pid == 0 {
		t.Fatal("the bench started no server")
	}
	defer syscall.Kill(pid, syscall.SIGKILL) //nolint:errcheck // it should be gone
	for until := time.Now().Add(20 * time.Second); runs(pid); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(until) {
			t.Fatal("the server lives on after the bench was killed")
		}
	}
}

// TestServersOutliveThreads: a server does not end with the goroutine that asked for it, nor with its thread.
func TestServersOutliveThreads(t *testing.T) {
	b := &bench{dir: t.TempDir()}
	defer b.stopAll()
	type started struct {
		s      *process
		err    error
		thread int
	}
	done := make(chan started)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		s, err := b.start("server", "ready", "", stays...)
		done <- started{s, err, syscall.Gettid()}
	}()
	got := <-done
	if got.err != nil {
		t.Fatal(got.err)
	}
	at := fmt.Sprintf("/proc/self/task/%d", got.thread)
	for until := time.Now().Add(20 * time.Second); got.thread != os.Getpid(); time.Sleep(time.Millisecond) {
		if _, err := os.Stat(at); err != nil {
			break
		}
		if time.Now().After(until) {
			t.Fatal("the thread does not end")
		}
	}
	for range 50 { // a signal is on its way for a moment
		if !runs(got.s.pid) {
			t.Fatal("the server ended with the thread of who asked for it")
		}
		time.Sleep(time.Millisecond)
	}
}

// runs reports whether a process is there and no zombie.
func runs(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !strings.Contains(string(stat), ") Z ")
}
