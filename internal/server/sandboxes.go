// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"remit/internal/sandbox"
	"remit/internal/sandbox/firecracker"
	"remit/internal/sandbox/gvisor"
	"remit/internal/sandbox/process"
)

// sandboxDrivers is the table of drivers; their state stands below folder.
func sandboxDrivers(folder string) (*sandbox.Set, error) {
	kernel, err := gvisor.New(gvisor.Config{State: filepath.Join(folder, "gvisor")})
	if err != nil {
		return nil, err
	}
	light, err := process.New(process.Config{State: filepath.Join(folder, "process")})
	if err != nil {
		return nil, err
	}
	machine, err := firecracker.New(firecracker.Config{State: filepath.Join(folder, "firecracker")})
	if err != nil {
		return nil, err
	}
	return sandbox.NewSet(machine, kernel, light), nil
}

// ProbeSandboxes runs a sandbox of every driver on this host, in a folder of its own, and says what each can do.
func ProbeSandboxes(ctx context.Context) ([]sandbox.Report, error) {
	folder, err := os.MkdirTemp("", "remit-box-")
	if err != nil {
		return nil, fmt.Errorf("make a folder for sandboxes: %w", err)
	}
	defer os.RemoveAll(folder)
	set, err := sandboxDrivers(folder)
	if err != nil {
		return nil, err
	}
	reports := set.Reports(ctx)
	return reports, set.Close()
}
