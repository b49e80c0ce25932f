// SPDX-License-Identifier: Apache-2.0

package sandboxtest

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
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"remit"
	"remit/internal/sandbox"
)

// Suite is a driver under test.
type Suite struct {
	New        func(t *testing.T) sandbox.Driver
	Executable string // what Build built
	// Kernel is what the tool may see as its kernel.
	Kernel *regexp.Regexp
	// Refused are rows that this driver refuses otherwise than the table: by row, what is said. Each is reasoned where it is set.
	Refused map[string]string
	State   string // the folder of the state of what New makes
	// Without names tests of the suite that do not apply, with the reason.
	Without map[string]string
	// Left lists what a sandbox leaves on the host, by its id; empty when all is gone.
	Left func(id remit.SandboxID) []string
}

// Test runs everything.
func Test(t *testing.T, s Suite) {
	for _, c := range []struct {
		name string
		run  func(*testing.T)
	}{{"Isolation", s.isolation}, {"Sockets", s.sockets}, {"Mounts", s.mounts}, {"Answers", s.answers}, {"Limits", s.limits}, {"Nothing left", s.nothingLeft}, {"Frozen", s.frozen}, {"Sweep", s.sweep}, {"Killed owner", s.killedOwner}} {
		if s.Without[c.name] == "" {
			t.Run(c.name, c.run)
		}
	}
}

const attackAt = "/attack"

func (s Suite) attack(t *testing.T, d sandbox.Driver, spec sandbox.Spec, attempts ...string) (map[string]string, Result) {
	t.Helper()
	spec.Command = append([]string{attackAt}, attempts...)
	spec.Mounts = append(spec.Mounts, sandbox.Mount{From: s.Executable, At: attackAt})
	r := Run(t, d, spec)
	said := map[string]string{}
	for line := range strings.Lines(r.Out) {
		for _, a := range attempts {
			if rest, ok := strings.CutPrefix(strings.TrimSpace(line), a+" "); ok {
				said[a] = rest
			}
		}
	}
	return said, r
}

// refusal is what each attempt must be answered with: a pattern.
const (
	absent    = `no such file or directory`
	forbidden = `operation not permitted|permission denied|function not implemented|invalid argument|bad address|read-only file system|not supported|no such device`
	nowhere   = `connection refused|network is unreachable|permission denied|cannot assign requested address`
	noFamily  = `address family not supported|operation not permitted|permission denied`
)

// isolation is the table of what a tool sees and may do: every row.
func (s Suite) isolation(t *testing.T) {
	d := s.New(t)
	secret := filepath.Join(Short(t), "secret")
	if err := os.WriteFile(secret, []byte("secret"), 0o644); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	abstract := fmt.Sprintf("@remit-test-%d", os.Getpid())
	a, err := net.Listen("unix", abstract)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	rows := map[string]string{
		"read=" + secret: absent, "list=" + filepath.Dir(secret): absent, "read=/etc/shadow": absent, "list=/root": absent, "list=/home": absent,
		"list=/var": absent, "list=/../var": absent, "list=/../../root": absent, "list=/run/systemd": absent, "list=/sys/kernel": absent, "read=/etc/machine-id": absent, "read=/proc/kcore": forbidden + "|" + absent,
		"write=/usr/x": forbidden, "write=/etc/x": forbidden, "write=/x": forbidden, "write=/tool/x": forbidden + "|" + absent,
		"write=/proc/sys/kernel/core_pattern": forbidden + "|" + absent, "write=/proc/sysrq-trigger": forbidden + "|" + absent,
		"write=/dev/x": forbidden, "write=/tmp/x": `^ok$`,
		"dial=" + l.Addr().String(): nowhere, "dial=169.254.169.254:80": nowhere, "dial=8.8.8.8:53": nowhere, "dial=[fd00:ec2::254]:80": nowhere,
		"resolve=example.com": `^lookup example\.com`, "unix=" + abstract: nowhere, "unix=/var/run/docker.sock": absent,
		"bpf": forbidden, "io_uring": forbidden, "userfaultfd": forbidden, "keyctl": forbidden, "perf": forbidden, "setuid": forbidden,
		"ptrace": forbidden, "mount": forbidden, "kexec": forbidden, "chroot": forbidden, "reboot": forbidden, "module": forbidden,
		"open_by_handle": forbidden + "|bad file descriptor", "setns": forbidden + "|bad file descriptor", "userns": forbidden, "newuser": forbidden,
		"socket=vsock": noFamily, "socket=packet": noFamily + "|not supported", "socket=alg": noFamily, "socket=netlink": noFamily,
		"socket=unix": `^ok$`, "socket=inet": `^ok$`, "socket=inet6": `^ok$`,
		"caps": `^0000000000000000$`, "ids": `^uid 65534 gid 65534 groups \[(65534)?\]$`, "pids": `^[12] processes, this is [12]$`,
		"environment": `^A=b,HOME=/tmp,PATH=/usr/local/bin:/usr/bin:/bin,TMPDIR=/tmp$`, "kernel": s.Kernel.String(),
	}
	attempts := []string{}
	for row := range rows {
		attempts = append(attempts, row)
	}
	said, r := s.attack(t, d, sandbox.Spec{Env: map[string]string{"A": "b"}}, attempts...)
	if r.Exit.Cause != sandbox.CauseExited {
		t.Fatalf("it ended by %s %s: %s%s", r.Exit, r.Exit.Detail, r.Out, r.Err)
	}
	// Something of this process's that forgot to be closed on execution.
	fd, err := syscall.Dup(0)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(fd)                                                                        //nolint:errcheck // a test's
	if r := Run(t, d, sandbox.Spec{Command: Shell("ls /proc/self/fd")}); r.Out != "0\n1\n2\n3\n" { // 3 is of ls itself
		t.Errorf("files that are open: %q %q", r.Out, r.Err)
	}
	for row, want := range rows {
		if other, ok := s.Refused[row]; ok {
			want = other
		}
		if got := said[row]; !regexp.MustCompile(want).MatchString(got) {
			t.Errorf("%s: %q, want %s", row, got, want)
		}
	}
}

// sockets: a tool reaches the sockets in its own folder, and no other sandbox's.
func (s Suite) sockets(t *testing.T) {
	d := s.New(t)
	mine, other := Short(t), Short(t)
	for _, dir := range []string{mine, other} {
		l, err := net.Listen("unix", filepath.Join(dir, "egress.sock"))
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		for _, p := range []string{dir, filepath.Join(dir, "egress.sock")} {
			if err := os.Chmod(p, 0o777); err != nil {
				t.Fatal(err)
			}
		}
	}
	own, others := "unix="+sandbox.SocketsAt+"/egress.sock", "unix="+filepath.Join(other, "egress.sock")
	said, _ := s.attack(t, d, sandbox.Spec{Sockets: mine}, own, others, "write="+sandbox.SocketsAt+"/x")
	if said[own] != "ok" || !strings.Contains(said[others], "no such file") || said["write="+sandbox.SocketsAt+"/x"] == "ok" {
		t.Errorf("it says %q", said)
	}
}

// mounts: read-only unless stated.
// answers: a driver that cannot do that says so, and makes no sandbox in which nobody answers.
func (s Suite) answers(t *testing.T) {
	d := s.New(t)
	if _, ok := d.(sandbox.Answering); ok {
		return // its own test
	}
	_, err := d.Prepare(t.Context(), sandbox.Spec{ID: remit.NewSandboxID(), Command: Shell("true"), Listen: "127.0.0.1:3128"})
	if !errors.Is(err, sandbox.ErrUnsupported) {
		t.Errorf("asked to listen: %v", err)
	}
}

func (s Suite) mounts(t *testing.T) {
	d := s.New(t)
	read, write, files := Short(t), Short(t), Short(t)
	for _, dir := range []string{read, write, files} {
		if err := os.Chmod(dir, 0o777); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "a"), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	said, _ := s.attack(t, d, sandbox.Spec{Files: files, Mounts: []sandbox.Mount{{From: read, At: "/data/read"}, {From: write, At: "/data/write", Write: true}}},
		"read=/tool/a", "read=/data/read/a", "read=/data/write/a", "write=/data/read/x", "write=/tool/x", "write=/data/write/x")
	for attempt, want := range map[string]string{"read=/tool/a": "^ok$", "read=/data/read/a": "^ok$", "read=/data/write/a": "^ok$", "write=/data/write/x": "^ok$",
		"write=/data/read/x": forbidden, "write=/tool/x": forbidden} {
		if !regexp.MustCompile(want).MatchString(said[attempt]) {
			t.Errorf("%s: %q", attempt, said[attempt])
		}
	}
	if _, err := os.Stat(filepath.Join(read, "x")); err == nil {
		t.Error("a file came to be in a read-only mount")
	}
}

// limits: each with its own cause.
func (s Suite) limits(t *testing.T) {
	d := s.New(t)
	for name, c := range map[string]struct {
		command []string
		limits  sandbox.Limits
		want    sandbox.Cause
	}{
		"wall":      {Shell("sleep 100"), sandbox.Limits{Wall: time.Second}, sandbox.CauseTimeout},
		"memory":    {[]string{attackAt, "eat"}, sandbox.Limits{Memory: 96 << 20}, sandbox.CauseMemory},
		"scratch":   {Shell("head -c 20000000 /dev/zero > /tmp/x || exit 7"), sandbox.Limits{Scratch: 1 << 20}, sandbox.CauseExited},
		"processes": {[]string{attackAt, "bomb"}, sandbox.Limits{Processes: 32}, sandbox.CausePIDs},
		"output":    {Shell("while :; do echo xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx; done"), sandbox.Limits{Output: 100 << 10}, sandbox.CauseOutput},
		"errors":    {Shell("while :; do echo xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx >&2; done"), sandbox.Limits{Output: 100 << 10}, sandbox.CauseOutput},
	} {
		t.Run(name, func(t *testing.T) {
			r := Run(t, d, sandbox.Spec{Command: c.command, Limits: c.limits, Mounts: []sandbox.Mount{{From: s.Executable, At: attackAt}}})
			if r.Exit.Cause != c.want || (name == "scratch" && r.Exit.Code != 7) || len(r.Out) > 16<<20 {
				t.Errorf("it ended by %s %s with %d: %.300q %.300q", r.Exit.Cause, r.Exit.Detail, r.Exit.Code, r.Out, r.Err)
			}
		})
	}
	t.Run("processor", func(t *testing.T) {
		i := Start(t, d, sandbox.Spec{Command: []string{attackAt, "spin"}, Limits: sandbox.Limits{CPU: 20}, Mounts: []sandbox.Mount{{From: s.Executable, At: attackAt}}})
		_, _ = io.Copy(io.Discard, i.Stdout())
		u, err := i.Usage()
		if err != nil || u.Throttled == 0 && u.CPU > 600*time.Millisecond {
			t.Errorf("it was not held: %+v, %v", u, err)
		}
		if u.Throttled == 0 {
			t.Logf("the host is too busy to tell: it got %s of 400ms", u.CPU)
		}
	})
}

func (s Suite) nothingLeft(t *testing.T) {
	d := s.New(t)
	for _, start := range []bool{true, false} {
		id := remit.NewSandboxID()
		i, err := d.Prepare(t.Context(), sandbox.Spec{ID: id, Command: Shell("sleep 100 & sleep 100 & wait")})
		if err != nil {
			t.Fatal(err)
		}
		if len(s.Left(id)) == 0 {
			t.Error("the test does not see a sandbox that is there")
		}
		if start {
			if err := i.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if err := i.Destroy(t.Context()); err != nil {
			t.Error(err)
		}
		if left := s.Left(id); len(left) > 0 {
			t.Errorf("destroyed, started %v: %q are left", start, left)
		}
	}
}

// frozen: what is frozen does nothing any more, neither the tool nor what it started, and dies as it stands.
func (s Suite) frozen(t *testing.T) {
	i := Start(t, s.New(t), sandbox.Spec{Command: Shell("(while :; do echo tick; sleep 0.01; done) & while :; do echo tock; sleep 0.01; done")})
	if line, err := bufio.NewReader(i.Stdout()).ReadString('\n'); err != nil {
		t.Fatal(line, err)
	}
	began := time.Now()
	t.Logf("frozen with %q within %s", i.Freeze(), time.Since(began))
	var said atomic.Int64
	var last sync.WaitGroup
	last.Go(func() {
		for b := make([]byte, 64); ; {
			n, err := i.Stdout().Read(b)
			said.Add(int64(n))
			if err != nil {
				return
			}
		}
	})
	defer last.Wait()
	defer i.End(sandbox.CauseKilled)
	time.Sleep(50 * time.Millisecond) // what stands in pipes
	before := said.Load()
	time.Sleep(200 * time.Millisecond)
	if after := said.Load(); after != before {
		t.Errorf("it goes on: %d bytes, then %d", before, after)
	}
	i.End(sandbox.CauseKilled)
	exit, err := i.Wait(t.Context())
	if err != nil || exit.Cause != sandbox.CauseKilled {
		t.Errorf("%+v %v", exit, err)
	}
}

// sweep: a new process removes what one that is gone left running.
func (s Suite) sweep(t *testing.T) {
	d := s.New(t)
	id := remit.NewSandboxID()
	i, err := d.Prepare(t.Context(), sandbox.Spec{ID: id, Command: Shell("sleep 100")})
	if err != nil {
		t.Fatal(err)
	}
	if err := i.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := d.Sweep(t.Context()); err != nil {
		t.Error(err)
	}
	if left := s.Left(id); len(left) > 0 {
		t.Errorf("%q are left", left)
	}
	ctx, stop := context.WithTimeout(t.Context(), 20*time.Second)
	defer stop()
	if _, err := i.Wait(ctx); err != nil {
		t.Error(err)
	}
	if err := i.Destroy(ctx); err != nil {
		t.Error(err)
	}
}

// killedOwner: a server that is killed leaves nothing once the next one has swept.
func (s Suite) killedOwner(t *testing.T) {
	d := s.New(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	owner := exec.Command(self, "-test.run=^$")
	owner.Env, owner.Stderr = append(os.Environ(), ownerVariable+"="+s.State, ownerVariable+"_EXE="+s.Executable), os.Stderr
	out, err := owner.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := owner.Start(); err != nil {
		t.Fatal(err)
	}
	said, err := bufio.NewReader(out).ReadString('\n')
	_ = owner.Process.Kill()
	_ = owner.Wait()
	id, perr := remit.ParseSandboxID(strings.TrimSpace(said))
	if err != nil || perr != nil {
		t.Fatalf("the owner said %q: %v", said, err)
	}
	if len(s.Left(id)) == 0 {
		t.Error("the killed owner left nothing: the test sees nothing")
	}
	if err := d.Sweep(t.Context()); err != nil {
		t.Error(err)
	}
	if left := s.Left(id); len(left) > 0 {
		t.Errorf("swept, and %q are left", left)
	}
}
