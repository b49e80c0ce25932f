// SPDX-License-Identifier: Apache-2.0

//go:build linux

package firecracker_test

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"remit"
	"remit/internal/sandbox"
	"remit/internal/sandbox/firecracker"
	"remit/internal/sandbox/sandboxtest"
)

// No machine here has the hardware: what runs is the driver and the agent as they are, and in the place of Firecracker a program that
// answers as it does and runs the agent in namespaces (sandboxtest/vm). What a real machine would add, nobody has seen.
var executable, state, vm string

func TestMain(m *testing.M) {
	if os.Geteuid() != 0 {
		os.Exit(m.Run())
	}
	dir, err := os.MkdirTemp("", "vm")
	if err != nil {
		panic(err)
	}
	if os.Getenv(folderVariable) != "" { // an owner builds nothing
		if _, err := sandboxtest.Main(m, &executable, &state, open); err != nil {
			panic(err)
		}
		return
	}
	vm = filepath.Join(dir, "vm")
	if err := sandboxtest.Build("vm", vm); err != nil {
		panic(err)
	}
	code, err := sandboxtest.Main(m, &executable, &state, open)
	_ = os.RemoveAll(dir)
	if err != nil {
		panic(err)
	}
	os.Exit(code)
}

// folderVariable tells an owner where the files are.
const folderVariable = "REMIT_TEST_SANDBOX_FOLDER"

func open(state, _ string) (sandbox.Driver, error) {
	f := os.Getenv(folderVariable)
	return firecracker.New(firecracker.Config{State: state, Folder: f, Host: firecracker.Host{CPUInfo: filepath.Join(f, "cpuinfo"), KVM: "/dev/null"}})
}

// host is one that seems to have the hardware.
func host(t *testing.T) firecracker.Host {
	t.Helper()
	cpu := filepath.Join(sandboxtest.Short(t), "cpuinfo")
	if err := os.WriteFile(cpu, []byte(processor), 0o644); err != nil {
		t.Fatal(err)
	}
	return firecracker.Host{CPUInfo: cpu, KVM: "/dev/null"}
}

const processor = "processor\t: 0\nflags\t\t: fpu vme vmx sse\n"

// folder has the four files, and what a processor says.
func folder(t *testing.T) string {
	t.Helper()
	dir := sandboxtest.Short(t)
	program, err := os.ReadFile(vm)
	if err != nil {
		t.Fatal(err)
	}
	hello, err := os.ReadFile(executable)
	if err != nil {
		t.Fatal(err)
	}
	image := filepath.Join(dir, "image") // what the image has in it
	must := func(errs ...error) {
		t.Helper()
		if err := errors.Join(errs...); err != nil {
			t.Fatal(err)
		}
	}
	must(os.WriteFile(filepath.Join(dir, "firecracker"), program, 0o755), os.WriteFile(filepath.Join(dir, "jailer"), program, 0o755),
		os.WriteFile(filepath.Join(dir, "cpuinfo"), []byte(processor), 0o644), os.WriteFile(filepath.Join(dir, "vmlinux"), []byte("a kernel"), 0o644), os.WriteFile(filepath.Join(dir, "root.img"), []byte(image), 0o644))
	for _, d := range []string{"proc", "dev", "tmp", "usr", "etc", "root", "run/remit"} {
		must(os.MkdirAll(filepath.Join(image, d), 0o755))
	}
	for _, f := range []string{"etc/image"} {
		must(os.WriteFile(filepath.Join(image, f), nil, 0o644))
	}
	for _, l := range []string{"bin", "lib", "lib64", "sbin"} {
		must(os.Symlink("usr/"+l, filepath.Join(image, l)))
	}
	must(os.WriteFile(filepath.Join(image, "remit-hello"), hello, 0o755))
	return dir
}

func driver(t *testing.T) sandbox.Driver {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("virtual machines need root")
	}
	t.Setenv(folderVariable, folder(t))
	d, err := open(state, "")
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
	sandboxtest.Test(t, sandboxtest.Suite{New: driver, Executable: executable, State: state, Kernel: regexp.MustCompile("."), Left: left,
		Without: map[string]string{"Isolation": "its kernel is the host's here; what the agent does is in TestAgent",
			"Mounts": "none is writable"}})
}

// left finds a sandbox by its name: in the folders, the control groups, the mounts and the arguments of processes.
func left(id remit.SandboxID) []string {
	var out []string
	for _, pattern := range []string{state + "/*/*", state + "/*/*/*", "/sys/fs/cgroup/*/*/" + string(id), "/sys/fs/cgroup/*/*/*/" + string(id)} {
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

func TestProbe(t *testing.T) {
	r := driver(t).Probe(t.Context())
	if !r.Works || !strings.HasPrefix(r.Evidence, "uid=65534 ") {
		t.Errorf("%+v", r)
	}
}

// TestAgent: what the agent leaves to the tool, and what it gives it.
func TestAgent(t *testing.T) {
	d := driver(t)
	files, read, sockets := sandboxtest.Short(t), sandboxtest.Short(t), sandboxtest.Short(t)
	for _, dir := range []string{files, read, sockets} {
		if err := errors.Join(os.Chmod(dir, 0o755), os.WriteFile(filepath.Join(dir, "a"), []byte(dir), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("a", filepath.Join(files, "link")); err != nil {
		t.Fatal(err)
	}
	r := sandboxtest.Run(t, d, sandbox.Spec{Files: files, Mounts: []sandbox.Mount{{From: read, At: "/data/read"}}, Sockets: sockets, Env: map[string]string{"A": "b"},
		Command: sandboxtest.Shell("cat /tool/link /data/read/a /run/remit/a; echo", "id -u; id -G; echo $A $HOME; hostname; pwd", "ls /proc/self/fd | wc -l",
			"grep -E 'CapEff|CapBnd|NoNewPrivs' /proc/self/status", "for d in / /etc /usr /tool /data/read /run/remit /proc/sys/kernel/core_pattern; do touch $d/x 2>/dev/null && echo wrote $d; done",
			"touch /tmp/x && echo scratch", "ls /root /dev/vdb 2>&1; ls /etc", "exit 5")})
	want := files + read + sockets + "\n65534\n65534\nb /tmp\ntool\n/tmp\n4\nCapBnd:\t0000000000000000\nCapEff:\t0000000000000000\nNoNewPrivs:\t1\n"
	if !strings.HasPrefix(r.Out, strings.ReplaceAll(want, "CapBnd:\t0000000000000000\nCapEff:\t0000000000000000", "CapEff:\t0000000000000000\nCapBnd:\t0000000000000000")) &&
		!strings.HasPrefix(r.Out, want) || r.Exit.Code != 5 || strings.Contains(r.Out, "wrote") || !strings.Contains(r.Out, "scratch\n") ||
		!strings.Contains(r.Out, "'/dev/vdb': No such file") || !strings.HasSuffix(r.Out, "image\n") {
		t.Errorf("it ended with %d and said %s%s", r.Exit.Code, r.Out, r.Err)
	}
}

// TestEcho: input, its end, and much output arrive whole; a program that is not there is 127.
func TestEcho(t *testing.T) {
	d := driver(t)
	i := sandboxtest.Start(t, d, sandbox.Spec{Command: []string{"/bin/wc", "-c"}})
	if _, err := i.Stdin().Write(make([]byte, 300_000)); err != nil {
		t.Fatal(err)
	}
	_ = i.Stdin().Close()
	b := make([]byte, 100)
	n, _ := i.Stdout().Read(b)
	if got := string(b[:n]); got != "300000\n" {
		t.Errorf("it counted %q: %s", got, i.Stderr())
	}
	if r := sandboxtest.Run(t, d, sandbox.Spec{Command: sandboxtest.Shell("head -c 3000000 /dev/zero; exit 3")}); len(r.Out) != 3_000_000 || r.Exit.Code != 3 {
		t.Errorf("%d bytes and %+v", len(r.Out), r.Exit)
	}
	if r := sandboxtest.Run(t, d, sandbox.Spec{Command: []string{"/none"}}); r.Exit.Code != 127 || !strings.Contains(r.Err, "no such file") {
		t.Errorf("%+v", r)
	}
}

// TestAgentOfAnotherBuild: an image whose agent speaks otherwise runs nothing.
func TestAgentOfAnotherBuild(t *testing.T) {
	f := folder(t)
	if err := os.WriteFile(filepath.Join(f, "image", "other-build"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if r := probe(t, f, host(t)); r.Works || !strings.Contains(r.Problems[0].What, "make the image again") {
		t.Errorf("%+v", r)
	}
}

// TestUnsupported: what a machine does not have is refused, and nothing stays.
func TestUnsupported(t *testing.T) {
	d := driver(t)
	dir := sandboxtest.Short(t)
	for what, s := range map[string]sandbox.Spec{
		"a checkpoint":     {Image: dir},
		"a writable mount": {Mounts: []sandbox.Mount{{From: dir, At: "/data", Write: true}}},
	} {
		s.ID, s.Command = remit.NewSandboxID(), []string{"/bin/true"}
		if _, err := d.Prepare(t.Context(), s); !errors.Is(err, sandbox.ErrUnsupported) {
			t.Errorf("%s: %v", what, err)
		}
		if l := left(s.ID); len(l) > 0 {
			t.Errorf("%s: %q are left", what, l)
		}
	}
}

// TestFilesTooBig: files that would fill the machine's memory are refused before it boots.
func TestFilesTooBig(t *testing.T) {
	d := driver(t)
	dir := sandboxtest.Short(t)
	f, err := os.Create(filepath.Join(dir, "big"))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Truncate(40<<20), f.Close()); err != nil {
		t.Fatal(err)
	}
	s := sandbox.Spec{ID: remit.NewSandboxID(), Command: []string{"/bin/true"}, Files: dir, Limits: sandbox.Limits{Memory: 64 << 20}}
	if _, err := d.Prepare(t.Context(), s); err == nil || !strings.Contains(err.Error(), "half of its memory") {
		t.Errorf("40 MB of files for 64 MB of memory: %v", err)
	}
}

// TestPortsAreTakenOnce: a tool that dials the ports of the agent itself finds nobody.
func TestPortsAreTakenOnce(t *testing.T) {
	i := sandboxtest.Start(t, driver(t), sandbox.Spec{Command: []string{"/bin/sleep", "20"}})
	for _, port := range []string{"1024", "1025", "1026", "1027"} {
		jail := filepath.Join(state, "jail", "firecracker", string(i.ID()), "root")
		dir, err := os.Open(jail)
		if err != nil {
			t.Fatal(err)
		}
		c, err := net.Dial("unix", "/proc/self/fd/"+itoa(dir.Fd())+"/v.sock_"+port)
		if err == nil {
			_ = c.Close()
			t.Errorf("port %s answers a second connection", port)
		}
		_ = dir.Close()
	}
}

// TestKilledMachine: a machine that ends without a word is a crash, at once.
func TestKilledMachine(t *testing.T) {
	i := sandboxtest.Start(t, driver(t), sandbox.Spec{Command: []string{"/bin/sleep", "100"}})
	out, err := exec.Command("pkill", "-KILL", "-f", "id="+string(i.ID())).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	ctx, stop := context.WithTimeout(t.Context(), 10*time.Second)
	defer stop()
	exit, err := i.Wait(ctx)
	if err != nil || exit.Cause != sandbox.CauseCrash {
		t.Errorf("%+v, %v", exit, err)
	}
}
