// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"remit"
	"remit/internal/sandbox"
	"remit/internal/sandbox/gvisor"
	processbox "remit/internal/sandbox/process"
)

// answerer is a server over standard streams, as an MCP server is one: it imports what such servers import, and answers lines of JSON.
const answerer = `import sys, json, asyncio, logging, dataclasses, typing
for line in sys.stdin:
    m = json.loads(line)
    print(json.dumps({"jsonrpc": "2.0", "id": m["id"], "result": {}}), flush=True)
`

// importer is one that takes its time to start: many modules, and a table in memory.
const importer = `import ssl, sqlite3, decimal, fractions, statistics, ctypes, multiprocessing, concurrent.futures, urllib.request, http.server, xml.dom.minidom
import email.message, unittest.mock, pydoc, doctest, difflib, inspect, tarfile, zipfile, lzma, bz2, csv, configparser, argparse, smtplib, ftplib, imaplib, uuid
table = {str(i): i for i in range(300000)}
` + answerer

const question = `{"jsonrpc":"2.0","id":1,"method":"ping"}` + "\n"

// sandboxes measures what a tool's box costs, with the shipped binary.
func (b *bench) sandboxes(ctx context.Context) error {
	if os.Geteuid() != 0 {
		return errors.New("sandboxes are measured as root")
	}
	self, err := filepath.Abs(b.remit)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "box")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	kernel, err := gvisor.New(gvisor.Config{State: filepath.Join(dir, "k"), Executable: self})
	if err != nil {
		return err
	}
	light, err := processbox.New(processbox.Config{State: filepath.Join(dir, "p"), Executable: self})
	if err != nil {
		return err
	}
	echo := sandbox.Spec{Command: []string{"/bin/echo", "hello"}}
	for _, d := range []struct {
		driver sandbox.Driver
		name   string
		want   float64
	}{{kernel, "gVisor", 120}, {light, "process tier", 15}} {
		cold, warm, err := b.firstOutput(ctx, d.driver, echo, "")
		if err != nil {
			return err
		}
		b.table.add(row{what: d.name + ": echo, from nothing to its output", ours: figure(cold) + " ms", got: cold, want: d.want, unit: "ms"})
		b.table.add(row{what: d.name + ": echo, prepared", ours: figure(warm) + " ms"})
	}
	if err := b.pythonServer(ctx, kernel); err != nil {
		return err
	}
	return errors.Join(kernel.Close(), light.Close())
}

// firstOutput returns the medians of the time to the first line of output: from nothing, and from a prepared sandbox, in ms.
func (b *bench) firstOutput(ctx context.Context, d sandbox.Driver, s sandbox.Spec, ask string) (cold, warm float64, err error) {
	var colds, warms []float64
	for range 4 * b.rounds {
		time.Sleep(250 * time.Millisecond) // a driver starts one process ahead
		s.ID = remit.NewSandboxID()
		begun := time.Now()
		i, err := d.Prepare(ctx, s)
		if err != nil {
			return 0, 0, err
		}
		prepared := time.Now()
		err = i.Start(ctx)
		if err == nil {
			_, err = io.WriteString(i.Stdin(), ask)
		}
		if err == nil {
			_, err = bufio.NewReader(i.Stdout()).ReadString('\n')
		}
		colds, warms = append(colds, ms(time.Since(begun))), append(warms, ms(time.Since(prepared)))
		if err = errors.Join(err, i.Destroy(ctx)); err != nil {
			return 0, 0, fmt.Errorf("%w: %s", err, i.Stderr())
		}
	}
	return median(colds), median(warms), nil
}

func (b *bench) pythonServer(ctx context.Context, d sandbox.Driver) error {
	s := sandbox.Spec{Command: []string{"/usr/bin/python3", "-c", answerer}}
	cold, warm, err := b.firstOutput(ctx, d, s, question)
	if err != nil {
		return err
	}
	b.table.add(row{what: "gVisor: Python server's first reply, from nothing", ours: figure(cold) + " ms", got: cold, want: 220, unit: "ms"})
	b.table.add(row{what: "gVisor: Python server's first reply, prepared", ours: figure(warm) + " ms", got: warm, want: 130, unit: "ms"})
	if err := b.fromImage(ctx, d); err != nil {
		return err
	}
	i, err := started(ctx, d, s)
	if err != nil {
		return err
	}
	defer func() { _ = i.Destroy(ctx) }()
	in := bufio.NewReader(i.Stdout())
	var trips []float64
	for range 2000 {
		begun := time.Now()
		if _, err := io.WriteString(i.Stdin(), question); err != nil {
			return err
		}
		if _, err := in.ReadString('\n'); err != nil {
			return err
		}
		trips = append(trips, float64(time.Since(begun).Microseconds()))
	}
	time.Sleep(2 * time.Second) // idle
	u, err := i.Usage()
	if err != nil {
		return err
	}
	b.table.add(row{what: "gVisor: round trip over standard streams", ours: figure(median(trips)) + " µs", got: median(trips), want: 300, unit: "µs"})
	b.table.add(row{what: "gVisor: an idle sandbox, Python in it", ours: fmt.Sprintf("%d MB", u.Memory>>20), got: float64(u.Memory >> 20), want: 25, unit: "MB"})
	return nil
}

// started is a sandbox in which the command runs.
func started(ctx context.Context, d sandbox.Driver, s sandbox.Spec) (*sandbox.Instance, error) {
	s.ID = remit.NewSandboxID()
	i, err := d.Prepare(ctx, s)
	if err != nil {
		return nil, err
	}
	if err := i.Start(ctx); err != nil {
		return nil, errors.Join(err, i.Destroy(ctx))
	}
	return i, nil
}

// fromImage compares the start of a tool with slow imports with its start from a checkpoint, both in a prepared sandbox.
func (b *bench) fromImage(ctx context.Context, d sandbox.Driver) error {
	s := sandbox.Spec{Command: []string{"/usr/bin/python3", "-c", importer}}
	_, begun, err := b.firstOutput(ctx, d, s, question)
	if err != nil {
		return err
	}
	i, err := started(ctx, d, s)
	if err != nil {
		return err
	}
	defer func() { _ = i.Destroy(ctx) }()
	if _, err := io.WriteString(i.Stdin(), question); err != nil {
		return err
	}
	if _, err := bufio.NewReader(i.Stdout()).ReadString('\n'); err != nil {
		return err
	}
	s.Image = b.path("tool-image")
	if err := i.Checkpoint(ctx, s.Image); err != nil {
		return err
	}
	_, restored, err := b.firstOutput(ctx, d, s, question)
	b.table.add(row{what: "gVisor: a tool with slow imports, first reply, prepared", ours: figure(restored) + " ms from its checkpoint",
		theirs: figure(begun) + " ms from its beginning", got: begun / restored, unit: "× faster"})
	return err
}
