// SPDX-License-Identifier: Apache-2.0

package gvisor

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"

	"remit/internal/sandbox"
)

// maker is a process that makes one sandbox and ends. It waits for which, and belongs to nothing until it knows.
type maker struct {
	cmd    *exec.Cmd
	pipes  *sandbox.Pipes
	orders *os.File
}

// order is what a maker is told.
type order struct {
	Folder string   // where it works: trace.New says why
	Args   []string // of gVisor
	Join   []string // the files of the sandbox's control groups, which it joins first
}

const ordersFD = 3

// newMaker starts a maker.
func (d *Driver) newMaker() (*maker, error) {
	pipes, err := sandbox.NewPipes()
	if err != nil {
		return nil, err
	}
	defer pipes.Given()
	theirs, orders, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, pipes.Close())
	}
	defer theirs.Close()
	m := &maker{cmd: exec.Command(d.executable), pipes: pipes, orders: orders}
	// It ends too soon to collect garbage; await takes that variable away from what it starts. Nobody asks these processes for a profile
	// of their memory, whose table is one page for each of its samples.
	m.cmd.Args, m.cmd.Env = []string{runscName}, []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "GOGC=off", "GODEBUG=memprofilerate=0", "GVISOR_SIDECAR_BINARIES_DIR=" + d.sidecars()}
	m.cmd.Dir, m.cmd.SysProcAttr, m.cmd.ExtraFiles = "/", asRoot(), []*os.File{theirs}
	ends := pipes.Guest()
	m.cmd.Stdin, m.cmd.Stdout, m.cmd.Stderr = ends[0], ends[1], ends[2]
	if err := m.cmd.Start(); err != nil {
		return nil, errors.Join(err, pipes.Close(), orders.Close())
	}
	return m, nil
}

// make lets it make a sandbox, and waits until it has. told says that it knew of which.
func (m *maker) make(ctx context.Context, o order) (told bool, err error) {
	stop := context.AfterFunc(ctx, func() { _ = m.cmd.Process.Kill() })
	defer stop()
	err = errors.Join(json.NewEncoder(m.orders).Encode(o), m.orders.Close())
	told = err == nil
	if err = errors.Join(err, m.cmd.Wait(), ctx.Err()); err != nil {
		err = fmt.Errorf("%w: %s", err, bytes.TrimSpace(m.pipes.Complaint()))
	}
	return told, err
}

// end ends a maker that nobody needed.
func (m *maker) end() error {
	err := m.orders.Close()
	_ = m.cmd.Wait() // somebody else may have ended it
	return errors.Join(err, m.pipes.Close())
}

// await is the maker's side: it waits for its order, joins the control groups before anything else, and has gVisor's arguments then.
func await() error {
	file := os.NewFile(ordersFD, "orders")
	b, err := io.ReadAll(file)
	if err == nil && len(b) == 0 { // nobody needed it
		os.Exit(0)
	}
	var o order
	if err = errors.Join(err, json.Unmarshal(b, &o), file.Close(), os.Unsetenv("GOGC")); err != nil {
		return fmt.Errorf("read which sandbox to make: %w", err)
	}
	for _, file := range o.Join {
		if err := os.WriteFile(file, []byte("0"), 0); err != nil {
			return fmt.Errorf("join the control group of the sandbox: %w", err)
		}
	}
	os.Args = append(os.Args[:1], o.Args...)
	return os.Chdir(o.Folder)
}
