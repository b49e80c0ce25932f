// SPDX-License-Identifier: Apache-2.0

// Package tooltest builds the programs that tests of tools in sandboxes run.
package tooltest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Build builds a command of this module statically into bin/tooltest of the module, where go build finds it again, and returns its path.
func Build(pkg string) (string, error) {
	mod, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		return "", fmt.Errorf("find the module: %w", err)
	}
	p := filepath.Join(filepath.Dir(strings.TrimSpace(string(mod))), "bin", "tooltest", filepath.Base(pkg))
	cmd := exec.Command("go", "build", "-trimpath", "-o", p, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build %s: %w: %s", pkg, err, out)
	}
	return p, nil
}

// The packages of Build: the parts of sandboxes, and a hostile MCP server.
const (
	Box     = "remit/internal/sandbox/sandboxtest/box"
	Hostile = "remit/internal/tool/tooltest/hostile"
)
