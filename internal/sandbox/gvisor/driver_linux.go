// SPDX-License-Identifier: Apache-2.0

// Package gvisor is the sandbox driver of tier kernel: gVisor, a kernel in user space, inside our own binary. It needs no virtual
// machine, no daemon and no other file; it needs root, or user namespaces.
//
// The parts of gVisor are this program, started again under other names (Dispatch): one makes the sandbox and ends, one is the
// sandbox's kernel, one opens files for it. After the first sandbox one maker of the next is started ahead. gVisor's code inside this process only sends messages to that kernel. State stands in
// one folder per sandbox and in its control group, so that Sweep finds what a crash left.
package gvisor

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/log"
	"gvisor.dev/gvisor/runsc/config"
	"gvisor.dev/gvisor/runsc/container"
	"gvisor.dev/gvisor/runsc/flag"

	"remit"
	"remit/internal/sandbox"
	"remit/internal/sandbox/cgroup"
	"remit/internal/sandbox/gvisor/trace"
)

// Config of the driver.
type Config struct {
	State string // a folder of this driver alone
	// Executable is this program on disk, linked statically; main calls Dispatch first. Left out: the running one.
	Executable string
}

// Driver makes sandboxes with gVisor.
type Driver struct {
	state, executable string
	flags             []string
	config            *config.Config
	groups            *cgroup.Parent // nil: the host has none that we can use
	groupsErr         error
	makers            *sandbox.Spare[*maker]
}

var _ sandbox.Driver = (*Driver)(nil)

// quiet is said once: gVisor's log goes to standard error until somebody says otherwise.
var quiet sync.Once

// New makes the folder. It starts nothing.
func New(c Config) (*Driver, error) {
	if c.Executable == "" {
		self, err := os.Executable()
		if err != nil {
			return nil, fmt.Errorf("find this program: %w", err)
		}
		c.Executable = self
	}
	state, err := filepath.Abs(c.State)
	if err != nil {
		return nil, fmt.Errorf("find the folder of sandboxes: %w", err)
	}
	d := &Driver{state: state, executable: c.Executable}
	for _, dir := range []string{d.state, d.root(), d.sidecars(), d.bundles()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("make the folder of sandboxes: %w", err)
		}
	}
	if err := d.nameSidecars(); err != nil {
		return nil, fmt.Errorf("name this program as gVisor's: %w", err)
	}
	d.groups, d.groupsErr = cgroup.Open(fmt.Sprintf("remit-%x", sha256.Sum256([]byte(state)))[:14])
	// Groups are ours, made before gVisor starts: its own way moves the whole process in and out of ten of them.
	d.flags = []string{"--root=" + d.root(), "--platform=systrap", "--network=none", "--overlay2=none", "--host-settings=ignore",
		"--host-uds=open", "--ignore-cgroups", "--sidecar-usage-policy=STRICT", rememberFlag}
	set := flag.NewFlagSet("gvisor", flag.ContinueOnError)
	config.RegisterFlags(set)
	if err := set.Parse(d.flags); err != nil {
		return nil, fmt.Errorf("configure gVisor: %w", err)
	}
	if d.config, err = config.NewFromFlags(set); err != nil {
		return nil, fmt.Errorf("configure gVisor: %w", err)
	}
	// What the process that makes a sandbox leaves behind becomes our child, so that its exit status can be read.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return nil, fmt.Errorf("become the parent of sandboxes: %w", err)
	}
	d.makers = sandbox.NewSpare(d.newMaker, (*maker).end)
	quiet.Do(func() { log.SetTarget(log.GoogleEmitter{Writer: &log.Writer{Next: io.Discard}}) })
	return d, nil
}

// nameSidecars lets gVisor find its kernel and what starts that. It is one start of this program less where a shell does the second: it
// is to execute its arguments, and nothing more.
func (d *Driver) nameSidecars() error {
	kernel, starter := filepath.Join(d.sidecars(), sentryName), filepath.Join(d.sidecars(), prewarmerName)
	for _, name := range []string{kernel, starter} { // the program may stand elsewhere than the last time
		if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	err := os.Symlink(d.executable, kernel)
	if _, none := os.Stat("/bin/sh"); none != nil {
		return errors.Join(err, os.Symlink(d.executable, starter))
	}
	return errors.Join(err, os.WriteFile(starter, []byte("#!/bin/sh\nexec \"$@\"\n"), 0o700))
}

// Name is "gvisor".
func (d *Driver) Name() string { return "gvisor" }

// Tier is kernel.
func (d *Driver) Tier() remit.Tier { return remit.TierKernel }

func (d *Driver) root() string     { return filepath.Join(d.state, "root") }
func (d *Driver) sidecars() string { return filepath.Join(d.state, "bin") }
func (d *Driver) bundles() string  { return filepath.Join(d.state, "box") }

// Prepare makes a sandbox; its kernel runs and waits.
func (d *Driver) Prepare(ctx context.Context, s sandbox.Spec) (*sandbox.Instance, error) {
	s, err := s.Check()
	if err != nil {
		return nil, err
	}
	if s.Listen != "" {
		return nil, fmt.Errorf("answer outside of a sandbox: %w", sandbox.ErrUnsupported)
	}
	g := &guest{driver: d, id: string(s.ID), limits: s.Limits, image: s.Image, folder: filepath.Join(d.bundles(), string(s.ID))}
	if err := os.Mkdir(g.folder, 0o700); err != nil {
		return nil, fmt.Errorf("make the folder of a sandbox: %w", err)
	}
	pipes, err := d.create(ctx, g, s)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make a gVisor sandbox: %w", err), g.Kill(), g.Release())
	}
	return sandbox.NewInstance(s, g, pipes), nil
}

func (d *Driver) create(ctx context.Context, g *guest, s sandbox.Spec) (*sandbox.Pipes, error) {
	if err := writeBundle(g.folder, s); err != nil {
		return nil, err
	}
	if d.groups != nil {
		// The kernel in the sandbox has tasks of its own, and one beside each of the tool's.
		limits := cgroup.Limits{Memory: s.Limits.Memory, CPU: s.Limits.CPU, Tasks: 4*s.Limits.Processes + 64}
		group, err := d.groups.Make(g.id, limits)
		if err != nil {
			return nil, err
		}
		g.group = group
	}
	flags := slices.Clone(d.flags)
	if s.Observe {
		t, config, err := trace.New(g.folder)
		if err != nil {
			return nil, err
		}
		g.trace, flags = t, append(flags, "--pod-init-config="+config)
	}
	o := order{Folder: g.folder, Args: append(flags, "create", "--bundle="+g.folder, g.id)}
	if g.group != nil {
		o.Join = g.group.Join()
	}
	pipes, err := d.make(ctx, o)
	if err != nil {
		return nil, err
	}
	if err := g.find(); err != nil {
		return nil, errors.Join(err, pipes.Close())
	}
	d.makers.Refill()
	return pipes, nil
}

// make has a sandbox made. A maker that waited may have been ended by somebody: then by a new one.
func (d *Driver) make(ctx context.Context, o order) (*sandbox.Pipes, error) {
	for {
		m, waited, err := d.makers.Take()
		if err != nil {
			return nil, err
		}
		told, err := m.make(ctx, o)
		if err == nil {
			return m.pipes, nil
		}
		if err = errors.Join(err, m.pipes.Close()); told || !waited {
			return nil, err
		}
	}
}

// asRoot makes the maker of a sandbox root of a user namespace where this process is not root of the host: of our own user, and of nobody
// else. What it mounts is seen by itself and the sandbox.
func asRoot() *syscall.SysProcAttr {
	if os.Geteuid() == 0 {
		return nil
	}
	return &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}}
}

// Sweep removes what processes that are gone left behind.
func (d *Driver) Sweep(context.Context) error {
	var errs []error
	left, err := os.ReadDir(d.bundles())
	errs = append(errs, err)
	ids := map[string]bool{}
	for _, e := range left {
		ids[e.Name()] = true
	}
	if d.groups != nil {
		names, err := d.groups.List()
		errs = append(errs, err)
		for _, id := range names {
			ids[id] = true
		}
	}
	for id := range ids {
		g := &guest{driver: d, id: id, folder: filepath.Join(d.bundles(), id)}
		if d.groups != nil {
			g.group = d.groups.Find(id)
		}
		_ = g.find() // it may be half made: then the group has all of it
		errs = append(errs, g.Kill(), g.waitDead(sweepWithin), g.Release())
	}
	if len(ids) == 0 || errors.Join(errs...) == nil {
		errs = append(errs, d.unpin())
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("sweep gVisor sandboxes: %w", err)
	}
	return nil
}

const sweepWithin = 10 * time.Second

// unpin removes the mount that gVisor leaves in its folder. Without root it went with the process that made it (asRoot).
func (d *Driver) unpin() error {
	if os.Geteuid() != 0 {
		return nil
	}
	pin := filepath.Join(d.root(), "null-netns")
	if err := syscall.Unmount(pin, syscall.MNT_DETACH); err != nil && !errors.Is(err, syscall.EINVAL) && !errors.Is(err, syscall.ENOENT) {
		return fmt.Errorf("unmount %s: %w", pin, err)
	}
	return nil
}

// Close sweeps, and removes the driver's control group: for a folder that is used no more.
func (d *Driver) Close() error {
	err := errors.Join(d.makers.Close(), d.Sweep(context.Background()))
	if d.groups != nil {
		err = errors.Join(err, d.groups.Close())
	}
	return err
}

// Probe runs a sandbox.
func (d *Driver) Probe(ctx context.Context) sandbox.Report {
	r := sandbox.Report{Driver: d.Name(), Tier: d.Tier(), Limits: []string{"processes", "wall", "output"}}
	if d.groups != nil {
		r.Limits = append(r.Limits, "memory", "cpu")
	} else {
		r.Problems = append(r.Problems, sandbox.Problem{What: "no limits of memory and processor: " + d.groupsErr.Error(),
			Fix: sandbox.ThisHost().GroupFix()})
	}
	said, took, err := sandbox.TryOut(ctx, d, d.executable)
	if err != nil {
		r.Problems = append(r.Problems, problem(err, sandbox.ThisHost()))
		return r
	}
	if !strings.Contains(said, fmt.Sprintf("uid=%d ", nobody)) || !strings.Contains(said, "gvisor") {
		r.Problems = append(r.Problems, sandbox.Problem{What: fmt.Sprintf("the sandbox says %.200q, which is not gVisor", said), Fix: "report this: it is a fault of remit"})
		return r
	}
	r.Works, r.Evidence, r.Took = true, said, took
	return r
}

// problem says what to do about a sandbox that did not run on h.
func problem(err error, h sandbox.Host) sandbox.Problem {
	p := sandbox.Problem{What: err.Error(), Fix: "see docs/sandbox.md, What a host needs"}
	switch {
	case strings.Contains(p.What, "no such file or directory") && strings.Contains(p.What, "/proc/self/exe"):
		p.Fix = "build remit statically: CGO_ENABLED=0, as make build does"
	case !h.Root, errors.Is(err, fs.ErrPermission), strings.Contains(p.What, "operation not permitted"):
		p.Fix = h.NamespaceFix()
	}
	return p
}

// load reads what gVisor wrote about a sandbox.
func (d *Driver) load(id string) (*container.Container, error) {
	return container.Load(d.root(), container.FullID{SandboxID: id, ContainerID: id}, container.LoadOpts{Exact: true, SkipCheck: true})
}
