// SPDX-License-Identifier: Apache-2.0

// Package firecracker is the sandbox driver of tier vm: a virtual machine of its own for each tool, by Firecracker and its jailer. It
// needs hardware virtualisation, root and four files that the operator gives (Config.Folder); Probe says what is missing.
//
// The machine has no network interface. It has a read-only root image, a drive with the tool's files, and a vsock device, by which the
// first process of the machine (Agent, this program in the image) reaches ports of the host: one for orders, three for the tool's
// streams, and one for each socket of the sandbox. The host connects to nothing in the machine. Goroutines belong to the guest;
// Release waits for them.
package firecracker

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"remit"
	"remit/internal/sandbox"
	"remit/internal/sandbox/cgroup"
)

// DefaultFolder is where an operator puts the files.
const DefaultFolder = "/usr/local/lib/remit/vm"

// The files of Config.Folder: the two programs of one Firecracker release, a kernel for guests, and an image of the tools' root with
// this program in it.
const (
	machineFile = "firecracker"
	jailerFile  = "jailer"
	kernelFile  = "vmlinux"
	imageFile   = "root.img"
)

// Config of the driver.
type Config struct {
	State  string // a folder of this driver alone; the files are linked into it if it is on the same file system, else copied
	Folder string // left out: DefaultFolder
	// Host is where the host is looked at; left out: the real one.
	Host Host
}

// Driver makes sandboxes that are virtual machines.
type Driver struct {
	state, folder string
	host          Host
	groups        *cgroup.Parent // nil: the host has none that we can use
	groupsErr     error
}

var _ sandbox.Driver = (*Driver)(nil)

// New makes the folder. It starts nothing.
func New(c Config) (*Driver, error) {
	if c.Folder == "" {
		c.Folder = DefaultFolder
	}
	if c.Host == (Host{}) {
		c.Host = realHost
	}
	state, err := filepath.Abs(c.State)
	if err != nil {
		return nil, fmt.Errorf("find the folder of sandboxes: %w", err)
	}
	d := &Driver{state: state, folder: c.Folder, host: c.Host}
	for _, dir := range []string{d.boxes(), d.jails()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("make the folder of sandboxes: %w", err)
		}
	}
	d.groups, d.groupsErr = cgroup.Open(fmt.Sprintf("remit-%x", sha256.Sum256([]byte(state)))[:14])
	return d, nil
}

// Name is "firecracker".
func (d *Driver) Name() string { return "firecracker" }

// Tier is vm.
func (d *Driver) Tier() remit.Tier { return remit.TierVM }

func (d *Driver) boxes() string { return filepath.Join(d.state, "box") }

// jails is below what the jailer is told: it puts a folder with the name of the program between.
func (d *Driver) jails() string           { return filepath.Join(d.state, "jail", machineFile) }
func (d *Driver) file(name string) string { return filepath.Join(d.folder, name) }
func (d *Driver) jailOf(id string) string { return filepath.Join(d.jails(), id) }
func (d *Driver) boxOf(id string) string  { return filepath.Join(d.boxes(), id) }
func (d *Driver) rootOf(id string) string { return filepath.Join(d.jailOf(id), "root") }

// Prepare boots a machine; its first process has laid out what the tool will see, and waits.
func (d *Driver) Prepare(ctx context.Context, s sandbox.Spec) (*sandbox.Instance, error) {
	s, err := s.Check()
	if err != nil {
		return nil, err
	}
	if s.Listen != "" {
		return nil, fmt.Errorf("answer outside of a sandbox: %w", sandbox.ErrUnsupported)
	}
	if s.Image != "" {
		return nil, fmt.Errorf("start a virtual machine from a checkpoint: %w", sandbox.ErrUnsupported)
	}
	// What is missing is better said than met half-way.
	if problems := d.lacks(); len(problems) > 0 {
		return nil, &remit.Error{Code: remit.CodeUnavailable, Msg: "no virtual machine: " + problems[0].What, Hint: problems[0].Fix}
	}
	g := &guest{driver: d, id: string(s.ID), spec: s}
	if err := os.Mkdir(d.boxOf(g.id), 0o700); err != nil {
		return nil, fmt.Errorf("make the folder of a sandbox: %w", err)
	}
	pipes, err := sandbox.NewPipes()
	if err != nil {
		return nil, errors.Join(err, g.Release())
	}
	g.streams = pipes.Guest()
	if err := d.create(ctx, g, s); err != nil {
		return nil, errors.Join(fmt.Errorf("make a virtual machine: %w%s", err, g.complaint()), g.Kill(), pipes.Close(), g.Release())
	}
	return sandbox.NewInstance(s, g, pipes), nil
}

const bootWithin = 30 * time.Second

// create makes the jail, starts Firecracker in it, says what the machine is, boots it, and waits for the agent.
func (d *Driver) create(ctx context.Context, g *guest, s sandbox.Spec) error {
	ctx, stop := context.WithTimeout(ctx, bootWithin)
	defer stop()
	if d.groups != nil {
		group, err := d.groups.Make(g.id, cgroup.Limits{Memory: s.Limits.Memory + machineMemory, CPU: s.Limits.CPU, Tasks: machineTasks})
		if err != nil {
			return err
		}
		g.group = group
	}
	files, err := d.makeJail(g, s)
	if err != nil {
		return err
	}
	if err := g.startMachine(ctx); err != nil {
		return err
	}
	api := newClient(g.inJail(apiSocket))
	defer api.close()
	if err := configure(ctx, api, g.id, s, files); err != nil {
		return err
	}
	return g.meet(ctx, build{Files: files, Scratch: s.Limits.Scratch})
}

const (
	// What Firecracker needs beside the memory of its guest; and threads, of which it has a few, and one for each processor.
	machineMemory = 64 << 20
	machineTasks  = 256
	mostVCPUs     = 32
	// bootArgs: no console (a tool could flood it), a panic is the end, and the agent is the first process.
	bootArgs = "reboot=k panic=-1 8250.nr_uarts=0 i8042.noaux i8042.nomux i8042.dumbkbd random.trust_cpu=on quiet init=/sbin/" + AgentName
)

func vcpus(l sandbox.Limits) int { return min(mostVCPUs, (l.CPU+99)/100) }

// configure says what the machine is, and starts it.
func configure(ctx context.Context, api *client, id string, s sandbox.Spec, files bool) error {
	info, err := api.describe(ctx)
	if err != nil {
		return err
	}
	if info.ID != id || info.State != "Not started" {
		return fmt.Errorf("the process at the socket is %.60q in state %.20q, not the new machine", info.ID, info.State)
	}
	type setting struct {
		path string
		body any
	}
	settings := []setting{
		{"/machine-config", machineConfig{VCPUs: vcpus(s.Limits), Memory: s.Limits.Memory >> 20}},
		{"/boot-source", bootSource{Kernel: "/" + kernelFile, Args: bootArgs}},
		{"/drives/root", drive{ID: "root", Root: true, ReadOnly: true, Path: "/" + imageFile}},
		{"/vsock", vsockDevice{CID: guestCID, Path: "/" + vsockSocket}},
	}
	if files {
		settings = append(settings, setting{"/drives/files", drive{ID: "files", ReadOnly: true, Path: "/" + archiveFile}})
	}
	for _, s := range append(settings, setting{"/actions", action{"InstanceStart"}}) {
		if err := api.put(ctx, s.path, s.body); err != nil {
			return err
		}
	}
	return nil
}

// Sweep ends and removes what processes that are gone left behind.
func (d *Driver) Sweep(context.Context) error {
	ids := map[string]bool{}
	var errs []error
	for _, dir := range []string{d.boxes(), d.jails()} {
		left, err := os.ReadDir(dir)
		errs = append(errs, err)
		for _, e := range left {
			ids[e.Name()] = true
		}
	}
	if d.groups != nil {
		names, err := d.groups.List()
		errs = append(errs, err)
		for _, id := range names {
			ids[id] = true
		}
	}
	for id := range ids {
		g := &guest{driver: d, id: id}
		if d.groups != nil {
			g.group = d.groups.Find(id)
		}
		errs = append(errs, killNamed(id), g.Kill(), g.Release())
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("sweep virtual machines: %w", err)
	}
	return nil
}

// Close sweeps, and removes the driver's control group: for a folder that is used no more.
func (d *Driver) Close() error {
	err := d.Sweep(context.Background())
	if d.groups != nil {
		err = errors.Join(err, d.groups.Close())
	}
	return err
}
