// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"remit"
	"remit/internal/sandbox"
	"remit/internal/sandbox/firecracker"
	"remit/internal/sandbox/gvisor"
	"remit/internal/sandbox/process"
)

// maxSocketPath is what fits into sockaddr_un with its final zero.
const maxSocketPath = 107

// sandboxDrivers is the table of drivers; their state stands below folder. executable is this program on disk, "" the running one.
func sandboxDrivers(folder, executable string) ([]sandbox.Driver, error) {
	kernel, err := gvisor.New(gvisor.Config{State: filepath.Join(folder, "gvisor"), Executable: executable})
	if err != nil {
		return nil, err
	}
	light, err := process.New(process.Config{State: filepath.Join(folder, "process"), Executable: executable})
	if err != nil {
		return nil, err
	}
	machine, err := firecracker.New(firecracker.Config{State: filepath.Join(folder, "firecracker")})
	if err != nil {
		return nil, err
	}
	return []sandbox.Driver{machine, kernel, light}, nil
}

// ProbeSandboxes runs a sandbox of every driver on this host, in a folder of its own, and says what each can do.
func ProbeSandboxes(ctx context.Context) ([]sandbox.Report, error) {
	folder, err := os.MkdirTemp("", "remit-box-")
	if err != nil {
		return nil, fmt.Errorf("make a folder for sandboxes: %w", err)
	}
	defer os.RemoveAll(folder)
	drivers, err := sandboxDrivers(folder, "")
	if err != nil {
		return nil, err
	}
	set := sandbox.NewSet(drivers...)
	reports := set.Reports(ctx)
	return reports, set.Close()
}

// sandboxes are the drivers of this server. They are made when they are first needed: a host without tools is left as it is.
type sandboxes struct {
	executable string
	drivers    string // folder of their state
	sockets    string // folder that nobody else may enter, with one folder per sandbox

	once sync.Once // makes the next two
	set  *sandbox.Set
	err  error
}

// left reports whether an earlier process had sandboxes, so that something of them may be left.
func (b *sandboxes) left() bool {
	_, err := os.Lstat(b.drivers)
	return err == nil
}

// open makes the drivers, and sweeps what an earlier process left before anything new is made.
func (b *sandboxes) open(ctx context.Context) (*sandbox.Set, error) {
	b.once.Do(func() {
		longest := filepath.Join(b.sockets, string(remit.NewSandboxID()), workloadSocket+".new")
		if len(longest) > maxSocketPath {
			b.err = &remit.Error{Code: remit.CodeInvalid, Msg: fmt.Sprintf("a sandbox's sockets would have paths of %d bytes, such as %s: %d are possible",
				len(longest), longest, maxSocketPath), Hint: "choose a shorter folder for the Workload API's socket, or for the state"}
			return
		}
		var drivers []sandbox.Driver
		if drivers, b.err = sandboxDrivers(b.drivers, b.executable); b.err != nil {
			return
		}
		errs := []error{os.RemoveAll(b.sockets), os.MkdirAll(b.sockets, 0o700), os.Chmod(b.sockets, 0o700)}
		for _, d := range drivers {
			errs = append(errs, d.Sweep(context.WithoutCancel(ctx)))
		}
		b.set, b.err = sandbox.NewSet(drivers...), errors.Join(errs...)
	})
	if e, ok := errors.AsType[*remit.Error](b.err); ok {
		return nil, e
	}
	if b.err != nil {
		return nil, &remit.Error{Code: remit.CodeUnavailable, Msg: "no sandbox can be made on this host", Cause: b.err, Hint: "remit sandbox doctor says why"}
	}
	return b.set, nil
}

// choose returns the driver that a tool's sandbox would be made with now: of the tier that its file asks for or better, and never
// of less.
func (b *sandboxes) choose(ctx context.Context, t *remit.Tool) (sandbox.Driver, sandbox.Report, error) {
	set, err := b.open(ctx)
	if err != nil {
		return nil, sandbox.Report{}, err
	}
	return set.For(ctx, t.Sandbox)
}

func (b *sandboxes) close() error {
	if b.set == nil {
		return nil
	}
	return b.set.Close()
}
