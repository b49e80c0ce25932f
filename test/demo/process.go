// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"

	"remit/test/story"
)

func (s *demo) adminKubectl(ctx context.Context, args ...string) story.Result {
	return story.Command(ctx, []string{"KUBECONFIG=" + s.cluster.kubeconfig}, append([]string{s.Path("bin", "kubectl")}, args...)...)
}

func (s *demo) asAgent(ctx context.Context, args ...string) story.Result {
	return s.Remit(ctx, append([]string{"exec", "--run", s.run, "--as", "agent/deploy", "--for", "apply", "--"}, args...)...)
}

func (s *demo) kubectlAsAgent(ctx context.Context, args ...string) story.Result {
	return s.asAgent(ctx, append([]string{s.Path("bin", "kubectl")}, args...)...)
}

const holdCommand = "hold"

// hold is what this program does when it is launched as an agent that works on with what it got: it runs a command, passes on
// what that prints, and stays until its input ends.
func hold(argv []string) int {
	cmd := exec.Command(argv[0], argv[1:]...) //nolint:gosec // the demo's own command
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	_, _ = io.Copy(io.Discard, os.Stdin)
	return 0
}

// holdAsAgent runs a command as the agent, returns the line that it prints, and lets its launch live on until the demo ends:
// a credential ends with the launch of who asked for it.
func (s *demo) holdAsAgent(argv ...string) (string, error) {
	cmd := exec.Command(s.Path("bin", "remit"), append([]string{"--dir", s.Path("remit"), "exec", "--run", s.run, "--as", "agent/deploy",
		"--for", "apply", "--", s.Path("bin", "agent"), holdCommand}, argv...)...)
	cmd.Stderr = os.Stderr
	in, err1 := cmd.StdinPipe()
	out, err2 := cmd.StdoutPipe()
	if err := errors.Join(err1, err2); err != nil {
		return "", err
	}
	if err := cmd.Start(); err != nil {
		return "", err
	}
	s.Stop(func() {
		_ = in.Close()
		late := time.AfterFunc(10*time.Second, func() { _ = cmd.Process.Kill() })
		_ = cmd.Wait()
		late.Stop()
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		return "", fmt.Errorf("no credential: %w", err)
	}
	return strings.TrimSpace(line), nil
}
