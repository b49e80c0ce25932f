// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// TestSuspension: with everything live, one suspension ends all of it, and no deadline is missed tenfold.
func TestSuspension(t *testing.T) {
	if testing.Short() {
		t.Skip("it needs the Kubernetes API server, which SHORT=1 leaves out")
	}
	if os.Getuid() != 0 {
		t.Skip("sandboxes need root")
	}
	b := &bench{options: options{remit: filepath.Join(t.TempDir(), "remit"), manifests: "../../deploy/kubernetes", rounds: 1}, dir: t.TempDir()}
	build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", b.remit, "remit/cmd/remit")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	defer b.stopAll()
	if err := b.suspension(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(b.table.rows) == 0 {
		t.Skip("PostgreSQL is not installed (make postgres)")
	}
	b.table.print(t.Output())
	if err := b.table.verdict(); err != nil {
		t.Error(err)
	}
}
