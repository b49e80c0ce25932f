// SPDX-License-Identifier: Apache-2.0

package gvisor_test

import (
	"bufio"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"remit"
	"remit/internal/sandbox"
	"remit/internal/sandbox/gvisor"
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
	return gvisor.New(gvisor.Config{State: state, Executable: executable})
}

func driver(t *testing.T) sandbox.Driver {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("gVisor sandboxes need root")
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
	sandboxtest.Test(t, sandboxtest.Suite{New: driver, Executable: executable, State: state, Kernel: regexp.MustCompile(`gvisor$`), Left: left,
		Refused: map[string]string{
			// gVisor has these itself; none reaches the host.
			"socket=netlink": `^ok$`, "keyctl": `^ok$`, "list=/sys/kernel": `^ok$`, "newuser": `^ok$`,
		}})
}

// left finds a sandbox by its name: in the folder, the control groups, the mounts and the arguments of processes.
func left(id remit.SandboxID) []string {
	var out []string
	for _, pattern := range []string{state + "/*/*", "/sys/fs/cgroup/*/*/" + string(id), "/sys/fs/cgroup/*/*/*/" + string(id), "/sys/fs/cgroup/*/*/*/*/" + string(id)} {
		found, _ := filepath.Glob(pattern)
		for _, f := range found {
			if strings.Contains(f, string(id)) {
				out = append(out, f)
			}
		}
	}
	mounts, _ := os.ReadFile("/proc/self/mounts")
	processes, _ := exec.Command("ps", "axww", "-o", "args").Output()
	for line := range strings.Lines(string(mounts) + string(processes)) {
		if strings.Contains(line, string(id)) {
			out = append(out, line)
		}
	}
	return out
}

// TestStatusOfTheShortLived: a tool that ends before anybody asks still has its status.
func TestStatusOfTheShortLived(t *testing.T) {
	d := driver(t)
	for range 10 {
		r := sandboxtest.Run(t, d, sandbox.Spec{Command: sandboxtest.Shell("echo hello; id -u; exit 3")})
		if r.Out != "hello\n65534\n" || r.Exit.Cause != sandbox.CauseExited || r.Exit.Code != 3 {
			t.Fatalf("got %+v", r)
		}
	}
}

func TestProbe(t *testing.T) {
	if r := driver(t).Probe(t.Context()); !r.Works {
		t.Errorf("%+v", r)
	}
}

// TestActivity: what the tool executes, opens and connects to is seen from outside it.
func TestActivity(t *testing.T) {
	i := sandboxtest.Start(t, driver(t), sandbox.Spec{Observe: true, Command: []string{"/attack", "dial=10.1.2.3:80", "unix=/run/remit/none.sock", "newuser"},
		Mounts: []sandbox.Mount{{From: executable, At: "/attack"}}})
	if _, err := i.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	a := i.Activity()
	if a == nil || a.Executed < 1 || a.Opened < 1 || a.Connected < 2 || a.Dropped != 0 || !slices.Contains(a.Programs, "/usr/bin/true") ||
		!slices.Contains(a.Addresses, "10.1.2.3:80") || !slices.Contains(a.Addresses, "unix:/run/remit/none.sock") {
		t.Errorf("seen: %+v", a)
	}
}

// TestLongState: the address of a socket may have 107 bytes, the path of the driver's folder more. What the tool does is seen all the same.
func TestLongState(t *testing.T) {
	driver(t)
	d, err := open(filepath.Join(sandboxtest.Short(t), strings.Repeat("a-long-folder/", 10)), executable)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = d.(io.Closer).Close() }()
	if r := d.Probe(t.Context()); !r.Works {
		t.Errorf("%+v", r)
	}
	i := sandboxtest.Start(t, d, sandbox.Spec{Observe: true, Command: sandboxtest.Shell("/usr/bin/true; exit 0")})
	if _, err := i.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	if a := i.Activity(); a == nil || a.Executed < 1 || !slices.Contains(a.Programs, "/usr/bin/true") {
		t.Errorf("seen: %+v", a)
	}
}

// TestCheckpoint: a tool that was checkpointed goes on from there, in another sandbox, as often as wanted.
func TestCheckpoint(t *testing.T) {
	d := driver(t)
	image := filepath.Join(sandboxtest.Short(t), "image")
	spec := sandbox.Spec{Command: sandboxtest.Shell("n=1; echo ready; while read x; do n=$((n+1)); echo $n $x; done"), Sockets: sandboxtest.Short(t)}
	first := sandboxtest.Start(t, d, spec)
	talk := func(i *sandbox.Instance, in *bufio.Reader, say, want string) {
		t.Helper()
		if say != "" {
			if _, err := io.WriteString(i.Stdin(), say+"\n"); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := in.ReadString('\n'); got != want+"\n" {
			t.Fatalf("it says %q, %v; want %q; %s", got, err, want, i.Stderr())
		}
	}
	in := bufio.NewReader(first.Stdout())
	talk(first, in, "", "ready")
	talk(first, in, "a", "2 a")
	if err := first.Checkpoint(t.Context(), image); err != nil {
		t.Fatal(err)
	}
	talk(first, in, "b", "3 b")
	for range 2 {
		spec.ID, spec.Image, spec.Sockets = "", image, sandboxtest.Short(t)
		again := sandboxtest.Start(t, d, spec)
		talk(again, bufio.NewReader(again.Stdout()), "c", "3 c")
	}
}

// TestChangingMounts: what changes on the host in a tool's mounts is seen, also where the tool looked before. Two may have the same source.
func TestChangingMounts(t *testing.T) {
	data := sandboxtest.Short(t)
	if err := os.Chmod(data, 0o755); err != nil {
		t.Fatal(err)
	}
	i := sandboxtest.Start(t, driver(t), sandbox.Spec{Command: sandboxtest.Shell("while read x; do cat /data/f || echo none; cat /again/f || echo none; done"), Sockets: sandboxtest.Short(t),
		Mounts: []sandbox.Mount{{From: data, At: "/data"}, {From: data, At: "/again"}}})
	in := bufio.NewReader(i.Stdout())
	look := func(want string) {
		t.Helper()
		if _, err := io.WriteString(i.Stdin(), "\n"); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if got, err := in.ReadString('\n'); got != want+"\n" {
				t.Fatalf("it sees %q, %v; want %q; %s", got, err, want, i.Stderr())
			}
		}
	}
	look("none")
	for _, content := range []string{"first", "second, and longer"} {
		next := filepath.Join(data, "next")
		if err := os.WriteFile(next, []byte(content+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(next, filepath.Join(data, "f")); err != nil {
			t.Fatal(err)
		}
		look(content)
	}
}

// TestFilterWasCompiled: a kernel takes its filter as it was compiled ahead, by its own word.
func TestFilterWasCompiled(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("a program was only generated for amd64")
	}
	d, logs := driver(t).(*gvisor.Driver), sandboxtest.Short(t)
	d.Flag("--debug")
	d.Flag("--debug-log=" + logs + "/")
	if r := sandboxtest.Run(t, d, sandbox.Spec{Command: sandboxtest.Shell("echo hello")}); r.Out != "hello\n" {
		t.Fatalf("got %+v", r)
	}
	files, err := filepath.Glob(filepath.Join(logs, "*.boot.txt"))
	if err != nil || len(files) != 1 {
		t.Fatalf("the kernel's log is in %q, %v", files, err)
	}
	if log, err := os.ReadFile(files[0]); !strings.Contains(string(log), "Loaded precompiled seccomp instructions") {
		t.Errorf("it is not said in %d bytes, %v", len(log), err)
	}
}

// TestProblem: the fix fits what went wrong, and who asks.
func TestProblem(t *testing.T) {
	settings := t.TempDir()
	if err := os.MkdirAll(settings+"/user", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(settings+"/user/max_user_namespaces", []byte("0\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	root, other := sandbox.Host{Root: true, Settings: t.TempDir()}, sandbox.Host{Settings: settings}
	for err, c := range map[error]struct {
		host sandbox.Host
		want string
	}{
		errors.New("fork/exec /proc/self/exe: no such file or directory"): {other, "build remit statically"},
		errors.New("creating container: operation not permitted"):         {root, "let remit make namespaces"},
		&os.PathError{Op: "mount", Path: "/x", Err: syscall.EACCES}:       {root, "let remit make namespaces"},
		errors.New("fork/exec remit: no space left on device"):            {other, "run remit serve as root, or allow user namespaces, as root: echo 15000 > " + settings},
		errors.New("the sandbox did not answer"):                          {root, "see docs/sandbox.md, What a host needs"},
	} {
		if p := gvisor.ProblemOf(err, c.host); p.What != err.Error() || !strings.HasPrefix(p.Fix, c.want) {
			t.Errorf("%+v, want %q", p, c.want)
		}
	}
}

// withoutRoot names the folder of a program and a state, for a run of this test as another user.
const withoutRoot = "REMIT_TEST_WITHOUT_ROOT"

// TestWithoutRoot: a server of another user runs gVisor in a user namespace, and nothing is left.
func TestWithoutRoot(t *testing.T) {
	if dir := os.Getenv(withoutRoot); dir != "" {
		d, err := gvisor.New(gvisor.Config{State: filepath.Join(dir, "state"), Executable: filepath.Join(dir, "box")})
		if err != nil {
			t.Fatal(err)
		}
		if r := d.Probe(t.Context()); !r.Works {
			t.Fatalf("%+v", r)
		}
		r := sandboxtest.Run(t, d, sandbox.Spec{Command: sandboxtest.Shell("id -u; cat /etc/shadow 2>&1; exit 3")})
		if r.Out != "65534\ncat: /etc/shadow: No such file or directory\n" || r.Exit.Code != 3 {
			t.Errorf("%+v", r)
		}
		sandboxtest.Start(t, d, sandbox.Spec{Command: sandboxtest.Shell("sleep 100")})
		if err := d.Close(); err != nil {
			t.Error(err)
		}
		if out, _ := exec.Command("ps", "axww", "-o", "args").Output(); strings.Contains(string(out), dir+"/state") {
			t.Errorf("%s is left", out)
		}
		return
	}
	if os.Geteuid() != 0 {
		t.Skip("only root can start a process of another user")
	}
	dir := sandboxtest.Short(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for name, from := range map[string]string{"box": executable, "test": self} {
		b, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(filepath.Join(dir, "test"), "-test.run=^TestWithoutRoot$", "-test.v")
	cmd.Dir, cmd.Env = dir, append(os.Environ(), withoutRoot+"="+dir, "TMPDIR="+dir, "HOME="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 1234, Gid: 1234}}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("as another user: %v: %s", err, out)
	}
}

// TestStartedAhead: the process that waits to make the next sandbox is missed by nobody if somebody ends it.
func TestStartedAhead(t *testing.T) {
	d := driver(t)
	for range 2 {
		if r := sandboxtest.Run(t, d, sandbox.Spec{Command: sandboxtest.Shell("echo hello")}); r.Out != "hello\n" {
			t.Fatalf("got %+v", r)
		}
		pid := ahead(t)
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		// Until all of it has ended it can take an order.
		for until := time.Now().Add(10 * time.Second); time.Now().Before(until); time.Sleep(time.Millisecond) {
			at := "/proc/" + strconv.Itoa(pid)
			threads, _ := os.ReadDir(at + "/task")
			if stat, err := os.ReadFile(at + "/stat"); err != nil || len(threads) < 2 && strings.Contains(string(stat), ") Z ") {
				break
			}
		}
	}
}

// ahead waits for the process that waits, and returns its number.
func ahead(t *testing.T) int {
	t.Helper()
	for until := time.Now().Add(10 * time.Second); time.Now().Before(until); time.Sleep(10 * time.Millisecond) {
		out, _ := exec.Command("ps", "-o", "pid=,args=", "--ppid", strconv.Itoa(os.Getpid())).Output()
		for line := range strings.Lines(string(out)) {
			if f := strings.Fields(line); len(f) == 2 && f[1] == "runsc" {
				pid, _ := strconv.Atoi(f[0])
				return pid
			}
		}
	}
	t.Fatal("no process waits to make the next sandbox")
	return 0
}
