// SPDX-License-Identifier: Apache-2.0

// Package sandbox runs a tool in a box: a read-only root of allow-listed folders, no network, no capabilities, limits on memory,
// processor, processes, time and output, and one folder of sockets as the only way out.
//
// A Driver makes boxes of one tier; what they have in common — life cycle, limits, standard streams, reasons of ending — stands here
// once, in Instance. A box belongs to whom claimed it until it is destroyed, and is never used again. The package decides nothing:
// who may have which box, and what goes through its sockets, is the caller's. Instance owns its goroutines; Destroy waits for them.
package sandbox

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"remit"
)

// Driver makes sandboxes of one tier. All methods are safe for concurrent use.
//
//   - Prepare makes a sandbox that is ready to start: nothing of the tool has run in it, and no credential has been near it.
//     An error leaves nothing behind.
//   - Probe makes a real sandbox, runs a command in it under a deadline and compares what it says: what a host seems to offer
//     (a device, a flag) is no evidence.
//   - Sweep ends and removes what processes that are gone left in the driver's folder. It runs before the first Prepare.
type Driver interface {
	Name() string
	Tier() remit.Tier
	Probe(ctx context.Context) Report
	Prepare(ctx context.Context, s Spec) (*Instance, error)
	Sweep(ctx context.Context) error
}

// Answering is a driver that can make a socket in the sandbox which is served outside of it.
type Answering interface {
	Driver
	Answers()
}

// ErrUnsupported is an answer: this driver cannot do that.
var ErrUnsupported = errors.New("not supported by this sandbox")

// Where things are inside.
const (
	FilesAt   = "/tool"      // Spec.Files
	SocketsAt = "/run/remit" // Spec.Sockets
	ScratchAt = "/tmp"       // HOME, TMPDIR and the working directory: writable, in memory, gone with the sandbox
)

// Spec says what runs and what it sees. Whatever is not named here is not there.
type Spec struct {
	ID      remit.SandboxID
	Command []string          // the program's path inside, and its arguments
	Env     map[string]string // beside PATH, HOME and TMPDIR
	Files   string            // a folder of the host, read-only at FilesAt; empty: none
	Mounts  []Mount
	Sockets string // a folder of the host at SocketsAt, the only one whose Unix sockets can be connected to; empty: none
	// Listen is an address and port of the sandbox's own loopback at which whoever made it answers the tool, by Instance.Listener. Only
	// for drivers that are Answering; others make no such sandbox. Empty: none.
	Listen string
	Limits Limits
	// Image is a checkpoint to continue from, by Instance.Checkpoint of a sandbox with the same command and mounts; empty: none.
	Image string
	// Observe asks for Activity: what the tool executed, opened and connected to.
	Observe bool
}

// Mount is a file or folder of the host that the tool sees.
type Mount struct {
	From, At string
	Write    bool
}

// Limits bound a sandbox. Zero values become the defaults.
type Limits struct {
	Memory    int64         // bytes of everything in it, its kernel included
	CPU       int           // per cent of one processor
	Processes int           // threads count as processes
	Wall      time.Duration // from Start
	Output    int64         // bytes on standard output and error together
	Scratch   int64         // bytes in ScratchAt
}

// The defaults.
const (
	DefaultMemory    = 256 << 20
	DefaultCPU       = 100
	DefaultProcesses = 64
	DefaultWall      = 5 * time.Minute
	DefaultOutput    = 16 << 20
	DefaultScratch   = 64 << 20
	leastMemory      = 48 << 20
)

// OrDefault returns l with the defaults in place of zeros.
func (l Limits) OrDefault() Limits {
	set := func(p *int64, v int64) {
		if *p == 0 {
			*p = v
		}
	}
	set(&l.Memory, DefaultMemory)
	set(&l.Output, DefaultOutput)
	set(&l.Scratch, min(DefaultScratch, l.Memory/2))
	if l.CPU == 0 {
		l.CPU = DefaultCPU
	}
	if l.Processes == 0 {
		l.Processes = DefaultProcesses
	}
	if l.Wall == 0 {
		l.Wall = DefaultWall
	}
	return l
}

// Check returns s with defaults, or what is wrong with it. Drivers call it first.
func (s Spec) Check() (Spec, error) {
	if _, err := remit.ParseSandboxID(string(s.ID)); err != nil {
		return Spec{}, err
	}
	if len(s.Command) == 0 || !path.IsAbs(s.Command[0]) {
		return Spec{}, invalid("the command of a sandbox starts with an absolute path, not %.60q", append(s.Command, "")[0])
	}
	for name, value := range s.Env {
		if name == "" || strings.ContainsAny(name, "=\x00") || strings.Contains(value, "\x00") {
			return Spec{}, invalid("%.60q is not a variable of the environment", name)
		}
	}
	s.Limits = s.Limits.OrDefault()
	if err := s.Limits.check(); err != nil {
		return Spec{}, err
	}
	s.Command, s.Mounts, s.Env = slices.Clone(s.Command), slices.Clone(s.Mounts), maps.Clone(s.Env)
	for _, host := range []string{s.Files, s.Sockets, s.Image} {
		if host != "" && !filepath.IsAbs(host) {
			return Spec{}, invalid("%.80q is not an absolute path", host)
		}
	}
	taken := map[string]bool{}
	for _, m := range s.Mounts {
		if err := m.check(taken); err != nil {
			return Spec{}, err
		}
	}
	return s, nil
}

// reserved are the places that a mount may neither be, contain nor lie in; in /usr and /etc it may lie nowhere, as those are the host's.
var reserved = []string{"/proc", "/dev", "/sys", "/usr", "/etc", "/bin", "/sbin", "/lib", "/lib64", FilesAt, SocketsAt, ScratchAt}

func (m Mount) check(taken map[string]bool) error {
	if !filepath.IsAbs(m.From) || filepath.Clean(m.From) != m.From || m.From == "/" {
		return invalid("%.80q cannot be mounted: give the clean absolute path of a file or folder, not the root", m.From)
	}
	if !path.IsAbs(m.At) || path.Clean(m.At) != m.At || m.At == "/" {
		return invalid("%.80q is no place for a mount: give a clean absolute path", m.At)
	}
	for _, r := range reserved {
		if within(m.At, r) || within(r, m.At) {
			return invalid("%.80q is no place for a mount: %s is taken", m.At, r)
		}
	}
	for other := range taken {
		if within(m.At, other) || within(other, m.At) {
			return invalid("the mounts at %s and %s overlap", m.At, other)
		}
	}
	taken[m.At] = true
	return nil
}

func within(p, dir string) bool { return p == dir || strings.HasPrefix(p, dir+"/") }

func (l Limits) check() error {
	switch {
	case l.Memory < leastMemory || l.Memory > 1<<40:
		return invalid("a sandbox needs from 48 MiB to 1 TiB of memory, not %d bytes", l.Memory)
	case l.CPU < 1 || l.CPU > 100*1024:
		return invalid("cpu is per cent of one processor, from 1, not %d", l.CPU)
	case l.Processes < 1 || l.Processes > 1<<15:
		return invalid("a sandbox has from 1 to 32768 processes, not %d", l.Processes)
	case l.Wall < 0 || l.Wall > 30*24*time.Hour:
		return invalid("a sandbox lives at most 30 days, not %s", l.Wall)
	case l.Output < 0 || l.Scratch < 0 || l.Scratch > l.Memory:
		return invalid("output and scratch are not negative, and scratch is part of the memory")
	}
	return nil
}

// Environ returns the whole environment, sorted: PATH, HOME and TMPDIR unless s says otherwise, and what it names.
func (s Spec) Environ() []string {
	env := map[string]string{"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": ScratchAt, "TMPDIR": ScratchAt}
	maps.Copy(env, s.Env)
	var out []string
	for k, v := range env {
		out = append(out, k+"="+v)
	}
	slices.Sort(out)
	return out
}

// Places are all mounts of s: its own, the files and the sockets.
func (s Spec) Places() []Mount {
	all := slices.Clone(s.Mounts)
	if s.Files != "" {
		all = append(all, Mount{From: s.Files, At: FilesAt})
	}
	if s.Sockets != "" {
		all = append(all, Mount{From: s.Sockets, At: SocketsAt})
	}
	return all
}

func invalid(format string, args ...any) error {
	return &remit.Error{Code: remit.CodeInvalid, Msg: fmt.Sprintf(format, args...)}
}
