// SPDX-License-Identifier: Apache-2.0

package gvisor_test

import (
	"os"
	"testing"

	"remit/internal/sandbox"
	"remit/internal/sandbox/gvisor"
	"remit/internal/sandbox/sandboxtest"
)

func driver(t *testing.T) *gvisor.Driver {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("gVisor sandboxes need root")
	}
	d, err := gvisor.New(gvisor.Config{State: sandboxtest.Short(t), Executable: sandboxtest.Build(t)})
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
