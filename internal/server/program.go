// SPDX-License-Identifier: Apache-2.0

package server

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"remit"
)

// dirPrograms holds copies of launched programs by their digest: what was measured is what runs, whatever becomes of the file.
const dirPrograms = "programs"

const maxProgram = 1 << 30

// takeProgram copies a file of the host, and returns the copy if it is one of those that may be launched (S4).
func (s *Server) takeProgram(path string, may []remit.Digest) (string, remit.Digest, error) {
	if !filepath.IsAbs(path) {
		return "", "", &remit.Error{Code: remit.CodeInvalid, Msg: "this agent is launched in a sandbox: name its program by an absolute path",
			Hint: "use a remit of the server's version"}
	}
	folder := s.path(dirPrograms)
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return "", "", fmt.Errorf("make the folder of programs: %w", err)
	}
	from, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return "", "", &remit.Error{Code: remit.CodeInvalid, Msg: "the program cannot be read", Cause: err}
	}
	defer from.Close()
	if info, err := from.Stat(); err != nil || !info.Mode().IsRegular() || info.Size() > maxProgram {
		return "", "", &remit.Error{Code: remit.CodeInvalid, Msg: "the program is no regular file of at most 1 GiB"}
	}
	to, err := os.CreateTemp(folder, ".copy-")
	if err != nil {
		return "", "", fmt.Errorf("copy a program: %w", err)
	}
	defer os.Remove(to.Name()) //nolint:errcheck // it has another name by then, or is of no use
	sum := sha256.New()
	_, err = io.Copy(io.MultiWriter(to, sum), io.LimitReader(from, maxProgram))
	if err := errors.Join(err, to.Chmod(0o555), to.Close()); err != nil {
		return "", "", fmt.Errorf("copy a program: %w", err)
	}
	digest := remit.Digest(fmt.Sprintf("sha256:%x", sum.Sum(nil)))
	//remit:guard S4 TestLaunchInSandboxOfAnotherProgram
	if !slices.Contains(may, digest) {
		return "", "", &remit.Error{Code: remit.CodeForbidden, Msg: fmt.Sprintf("the agent may not be launched with %s (%s)", remit.Clip(path, 200), digest),
			Hint: "add that digest to the agent's launch: commands, if it is the right executable"}
	}
	final := filepath.Join(folder, string(digest)[len("sha256:"):])
	if err := os.Rename(to.Name(), final); err != nil {
		return "", "", fmt.Errorf("keep a program: %w", err)
	}
	return final, digest, nil
}
