// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/pprof"

	"remit/internal/api"
	"remit/internal/server"
)

// serveHere runs the server in this process, so that it can be profiled: the product has no door for that.
func (b *bench) serveHere(dir string) (*process, error) {
	ctx, cancel := context.WithCancel(context.Background())
	srv, err := server.New(ctx, server.Options{Dir: dir, Log: slog.New(slog.DiscardHandler), Version: "bench"})
	if err != nil {
		cancel()
		return nil, err
	}
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- srv.Run(ctx, func(api.Status) { close(ready) }) }()
	stop := func() {
		cancel()
		if err := <-ended; err != nil {
			fmt.Fprintln(os.Stderr, "bench: the server ended:", err)
		}
	}
	select {
	case <-ready:
	case err := <-ended:
		cancel()
		return nil, err
	}
	b.stops = append(b.stops, stop)
	return &process{pid: os.Getpid(), stop: stop}, nil
}

// profiled writes profiles of one long round at 64 connections: of the processor to the file, of allocations beside it.
func (b *bench) profiled(s *side, rule bool) (err error) {
	name := b.profile
	if rule {
		name += ".rule"
	}
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	allocs, err := os.Create(name + ".allocs")
	if err != nil {
		return errors.Join(err, f.Close())
	}
	defer func() { err = errors.Join(err, pprof.Lookup("allocs").WriteTo(allocs, 0), allocs.Close(), f.Close()) }()
	defer debug.SetGCPercent(debug.SetGCPercent(300)) // as remit serve does
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if err := pprof.StartCPUProfile(f); err != nil {
		return err
	}
	answers := s.answers
	got, err := s.measure(agents, 5*b.round)
	pprof.StopCPUProfile()
	if err != nil {
		return err
	}
	runtime.ReadMemStats(&after)
	n := uint64(s.answers - answers)
	fmt.Printf("%s: %.0f/s, p50 %s, p99 %s; with the client %.0f µs, %d allocations of %d bytes an answer, %d collections\n", name, got.rate,
		got.p50, got.p99, got.cpu, (after.Mallocs-before.Mallocs)/n, (after.TotalAlloc-before.TotalAlloc)/n, after.NumGC-before.NumGC)
	return nil
}
