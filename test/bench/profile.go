// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
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

// profiled writes a CPU profile of one long round at 64 connections.
func (b *bench) profiled(s *side, rule bool) (err error) {
	name := b.profile
	if rule {
		name += ".rule"
	}
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := pprof.StartCPUProfile(f); err != nil {
		return err
	}
	got, err := s.measure(agents, 5*b.round)
	pprof.StopCPUProfile()
	if err == nil {
		fmt.Printf("%s: %.0f/s, p50 %s, p99 %s, CPU %.0f µs with the client\n", name, got.rate, got.p50, got.p99, got.cpu)
	}
	return err
}
