// SPDX-License-Identifier: Apache-2.0

package filters_test

import (
	"os"
	"os/exec"
	"runtime"
	"testing"

	"remit/internal/sandbox/gvisor/filters"
)

// TestKernelFinds: a gVisor kernel finds the program, and it is the one that gVisor compiles itself, instruction by instruction. It is
// asked of a process that is built as a kernel is: under the race detector gVisor's filter is another.
func TestKernelFinds(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("a program was only generated for amd64")
	}
	cmd := exec.Command("go", "run", "remit/internal/sandbox/gvisor/filters/generate", "-check")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

// TestOptions: the program is for the options that sandboxes have.
func TestOptions(t *testing.T) {
	o, err := filters.Options()
	if err != nil || !o.HostFilesystem || o.HostNetwork || o.Platform.ConfigKey() != "systrap" {
		t.Errorf("%+v, %v", o, err)
	}
}
