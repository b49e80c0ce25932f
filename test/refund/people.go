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

// logIn logs a person in by remit login, whose page a browser of that person's account visits. The session is that person's own.
func (s *refund) logIn(ctx context.Context, name string) error {
	s.Ask("%s: remit login, at the OpenID provider", name)
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	began := time.Now()
	cmd := exec.CommandContext(ctx, s.Path("bin", "remit"), "login", "--server", "https://"+s.https, "--ca", s.Path("remit", "bundle.pem"), "--no-browser")
	cmd.Env = append(os.Environ(), s.session(name))
	said, err1 := cmd.StderrPipe()
	var out strings.Builder
	cmd.Stdout = &out
	if err := errors.Join(err1, cmd.Start()); err != nil {
		return err
	}
	visited := errors.New("no address to log in at")
	for lines := bufio.NewScanner(said); lines.Scan(); {
		if strings.HasPrefix(lines.Text(), "https://") {
			_, visited = s.provider.Browse(name, lines.Text(), true)
			break
		}
	}
	rest, _ := io.ReadAll(said)
	if err := errors.Join(visited, cmd.Wait()); err != nil {
		return fmt.Errorf("%s does not get in: %w: %s", name, err, rest)
	}
	s.Told("%s", story.Short(out.String()), time.Since(began))
	return nil
}

func (s *refund) session(name string) string { return "REMIT_SESSION=" + s.Path("people", name) }

// as runs the command line in a person's session.
func (s *refund) as(ctx context.Context, name string, args ...string) story.Result {
	return story.Command(ctx, []string{s.session(name)}, append([]string{s.Path("bin", "remit"), "--server", "https://" + s.https}, args...)...)
}
