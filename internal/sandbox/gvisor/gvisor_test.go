// SPDX-License-Identifier: Apache-2.0

package gvisor_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

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
	code, err := sandboxtest.Main(m, &executable, &state)
	if err != nil {
		panic(err)
	}
	os.Exit(code)
}

func driver(t *testing.T) sandbox.Driver {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("gVisor sandboxes need root")
	}
	d, err := gvisor.New(gvisor.Config{State: state, Executable: executable})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Sweep(t.Context()); err != nil {
			t.Error(err)
		}
	})
	return d
}

func TestSuite(t *testing.T) {
	sandboxtest.Test(t, sandboxtest.Suite{New: driver, Executable: executable, Kernel: regexp.MustCompile(`gvisor$`), Left: left,
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
