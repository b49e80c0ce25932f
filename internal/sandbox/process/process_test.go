// SPDX-License-Identifier: Apache-2.0

package process_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

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
	code, err := sandboxtest.Main(m, &executable, &state)
	if err != nil {
		panic(err)
	}
	os.Exit(code)
}

func driver(t *testing.T) sandbox.Driver {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("process sandboxes are tested as root")
	}
	d, err := process.New(process.Config{State: state, Executable: executable})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
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
	sandboxtest.Test(t, sandboxtest.Suite{New: driver, Executable: executable, Kernel: regexp.MustCompile("^" + regexp.QuoteMeta(release) + "$"), Left: left})
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
