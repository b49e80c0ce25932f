// SPDX-License-Identifier: Apache-2.0

package process_test

import (
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"remit"
	"remit/internal/sandbox"
	"remit/internal/sandbox/process"
	"remit/internal/sandbox/sandboxtest"
)

var executable, state string

func TestMain(m *testing.M) {
	if os.Geteuid() != 0 {
		os.Exit(m.Run())
	}
	code, err := sandboxtest.Main(m, &executable, &state, open)
	if err != nil {
		panic(err)
	}
	os.Exit(code)
}

func open(state, executable string) (sandbox.Driver, error) {
	executable, err := sandboxtest.Unguarded(executable, "remit-process-box")
	if err != nil {
		return nil, err
	}
	return process.New(process.Config{State: state, Executable: executable})
}

func driver(t *testing.T) sandbox.Driver {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("process sandboxes are tested as root")
	}
	d, err := open(state, executable)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.(io.Closer).Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

func TestSuite(t *testing.T) {
	var host unix.Utsname
	if err := unix.Uname(&host); err != nil {
		t.Fatal(err)
	}
	release := unix.ByteSliceToString(host.Release[:]) // the host's kernel: what this tier does not protect
	sandboxtest.Test(t, sandboxtest.Suite{New: driver, Executable: executable, State: state, Kernel: regexp.MustCompile("^" + regexp.QuoteMeta(release) + "$"), Left: left})
}

func left(id remit.SandboxID) []string {
	var out []string
	for _, pattern := range []string{state + "/*", "/sys/fs/cgroup/*/*/*", "/sys/fs/cgroup/*/*/*/*", "/sys/fs/cgroup/*/*/*/*/*"} {
		found, _ := filepath.Glob(pattern)
		for _, f := range found {
			if filepath.Base(f) == string(id) {
				out = append(out, f)
			}
		}
	}
	mounts, _ := os.ReadFile("/proc/self/mounts")
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, string(id)) {
			out = append(out, line)
		}
	}
	return out
}

func TestProbe(t *testing.T) {
	if r := driver(t).Probe(t.Context()); !r.Works {
		t.Errorf("%+v", r)
	}
}

// TestLayers: each layer by what it alone refuses or shows, where the others would let it pass or hide it.
func TestLayers(t *testing.T) {
	d := driver(t)
	fd, err := unix.FcntlInt(0, unix.F_DUPFD, 200) // something of this process's that forgot to be closed on execution
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd) //nolint:errcheck // a test's
	rows := map[string]string{
		"bounding": "0000000000000000", "securebits": "0x2f", "ids": "uid 65534 gid 65534 groups []",
		"seccomp":                                "2",                                    // filtered
		"socket=vsock":                           "operation not permitted",              // by the filter: the family is there
		"open=/dev/urandom":                      "open /dev/urandom: permission denied", // by landlock: its mode lets everybody
		"open=/dev/null":                         "ok",
		"mounted=/":                              "read-only true nosuid true nodev true",
		"mounted=/usr":                           "read-only true nosuid true nodev true",
		"list=/proc/self/fd/" + strconv.Itoa(fd): "open /proc/self/fd/" + strconv.Itoa(fd) + ": no such file or directory",
	}
	command := []string{"/attack"}
	for row := range rows {
		command = append(command, row)
	}
	r := sandboxtest.Run(t, d, sandbox.Spec{Command: command, Mounts: []sandbox.Mount{{From: executable, At: "/attack"}}})
	for row, want := range rows {
		if !strings.Contains(r.Out, row+" "+want+"\n") {
			t.Errorf("%s: want %q in %s%s", row, want, r.Out, r.Err)
		}
	}
}

// TestStartedAhead: the process that waits for the next sandbox sees what was mounted after it was started, and is missed by nobody if
// somebody ends it.
func TestStartedAhead(t *testing.T) {
	d := driver(t)
	at := sandboxtest.Short(t)
	if err := errors.Join(unix.Mount("tmpfs", at, "tmpfs", 0, ""), unix.Mount("", at, "", unix.MS_PRIVATE, "")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(at, unix.MNT_DETACH) })
	run := func() {
		t.Helper()
		r := sandboxtest.Run(t, d, sandbox.Spec{Command: sandboxtest.Shell("cat /data/*"), Mounts: []sandbox.Mount{{From: at, At: "/data"}}})
		if r.Out != "here" {
			t.Errorf("the sandbox says %q %s, %+v", r.Out, r.Err, r.Exit)
		}
	}
	inner := filepath.Join(at, "inner")
	if err := errors.Join(os.WriteFile(filepath.Join(at, "file"), []byte("here"), 0o644), os.Mkdir(inner, 0o755)); err != nil {
		t.Fatal(err)
	}
	run()
	ahead(t)
	if err := unix.Mount("tmpfs", inner, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	at = inner
	if err := os.WriteFile(filepath.Join(at, "file"), []byte("here"), 0o644); err != nil {
		t.Fatal(err)
	}
	run()
	for _, pid := range ahead(t) {
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			t.Error(err)
		}
	}
	run()
}

// TestAnswersInTheSandbox: what listens at Spec.Listen is served outside, is reached by the sandbox's own processes and by nobody else,
// is no file of theirs, and ends with the sandbox.
func TestAnswersInTheSandbox(t *testing.T) {
	d := driver(t)
	const at = "127.0.0.1:31280"
	dial := "dial=" + at
	spec := sandbox.Spec{ID: remit.NewSandboxID(), Listen: at, Command: sandboxtest.Shell("/attack "+dial, "ls -l /proc/self/fd"),
		Mounts: []sandbox.Mount{{From: executable, At: "/attack"}}}
	i, err := d.Prepare(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	accepted := make(chan error, 1)
	go func() {
		c, err := i.Listener().Accept()
		if err == nil {
			err = c.Close()
		}
		accepted <- err
	}()
	if c, err := net.DialTimeout("tcp", at, time.Second); err == nil {
		t.Error("it is reached from the host", c.Close())
	}
	if r := sandboxtest.Run(t, d, sandbox.Spec{Command: []string{"/attack", dial}, Mounts: spec.Mounts}); !strings.Contains(r.Out, "connection refused") {
		t.Errorf("another sandbox says %q", r.Out)
	}
	if err := i.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	out, err := io.ReadAll(i.Stdout())
	if err := errors.Join(err, <-accepted); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(out), dial+" ok\n") || !strings.Contains(string(out), " 2 -> ") || strings.Contains(string(out), "socket:") {
		t.Errorf("the sandbox says %q", out)
	}
	if err := i.Destroy(t.Context()); err != nil {
		t.Fatal(err)
	}
	if c, err := i.Listener().Accept(); err == nil {
		t.Error("it listens still", c.Close())
	}
}

// ahead waits for the processes of this driver that wait, and returns their numbers.
func ahead(t *testing.T) []int {
	t.Helper()
	for until := time.Now().Add(10 * time.Second); time.Now().Before(until); time.Sleep(10 * time.Millisecond) {
		var found []int
		names, _ := filepath.Glob("/proc/[0-9]*/cmdline")
		for _, name := range names {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(name)))
			status, _ := os.ReadFile(filepath.Join(filepath.Dir(name), "status"))
			if b, err := os.ReadFile(name); err == nil && string(b) == "remit-process-box\x00" && strings.Contains(string(status), "\nPPid:\t"+strconv.Itoa(os.Getpid())+"\n") {
				found = append(found, pid)
			}
		}
		if len(found) > 0 {
			return found
		}
	}
	t.Fatal("no process waits for the next sandbox")
	return nil
}
