// SPDX-License-Identifier: Apache-2.0

package story

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// Init makes the story's installation, and returns HOST:PORT of Remit.
func (s *Story) Init(ctx context.Context, domain, operator string) (string, error) {
	port, err := FreePort()
	if err != nil {
		return "", err
	}
	https := "127.0.0.1:" + strconv.Itoa(port)
	if r := s.Remit(ctx, "init", "--trust-domain", domain, "--operator", operator, "--https", https); r.Code != 0 {
		return "", fmt.Errorf("%s", r)
	}
	return https, nil
}

// Build compiles programs below a package, by name, to where their users can execute them.
func (s *Story) Build(ctx context.Context, below string, programs map[string]string) error {
	for name, to := range programs {
		cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", to, below+name)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("build %s: %w: %s", name, err, out)
		}
	}
	return nil
}

// Configure takes an example's own files, by name, and puts in what a user of the example would: folders, digests, addresses. Every text
// that is to be replaced must be there.
func (s *Story) Configure(from string, put map[string][][2]string) error {
	for name, all := range put {
		b, err := os.ReadFile(filepath.Join(from, name))
		if err != nil {
			return err
		}
		text, err := Replaced(name, string(b), all)
		if err != nil {
			return err
		}
		if err := os.WriteFile(s.Path("remit", "config", name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// Replaced puts texts in place of others, each of which must be there.
func Replaced(name, text string, put [][2]string) (string, error) {
	for _, p := range put {
		if !strings.Contains(text, p[0]) {
			return "", fmt.Errorf("%s has no %q to replace", name, p[0])
		}
		text = strings.ReplaceAll(text, p[0], p[1])
	}
	return text, nil
}

// Digit is how an example writes a digest that its reader puts in.
func Digit(n int) string { return fmt.Sprintf("sha256:%064d", n) }
